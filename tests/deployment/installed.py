"""The built wheel, installed as the image installs it, and run as the image would run it.

That is: another user, a root that cannot be written, a /tmp of its own, process number one. The kernel's namespaces do
it, which root may make.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deployment.compose import DOCKERFILE, ROOT, image_environment

USER = 10001
AS_USER = f"setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all --"


def why_not() -> str:
    """Return what keeps this machine from running it that way, "" where nothing does."""
    if os.geteuid() != 0:
        return "needs root: another user's process, mounts of its own"
    for tool in ("unshare", "setpriv", "mount"):
        if shutil.which(tool) is None:
            return f"needs {tool} (util-linux)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return f"may not make namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def copied() -> list[str]:
    """Return what the Dockerfile copies from the checkout; the lock is core's."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.replace("${LOCK}", "locks/core.txt"), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def build(folder: Path) -> Path:
    """Build the wheel from what the Dockerfile copies, and nothing else, with the locked backend; no network."""
    source = folder / "src"
    for name in copied():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True, timeout=120)
    (wheel,) = folder.glob("isotherm-*.whl")
    return wheel


class Installed:
    """A virtual environment with the wheel alone; its other packages are those of this interpreter's, by path."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        for name in ("python", "packages", "data"):
            (folder / name).mkdir()
        os.chown(self.data, USER, USER)
        python = folder / "python" / Path(os.path.realpath(sys.executable)).relative_to(sys.base_prefix)
        venv = [str(python), "-m", "venv", "--without-pip", str(folder / "venv")]
        self._prepare(*venv)
        site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        (site / "locked.pth").write_text(f"{folder / 'packages'}\n")  # no .pth in there counts: ours is not editable
        pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        self._prepare(*pip, "--no-index", "--no-deps", "--ignore-installed", str(wheel))
        self.site = site

    def script(self, *, read_only: bool) -> str:
        """Return the shell that makes the view: our interpreter and packages where any user may read them."""
        where = shlex.quote(str(self.folder))
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        lines = [
            "set -eu",
            f"mount --bind {shlex.quote(sys.base_prefix)} {where}/python",
            f"mount --bind {shlex.quote(packages)} {where}/packages",
        ]
        if read_only:
            lines += [
                f"mount --bind {where}/data {where}/data",
                "mount -t tmpfs -o mode=1777,noexec,nosuid tmpfs /tmp",
                *(f"mount -o remount,bind,ro {path}" for path in (f"{where}/python", f"{where}/packages", "/")),
            ]
        return "\n".join(lines)

    def _prepare(self, *command: str) -> None:
        text = f"{self.script(read_only=False)}\nexec {shlex.join(command)}"
        subprocess.run(["unshare", "--mount", "sh", "-c", text], check=True, timeout=120)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs a program of the environment in the image's view."""
        first, *rest = arguments
        program = shlex.join([str(self.folder / "venv" / "bin" / first), *rest])
        text = f"{self.script(read_only=True)}\ncd {shlex.quote(str(self.data))}\nexec {AS_USER} {program}"
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", text]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the image's environment with its data directory here, and nothing of this process's."""
        given = image_environment() | {"ISOTHERM_DATA": str(self.data)}
        libraries = f"{self.folder}/python/lib"  # a shared libpython, whose own path only root may enter
        return given | {
            "PATH": f"{self.folder}/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH": libraries,
            **more,
        }


@contextmanager
def installed(folder: Path) -> Iterator[Installed]:
    """Build and install under a folder that any user may enter."""
    folder.chmod(0o755)
    yield Installed(folder, build(folder))
