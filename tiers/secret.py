"""Credentials of a connection: a password from the settings or from a file, TLS files that exist, and neither shown."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from tiers.errors import SettingsError

MASK = "***"


def password(given: str, file: str, key: str) -> str:
    """Return the password that stands in the settings or, without its last line end, in the file; "" for none.

    `key` is where it is set ("warm"). SettingsError names the key and never the content.
    """
    if given and file:
        raise SettingsError(f"{key}.password_file: there is a {key}.password too; set one of them")
    if not file:
        return given
    try:
        found = Path(file).read_text().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{key}.password_file = {file!r}: {reason(error)}") from None
    if not found:
        raise SettingsError(f"{key}.password_file = {file!r}: the file is empty")
    return found


def context(ca_file: str, cert_file: str, key_file: str, key: str) -> ssl.SSLContext:
    """Return the TLS of a client: the server's name is checked, against `ca_file` or else the system's authorities.

    SettingsError names the file that does not do.
    """
    try:
        made = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # SSLError is one
        raise SettingsError(f"{key}.ca_file = {ca_file!r}: {reason(error)}") from None
    if cert_file or key_file:
        if not (cert_file and key_file):
            raise SettingsError(f"{key}.{'cert_file' if key_file else 'key_file'}: a client certificate needs both")
        try:
            made.load_cert_chain(cert_file, key_file, password=_refuse)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{key}.cert_file = {cert_file!r}, {key}.key_file = {key_file!r}: {reason(error)}"
            ) from None
    return made


def _refuse() -> str:
    """Answer a key that asks for a passphrase: OpenSSL would ask on the terminal, and wait."""
    raise ValueError("the key has a passphrase; give one without")


def reason(error: Exception) -> str:
    """Return what went wrong with a file, in words."""
    if isinstance(error, ssl.SSLError):
        return f"no PEM file that fits ({error.reason or error})"
    return str(getattr(error, "strerror", None) or error)


def masked(secret: str) -> str:
    """Return what may be shown of a secret."""
    return MASK if secret else ""


def masked_url(url: str) -> str:
    """Return what may be shown of a URL: no password before its host, even one with a slash, and none in its query."""
    shown = re.sub(r"^(\w[\w+.-]*://[^:@/?]*):.*@", rf"\1:{MASK}@", url, flags=re.DOTALL)
    start, mark, query = shown.partition("?")
    return f"{start}?{MASK}" if mark and "pass" in query.lower() else shown
