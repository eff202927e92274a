"""Apache Kafka's jars for the local broker: fetched by Maven, each held against the committed sha256 list.

Maven has no lock file of its own, so compose/kafka/jars.sha256 is it: a missing, extra or different jar is refused.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tiers.errors import ServiceMissing

PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
FETCH_TIMEOUT_S = 600


def data(*parts: str) -> Path:
    """Return a file of compose/ or config/, from the checkout or from the installed package."""
    package = Path(__file__).parent
    for root in (package.parent, package / "_data"):
        if (found := root.joinpath(*parts)).exists():
            return found
    raise FileNotFoundError("/".join(parts))


def directory() -> Path:
    """Return where this environment keeps the jars: beside its packages, so that it goes when it goes."""
    version = re.search(r"<kafka.version>(.*?)</kafka.version>", data("compose", "kafka", "pom.xml").read_text())
    assert version, "the pom names Kafka's version"
    return Path(sys.prefix) / "share" / "isotherm" / f"kafka-{version[1]}"


def pinned() -> dict[str, str]:
    """Return sha256 by jar name, as committed."""
    lines = data("compose", "kafka", "jars.sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines if line)}


def verify(folder: Path) -> None:
    """Raise ServiceMissing unless `folder` holds exactly the pinned jars."""
    wanted = pinned()
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.glob("*.jar")}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise ServiceMissing(
            f"Kafka's jars in {folder} are not the pinned ones ({', '.join(wrong[:5])}); remove the folder and run "
            "`make setup`, or, if a version was raised on purpose, `make lock`"
        )


def fetch() -> Path:
    """Return the folder of verified jars, fetching them first where it is missing."""
    folder = directory()
    if folder.exists():
        verify(folder)  # at every start: 0.04 s, and what runs is what was pinned
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        fresh = resolve(Path(scratch))
        verify(fresh)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(fresh, folder.with_suffix(".new"), dirs_exist_ok=True)
        folder.with_suffix(".new").rename(folder)
    return folder


def resolve(scratch: Path) -> Path:
    """Let Maven copy the jars that the pom asks for; returns their folder."""
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceMissing(
            "Maven is not on the PATH; install it (Debian: apt-get install maven) and run `make setup`"
        )
    pom = data("compose", "kafka", "pom.xml")
    command = [maven, "-q", "-B", "-f", str(pom), PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={scratch}/libs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)  # noqa: S603
    if done.returncode:
        raise ServiceMissing(f"Maven could not fetch Kafka's jars: {(done.stdout + done.stderr).strip()[-800:]}")
    return scratch / "libs"


def pin() -> None:
    """Write the sha256 list anew from what Maven resolves now (`make lock`)."""
    with tempfile.TemporaryDirectory() as scratch:
        jars = sorted(resolve(Path(scratch)).glob("*.jar"))
        lines = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in jars]
    data("compose", "kafka", "jars.sha256").write_text("".join(lines))


if __name__ == "__main__":
    if sys.argv[1:] == ["pin"]:
        pin()
    else:
        print(fetch())  # noqa: T201
