"""What warm can be told: where its server is, who we are to it, and how much it may hold."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

from tiers import secret
from tiers.errors import SettingsError
from tiers.warm_keys import PREFIX
from tiers.warm_scripts import ROWS_MAX

SCHEMES = ("redis", "rediss", "unix")


class WarmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`buckets` a partition are what a cluster could spread; `bytes_limit` 0 = the server's maxmemory.

    A read waits `timeout_ms`. What writes waits `write_timeout_ms` for its answer: past it the outcome is unknown, and
    that ends the node, so a server that hangs for a while should not come to it.

    `username` and a password are those of an ACL user; the files (PEM) count with a rediss:// URL.
    """

    url: str = "redis://127.0.0.1:6379/0"
    username: str = ""
    password: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    prefix: str = "isotherm"
    buckets: int = 4
    rows_per_call: int = 250
    bytes_limit: int = 0
    timeout_ms: int = 5_000
    write_timeout_ms: int = 30_000
    connections: int = 16

    def __post_init__(self) -> None:
        """Raise SettingsError for what cannot work."""
        if not PREFIX.fullmatch(self.prefix):
            raise SettingsError(f"warm.prefix: {self.prefix!r} is not 1-64 of letters, digits, '.', '_' and '-'")
        if not 1 <= self.rows_per_call <= ROWS_MAX:
            raise SettingsError(f"warm.rows_per_call: {self.rows_per_call} is not within 1 and {ROWS_MAX}")
        if min(self.buckets, self.timeout_ms, self.write_timeout_ms, self.connections) < 1 or self.bytes_limit < 0:
            raise SettingsError("warm: buckets, timeouts and connections are at least 1, bytes_limit at least 0")
        try:
            url = urlsplit(self.url)
            known, named = url.scheme in SCHEMES and url.port != 0, url.username or url.password
        except ValueError:  # its text repeats the URL, and a URL may hold a password
            known = False
        if not known:
            raise SettingsError(f"warm.url: not a URL such as redis://host:6379/0 ({', '.join(SCHEMES)})") from None
        if named and (self.username or self.password or self.password_file):
            raise SettingsError("warm.url: it names a user, and so do warm.username or warm.password; set one of them")
        if self.username and not (self.password or self.password_file):
            raise SettingsError("warm.username: set warm.password (ISOTHERM_WARM__PASSWORD) or warm.password_file too")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name)]
        if files and url.scheme != "rediss":
            raise SettingsError(f"warm.{files[0]}: warm.url is not encrypted; write rediss://")

    @property
    def answer_s(self) -> float:
        """Return how long a write waits for its answer, in seconds."""
        return self.write_timeout_ms / 1000

    def __repr__(self) -> str:
        return f"WarmSettings({self.prefix!r}, username={self.username!r}, password={secret.masked(self.password)!r})"

    def security(self) -> dict[str, Any]:
        """Return redis-py's arguments for who we are and whom we trust; SettingsError for a file that does not do."""
        given: dict[str, Any] = {}
        if found := secret.password(self.password, self.password_file, "warm"):
            given |= {"username": self.username or None, "password": found}
        if self.url.startswith("rediss://"):
            secret.context(self.ca_file, self.cert_file, self.key_file, "warm")  # redis-py makes its own, and waits
            given |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": self.ca_file or None}
            given |= {"ssl_certfile": self.cert_file or None, "ssl_keyfile": self.key_file or None}
        return given
