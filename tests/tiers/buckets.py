"""Glacier's settings for a prefix of the run's bucket."""

from __future__ import annotations

from typing import Any

from pipeline.seaweed import BUCKET
from pipeline.stack import Stack
from tiers.bucket import Bucket
from tiers.glacier_settings import GlacierSettings, storage


def in_bucket(s3: Stack, prefix: str, **more: Any) -> GlacierSettings:
    """Return settings of an archive at a prefix, asked for through `more["endpoint"]` where it is given."""
    given = {
        "path": f"s3://{BUCKET}/{prefix}",
        "endpoint": s3.s3,
        "allow_http": True,
        "credentials_file": str(s3.credentials),
        "timeout_s": 10.0,
    }
    return GlacierSettings(**{**given, **more})


def bucket(s3: Stack, prefix: str, **more: Any) -> Bucket:
    """Return the storage itself, which does not wait between tries."""
    found = storage(in_bucket(s3, prefix, **more))
    assert isinstance(found, Bucket)
    found._asking._pause = lambda _: None
    return found
