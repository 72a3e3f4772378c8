"""Systems in this process, for those that need no models; the same calls as the inference client's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multisc.streams import Encoded, ReceivedImage, Reconstruction
from multisc.systems.base import Options, System
from multisc.systems.registry import get_system


class LocalSystems:
    """Loads each system when it is first used.

    Args:
        models: profile handed to the systems.
    """

    def __init__(self, models: str = "embedded") -> None:
        self._models = models
        self._loaded: dict[str, System] = {}

    def encode(self, system: str, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``."""
        return self._get(system).encode(image, options)

    def decode(self, system: str, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``."""
        return self._get(system).decode(received, options)

    def _get(self, name: str) -> System:
        if name not in self._loaded:
            self._loaded[name] = get_system(name, self._models)
        return self._loaded[name]
