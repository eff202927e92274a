"""The compose files as an engine would read them: merged, their variables filled in."""

from __future__ import annotations

import re
import shlex
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
OVERLAYS = ("observability.yaml", "s3.yaml", "gpu.yaml")
DOCKERFILE = (COMPOSE / "Dockerfile").read_text()
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]*\}")


def merged(*overlays: str) -> dict[str, Any]:
    """Return compose.yaml with these files over it, as `docker compose -f … -f …` merges maps; lists are replaced."""
    files = [yaml.safe_load((COMPOSE / name).read_text()) for name in ("compose.yaml", *overlays)]
    return reduce(_over, files)


def _over(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {key: _over(under[key], value) if key in under else value for key, value in over.items()}
    return over


def environment(service: dict[str, Any]) -> dict[str, str]:
    """Return a service's environment; each variable that must be given is "given"."""
    return {name: REQUIRED.sub("given", str(value)) for name, value in service["environment"].items()}


def image_environment() -> dict[str, str]:
    """Return the last stage's ENV of the Dockerfile."""
    stage = DOCKERFILE.rpartition("\nFROM ")[2].replace("\\\n", " ")
    pairs = [
        word.partition("=") for line in re.findall(r"^ENV (.*)$", stage, re.MULTILINE) for word in shlex.split(line)
    ]
    return {name: value for name, _, value in pairs}


def kafka_properties(service: dict[str, Any]) -> dict[str, str]:
    """Return server.properties as apache/kafka's image makes them of its environment."""
    names = {"___": "-", "__": "_", "_": "."}
    return {
        re.sub("_{1,3}", lambda found: names[found[0]], name.removeprefix("KAFKA_")).lower(): value
        for name, value in environment(service).items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    }


def seconds(text: str) -> float:
    """Return a duration such as 40s."""
    return float(text.removesuffix("s"))


def size(text: str) -> int:
    """Return bytes of a size such as 4g or 5Gi."""
    number, unit = re.fullmatch(r"(\d+)([kmgKMG])i?b?", text).groups()  # type: ignore[union-attr]
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit.lower()]
