"""The keys of a running gateway: follows the key file, and says whose a token is.

The file is looked at when a request comes, at most once a second; from then on what was revoked is refused. Once keys
have been seen nobody comes in without one: a file that is gone or broken lets nobody in, rather than everybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from pipeline import keys
from pipeline.auth import Principal
from pipeline.key_file import KeyFiles
from pipeline.keys import Key, Limits
from tiers.errors import IsothermError, SettingsError

log = structlog.get_logger()

LOOK_S = 1.0


class KeysUnreadable(IsothermError):
    """The key file is there and cannot be read: nobody is let in until it can."""

    retriable = True


class Grant(NamedTuple):
    """A key as the gateway keeps it: its hash, and what it allows while it is live."""

    key: Key
    hash: bytes
    principal: Principal
    limits: Limits


class Refusal(NamedTuple):
    """Why a token lets nobody in, in words for its holder; to whoever has not the secret it says nothing of the key."""

    reason: str


class Keyring:
    """`now` is the wall clock (expiry), `monotonic_s` that of the looks; `defaults` hold where a key says nothing."""

    def __init__(
        self,
        files: KeyFiles,
        defaults: Limits,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._defaults, self._now, self.monotonic_s = files, defaults, now, monotonic_s
        self._grants: dict[str, Grant] = {}
        self._pepper = bytes(32)
        self._signature: tuple[int, ...] | None = None
        self._looked_s = -LOOK_S
        self._broken = ""
        self.required = False  # once true it stays true

    def open(self) -> None:
        """Read the file; SettingsError when it is there and does not do."""
        self._look()
        if self._broken:
            raise SettingsError(self._broken)

    def live(self) -> int:
        """Return how many keys are valid now."""
        now = self._now()
        return sum(keys.state(grant.key, now) == "live" for grant in self._grants.values())

    def find(self, text: str) -> Grant | Refusal:
        """Return what a token allows, or why it allows nothing; KeysUnreadable."""
        token = keys.parse_token(text)
        if token is None:
            return Refusal("this is no key; one looks like iso_<id>_<secret>")
        grant = self._grants.get(token.id)
        if not keys.matches(token, grant.hash if grant is not None else None, self._pepper) or grant is None:
            return Refusal("this key is not known here")
        state = keys.state(grant.key, self._now())
        return grant if state == "live" else Refusal(f"this key is {state}")

    def still(self, grant: Grant) -> bool:
        """Say whether a grant that was found holds now: an answer may stream for hours."""
        self.follow()
        found = None if self._broken else self._grants.get(grant.key.id)
        return (
            found is not None
            and found.hash == grant.hash
            and found.principal == grant.principal
            and keys.state(found.key, self._now()) == "live"
        )

    def follow(self) -> None:
        """Look at the file if the last look is a second old."""
        now_s = self.monotonic_s()
        if now_s - self._looked_s >= LOOK_S:
            self._look()

    def check(self) -> None:
        """Follow the file; KeysUnreadable when it does not do."""
        self.follow()
        if self._broken:
            raise KeysUnreadable("the gateway cannot read its key file; the node's log says why")

    def _look(self) -> None:
        self._looked_s = self.monotonic_s()
        try:
            signature = self._files.signature()
        except SettingsError as error:
            self._break(str(error))
            return
        if signature is None:
            if self.required:
                self._break(f"{str(self._files.keys)!r} is gone")
            self._signature = None
            return
        if signature == self._signature and not self._broken:
            return
        self.required = True
        try:
            found, pepper = self._files.read(), self._files.read_pepper()
        except SettingsError as error:
            self._break(str(error))
            return
        self._grants = {key.id: self._grant(key) for key in found}
        self._pepper, self._signature, self._broken = pepper, signature, ""
        log.info("keys.loaded", keys=len(found), live=self.live())

    def _break(self, reason: str) -> None:
        """Let nobody in; said once, not at every look."""
        if reason != self._broken:
            log.error("keys.unreadable", error=reason)
        self._broken, self._grants, self.required = reason, {}, True

    def _grant(self, key: Key) -> Grant:
        spaces = None if key.namespaces is None else frozenset(key.namespaces)
        own, defaults = key, self._defaults
        limits = Limits(
            rate_per_s=defaults.rate_per_s if own.rate_per_s is None else own.rate_per_s,
            burst=defaults.burst if own.burst is None else own.burst,
            concurrent=defaults.concurrent if own.concurrent is None else own.concurrent,
        )
        return Grant(key, bytes.fromhex(key.hash), Principal(key.id, frozenset(key.scopes), spaces), limits)
