"""Takes a file out of the archive: a hard link where it lies on the same disk, else a copy, made whole or not at all.

Files of the archive are never changed once written, so a link is as good as a copy, costs nothing, and keeps the bytes
when vacuum removes the file's own name.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tiers.disk import Disk
from tiers.errors import TierCorrupt, TierUnavailable
from tiers.parquet import DataFile
from tiers.storage import Storage

STEP_BYTES = 1 << 20


def take_out(storage: Storage, file: DataFile, target: Path) -> int:
    """Put `file` at `target`; returns the bytes copied, 0 for a link. FileNotFoundError when it is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(storage, Disk) and link(storage.root / file.path, target):
        return 0
    unnamed = target.with_name(target.name + ".part")
    try:
        with storage.open(file.path, file.bytes) as source, unnamed.open("wb") as out:
            shutil.copyfileobj(source, out, STEP_BYTES)
            size = out.tell()
        if size != file.bytes:
            raise TierCorrupt(f"{file.path} has {size:,} bytes, and the archive's log says {file.bytes:,}")
        unnamed.rename(target)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TierUnavailable(f"{file.path} could not be copied: {error}") from error
    finally:
        unnamed.unlink(missing_ok=True)
    return size


def link(source: Path, target: Path) -> bool:
    """Link a file; False where the two are not on one disk, or it has no links. FileNotFoundError."""
    try:
        os.link(source, target)
    except FileExistsError:
        return True
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
