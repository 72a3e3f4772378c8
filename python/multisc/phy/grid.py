"""Resource grids: the payload of a burst before it becomes OFDM, and after it was equalised.

An image that does not fit one burst is spread over several: burst b of n carries symbols b, b + n, b + 2n... of each
stream, so that a lost burst thins every stream out and takes none away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.config import PhyConfig
from multisc.phy.header import MAX_BURSTS, BurstHeader, StreamEntry
from multisc.phy.orthogonal import Multiplexer, payload_symbols
from multisc.phy.transport import ModulatedStream


@dataclass(frozen=True)
class ResourceGrid:
    """The payload of one burst on its data subcarriers.

    Args:
        header: what the burst says of itself.
        symbols: complex64 (header.payload_symbols, data_carriers); of a transmitter, each stream at its own level; of
            a receiver, equalised to those levels.
        noise_variance: float32 of that shape, of the complex noise: inf where nothing was received, 0 at a
            transmitter.
    """

    header: BurstHeader
    symbols: NDArray[np.complex64]
    noise_variance: NDArray[np.float32]

    def multiplexer(self) -> Multiplexer:
        """The mapping of the streams onto this grid.

        Raises:
            BadInputError: when the header's streams do not fit the grid.
        """
        rows, carriers = self.symbols.shape
        return Multiplexer(self.header.orthogonal, self.header.counts(), rows, carriers)


@dataclass(frozen=True)
class Segment:
    """What one burst brings of one stream.

    Args:
        entry: the stream's row of the header.
        offset, stride: the symbols are those numbered offset, offset + stride, offset + 2 stride... of the stream.
        symbols: complex64, equalised to unit mean power.
        noise_variance: float32, of the complex noise of each symbol; inf where the burst was cut short.
    """

    entry: StreamEntry
    offset: int
    stride: int
    symbols: NDArray[np.complex64]
    noise_variance: NDArray[np.float32]


def multiplex(
    config: PhyConfig,
    image_id: int,
    streams: Sequence[ModulatedStream],
    side_info: bytes = b"",
    system: str = "",
    indices: Sequence[int] | None = None,
    image_streams: int | None = None,
) -> list[ResourceGrid]:
    """Lay the streams of an image out on the grids of as many bursts as they take.

    Args:
        config: orthogonal mode, data carriers, burst limit.
        image_id, streams, side_info, system, indices, image_streams: see ``BurstTransmitter.transmit``.

    Raises:
        BadInputError: when the streams contradict themselves or take more than 65535 bursts.
    """
    limit = config.max_payload_symbols
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
    total = max(1, -(-sum(sizes) // (limit * config.data_carriers)))
    while payload_symbols(config.orthogonal, _share(sizes, 0, total), config.data_carriers) > limit:
        total += max(1, total // 64)
        if total > MAX_BURSTS:
            break
    if total > MAX_BURSTS:
        raise BadInputError(
            f"{len(streams)} streams of {sum(sizes)} symbols take more than {MAX_BURSTS} bursts of {limit} "
            "payload symbols: allow longer bursts"
        )
    grids = []
    scaled = [_scale(s.symbols, entry.power_db) for s, entry in zip(streams, entries, strict=True)]
    for sequence in range(total):
        counts = _share(sizes, sequence, total)
        rows = payload_symbols(config.orthogonal, counts, config.data_carriers)
        header = BurstHeader(
            image_id, sequence, total, image_streams or max(1, len(streams)), config.orthogonal, system, side_info,
            entries, rows,
        )  # fmt: skip
        multiplexer = Multiplexer(config.orthogonal, tuple(counts), rows, config.data_carriers)
        payload = multiplexer.map([s[sequence::total] for s in scaled])
        grids.append(ResourceGrid(header, payload, np.zeros(payload.shape, np.float32)))
    return grids


def demultiplex(grid: ResourceGrid) -> tuple[Segment, ...]:
    """Take the streams off a grid.

    Raises:
        BadInputError: when the header's streams do not fit the grid.
    """
    header = grid.header
    segments = []
    taken = grid.multiplexer().unmap(grid.symbols, grid.noise_variance)
    for entry, (values, noise) in zip(header.streams, taken, strict=True):
        if entry.power_db != 0.0:
            noise = (noise * np.float32(10.0 ** (-entry.power_db / 10.0))).astype(np.float32)
        unit = _scale(values, -entry.power_db)
        segments.append(Segment(entry, header.sequence, header.total, unit, noise))
    return tuple(segments)


def _share(sizes: Sequence[int], sequence: int, total: int) -> list[int]:
    """Symbols of each stream in burst ``sequence`` of ``total``."""
    return [max(0, -(-(size - sequence) // total)) for size in sizes]


def _scale(symbols: NDArray[np.complex64], power_db: float) -> NDArray[np.complex64]:
    if power_db == 0.0:
        return symbols
    return (symbols * np.float32(10.0 ** (power_db / 20.0))).astype(np.complex64)
