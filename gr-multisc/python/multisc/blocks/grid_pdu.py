"""Between PDUs and resource grids; pdu.md is the table of the metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
import pmt
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.grid import ResourceGrid, demultiplex
from multisc.phy.header import BurstHeader, HeaderError, pack_description, parse_description
from multisc.phy.receiver import ReceivedBurst

from .. import pdu


def pack_grid(grid: ResourceGrid) -> pmt.pmt_base:
    """The grid of a burst that is to be sent."""
    return pdu.pack(_about(grid.header, grid.symbols.shape[1]), grid.symbols.ravel())


def unpack_grid(meta: dict[str, Any], data: NDArray) -> ResourceGrid:
    """The grid of a PDU; without noise variances these are 0.

    Raises:
        BadInputError: when metadata are missing or do not fit the vector.
    """
    try:
        size, rows, carriers = int(data.size), int(meta["payload_symbols"]), int(meta["carriers"])
        header = parse_description(bytes(np.asarray(meta["header"], np.uint8)), rows)
    except KeyError as missing:
        raise BadInputError(f"a grid PDU has no metadata {missing}") from None
    except HeaderError as error:
        raise BadInputError(f"a grid PDU's header cannot be read: {error}") from error
    noise = meta.get("noise_variance", np.zeros(size, np.float32))
    sizes_fit = carriers > 0 and rows * carriers == size == noise.size
    if data.dtype != np.complex64 or noise.dtype != np.float32 or not sizes_fit:
        raise BadInputError(
            f"a grid PDU of {size} {data.dtype} items and {noise.size} {noise.dtype} noise variances: {rows} symbols "
            f"of {carriers} carriers have {rows * carriers} complex64 items"
        )
    return ResourceGrid(header, data.reshape(rows, carriers), noise.reshape(rows, carriers))


def pack_burst(burst: ReceivedBurst) -> pmt.pmt_base:
    """The equalised grid of a received burst, with what the receiver measured."""
    about = _about(burst.header, burst.grid.symbols.shape[1]) | measurements(burst)
    return pdu.pack(about | {"noise_variance": burst.grid.noise_variance.ravel()}, burst.grid.symbols.ravel())


def measurements(burst: ReceivedBurst) -> dict[str, Any]:
    """What the receiver measured of a burst, as metadata."""
    return {
        "snr_db": burst.snr_db,
        "cfo": burst.cfo,
        "clock_ppm": burst.clock_ppm,
        "evm": burst.evm,
        "start": burst.start,
        "burst_length": burst.length,
        "header_symbols": burst.header_symbols,
        "truncated": burst.truncated,
    }


def unpack_burst(meta: dict[str, Any], data: NDArray) -> ReceivedBurst:
    """The burst of a PDU; measurements that are missing, as in a grid straight from the multiplexer, are unknown.

    Raises:
        BadInputError: when metadata are missing or do not fit the vector.
    """
    grid = unpack_grid(meta, data)
    unknown = float("nan")
    return ReceivedBurst(
        header=grid.header,
        segments=demultiplex(grid),
        grid=grid,
        snr_db=float(meta.get("snr_db", unknown)),
        cfo=float(meta.get("cfo", unknown)),
        clock_ppm=float(meta.get("clock_ppm", unknown)),
        evm=float(meta.get("evm", unknown)),
        start=int(meta.get("start", 0)),
        length=int(meta.get("burst_length", 0)),
        header_symbols=int(meta.get("header_symbols", 0)),
        truncated=bool(meta.get("truncated", False)),
    )


def _about(header: BurstHeader, carriers: int) -> dict[str, Any]:
    return {
        "image_id": header.image_id,
        "system": header.system,
        "sequence": header.sequence,
        "total": header.total,
        "orthogonal": header.orthogonal,
        "payload_symbols": header.payload_symbols,
        "carriers": carriers,
        "header": pack_description(header),
    }
