"""Who asks, and what each route demands of them: the principal, and the one table from route to scope (R12).

A route without a row in NEEDS stops the start. `pipeline/guard.py` asks the table before a request reaches its route;
what a principal may see is ANDed into every query by `narrowed`, and `check_write` asks it of every id that is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from starlette.requests import HTTPConnection
from starlette.types import Scope

from tiers import record
from tiers.errors import InvalidRecord
from tiers.tier import Query

READ, WRITE, OPERATE = "read", "write", "operate"
SCOPES = (READ, WRITE, OPERATE)
PRINCIPAL = "isotherm.principal"  # where the guard leaves it in the ASGI scope


class ForeignNamespace(InvalidRecord):
    """An id lies in a namespace that the credential has no right to; says nothing about whether it exists."""

    def __init__(self, identifier: str) -> None:
        name = record.namespace(identifier)
        super().__init__("namespace", f"this key may not write to the namespace {name[:64]!r} of the id")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `namespaces` None means all; `key_id` "" is whoever is trusted without a key."""

    key_id: str
    scopes: frozenset[str]
    namespaces: frozenset[str] | None

    def sees(self, identifier: str) -> bool:
        """Say whether an id lies in one of the namespaces; by its exact characters, nothing is folded."""
        return self.namespaces is None or record.namespace(identifier) in self.namespaces


#: A node in one's own process, and the loopback while there are no keys.
TRUSTED = Principal("", frozenset(SCOPES), None)


class Need(NamedTuple):
    """What a route demands: a scope (None: nothing, it shows no data), and whether of all namespaces."""

    scope: str | None
    whole: bool = False


OPEN, READS, WRITES, OPERATES = Need(None), Need(READ), Need(WRITE), Need(OPERATE)

#: (method, path as the route has it) to what it demands; "*" is any method of a mounted folder.
NEEDS: dict[tuple[str, str], Need] = {
    ("POST", "/v1/memories"): WRITES,
    ("DELETE", "/v1/memories/{id:path}"): WRITES,
    ("GET", "/v1/memories"): READS,
    ("GET", "/v1/memories/{id:path}"): READS,
    ("POST", "/v1/search"): READS,
    ("POST", "/v1/retrieve"): READS,
    ("POST", "/v1/sql"): READS,
    ("GET", "/v1/why/{id:path}"): READS,
    ("GET", "/v1/changes"): READS,
    ("GET", "/v1/tiers"): READS,  # of a key with some namespaces: counts of those only
    ("POST", "/v1/memories/{id:path}:promote"): OPERATES,
    ("POST", "/v1/memories/{id:path}:demote"): OPERATES,
    ("POST", "/v1/tiers/{tier}:clear"): Need(OPERATE, whole=True),
    ("POST", "/v1/index:reindex"): Need(OPERATE, whole=True),
    ("POST", "/v1/snapshots"): Need(OPERATE, whole=True),
    ("POST", "/v1/verify"): Need(OPERATE, whole=True),
    ("GET", "/metrics"): Need(READ, whole=True),  # counts over all namespaces; gateway.metrics_open opens it
    ("GET", "/healthz"): OPEN,  # probes have no key, and there is nothing in them but a word
    ("GET", "/readyz"): OPEN,
    ("GET", "/openapi.json"): OPEN,  # descriptions and static files hold no data
    ("GET", "/asyncapi.json"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/ui"): OPEN,
    ("*", "/ui"): OPEN,
}


def principal_of(asked: HTTPConnection | Scope) -> Principal:
    """Return who sent a request; one that came around the guard has none, and is a KeyError."""
    scope = asked.scope if isinstance(asked, HTTPConnection) else asked
    found: Principal = scope[PRINCIPAL]
    return found


def narrowed(query: Query, principal: Principal) -> Query:
    """Return the query with the principal's namespaces ANDed in."""
    if principal.namespaces is None:
        return query
    asked = principal.namespaces if query.namespaces is None else query.namespaces & principal.namespaces
    return replace(query, namespaces=asked)


def check_write(principal: Principal, ids: Iterable[str]) -> None:
    """Raise ForeignNamespace for the first id that the principal may not write."""
    if principal.namespaces is not None:
        for identifier in ids:
            if not principal.sees(identifier):
                raise ForeignNamespace(identifier)
