"""What stands before every route: who asks, may they, and not too often. Refusals are problem objects.

    no keys were ever made    loopback only; a Host that is ours (no page whose name was made to point here), and an
                              Origin, if any, that is the same (no page of another site). Then everything is allowed.
    keys                      a valid one, or 401; its scope and namespaces enough, or 403; within its limits, or 429

A request under way counts until its answer has been sent (`leave`), and an answer that streams ends when its key does
(`still`). Bodies are not read before a request was let in.
"""

from __future__ import annotations

import math
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog
from starlette.responses import Response
from starlette.types import Scope

from pipeline.auth import NEEDS, OPEN, TRUSTED, Need, Principal
from pipeline.key_file import KeyFiles
from pipeline.keyring import Grant, Keyring, KeysUnreadable, Refusal
from pipeline.keys import KEYS_MAX, Limits
from pipeline.limits import Buckets
from pipeline.problems import problem
from pipeline.settings import GatewaySettings, Settings
from tiers.errors import SettingsError

log = structlog.get_logger()

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
PEERS_MAX = 4_096  # addresses whose refused keys are counted
HOSTS_KEPT = 256  # judgements of Host and Origin: every request without a key has the same few
PEER_BURST_S = 10  # seconds' worth of refused keys that one address may send at once


def is_loopback(host: str) -> bool:
    """Say whether listening on this host reaches this machine only."""
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


def keyring_of(settings: Settings) -> Keyring:
    """Return the keys of an installation, read; SettingsError when a file is there and does not do."""
    gateway = settings.gateway
    limits = Limits(rate_per_s=gateway.rate_per_s, burst=gateway.burst, concurrent=gateway.concurrent)
    ring = Keyring(KeyFiles.under(settings.data, gateway.keys_file, gateway.pepper_file), limits)
    ring.open()
    return ring


def check_exposed(settings: Settings) -> None:
    """Raise SettingsError for a gateway that others can reach and that asks nobody for a key."""
    host = settings.gateway.host
    if not is_loopback(host) and keyring_of(settings).live() == 0:
        raise SettingsError(
            f"gateway.host = {host!r}: without a live API key the gateway listens on loopback only; make one first, "
            f"with the same settings: isotherm keys create NAME --scope read --all-namespaces -s data={settings.data}"
        )


