"""The dashboard at /ui: files of `pipeline/ui/` as they lie, under a policy that lets nothing else in.

The page asks the same API as everyone, with the key that its user gives it: there is no second way to the data (R12).
What it is made of holds none, and is open. `ui/vendor/` has what others wrote: unchanged, with licences and checksums.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from pipeline.held import Held
from pipeline.operation import HTML_TYPE, SCRIPT_TYPE, STYLE_TYPE, SVG_TYPE, TEXT_TYPE
from pipeline.paths import Handler
from pipeline.problems import problem

#: Scripts and styles are files of ours, none is inline, and no string ever becomes markup or code (Trusted Types).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
TYPES = {".html": HTML_TYPE, ".js": SCRIPT_TYPE, ".css": STYLE_TYPE, ".svg": SVG_TYPE}
PAGE = "index.html"


def dashboard() -> dict[str, Handler]:
    """Return the handlers by operation; every file is read now."""
    held = {name: Held(content, TYPES.get(PurePosixPath(name).suffix, TEXT_TYPE), POLICY) for name, content in _read()}
    page = held.pop(PAGE)

    async def file(request: Request) -> Response:
        found = held.get(request.path_params["file"])
        if found is None:
            return problem(404, "no-such-path", "the dashboard has no such file; it is at /ui")
        return await found.answer(request)

    return {"dashboard": page.answer, "dashboardFile": file}


def _read(folder: Traversable | None = None, within: str = "") -> list[tuple[str, bytes]]:
    """Return (path, content) of every file of the dashboard."""
    found: list[tuple[str, bytes]] = []
    for each in (folder or files("pipeline") / "ui").iterdir():
        if each.is_dir():
            found += _read(each, f"{within}{each.name}/")
        else:
            found.append((within + each.name, each.read_bytes()))
    return found
