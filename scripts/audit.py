"""Known vulnerabilities of what a node installs, asked of a service and noted with the day it was asked.

    python -m scripts.audit           ask pip-audit's service about locks/core.txt; note it in compose/audit.json:
                                      0 nothing is known, 1 something is, 3 not audited (no answer, or not about all)
    python -m scripts.audit --noted   what the note says of this very lock (`make check`; no network): 1 when a
                                      vulnerability is noted; where there is no note of it, "not audited" and 0

pip-audit itself ends with 0 when its service knows none of the packages. That is not an audit, and is not called one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from scripts.sbom import LOCK, ROOT, digest

NOTE = ROOT / "compose" / "audit.json"


class Verdict(NamedTuple):
    """Exit code, what to say, and what is known to be wrong; `known` None: not audited."""

    code: int
    text: str
    known: list[str] | None


def judge(answer: str, said: str) -> Verdict:
    """Return what pip-audit's JSON comes to; `said` is what else it printed. Pure."""
    try:
        packages: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        reason = said.strip().splitlines()[-1] if said.strip() else "it said nothing"
        return Verdict(3, f"not audited: the service did not answer ({reason})", None)
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    known = [f"{each['name']} {each['version']}: {one['id']}" for each in packages for one in each.get("vulns", ())]
    if known:
        return Verdict(1, "known vulnerabilities:\n  " + "\n  ".join(known), known)
    if unknown or not packages:
        count = f"{len(unknown)} of {len(packages)} packages" if packages else "no package"
        return Verdict(3, f"not audited: the service has no answer for {count}", None)
    return Verdict(0, f"audited: {len(packages)} packages, no known vulnerability", [])


def noted(note: dict[str, Any] | None, lock: str) -> Verdict:
    """Return what a note says of a lock. Pure."""
    if note is None or note["lock_sha256"] != lock:
        why = "never asked" if note is None else f"the lock has changed since {note['asked']}"
        return Verdict(0, f"not audited: {why}; `make audit` asks, with network", None)
    if note["known"]:
        return Verdict(1, f"known vulnerabilities on {note['asked']}:\n  " + "\n  ".join(note["known"]), note["known"])
    return Verdict(0, f"audited on {note['asked']}: no known vulnerability", [])


def ask() -> Verdict:
    """Ask the service, and note an answer."""
    tool = [str(Path(sys.executable).with_name("pip-audit")), "-r", str(LOCK), "--require-hashes", "--disable-pip"]
    options = ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    done = subprocess.run([*tool, *options], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    verdict = judge(done.stdout, done.stderr)
    if verdict.known is not None:
        asked = datetime.now(UTC).date().isoformat()
        note = {"lock_sha256": digest(), "asked": asked, "known": verdict.known}
        NOTE.write_text(json.dumps(note, indent=1) + "\n")
    return verdict


def main() -> None:
    """Ask, or read the note."""
    if sys.argv[1:] == ["--noted"]:
        verdict = noted(json.loads(NOTE.read_text()) if NOTE.exists() else None, digest())
    else:
        verdict = ask()
    print(f"{LOCK.relative_to(ROOT)}: {verdict.text}", file=sys.stderr)  # noqa: T201 - it is the program's output
    sys.exit(verdict.code)


if __name__ == "__main__":
    main()
