"""The transport block chain of 5G NR: CRC, segmentation, LDPC, rate matching (TS 38.212 clauses 5.1 to 5.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError
from multisc.phy.crc import CRC16, CRC24A, CRC24B, Crc
from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.ldpc.graph import select_base_graph

MAX_BLOCK_BITS = {1: 8448, 2: 3840}
MAX_PAYLOAD_BITS = 1 << 24


@dataclass(frozen=True)
class Segmentation:
    """Code block segmentation of clause 5.2.2.

    Args:
        graph: base graph.
        transport_bits: B, bits of the transport block with its CRC.
        blocks: C, number of code blocks.
        block_bits: K', bits of each code block with its CRC.
    """

    graph: int
    transport_bits: int
    blocks: int
    block_bits: int

    @property
    def block_crc(self) -> Crc | None:
        """CRC of each code block: CRC-24B when there are several, none otherwise."""
        return CRC24B if self.blocks > 1 else None


def segment(transport_bits: int, graph: int) -> Segmentation:
    """Return how a transport block of B bits, CRC included, is divided (clause 5.2.2).

    The tables of the standard only hold sizes that divide evenly; here B may be any number, and K' is rounded up: the
    caller fills the transport block with zeros up to ``blocks * (K' - L)``.
    """
    largest = MAX_BLOCK_BITS[graph]
    if transport_bits <= largest:
        return Segmentation(graph, transport_bits, 1, transport_bits)
    blocks = -(-transport_bits // (largest - CRC24B.length))
    return Segmentation(graph, transport_bits, blocks, -(-transport_bits // blocks) + CRC24B.length)


@dataclass(frozen=True)
class TransportResult:
    """Outcome of decoding: payload uint8 (A,), verdict of its CRC, verdict per code block bool (C,)."""

    bits: NDArray[np.uint8]
    crc_ok: bool
    blocks_ok: NDArray[np.bool_]


class TransportBlock:
    """Encoder and decoder of one transport block with redundancy version 0.

    Args:
        payload_bits: A, 1 to 2**24.
        rate: target code rate, K'/E of a code block; also selects the base graph.
        bits_per_symbol: Qm.

    Attributes:
        coded_bits: G, the number of bits sent; a multiple of ``bits_per_symbol``.

    Raises:
        BadInputError: when the numbers are out of range.
    """

    def __init__(self, payload_bits: int, rate: float, bits_per_symbol: int) -> None:
        if not 1 <= payload_bits <= MAX_PAYLOAD_BITS:
            raise BadInputError(f"transport block of {payload_bits} bits: must be 1 to {MAX_PAYLOAD_BITS}")
        if not 0 < rate < 1:
            raise BadInputError(f"code rate {rate}: must lie between 0 and 1")
        self.payload_bits = payload_bits
        self.crc = CRC24A if payload_bits > 3824 else CRC16
        graph = select_base_graph(payload_bits, rate)
        transport_bits = payload_bits + self.crc.length
        self.segmentation = s = segment(transport_bits, graph)
        # Zeros between payload and CRC make the division of clause 5.2.2 come out even.
        self._zeros = s.blocks * (s.block_bits - (24 if s.block_crc else 0)) - transport_bits

        # Clause 5.4.2.1: blocks that get one symbol less come first.
        symbols = -(-int(np.ceil(s.blocks * s.block_bits / rate - 1e-9)) // bits_per_symbol)
        short = s.blocks - symbols % s.blocks
        self._blocks: list[tuple[NrLdpcBlock, int]] = []
        for count, size in ((short, symbols // s.blocks), (s.blocks - short, symbols // s.blocks + 1)):
            if count:
                block = NrLdpcBlock(s.block_bits, size * bits_per_symbol, 0, bits_per_symbol, graph, transport_bits)
                self._blocks.append((block, count))
        self.coded_bits = symbols * bits_per_symbol

    def encode(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Encode uint8 (A,) of 0 and 1 into uint8 (G,).

        Raises:
            BadInputError: when there are not A bits.
        """
        bits = np.asarray(bits, np.uint8)
        if bits.shape != (self.payload_bits,):
            raise BadInputError(f"bits of shape {bits.shape}: must be ({self.payload_bits},)")
        transport = self.crc.attach(np.concatenate([bits, np.zeros(self._zeros, np.uint8)]))
        words = transport.reshape(self.segmentation.blocks, -1)
        if self.segmentation.block_crc:
            words = self.segmentation.block_crc.attach(words)
        out, first = [], 0
        for block, count in self._blocks:
            out.append(block.encode(words[first : first + count]).ravel())
            first += count
        return np.concatenate(out)

    def decode(self, llr: NDArray[np.float32], algorithm: str, schedule: str, iterations: int) -> TransportResult:
        """Decode float32 LLRs of shape (G,); an erased bit has LLR 0.

        Raises:
            BadInputError: when there are not G ratios.
        """
        llr = np.asarray(llr, np.float32)
        if llr.shape != (self.coded_bits,):
            raise BadInputError(f"LLRs of shape {llr.shape}: must be ({self.coded_bits},)")
        words, ok, first = [], [], 0
        for block, count in self._blocks:
            received = llr[first : first + count * block.n].reshape(count, block.n)
            result = block.decode(received, algorithm, schedule, iterations)
            words.append(result.bits)
            # Nothing received decides for the all-zero word, whose checks hold: it must not pass for a delivery.
            ok.append(result.parity_ok & received.any(axis=1))
            first += count * block.n
        decided, blocks_ok = np.concatenate(words), np.concatenate(ok)
        if self.segmentation.block_crc:
            blocks_ok = blocks_ok & self.segmentation.block_crc.check(decided)
            decided = decided[:, : -self.segmentation.block_crc.length]
        transport = decided.ravel()
        crc_ok = bool(self.crc.check(transport)) and bool(llr.any())
        return TransportResult(transport[: self.payload_bits].copy(), crc_ok, blocks_ok)
