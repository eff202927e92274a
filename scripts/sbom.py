"""The bill of materials of what a node installs: CycloneDX, made from locks/core.txt alone, so that it can be compared.

    python -m scripts.sbom           write compose/sbom.json, which travels in the wheel and in the image
    python -m scripts.sbom --check   exit 1 when it is not what the lock says (`make check`; no network)

Hashes stay in the lock: a package has one a wheel, and which of them was installed the lock cannot say.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "locks" / "core.txt"
BILL = ROOT / "compose" / "sbom.json"
KEPT = (
    "type",
    "name",
    "version",
    "purl",
)  # what else the tool knows are addresses of registries, and the lock's hashes


def digest() -> str:
    """Return the SHA-256 of the lock."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def bill() -> dict[str, Any]:
    """Return the document."""
    tool = [str(Path(sys.executable).with_name("cyclonedx-py")), "requirements", "--output-reproducible", str(LOCK)]
    made = json.loads(subprocess.run(tool, capture_output=True, check=True, timeout=120).stdout)  # noqa: S603 - ours
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    components = [{"bom-ref": each["purl"]} | {key: each[key] for key in KEPT} for each in made["components"]]
    return {
        "bomFormat": made["bomFormat"],
        "specVersion": made["specVersion"],
        "version": 1,
        "metadata": {
            "component": {
                "bom-ref": name,
                "type": "application",
                "name": name,
                "version": version,
                "licenses": [{"license": {"id": project["license"]}}],
            },
            "properties": [{"name": "isotherm:lock:sha256", "value": digest()}],
        },
        "components": sorted(components, key=lambda each: each["purl"]),
    }


def main() -> None:
    """Write it, or compare."""
    text = json.dumps(bill(), indent=1) + "\n"
    if sys.argv[1:] != ["--check"]:
        BILL.write_text(text)
    elif not BILL.exists() or BILL.read_text() != text:
        sys.exit(f"{BILL} is not what {LOCK.name} says: run `make sbom`")


if __name__ == "__main__":
    main()
