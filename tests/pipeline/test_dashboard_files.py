"""What the dashboard is made of: nothing from elsewhere, nothing inline, what others wrote as they published it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

import pipeline
from pipeline.dashboard import POLICY, dashboard

pytestmark = pytest.mark.unit

UI = Path(pipeline.__file__).parent / "ui"
VENDOR = UI / "vendor"
OURS = sorted(path for path in UI.iterdir() if path.is_file())


@pytest.fixture
def http() -> TestClient:
    """The two routes and nothing else."""
    handlers = dashboard()
    routes = [Route("/ui", handlers["dashboard"]), Route("/ui/{file:path}", handlers["dashboardFile"])]
    return TestClient(Starlette(routes=routes))


def test_what_is_vendored_is_as_it_was_published() -> None:
    """Each file of the manifest has its checksum, each package its licence, and no other file lies there."""
    manifest = json.loads((VENDOR / "manifest.json").read_text())
    listed = {name: checksum for each in manifest.values() for name, (_, checksum) in each["files"].items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    found.pop("manifest.json")

    assert listed == found
    for each in manifest.values():
        assert any("LICENSE" in name for name in each["files"])
        assert each["licence"] in ("0BSD", "MIT")


def test_nothing_is_inline_and_nothing_is_from_elsewhere() -> None:
    """The policy would refuse it; here the file is named. `http://www.w3.org/` only names kinds of elements."""
    for path in OURS:
        text = path.read_text().replace("http://www.w3.org/", "")
        for pattern in (r"https?://", r"\bon\w+=\"", r"<style", r"style=\"", r"javascript:", "innerHTML", "outerHTML"):
            assert not re.search(pattern, text), (path.name, pattern)
        for pattern in (
            r"insertAdjacentHTML",
            r"document\.write",
            r"\beval\(",
            r"new Function",
            "localStorage",
            r"@import",
        ):
            assert not re.search(pattern, text), (path.name, pattern)
    page = (UI / "index.html").read_text()
    assert all(re.match(r"(defer|type=\"module\") src=\"ui/", tag) for tag in re.findall(r"<script ([^>]*)>", page))
    assert "</script>" not in re.sub(r"></script>", "", page)


def test_every_file_is_served_under_the_policy(http: TestClient) -> None:
    """With its type, an ETag and no sniffing; what is no file of the page is a problem object, wherever it points."""
    assert "script-src 'self'" in POLICY
    assert "unsafe" not in POLICY
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for path in (*OURS, *VENDOR.iterdir()):
        where = path.relative_to(UI).as_posix()
        answer = http.get("/ui" if where == "index.html" else f"/ui/{where}")
        assert 200 == answer.status_code, where
        assert path.read_bytes() == answer.content
        assert answer.headers["content-type"].startswith(types.get(path.suffix, "text/plain")), where
        assert POLICY == answer.headers["content-security-policy"]
        assert ("nosniff", "no-referrer") == (
            answer.headers["x-content-type-options"],
            answer.headers["referrer-policy"],
        )
        again = http.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
        assert (304, b"") == (again.status_code, again.content)
    for outside in (
        "index.html",
        "../dashboard.py",
        "..%2Fdashboard.py",
        "%2e%2e/dashboard.py",
        "vendor",
        "",
        "app.js/",
    ):
        assert 404 == http.get(f"/ui/{outside}").status_code, outside


def test_modules_are_short_enough_to_read() -> None:
    """As Python's are: 250 lines."""
    for path in OURS:
        assert len(path.read_text().splitlines()) <= 250, path.name
