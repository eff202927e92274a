"""API keys as values: what a key is, how it is made, checked, rotated and revoked. Pure; time and chance are arguments.

A key is `iso_<id>_<secret>`: 12 hex digits that may be shown, and 32 random bytes as base64url that are shown once.
What is kept is BLAKE2b of both, keyed with the installation's pepper, which lies in another file: neither file alone
tells whether a guess is right. A secret of 256 random bits needs no slow hash, which every request would pay for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from pipeline.auth import SCOPES
from tiers import record
from tiers.errors import InvalidRecord

ID_BYTES, SECRET_BYTES, PEPPER_BYTES = 6, 32, 32
KEYS_MAX = 10_000  # of a file: each has a bucket in memory
NAME_CHARS_MAX = 64
LIFETIME_MAX = timedelta(days=36_500)

_TOKEN = re.compile(r"iso_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_DURATION = re.compile(r"(\d{1,5})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests a second, those that may come at once on top, and those under way together; 0 = no limit."""

    rate_per_s: float = 0.0
    burst: int = 0
    concurrent: int = 0


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as the file has it; `namespaces` null means all. Limits that are null are the settings'."""

    id: str
    name: str
    hash: str
    scopes: list[str]
    namespaces: list[str] | None
    created: datetime
    not_before: datetime | None = None
    expires: datetime | None = None
    revoked: datetime | None = None
    replaces: str | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    concurrent: int | None = None

    def __repr__(self) -> str:
        return f"Key({self.id!r}, {self.name!r})"


class Asked(NamedTuple):
    """What a new key is to be."""

    name: str
    scopes: Sequence[str]
    namespaces: Sequence[str] | None
    not_before: datetime | None = None
    expires: datetime | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    concurrent: int | None = None


