"""Who asks, and what each route demands of them: the principal, and the one table from route to scope (R12).

A route without a row in NEEDS stops the start. `pipeline/guard.py` asks the table before a request reaches its route;
what a principal may see is ANDed into every query by `narrowed`, and `check_write` asks it of every id that is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Scope

from pipeline.operation import OPEN as OPEN_SCOPE
from pipeline.operation import OPERATE, READ, WRITE
from pipeline.operations import OPERATIONS
from tiers import record
from tiers.errors import InvalidRecord
from tiers.tier import Query

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


OPEN = Need(None)

#: (method, path as the route has it) to what it demands, as the table of operations says.
NEEDS: dict[tuple[str, str], Need] = {
    (each.method, each.route): Need(None if each.scope == OPEN_SCOPE else each.scope, each.whole) for each in OPERATIONS
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
    return msgspec.structs.replace(query, namespaces=asked)


def check_write(principal: Principal, ids: Iterable[str]) -> None:
    """Raise ForeignNamespace for the first id that the principal may not write."""
    if principal.namespaces is not None:
        for identifier in ids:
            if not principal.sees(identifier):
                raise ForeignNamespace(identifier)
