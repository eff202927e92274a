"""The node's own disk as far as it is not a tier: the manifest, which says what was cleared.

`save` is durable when it returns, as pipeline.manifest.DataDirectory's is; what a life changed and did not save is
gone with it.
"""

from __future__ import annotations

import msgspec

from pipeline.manifest import Manifest


class Directory:
    """A data directory that survives its process."""

    def __init__(self, partitions: int) -> None:
        made = Manifest(node="n", prefix="t", partitions=partitions, dim=4, metric="cosine", attributes={})
        self._durable = msgspec.json.encode(made)

    def manifest(self) -> Manifest:
        """Return the manifest as it is on the disk."""
        return msgspec.json.decode(self._durable, type=Manifest)

    def save(self, manifest: Manifest) -> None:
        """Write the manifest."""
        self._durable = msgspec.json.encode(manifest)