class Token(NamedTuple):
    """A key as its holder shows it."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.id!r}, ***)"

    def text(self) -> str:
        """Return what the holder is given; it is not kept."""
        return f"iso_{self.id}_{self.secret}"


def parse_token(text: str) -> Token | None:
    """Return the token in a text, None when it is none."""
    found = _TOKEN.fullmatch(text)
    return Token(found[1], found[2]) if found else None


def new_token(chance: bytes) -> Token:
    """Return the token made of ID_BYTES + SECRET_BYTES random bytes."""
    assert len(chance) == ID_BYTES + SECRET_BYTES
    return Token(chance[:ID_BYTES].hex(), base64.urlsafe_b64encode(chance[ID_BYTES:]).decode().rstrip("="))


def digest(token: Token, pepper: bytes) -> bytes:
    """Return the keyed hash of a token; the id is in it, so that no hash can be moved to another key."""
    return hashlib.blake2b(token.text().encode(), key=pepper, digest_size=32, person=b"isotherm-key").digest()


def matches(token: Token, kept: bytes | None, pepper: bytes) -> bool:
    """Say whether a token has the hash that is kept; takes as long where there is none."""
    same = hmac.compare_digest(digest(token, pepper), kept if kept is not None else bytes(32))
    return same and kept is not None


def state(key: Key, now: datetime) -> str:
    """Return "live", "revoked", "expired" or "not yet valid"."""
    if key.revoked is not None:
        return "revoked"
    if key.expires is not None and now >= key.expires:
        return "expired"
    if key.not_before is not None and now < key.not_before:
        return "not yet valid"
    return "live"


# -- changing ----------------------------------------------------------------------------------------------------------


def create(keys: Sequence[Key], asked: Asked, chance: bytes, pepper: bytes, now: datetime) -> tuple[list[Key], Token]:
    """Return the keys with a new one, and its token; InvalidRecord names what is wrong."""
    check(asked, now)
    if len(keys) >= KEYS_MAX:
        raise InvalidRecord("keys", f"there are {KEYS_MAX} keys already; revoke some, and prune what is dead")
    token = new_token(chance)
    if any(key.id == token.id for key in keys):
        raise InvalidRecord("keys", "the random id is taken; try again")
    made = Key(
        id=token.id,
        name=asked.name,
        hash=digest(token, pepper).hex(),
        scopes=[scope for scope in SCOPES if scope in asked.scopes],
        namespaces=None if asked.namespaces is None else sorted(set(asked.namespaces)),
        created=now,
        not_before=asked.not_before,
        expires=asked.expires,
        rate_per_s=asked.rate_per_s,
        burst=asked.burst,
        concurrent=asked.concurrent,
    )
    return [*keys, made], token


def revoke(keys: Sequence[Key], identifier: str, now: datetime) -> list[Key]:
    """Return the keys with one revoked, for good; revoking again changes nothing."""
    old = named(keys, identifier)
    revoked = msgspec.structs.replace(old, revoked=old.revoked or now)
    return [revoked if key.id == old.id else key for key in keys]


def rotate(
    keys: Sequence[Key], identifier: str, overlap: timedelta, chance: bytes, pepper: bytes, now: datetime
) -> tuple[list[Key], Token]:
    """Return the keys with a successor of one that may do the same, and its token; the old one ends after `overlap`.

    A key that lived for a time has a successor that lives as long, counted from now.
    """
    old = named(keys, identifier)
    if state(old, now) != "live":
        raise InvalidRecord("id", f"key {old.id} is {state(old, now)}: there is nothing to rotate; create a new one")
    lifetime = None if old.expires is None else old.expires - max(old.created, old.not_before or old.created)
    asked = Asked(
        old.name,
        old.scopes,
        old.namespaces,
        expires=None if lifetime is None else now + lifetime,
        rate_per_s=old.rate_per_s,
        burst=old.burst,
        concurrent=old.concurrent,
    )
    more, token = create(keys, asked, chance, pepper, now)
    ends = now + overlap if old.expires is None else min(old.expires, now + overlap)
    ending = msgspec.structs.replace(old, expires=ends)
    successor = msgspec.structs.replace(more[-1], replaces=old.id)
    return [*(ending if key.id == old.id else key for key in keys), successor], token


def prune(keys: Iterable[Key], now: datetime) -> list[Key]:
    """Return the keys without those that will never be valid again."""
    return [key for key in keys if state(key, now) not in ("revoked", "expired")]


def named(keys: Iterable[Key], identifier: str) -> Key:
    """Return the key of this id; InvalidRecord("id") when there is none."""
    for key in keys:
        if key.id == identifier:
            return key
    raise InvalidRecord("id", "there is no key of this id; `isotherm keys list` shows them")


def check(asked: Asked, now: datetime) -> None:
    """Raise InvalidRecord for a key that cannot be meant."""
    wrong = [
        ("name", not 1 <= len(asked.name) <= NAME_CHARS_MAX or not asked.name.isprintable(), "1 to 64 characters"),
        ("scopes", not asked.scopes or not set(asked.scopes) <= set(SCOPES), f"some of {', '.join(SCOPES)}"),
        ("namespaces", asked.namespaces is not None and not asked.namespaces, "name at least one, or ask for all"),
        ("expires", asked.expires is not None and not now < asked.expires < now + LIFETIME_MAX, "a time ahead"),
        (
            "not_before",
            None not in (asked.not_before, asked.expires) and asked.not_before >= asked.expires,  # type: ignore[operator]
            "it lies before `expires`",
        ),
        ("rate_per_s", asked.rate_per_s is not None and not 0 <= asked.rate_per_s < 1e9, "0 (none) or more"),
        ("burst", asked.burst is not None and not 0 <= asked.burst < 1e9, "0 (none) or more"),
        ("concurrent", asked.concurrent is not None and not 0 <= asked.concurrent < 1e9, "0 (none) or more"),
    ]
    for name, bad, reason in wrong:
        if bad:
            raise InvalidRecord(name, f"{name}: {reason}")
    for name in asked.namespaces or ():
        record.check_id(f"{name}/x")
        if "/" in name:
            raise InvalidRecord("namespaces", f"namespaces: {name[:64]!r} has a slash: a namespace ends before it")


def moment(text: str, now: datetime) -> datetime:
    """Return a time written as a duration from now ("90m", "24h", "30d") or as RFC 3339; InvalidRecord("time")."""
    if _DURATION.fullmatch(text):
        return now + duration(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InvalidRecord("time", f"{text[:40]!r} is neither a duration (90m, 24h, 30d) nor a time with a zone")
    return found.astimezone(UTC)


def duration(text: str) -> timedelta:
    """Return a duration such as "24h"; InvalidRecord("time") otherwise."""
    found = _DURATION.fullmatch(text)
    if not found:
        raise InvalidRecord("time", f"{text[:40]!r} is no duration; write 45s, 90m, 24h, 30d or 2w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
