"""The transmitter: streams of an image into bursts of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.config import PhyConfig
from multisc.phy.header import MAX_BURSTS, BurstHeader, HeaderCodec, StreamEntry
from multisc.phy.ofdm import grid_of, to_samples
from multisc.phy.orthogonal import Multiplexer, payload_symbols
from multisc.phy.preamble import preamble_of
from multisc.phy.transport import ModulatedStream


class BurstTransmitter:
    """Makes bursts: preamble, header, payload.

    An image that does not fit one burst is spread over several: burst b of n carries symbols b, b + n, b + 2n... of
    each stream, so that a lost burst thins every stream out and takes none away.

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
        limit = self.config.max_payload_symbols
        where = list(range(len(streams))) if indices is None else list(indices)
        if len(where) != len(streams) or len(set(where)) != len(where):
            raise BadInputError(f"stream positions {where}: must be {len(streams)} different ones")
        for stream in streams:
            if stream.symbols.size != stream.descriptor.symbols:
                raise BadInputError(f"stream {stream.descriptor.name}: its descriptor does not fit its symbols")
        entries = tuple(
            StreamEntry(index, s.descriptor, round(s.power_db, 2)) for index, s in zip(where, streams, strict=True)
        )
        sizes = [s.symbols.size for s in streams]
        total = max(1, -(-sum(sizes) // (limit * self.config.data_carriers)))
        while payload_symbols(self.config.orthogonal, _share(sizes, 0, total), self.config.data_carriers) > limit:
            total += max(1, total // 64)
            if total > MAX_BURSTS:
                break
        if total > MAX_BURSTS:
            raise BadInputError(
                f"{len(streams)} streams of {sum(sizes)} symbols take more than {MAX_BURSTS} bursts of {limit} "
                "payload symbols: allow longer bursts"
            )
        bursts = []
        scaled = [_scale(s, entry.power_db) for s, entry in zip(streams, entries, strict=True)]
        for sequence in range(total):
            counts = _share(sizes, sequence, total)
            symbols = payload_symbols(self.config.orthogonal, counts, self.config.data_carriers)
            header = BurstHeader(
                image_id, sequence, total, image_streams or max(1, len(streams)), self.config.orthogonal, system,
                side_info, entries, symbols,
            )  # fmt: skip
            multiplexer = Multiplexer(self.config.orthogonal, tuple(counts), symbols, self.config.data_carriers)
            payload = multiplexer.map([s[sequence::total] for s in scaled])
            bursts.append(self._assemble(header, payload))
        return bursts

    def _assemble(self, header: BurstHeader, payload: NDArray[np.complex64]) -> NDArray[np.complex64]:
        data = np.concatenate([self._codec.encode(header), payload])
        samples = to_samples(self._grid.fill(data), self.config)
        burst = np.zeros(self._preamble.length + samples.size + self.config.gap, np.complex64)
        burst[: self._preamble.length] = self._preamble.samples
        burst[self._preamble.length : self._preamble.length + samples.size] = samples
        if self.config.amplitude != 1.0:
            burst *= np.float32(self.config.amplitude)
        return burst


def _share(sizes: Sequence[int], sequence: int, total: int) -> list[int]:
    """Symbols of each stream in burst ``sequence`` of ``total``."""
    return [max(0, -(-(size - sequence) // total)) for size in sizes]


def _scale(stream: ModulatedStream, power_db: float) -> NDArray[np.complex64]:
    if power_db == 0.0:
        return stream.symbols
    return (stream.symbols * np.float32(10.0 ** (power_db / 20.0))).astype(np.complex64)


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
