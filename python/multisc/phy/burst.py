"""The transmitter: streams of an image into bursts of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.config import PhyConfig
from multisc.phy.grid import ResourceGrid, multiplex
from multisc.phy.header import HeaderCodec
from multisc.phy.ofdm import grid_of, to_samples
from multisc.phy.preamble import preamble_of
from multisc.phy.transport import ModulatedStream


class BurstTransmitter:
    """Makes bursts: preamble, header, payload.

    Args:
        config: numerology, orthogonal mode, burst limit, amplitude and gap.
    """

    def __init__(self, config: PhyConfig | None = None) -> None:
        self.config = config or PhyConfig()
        self._codec = HeaderCodec(self.config)
        self._grid = grid_of(self.config)
        self._preamble = preamble_of(self.config)

    def transmit(
        self,
        image_id: int,
        streams: Sequence[ModulatedStream],
        side_info: bytes = b"",
        system: str = "",
        indices: Sequence[int] | None = None,
        image_streams: int | None = None,
    ) -> list[NDArray[np.complex64]]:
        """Make the bursts of one image, or of the part of it that this transmitter sends.

        Args:
            image_id: 0 to 2**32 - 1, the same at every transmitter of the image.
            streams: what this transmitter sends.
            side_info: at most 64 bytes.
            system: name of the system, at most 15 characters of a-z, 0-9, -.
            indices: position of each stream in the image; None means 0, 1, 2...
            image_streams: streams of the image over all transmitters; None means those given here.

        Returns:
            One complex64 array per burst, with ``config.gap`` zeros behind each.

        Raises:
            BadInputError: when a field is out of its range or the image takes more than 65535 bursts.
        """
        grids = multiplex(self.config, image_id, streams, side_info, system, indices, image_streams)
        return [self.assemble(grid) for grid in grids]

    def assemble(self, grid: ResourceGrid) -> NDArray[np.complex64]:
        """Make the burst of a resource grid: preamble, header, payload, ``config.gap`` zeros.

        Raises:
            BadInputError: when the grid is of another numerology, or its header has a field out of its range.
        """
        if grid.symbols.shape[1] != self.config.data_carriers:
            raise BadInputError(
                f"a resource grid of {grid.symbols.shape[1]} data carriers: this transmitter has "
                f"{self.config.data_carriers}; give both the same occupied carriers"
            )
        data = np.concatenate([self._codec.encode(grid.header), grid.symbols])
        samples = to_samples(self._grid.fill(data), self.config)
        burst = np.zeros(self._preamble.length + samples.size + self.config.gap, np.complex64)
        burst[: self._preamble.length] = self._preamble.samples
        burst[self._preamble.length : self._preamble.length + samples.size] = samples
        if self.config.amplitude != 1.0:
            burst *= np.float32(self.config.amplitude)
        return burst


def channel_uses_total(config: PhyConfig, header_symbols: int, payload: int) -> int:
    """Resource elements one burst takes: preamble, header, pilots, data and padding, on the occupied subcarriers.

    The preamble counts for as many OFDM symbols as it has times ``fft_size`` samples without prefixes.

    Args:
        config: numerology.
        header_symbols: OFDM symbols of the header.
        payload: OFDM symbols of the payload.
    """
    preamble = preamble_of(config)
    training = preamble.length - 2 * config.cyclic_prefix
    return round(training / config.fft_size * config.occupied) + (header_symbols + payload) * config.occupied


def burst_uses(config: PhyConfig, burst: NDArray[np.complex64]) -> int:
    """``channel_uses_total`` of a burst as ``transmit`` made it."""
    symbols = (burst.size - config.gap - preamble_of(config).length) // config.symbol_samples
    return channel_uses_total(config, 0, symbols)
