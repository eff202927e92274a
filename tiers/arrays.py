"""The two kinds of array that most of the tiers are about. NumPy alone is imported here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
