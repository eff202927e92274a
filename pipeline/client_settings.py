"""What both clients take for granted: where the gateway is, who we are to it, and how long we wait."""

from __future__ import annotations

import os
import re
import ssl
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import httpx

from tiers.errors import SettingsError

GATEWAY = "http://127.0.0.1:8080"
KEY = "ISOTHERM_KEY"
TIMEOUT_S = 30.0
CONNECT_S = 5.0
RETRIES = 3
#: A server closes a connection that was idle for five seconds; ours goes first, so that no request is sent into one
#: that is being closed: of a write it would not be known whether it arrived.
LIMITS = httpx.Limits(max_connections=20, max_keepalive_connections=10, keepalive_expiry=2.0)


def base_of(url: str) -> str:
    """Return the gateway's address without a final slash; SettingsError for what is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"{url!r} is no address of a gateway ({error}); write it as in {GATEWAY}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(f"{url!r} is no address of a gateway; write it as in {GATEWAY}")
    return url.rstrip("/")


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def verify_of(url: str) -> ssl.SSLContext:
    """Return how a server proves its name: by the system's authorities, which take 30 ms to read, so once and on need.

    Without TLS in the URL there is nothing to prove, and a context that trusts nobody.
    """
    return _trusted() if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def headers_of(key: str | None) -> dict[str, str]:
    """Return what every request carries; SettingsError for a key that cannot be one, which is not repeated."""
    headers = {"user-agent": f"isotherm/{_version()}"}
    key = os.environ.get(KEY) if key is None else key
    if not key:
        return headers
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise SettingsError(f"{KEY}: a key has no spaces or other than plain characters; was it copied whole?")
    return {**headers, "authorization": f"Bearer {key}"}


def _version() -> str:
    try:
        return version("isotherm")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0"
