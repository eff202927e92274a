"""Which route a method and a path lead to: a look-up by the path as it is, else the patterns of its method in turn.

Starlette's own router asks every route in turn, its scope copied for each; a third of a read by id was that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from pipeline.auth import Need
from pipeline.operation import Operation

Handler = Callable[[Request], Awaitable[Response]]
#: Answers in this loop step, or returns None, with nothing done, where the handler has to.
Peek = Callable[[Scope], Response | None]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation, what answers it, what that demands of who asks, and what may answer it at once."""

    operation: Operation
    handler: Handler
    need: Need
    peek: Peek | None = None

    @property
    def path(self) -> str:
        """The path as Starlette writes it; what logs and metrics know a request by."""
        return self.operation.route

    @property
    def methods(self) -> tuple[str, ...]:
        """What is answered: HEAD wherever GET is."""
        return ("GET", "HEAD") if self.operation.method == "GET" else (self.operation.method,)


class Paths:
    """The routes by method and path. Of two patterns that match, the first given counts."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._patterns: defaultdict[str, list[tuple[re.Pattern[str], Route]]] = defaultdict(list)
        for route in routes:
            for method in route.methods:
                if "{" in route.path:
                    self._patterns[method].append((compile_path(route.path)[0], route))
                else:
                    self._exact[method, route.path] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """Return the route, and the values of its path's parameters."""
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact, {}
        for pattern, route in self._patterns.get(method, ()):
            if (found := pattern.match(path)) is not None:
                return route, found.groupdict()
        return None

    def methods(self, path: str) -> set[str]:
        """Return what a path can be asked with."""
        given = {method for method, _ in self._exact} | self._patterns.keys()
        return {method for method in given if self.find(method, path) is not None}
