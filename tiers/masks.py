"""Which rows a scan may find, as bits on the device: one mask an ask of a pass, kept until it changes.

The pinned mirror has what the device has. Of a mask only the slabs are sent whose rows are another array than last
time, so a hot that lies still costs a scan nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tiers.part import Part
from tiers.staging import Library, Staging

UNKNOWN = np.zeros(0, bool)


class Masks:
    """`device` is uint32[COUNT, words], `shown` how many of them count in the scan that was last asked."""

    COUNT: ClassVar[int] = 8

    def __init__(self, library: Library, slabs: int, slab_words: int) -> None:
        self.words, self._slab_words = slabs * slab_words, slab_words
        self.shown = 0
        self.device = library.xp.zeros((self.COUNT, self.words), np.uint32)
        self._mirror = Staging(library, (self.COUNT, self.words), np.uint32)
        self._sent: list[dict[int, npt.NDArray[np.bool_]]] = [{} for _ in range(self.COUNT)]

    def show(self, asked: Sequence[Sequence[Part]], stream: Any) -> None:
        """Let the device have the masks of these asks, in order."""
        self.shown = len(asked)
        for number, parts in enumerate(asked):
            sent = self._sent[number]
            wanted = {part.slab: part.wanted for part in parts}
            changed = [slab for slab in sent.keys() | wanted.keys() if sent.get(slab) is not wanted.get(slab)]
            if changed:
                sent.update(dict.fromkeys(changed, UNKNOWN))  # until it is sent: should that fail, it is sent anew
                self._send(number, {slab: wanted.get(slab) for slab in changed}, stream)
                self._sent[number] = wanted

    def _send(self, number: int, changed: dict[int, npt.NDArray[np.bool_] | None], stream: Any) -> None:
        """Write these slabs' bits into the mirror, and copy from the first to the last of them."""
        begin, end = min(changed) * self._slab_words, (max(changed) + 1) * self._slab_words
        with self._mirror.turn(stream) as mirror:
            for slab, rows in changed.items():
                bits = np.zeros(self._slab_words * 4, np.uint8)
                if rows is not None:
                    packed = np.packbits(rows, bitorder="little")
                    bits[: len(packed)] = packed
                mirror[number, slab * self._slab_words : (slab + 1) * self._slab_words] = bits.view(np.uint32)
            self.device[number, begin:end].set(mirror[number, begin:end], stream=stream)
