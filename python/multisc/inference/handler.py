"""What a worker of the inference process does with a request."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError, ModelError
from multisc.streams import Encoded, ReceivedImage, Reconstruction

SYSTEMS_HANDLER = "multisc.inference.handler:SystemsHandler"
Report = Callable[[str], None]


class Handler(Protocol):
    """Runs systems. Made in each worker as ``factory(models, report)``; called from one thread only.

    Errors of class ``MultiscError`` reach the client with their class and message; any other exception
    reaches it as an internal error, with the traceback in the server's log.
    """

    def load(self, system: str) -> None:
        """Load what a system needs, so that its first request is as fast as the others."""

    def encode(self, system: str, image: NDArray[np.uint8], options: dict[str, Any]) -> Encoded:
        """Run the transmitter on an image, uint8 of shape (H, W, 3)."""

    def decode(self, system: str, received: ReceivedImage, options: dict[str, Any]) -> Reconstruction:
        """Run the receiver on what arrived."""


@runtime_checkable
class BatchHandler(Handler, Protocol):
    """A handler that can run several requests of one kind at once.

    Both methods return a result for each request, in order; or None when the system takes one at a time. When
    they raise, the requests are run one by one, so that each gets a result or an error of its own.
    """

    def encode_many(
        self, system: str, images: Sequence[NDArray[np.uint8]], options: dict[str, Any]
    ) -> list[Encoded] | None:
        """Run the transmitter on several images."""

    def decode_many(
        self, system: str, received: Sequence[ReceivedImage], options: dict[str, Any]
    ) -> list[Reconstruction] | None:
        """Run the receiver on several receptions."""


class SystemsHandler:
    """The systems of this package, each loaded once, when it is first asked for.

    Args:
        models: "embedded", "foundation" or a directory.
        report: takes a line that says what is being done.
    """

    def __init__(self, models: str, report: Report) -> None:
        self._models = models
        self._report = report
        importlib.import_module("multisc.models.hub").tell(report)
        self._systems: dict[str, Any] = {}

    def _system(self, name: str) -> Any:
        if name not in self._systems:
            self._report(f"loading {name} ({self._models} models)")
            try:
                registry = importlib.import_module("multisc.systems.registry")
                self._systems[name] = registry.get_system(name, self._models)
            except ModuleNotFoundError as error:
                missing = error.name or str(error)
                raise ModelError(
                    f"system {name} needs the Python package {missing}: install gr-multisc[inference]"
                ) from error
        return self._systems[name]

    def load(self, system: str) -> None:
        """Load a system's models."""
        self._system(system)

    def encode(self, system: str, image: NDArray[np.uint8], options: dict[str, Any]) -> Encoded:
        """Run the transmitter of a system."""
        transmitter = self._system(system)
        self._report(f"encoding with {system}")
        return transmitter.encode(image, options)

    def decode(self, system: str, received: ReceivedImage, options: dict[str, Any]) -> Reconstruction:
        """Run the receiver of a system."""
        receiver = self._system(system)
        self._report(f"decoding with {system}")
        return receiver.decode(received, options)

    def encode_many(
        self, system: str, images: Sequence[NDArray[np.uint8]], options: dict[str, Any]
    ) -> list[Encoded] | None:
        """Run the transmitter of a system on several images; None when it takes one at a time."""
        transmitter = self._system(system)
        if not _takes_many(transmitter):
            return None
        self._report(f"encoding {len(images)} pictures with {system}")
        return transmitter.encode_many(images, options)

    def decode_many(
        self, system: str, received: Sequence[ReceivedImage], options: dict[str, Any]
    ) -> list[Reconstruction] | None:
        """Run the receiver of a system on several receptions; None when it takes one at a time."""
        receiver = self._system(system)
        if not _takes_many(receiver):
            return None
        self._report(f"decoding {len(received)} pictures with {system}")
        return receiver.decode_many(received, options)


def _takes_many(system: Any) -> bool:
    return isinstance(system, importlib.import_module("multisc.systems.base").BatchSystem)


def make_handler(name: str, models: str, report: Report) -> Handler:
    """Make the handler that ``MODULE:FACTORY`` names.

    Raises:
        BadInputError: when there is no such module or factory.
    """
    module, colon, factory = name.partition(":")
    try:
        if not colon:
            raise AttributeError(name)
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise BadInputError(f"handler {name!r}: must be MODULE:FACTORY that can be imported ({error})") from error
    return make(models, report)