class Guard:
    """Lets requests in: `enter` before each, `leave` when it has been answered."""

    def __init__(self, settings: GatewaySettings, ring: Keyring) -> None:
        self._ring, self._refused_per_s = ring, settings.refused_per_s
        self._hosts = LOOPBACK | frozenset(settings.hosts)
        self._needs = NEEDS | ({("GET", "/metrics"): OPEN} if settings.metrics_open else {})
        self._buckets, self._refused = Buckets(KEYS_MAX), Buckets(PEERS_MAX)
        self._under_way: dict[str, int] = {}

    def need(self, method: str, path: str) -> Need:
        """Return what a route demands; SettingsError for one that NEEDS does not name."""
        need = self._needs.get((method, path))
        if need is None:
            raise SettingsError(f"{method} {path} says in pipeline/auth.py, NEEDS, no scope")
        return need

    def enter(self, scope: Scope, need: Need) -> Grant | Principal | Response | None:
        """Return the grant of the request's key, which counts until `leave`, or who needs no key, or the refusal.

        None: the route is open, and who asks does not matter.
        """
        found = self.look(scope, need)
        return self._refuse(scope, found.reason) if isinstance(found, Refusal) else found

    def look(self, scope: Scope, need: Need) -> Grant | Principal | Response | Refusal | None:
        """Return what `enter` does, but for a bad key only why it is bad: nobody is told, and it does not count."""
        if need.scope is None:
            return None
        found = self._admit(scope, need)
        if isinstance(found, Grant):
            return self._begin(found, self.now_s()) or found
        return found

    def _admit(self, scope: Scope, need: Need) -> Grant | Principal | Response | Refusal:
        try:
            self._ring.check()
        except KeysUnreadable as error:
            return problem(503, "keys-unreadable", str(error))
        if not self._ring.required:
            return TRUSTED if self._is_ours(scope) else _foreign()
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            return _unknown("send your key as `Authorization: Bearer iso_…`; `isotherm keys create` makes one")
        kind, _, text = given[0].decode("latin-1").partition(" ")
        if len(given) > 1 or kind.lower() != "bearer":
            return _unknown("send exactly one key, as `Authorization: Bearer iso_…`")
        found = self._ring.find(text.strip())
        return found if isinstance(found, Refusal) else _forbidden(found.principal, need) or found

    def _begin(self, grant: Grant, now_s: float) -> Response | None:
        """Count a request that begins, unless the key has too many."""
        limits, name = grant.limits, grant.key.id
        under_way = self._under_way.get(name, 0)
        if limits.concurrent and under_way >= limits.concurrent:
            return _too_many(f"this key may have {limits.concurrent} requests under way at once", 1.0)
        if limits.rate_per_s:
            wait_s = self._buckets.take(name, limits.rate_per_s, limits.burst, now_s)
            if wait_s:
                return _too_many(f"this key may ask {limits.rate_per_s:g} times a second", wait_s)
        self._under_way[name] = under_way + 1
        return None

    def leave(self, grant: Grant) -> None:
        """Count a request that has ended."""
        left = self._under_way[grant.key.id] - 1
        if left:
            self._under_way[grant.key.id] = left
        else:
            del self._under_way[grant.key.id]

    def still(self, grant: Grant) -> bool:
        """Say whether an answer may go on."""
        return self._ring.still(grant)

    def now_s(self) -> float:
        """Return the time that limits count by."""
        return self._ring.monotonic_s()

    def _is_ours(self, scope: Scope) -> bool:
        return _own(self._hosts, tuple([header for header in scope["headers"] if header[0] in (b"host", b"origin")]))

    def _refuse(self, scope: Scope, reason: str) -> Response:
        """Answer a bad key; an address that goes on with bad keys is told to wait, and no longer logged."""
        peer = (scope.get("client") or ("",))[0]
        wait_s = self._refused.take(peer, self._refused_per_s, self._refused_per_s * PEER_BURST_S, self.now_s())
        if wait_s:
            return _too_many("too many keys that are not valid came from this address", wait_s)
        log.warning("key.refused", peer=peer, reason=reason)
        return _unknown(reason, ', error="invalid_token"')


@lru_cache(HOSTS_KEPT)
def _own(hosts: frozenset[str], headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Say whether these Host and Origin headers name one of `hosts`, and the same one."""
    given = [(name, value.decode("latin-1")) for name, value in headers]
    try:
        named = {value if name == b"host" else urlsplit(value).netloc for name, value in given}
        found = {urlsplit(f"//{each}").hostname for each in named}
    except ValueError:
        return False
    return len(named) == 1 and found <= hosts and any(name == b"host" for name, _ in given)


def _forbidden(principal: Principal, need: Need) -> Response | None:
    if need.scope not in principal.scopes:
        said = f'Bearer realm="isotherm", error="insufficient_scope", scope="{need.scope}"'
        detail = f"this key does not have the scope {need.scope!r}"
        return problem(403, "forbidden", detail, headers={"WWW-Authenticate": said})
    if need.whole and principal.namespaces is not None:
        return problem(403, "forbidden", "this is about all namespaces, and this key has some")
    return None


def _unknown(detail: str, more: str = "") -> Response:
    return problem(401, "unauthorized", detail, headers={"WWW-Authenticate": f'Bearer realm="isotherm"{more}'})


def _too_many(detail: str, wait_s: float) -> Response:
    return problem(429, "rate-limited", detail, headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def _foreign() -> Response:
    detail = (
        "without API keys only programs of this machine are answered, under its own name (gateway.hosts adds others), "
        "and no page of another site"
    )
    return problem(403, "forbidden", detail)
