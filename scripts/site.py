"""The site: mkdocs, strictly, and beside its pages what agents read.

    python -m scripts.site [FOLDER]     build into FOLDER (site/)

`llms.txt` lists the pages with their first sentences (llmstxt.org), `llms-full.txt` has them all, and each page lies as
Markdown beside its HTML.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
NO_SENTENCE = ("*Made", "!", "|", "#", "<", "```", "- ")


def pages(nav: list[Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Yield (section, page) of a navigation, in its order."""
    for entry in nav:
        if isinstance(entry, str):
            yield section, entry
        else:
            for name, inner in entry.items():
                yield from pages(inner, name) if isinstance(inner, list) else [(section, inner)]


def told(text: str) -> tuple[str, str]:
    """Return a page's title and its first sentence; a page that begins with a table or a picture has none."""
    title, _, rest = text.removeprefix("# ").partition("\n")
    paragraphs = [part for part in re.split(r"\n\s*\n", rest.strip()) if not part.startswith(NO_SENTENCE)]
    first = " ".join(paragraphs[0].split()) if paragraphs else ""
    plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", first).replace("**", "")
    return title, re.split(r"(?<=[.])\s", plain)[0]


def for_agents(config: Any, folder: Path) -> None:
    """Write llms.txt, llms-full.txt and the Markdown of each page."""
    index = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    whole, last = [], None
    for section, page in pages(config.nav):
        text = (Path(config.docs_dir) / page).read_text()
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(config.docs_dir) / page, folder / page)
        if section != last:
            index += ["", f"## {section}", ""] if section else []
            last = section
        title, sentence = told(text)
        index.append(f"- [{title}]({page}): {sentence}" if sentence else f"- [{title}]({page})")
        whole += [f"<!-- {page} -->", "", text.strip(), ""]
    (folder / "llms.txt").write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(index)) + "\n")
    (folder / "llms-full.txt").write_text("\n".join(whole))


def main(folder: Path) -> None:
    """Build everything; mkdocs aborts at the first broken link, anchor or page that the navigation lacks."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    build(config)
    for_agents(config, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
