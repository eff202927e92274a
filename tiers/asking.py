"""Asking a remote store: each request is counted, repeated a few times where it may be, and its errors told apart.

Of a request without a good answer the question is whether it may have been carried out (`NotAnswered.taken`). It was
not if no connection was made, or if the server turned it away (503, 429). Everything else counts as perhaps.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from tiers.errors import TierUnavailable
from tiers.storage import Traffic

T = TypeVar("T")

PAUSES_S = (0.1, 0.3, 1.0, 3.0)  # between tries of one request, each doubled at most by jitter
TURNED_AWAY = frozenset({"429", "503"})
STATUS = re.compile(r"non-2xx status code: (\d{3})")
NOT_SENT = "kind: Connect"  # obstore's word for a connection that was never made


class NotAnswered(Exception):
    """A request without a usable answer. `taken`: it may have been carried out all the same."""

    def __init__(self, message: str, *, taken: bool) -> None:
        super().__init__(message)
        self.taken = taken


class Asking:
    """Asks on the calling thread. `who` names the store in errors; `pause` waits, in seconds."""

    def __init__(self, who: str, timeout_s: float, pause: Callable[[float], None]) -> None:
        self.who, self._timeout_s, self._pause = who, timeout_s, pause
        self.traffic = Traffic()

    def ask(self, operation: str, carried: int, job: Callable[[], T]) -> T:
        """Ask until answered, a few times; for what may be repeated. FileNotFoundError, FileExistsError."""
        refusal: NotAnswered | None = None
        for _ in self.tries(1 + len(PAUSES_S)):
            try:
                return self.once(operation, carried, job)
            except NotAnswered as error:
                refusal = error
        raise TierUnavailable(f"{self.who} does not answer: {refusal}") from refusal

    def tries(self, count: int) -> Iterator[int]:
        """Count tries, with pauses between them; no more once `count` requests could have timed out."""
        until_s = time.monotonic() + count * self._timeout_s
        for attempt in range(count):
            if attempt:
                pause_s = PAUSES_S[min(attempt, len(PAUSES_S)) - 1]
                if time.monotonic() + pause_s > until_s:
                    return
                self._pause(pause_s * random.uniform(1, 2))  # noqa: S311 - jitter
            yield attempt

    def once(self, operation: str, carried: int, job: Callable[[], T]) -> T:
        """Send one request and count it: the bytes of content sent, or those of an answer that is bytes.

        FileNotFoundError, FileExistsError, NotAnswered; TierUnavailable for a 403.
        """
        failed = False
        try:
            answer = job()
            if isinstance(answer, bytes):
                carried = len(answer)
        except (FileNotFoundError, NotFoundError) as error:
            raise FileNotFoundError(line(error)) from None
        except AlreadyExistsError as error:
            raise FileExistsError(line(error)) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            failed = True
            raise TierUnavailable(f"{self.who}: the credentials may not {operation}: {line(error)}") from None
        except (BaseError, OSError) as error:
            failed = True
            status = STATUS.search(str(error))
            taken = status[1] not in TURNED_AWAY if status else NOT_SENT not in str(error)
            raise NotAnswered(line(error), taken=taken) from None
        finally:
            self.traffic.add(operation, carried, failed=failed)
        return answer


def line(error: Exception) -> str:
    """Return an error's first line: obstore's others are for debugging."""
    return str(error).partition("\n")[0]
