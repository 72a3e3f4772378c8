"""Where a system runs: in an inference process named by the user, in one of our own, or right here without models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError, InferenceError
from multisc.inference.client import InferenceClient
from multisc.inference.process import OwnInferenceProcess
from multisc.inference.wire import MAX_TIMEOUT_S
from multisc.streams import Encoded, ReceivedImage, Reconstruction
from multisc.systems.base import Options, System
from multisc.systems.registry import SYSTEMS, get_entry, get_system


class Backend:
    """Runs systems by name. A context manager, which ends what it started.

    A system without models runs in this process. The others run in the inference process at ``inference`` or, without
    one, in an own process that is started when it is first needed.

    Args:
        inference: tcp://HOST:PORT of `multisc serve`, or None.
        models: profile of an own process: "embedded", "foundation" or a directory.
        keys: the client.key file of a remote inference process.
        timeout_s: of one request, at most 3600.
        on_progress: called with a line about what is being waited for.

    Raises:
        BadInputError: for a bad address or time-out, or a remote address without keys.
    """

    def __init__(
        self,
        inference: str | None = None,
        models: str = "embedded",
        keys: Path | str | None = None,
        timeout_s: float = 600.0,
        on_progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        # Not left to the client, which is made only when an own process has loaded its models.
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise BadInputError(f"time-out {timeout_s:g}: must be above 0 and at most {MAX_TIMEOUT_S:.0f} s")
        self._stack = ExitStack()
        self._closed = False
        self._models = models
        self._own = inference is None
        self._timeout_s = timeout_s
        self._on_progress = on_progress
        self._systems: dict[str, System] = {}
        self._client: InferenceClient | None = None
        if inference is not None:
            self._client = self._stack.enter_context(
                InferenceClient(inference, timeout_s, keys=keys, on_progress=on_progress)
            )

    def encode(self, system: str, image: NDArray[np.uint8], options: Options) -> Encoded:
        """Run a system's transmitter; see ``multisc.systems.base.System.encode``."""
        if get_entry(system).needs_models:
            return self._connect(system).encode(system, image, dict(options))
        return self._local(system).encode(image, options)

    def decode(self, system: str, received: ReceivedImage, options: Options) -> Reconstruction:
        """Run a system's receiver; see ``multisc.systems.base.System.decode``."""
        if get_entry(system).needs_models:
            return self._connect(system).decode(system, received, dict(options))
        return self._local(system).decode(received, options)

    def prepare(self, system: str) -> None:
        """Start what a system needs, so that its first request is as fast as the others.

        Raises:
            BadInputError: for an unknown system.
            ModelError: when its models cannot be loaded.
            InferenceError: when the inference process does not start.
        """
        if get_entry(system).needs_models:
            self._connect(system)
        else:
            self._local(system)

    def models_of(self, system: str) -> str:
        """Return the profile of the models that a system runs with; "none" for one without models."""
        if system not in SYSTEMS or not get_entry(system).needs_models:
            return "none"
        return self._models if self._own else str(self._connect(system).status()["models"])

    def close(self) -> None:
        """End the connection and the own process, if there is one; requests fail from now on."""
        self._closed = True
        self._stack.close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _local(self, name: str) -> System:
        if name not in self._systems:
            self._systems[name] = get_system(name)
        return self._systems[name]

    def _connect(self, system: str) -> InferenceClient:
        if self._closed:  # a block's thread may still ask, and must not start a process that nobody ends
            raise InferenceError("the backend was closed")
        if self._client is None:
            process = OwnInferenceProcess(self._models, preload=(system,), on_progress=self._on_progress)
            self._stack.enter_context(process)
            self._client = self._stack.enter_context(
                InferenceClient(process.address, self._timeout_s, on_progress=self._on_progress)
            )
        return self._client
