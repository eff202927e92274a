"""A bucket of S3 as the archive's storage, through obstore.

An answered PUT is the proof of durability. What makes commits safe is `If-None-Match: *`: a PUT that creates or fails.
`prepare` tries it, since some servers ignore it.

No library repeats a request here (retries are off); what is repeated is repeated by tiers/asking.py, and counted. A PUT
that has no answer may be there, or not, or land later. `put_new` then reads back, and where nothing is there writes the
very same bytes again under the same condition: whichever of the two comes first, the name has these bytes or another
writer's, and stays so. Where no answer comes at all, it says so (OutcomeUnknown).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import obstore
import pyarrow as pa
from obstore.store import S3Store

from tiers.asking import PAUSES_S, Asking, NotAnswered, line
from tiers.credentials import Keys
from tiers.errors import OutcomeUnknown, ServiceMissing, TierUnavailable
from tiers.ranges import Ranges

PATIENCE = 12  # tries to find out what a commit without an answer has done
PAGE = 1000  # names in an answer to a listing, or in one deletion


class Bucket:
    """A prefix of a bucket; see Storage. `pause` waits, in seconds."""

    proof = "PUT of file and Delta log entry acknowledged by S3 and read back"
    readers = 8
    remote = True

    def __init__(
        self,
        bucket: str,
        prefix: str,
        keys: Keys,
        *,
        endpoint: str,
        region: str,
        allow_http: bool,
        timeout_s: float,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.options: dict[str, str] | None = _options(keys, endpoint, region, timeout_s, allow_http=allow_http)
        self._endpoint = endpoint or "AWS"
        self._asking = Asking(f"{self.uri} at {self._endpoint}", timeout_s, pause)
        self.traffic = self._asking.traffic
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            config={
                "access_key_id": keys.access,
                "secret_access_key": keys.secret,
                "region": region,
                **({"session_token": keys.token} if keys.token else {}),
                **({"endpoint": endpoint} if endpoint else {}),
            },
            client_options={
                "allow_http": allow_http,
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=min(5.0, timeout_s)),
            },
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
        )

    def __repr__(self) -> str:
        return f"<Bucket {self.uri} at {self._endpoint}>"

    def prepare(self) -> None:
        """See Storage. Looks, with one object written twice, whether the server holds `If-None-Match`."""
        probe = f"isotherm-probe-{uuid4().hex}"
        try:
            self._asking.ask("put", 1, lambda: self._put(probe, b"1"))
            try:
                self._asking.ask("put", 1, lambda: self._put(probe, b"2"))
            except FileExistsError:
                return
            finally:
                self.remove([probe])
        except (FileNotFoundError, TierUnavailable) as error:
            raise ServiceMissing(
                f"{self.uri} at {self._endpoint} takes no writes: {line(error)}; "
                "look at glacier.endpoint, the bucket's name, and what the credentials may do"
            ) from error
        raise ServiceMissing(
            f"{self._endpoint} ignores If-None-Match: two writers could commit the same version of the archive; "
            "use a server that honours conditional writes (AWS S3, SeaweedFS)"
        )

    @contextmanager
    def create(self, path: str) -> Iterator[pa.NativeFile]:
        """See Storage. Held in memory until it is whole: a file's bytes are bounded (glacier.file_bytes_max)."""
        with pa.BufferOutputStream() as sink:
            yield sink
            content = memoryview(sink.getvalue()).cast("B")
        try:
            self._asking.ask("put", content.nbytes, lambda: self._put(path, content))
        except FileExistsError:
            if self.size(path) != content.nbytes:  # else ours: an earlier try of it was carried out and not answered
                raise

    def put_new(self, path: str, content: bytes) -> None:
        """See Storage, and the module on what is done when no answer comes."""
        refusal: Exception | None = None
        doubt = False  # a try may have been carried out, or may be yet
        for attempt in self._asking.tries(PATIENCE):
            try:
                there = self._found(path) if doubt else None
                if there is None:
                    if self._made(path, content):
                        return
                    doubt = True
                    there = self._found(path)  # the name is taken: by whom?
            except NotAnswered as error:
                doubt, refusal = doubt or error.taken, error
                if not doubt and attempt == len(PAUSES_S):
                    break
                continue
            except TierUnavailable as error:
                if not doubt:
                    raise
                refusal = error
                continue
            if there == content:
                return
            if there is not None:
                raise FileExistsError(path)
        if doubt:
            raise OutcomeUnknown(f"{path} was sent to {self._endpoint}, and nothing says what became of it: {refusal}")
        raise TierUnavailable(f"{path} was not written: {refusal}") from refusal

    def open(self, path: str, size: int | None = None) -> pa.NativeFile:
        """See Storage. Reads are range requests."""
        size = self.size(path) if size is None else size
        return pa.PythonFile(Ranges(size, lambda start, length: self._range(path, start, length)), mode="r")

    def read(self, path: str) -> bytes:
        """See Storage."""
        return self._asking.ask("get", 0, lambda: self._whole(path))

    def size(self, path: str) -> int:
        """See Storage."""
        return int(self._asking.ask("head", 0, lambda: obstore.head(self._store, path))["size"])

    def sync(self, paths: Iterable[str]) -> None:
        """See Storage: an answered PUT is durable."""

    def list(self, folder: str, after: str = "") -> list[str]:
        """See Storage. A page has a thousand names; each is a request."""

        def listing() -> Any:
            return obstore.list(self._store, f"{folder}/", offset=after or None, chunk_size=PAGE).collect()

        found = [each["path"] for each in self._asking.ask("list", 0, listing)]
        for _ in range(PAGE, len(found) + 1, PAGE):
            self.traffic.add("list", 0, failed=False)
        return sorted(path for path in found if "/" not in path[len(folder) + 1 :])

    def put_aside(self, path: str) -> None:
        """See Storage."""
        with suppress(FileNotFoundError):
            self._asking.ask("put", 0, lambda: obstore.rename(self._store, path, f"{path}.torn"))

    def remove(self, paths: Iterable[str]) -> None:
        """See Storage; up to a thousand in a request."""
        gone = sorted(paths)
        for some in (gone[start : start + PAGE] for start in range(0, len(gone), PAGE)):
            with suppress(FileNotFoundError):
                self._asking.ask("delete", 0, partial(obstore.delete, self._store, some))

    # -- asking ------------------------------------------------------------------------------------------------------

    def _put(self, path: str, content: Any) -> None:
        obstore.put(self._store, path, content, mode="create", use_multipart=False)

    def _whole(self, path: str) -> bytes:
        return bytes(obstore.get(self._store, path).bytes())

    def _range(self, path: str, start: int, length: int) -> bytes:
        return self._asking.ask(
            "get", 0, lambda: bytes(obstore.get_range(self._store, path, start=start, length=length))
        )

    def _found(self, path: str) -> bytes | None:
        """Return a small file, None if there is none. NotAnswered."""
        try:
            return self._asking.once("get", 0, lambda: self._whole(path))
        except FileNotFoundError:
            return None

    def _made(self, path: str, content: bytes) -> bool:
        """Write a small file; False if its name is taken. NotAnswered."""
        try:
            self._asking.once("put", len(content), lambda: self._put(path, content))
        except FileExistsError:
            return False
        return True


def _options(keys: Keys, endpoint: str, region: str, timeout_s: float, *, allow_http: bool) -> dict[str, str]:
    """Return what delta-rs opens the bucket with. It only reads, and writes checkpoints: what may be repeated."""
    return {
        "AWS_ACCESS_KEY_ID": keys.access,
        "AWS_SECRET_ACCESS_KEY": keys.secret,
        **({"AWS_SESSION_TOKEN": keys.token} if keys.token else {}),
        "AWS_REGION": region,
        **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}),
        "AWS_ALLOW_HTTP": str(allow_http).lower(),
        "aws_conditional_put": "etag",
        "timeout": f"{timeout_s * 1000:.0f}ms",
        "connect_timeout": f"{min(5.0, timeout_s) * 1000:.0f}ms",
        "max_retries": str(len(PAUSES_S)),
        "retry_timeout": f"{timeout_s * len(PAUSES_S) * 1000:.0f}ms",
    }
