"""The site builds strictly, needs no other host, and says nothing of commands and settings that are not there."""

from __future__ import annotations

import functools
import http.server
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.settings import Settings
from scripts import pages, site
from scripts.site import ROOT
from tests.browser import browser

DOCS = ROOT / "docs"
TEXTS = {file: file.read_text() for file in sorted(DOCS.rglob("*.md"))}
LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
LOGGED = {"move.stalled"}  # an event of the log, and no setting
IN_CSS = re.compile(r"url\(\s*['\"]?(?!data:)([^'\")]+)|@import\s+['\"]([^'\"]+)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the program that `make docs` runs; a warning of mkdocs ends it with another code than 0."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.site", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a page makes a browser load, links that a reader may follow left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        if (address := given.get(LOADED.get(tag, ""))) is not None:
            self.found.append(address)


@pytest.mark.unit
def test_no_page_loads_anything_from_elsewhere(built: Path):
    """Neither by a tag nor by a style sheet; and mermaid, which the theme would fetch, is not used."""
    loaded = 0
    for file in built.rglob("*.html"):
        page = Loads()
        page.feed(file.read_text())
        loaded += len(page.found)
        for address in page.found:
            assert not urlsplit(address).netloc, (file.name, address)
        assert 'class="mermaid"' not in file.read_text(), file.name
    assert loaded > 100
    for file in [*built.rglob("*.css"), *built.rglob("*.svg")]:
        for found in IN_CSS.findall(file.read_text()):
            assert not urlsplit("".join(found)).netloc, (file.name, found)


@pytest.fixture
def served(built: Path) -> Iterator[str]:
    """The site over HTTP, on the loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_browser_asks_no_other_host(served: str):
    """Chromium, light and dark: pictures are shown, a search finds, no console error, no request elsewhere."""
    asked: set[str] = set()
    errors: list[str] = []
    with browser() as started:
        for scheme in ("light", "dark"):
            page = started.new_page(color_scheme=scheme)
            page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            for name in ("index", "model", "tutorial"):
                page.goto(f"{served}/{name}.html")
            page.goto(f"{served}/model.html")
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
            assert 3 == page.evaluate("document.images.length")
            page.keyboard.press("/")
            page.keyboard.type("watermark")
            page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
            page.close()

    assert {urlsplit(served).netloc} == asked
    assert [] == errors


@pytest.mark.unit
def test_agents_find_every_page(built: Path):
    """llms.txt links each page of the navigation, as Markdown that is there; llms-full.txt has their texts."""
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): .{20,}$", (built / "llms.txt").read_text(), re.MULTILINE)
    whole = (built / "llms-full.txt").read_text()

    assert {str(file.relative_to(DOCS)) for file in TEXTS} == set(listed)
    for name in listed:
        assert (DOCS / name).read_text() == (built / name).read_text()
        assert (DOCS / name).read_text().strip() in whole


@pytest.mark.unit
def test_a_broken_link_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And so does an anchor that no heading has."""
    for broken in ("[gone](gone.md)", "[nowhere](index.md#nowhere)"):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / "index.md").write_text(f"# Here\n\n{broken}\n")
        config = yaml.safe_load((ROOT / "mkdocs.yml").read_text()) | {"nav": ["index.md"]}
        (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
        monkeypatch.setattr(site, "ROOT", tmp_path)
        with pytest.raises(SystemExit):
            site.main(tmp_path / "site")


@pytest.mark.unit
@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_made_from_code_is_what_the_code_says(name: str):
    """`make pages` would change nothing."""
    assert pages.text(name) == (pages.FOLDER / name).read_text()


def commands() -> dict[str, typer.core.TyperCommand]:
    """Return each command of the command line by its words."""
    return dict(pages._walk("isotherm", typer.main.get_command(app)))


def shown(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line of ours in a page's blocks of shell, from `isotherm` to a pipe."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "isotherm " not in line or line.startswith(("$ docker", "$ kubectl", "# ")):
                continue
            words = shlex.split(line, comments=True)
            starts = [n for n, word in enumerate(words) if Path(word).name == "isotherm"]
            if starts:
                inner = words[starts[0] :]
                yield inner[: next((n for n, word in enumerate(inner) if word in ("|", "<")), len(inner))]


@pytest.mark.unit
def test_every_command_that_a_page_shows_is_there_with_its_options():
    """In blocks of shell, of the README too."""
    known, seen = commands(), 0
    for file, text in [*TEXTS.items(), (ROOT / "README.md", (ROOT / "README.md").read_text())]:
        for _, *words in shown(text):
            name = next((n for n in (" ".join(["isotherm", *words[:2]]), f"isotherm {words[0]}") if n in known), None)
            assert name is not None, (file.name, words)
            options = {opt for param in known[name].params for opt in param.opts}
            used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert used <= options, (file.name, words, used - options)
            seen += 1
    assert seen > 30


def keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the name of every setting and of every table of them."""
    for field in msgspec.structs.fields(kind):
        name = f"{prefix}{field.name}"
        yield name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys(field.type, f"{name}.")


@pytest.mark.unit
def test_every_setting_that_a_page_names_is_one():
    """In code, as `hot.capacity_rows`, and in the environment, as ISOTHERM_HOT__CAPACITY_ROWS."""
    known = set(keys(Settings))
    tables = "|".join(sorted(name for name in known if any(other.startswith(f"{name}.") for other in known)))
    seen = set()
    for file, text in TEXTS.items():
        named = set(re.findall(rf"`((?:{tables})(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", text))
        for variable in re.findall(r"ISOTHERM_([A-Z_]+__[A-Z0-9_]*[A-Z0-9])", text):
            named.add(variable.lower().replace("__", "."))
        unknown = {name for name in named - known - LOGGED if not name.endswith((".json", ".md", ".key"))}
        assert not unknown, (file.name, unknown)
        seen |= named
    assert len(seen) > 60
