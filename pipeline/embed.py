"""Words to vectors, where the node is told to (`embedder = "wordllama"`, extra `text`); nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from producers.decoder import Embed
from tiers.errors import SettingsError
from tiers.record import Floats


def load_embedder(name: str, dim: int) -> Embed | None:
    """Return the embedding function, or None for ""; SettingsError when its package or dimension does not fit."""
    if not name:
        return None
    try:
        wordllama = importlib.import_module("wordllama")
    except ImportError as error:
        raise SettingsError("embedder = 'wordllama' needs the extra: pip install 'isotherm[text]'") from error
    folder = Path(str(wordllama.__file__)).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def embed(texts: Sequence[str]) -> Floats:
        return np.asarray(model.embed(list(texts), norm=True), np.float32)

    size = embed(["probe"]).shape[1]
    if size != dim:
        raise SettingsError(f"dim = {dim}, but embedder wordllama gives {size} floats; set dim = {size}")
    return embed
