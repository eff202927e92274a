"""What glacier can be told, and where that puts it: a directory or a bucket."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tiers import disk, secret
from tiers.bucket import Bucket
from tiers.credentials import Keys
from tiers.disk import Disk
from tiers.errors import SettingsError
from tiers.parquet import FILE_ROWS_MAX, Style
from tiers.storage import Storage

BATCH_ROWS_MAX = 8192  # of what `retrieve_all` yields
NOT_NEGATIVE = ("cache_bytes", "search_groups_max", "vacuum_after_s", "bytes_limit")
COMPRESSIONS = ("zstd", "snappy", "none")
S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(/[A-Za-z0-9!_.*'()=-]+)*)/?")


class GlacierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` is a local directory, or s3://bucket/prefix; empty means `glacier` below the data directory.

    Of a bucket: `endpoint` is the server's URL (empty: AWS), `allow_http` permits one without TLS. Credentials come
    from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or from `credentials_file`, a file as the
    AWS tools keep it; they are no settings, so that nothing shows them. `timeout_s` bounds one request.

    A row group of `row_group_rows` is what one read decodes; a file ends at `file_rows_max` rows or `file_bytes_max`
    bytes. `level` is zstd's. `cache_bytes` bounds the rows kept in memory. Replaced files are removed `vacuum_after_s`
    later: so long a reader may hold on to a version. `bytes_limit` bounds the bytes of all files, replaced ones among
    them (0 = none). From a bucket a search reads at most `search_groups_max` row groups beyond the cache (0 = any
    number): those of its best candidates.
    """

    path: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    allow_http: bool = False
    credentials_file: str = ""
    timeout_s: float = 30.0
    row_group_rows: int = 1024
    file_rows_max: int = 1_048_576
    file_bytes_max: int = 134_217_728
    compression: str = "zstd"
    level: int = 3
    cache_bytes: int = 268_435_456
    search_groups_max: int = 32
    vacuum_after_s: float = 3600.0
    bytes_limit: int = 0

    def __repr__(self) -> str:
        return f"GlacierSettings({secret.masked_url(self.path)!r}, endpoint={secret.masked_url(self.endpoint)!r})"


def style(settings: GlacierSettings) -> Style:
    """Return how files are written."""
    return Style(
        settings.row_group_rows,
        settings.compression,
        settings.level,
        file_rows=settings.file_rows_max,
        file_bytes=settings.file_bytes_max,
    )


def storage(settings: GlacierSettings, fsync: Callable[[Path], None] = disk.fsync) -> Storage:
    """Return where the archive lies; ServiceMissing if a bucket's credentials are not there. Nothing is asked yet."""
    match = S3.fullmatch(settings.path)
    if match is None:
        return Disk(settings.path, fsync)
    return Bucket(
        match["bucket"],
        match["prefix"].strip("/"),
        Keys.found(settings.credentials_file),
        endpoint=settings.endpoint,
        region=settings.region,
        allow_http=settings.allow_http,
        timeout_s=settings.timeout_s,
    )


def check(settings: GlacierSettings) -> None:
    """Refuse what cannot work."""
    remote = "://" in settings.path
    plain = settings.endpoint.startswith("http://")
    wrong = [
        ("path", not settings.path, "name the directory of the archive, or s3://bucket/prefix"),
        ("path", remote and "@" in settings.path, "credentials go into the environment or glacier.credentials_file"),
        (
            "path",
            remote and S3.fullmatch(settings.path) is None,
            "s3://bucket/prefix, of letters, digits and !-_.*'()=",
        ),
        ("endpoint", "@" in settings.endpoint, "credentials go into the environment or glacier.credentials_file"),
        ("endpoint", bool(settings.endpoint) and not remote, "only for a glacier.path that begins with s3://"),
        ("endpoint", bool(settings.endpoint) and not _is_url(settings.endpoint), "http(s)://host:port"),
        ("endpoint", plain and not settings.allow_http, "set glacier.allow_http for a server without TLS"),
        ("timeout_s", not 0 < settings.timeout_s <= 3600, "more than 0, at most 3600"),
        ("row_group_rows", not 1 <= settings.row_group_rows <= BATCH_ROWS_MAX, f"1 to {BATCH_ROWS_MAX}"),
        (
            "file_rows_max",
            not settings.row_group_rows <= settings.file_rows_max < FILE_ROWS_MAX,
            f"at least row_group_rows ({settings.row_group_rows}), less than {FILE_ROWS_MAX}",
        ),
        ("file_bytes_max", not 1 <= settings.file_bytes_max <= 1 << 30, "1 to 1073741824, what one PUT can carry well"),
        ("compression", settings.compression not in COMPRESSIONS, f"one of {', '.join(COMPRESSIONS)}"),
        ("level", not 1 <= settings.level <= 22, "1 to 22"),
        *((key, getattr(settings, key) < 0, "0 or more") for key in NOT_NEGATIVE),
    ]
    for key, bad, reason in wrong:
        if bad:
            raise SettingsError(f"glacier.{key} = {_shown(getattr(settings, key))}: {reason}")


def _is_url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/") and not parts.query


def _shown(value: object) -> str:
    """Return a value for an error, without what may be a password."""
    return repr(secret.masked_url(value)) if isinstance(value, str) else repr(value)
