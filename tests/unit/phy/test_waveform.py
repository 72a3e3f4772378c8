"""docs/reference/waveform.md read literally: a second transmitter, written from the page, sends the same samples."""

import struct
from math import ceil, gcd

import numpy as np
import pytest

from multisc.codecs.quantise import Quantiser
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.ldpc.block import NrLdpcBlock
from multisc.phy.transport import modulate
from multisc.streams import Stream

N, C, U = 256, 40, 192
P, D = U // 12, U - U // 12
CARRIERS = [*range(-U // 2, 0), *range(1, U // 2 + 1)]
MODES = ("fdm", "tdm", "cdm")


def gold(c_init: int, length: int) -> np.ndarray:
    x1, x2 = [1] + [0] * 30, [(c_init >> i) & 1 for i in range(31)]
    for n in range(length + 1600):
        x1.append(x1[n + 3] ^ x1[n])
        x2.append(x2[n + 3] ^ x2[n + 2] ^ x2[n + 1] ^ x2[n])
    return np.array([x1[n + 1600] ^ x2[n + 1600] for n in range(length)])


def qpsk(c_init: int, length: int) -> np.ndarray:
    c = 1 - 2 * gold(c_init, 2 * length)
    return (c[0::2] + 1j * c[1::2]) / np.sqrt(2)


def turn(c_init: int, length: int) -> np.ndarray:
    c = gold(c_init, 2 * length)
    return 1j ** (2 * c[0::2] + c[1::2])


def symbol(values: dict[int, complex]) -> np.ndarray:
    n = np.arange(N)
    return sum(v * np.exp(2j * np.pi * k * n / N) for k, v in values.items()) / np.sqrt(N)


def crc(bits: list[int], polynomial: int, length: int) -> list[int]:
    register = [*bits, *[0] * length]
    taps = [1, *[(polynomial >> (length - 1 - i)) & 1 for i in range(length)]]
    for i in range(len(bits)):
        if register[i]:
            for j, tap in enumerate(taps):
                register[i + j] ^= tap
    return register[-length:]


def to_bits(data: bytes) -> list[int]:
    return [(byte >> (7 - i)) & 1 for byte in data for i in range(8)]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def preamble() -> np.ndarray:
    short = [k for k in CARRIERS if k % 4 == 0]
    level = np.sqrt(2) * np.sqrt(U / len(short))
    block = symbol(dict(zip(short, level * qpsk(39, len(short)), strict=True)))[: N // 4]
    signs = [1]
    for d in (1, -1, -1, -1, 1, 1, -1, 1):
        signs.append(signs[-1] * d)
    long = symbol(dict(zip(CARRIERS, np.sqrt(2) * qpsk(720, U), strict=True)))
    return np.concatenate([*(s * block for s in signs), long[N - 2 * C :], long, long])


def ofdm(data: np.ndarray) -> np.ndarray:
    pilots, turns, out = qpsk(0x50494C, len(data) * P), turn(0x534352, data.size), []
    for s, row in enumerate(data):
        columns = [c for c in range(U) if c % 12 == 1 + 3 * (s % 4)]
        values = {CARRIERS[c]: pilots[s * P + i] for i, c in enumerate(columns)}
        rest = [c for c in range(U) if c not in columns]
        values |= {CARRIERS[c]: row[m] * turns[s * D + m] for m, c in enumerate(rest)}
        x = symbol(values)
        out += [x[N - C :], x]
    return np.concatenate(out)


def map_qpsk(bits: np.ndarray) -> np.ndarray:
    b = 1 - 2 * bits.astype(int)
    return (b[0::2] + 1j * b[1::2]) / np.sqrt(2)


def header(description: bytes, payload_symbols: int) -> np.ndarray:
    size = len(description) + 3
    control = (2 << 28 | size << 18 | payload_symbols << 8).to_bytes(4, "big")
    bits = to_bits(control)
    bits += crc(bits, 0x1021, 16)
    coded = NrLdpcBlock(48, ceil(960 / (2 * D)) * 2 * D).encode(np.array([bits], np.uint8)).ravel()
    check = crc(to_bits(control + description), 0x864CFB, 24)
    blocks = ceil(8 * size / 3840)
    content = to_bits(description) + check
    k = 8 * ceil(size / blocks)
    content += [0] * (k * blocks - len(content))
    words = np.array(content, np.uint8).reshape(blocks, k)
    rest = NrLdpcBlock(k, 10 * k).encode(words).ravel()
    symbols = ceil(rest.size / (2 * D))
    padded = np.concatenate([coded, rest, np.zeros(symbols * 2 * D - rest.size, np.uint8)])
    return map_qpsk(padded).reshape(ceil(960 / (2 * D)) + symbols, D)


def payload(mode: str, streams: list[np.ndarray]) -> np.ndarray:
    def units_and_slots(s: int) -> tuple[int, int]:
        return {"fdm": (D, s), "tdm": (s, D), "cdm": (16, s * D // 16)}[mode]

    s = 1
    while sum(ceil(x.size / units_and_slots(s)[1]) for x in streams) > units_and_slots(s)[0]:
        s += 1
    units, slots = units_and_slots(s)
    stride = max(1, round(0.618 * units))
    while gcd(stride, units) > 1:
        stride += 1
    grid = qpsk(0x504144, s * D)
    walsh = np.array([[(-1) ** bin(a & b).count("1") for b in range(16)] for a in range(16)])

    def place(unit: int, slot: int) -> int:
        return {"fdm": slot * D + unit, "tdm": unit * D + slot, "cdm": slot * 16 + unit}[mode]

    dealt = 0
    for x in streams:
        count = ceil(x.size / slots)
        mine = sorted(i * stride % units for i in range(dealt, dealt + count))
        dealt += count
        for i, value in enumerate(x):
            grid[place(mine[i % count], i // count)] = value
    if mode == "cdm":
        for g in range(slots):
            grid[16 * g : 16 * g + 16] = grid[16 * g : 16 * g + 16] @ walsh / 4
    return grid.reshape(s, D)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("names", [["slice", "text", "f"], [f"a-name-of-15-c{c}" for c in "abcdefghijklmnop"]])
def test_the_page_describes_what_is_sent(mode: str, names: list[str]) -> None:
    rng = np.random.default_rng(5)
    made = []
    for i, name in enumerate(names):
        if i == 0:
            made.append(
                Stream(name, rng.standard_normal(200).astype(np.float32), "16qam", "nr:1/2", Quantiser(4, 2.5))
            )
        elif i == 2:
            made.append(Stream(name, rng.standard_normal(333).astype(np.float32), "analog"))
        else:
            made.append(Stream(name, rng.integers(0, 2, 260 + i).astype(np.uint8), "qpsk"))
    modulated = [modulate(s, power_db=-1.5 if i == 1 else 0.0) for i, s in enumerate(made)]
    config = PhyConfig(orthogonal=mode, max_payload_symbols=3 if len(names) == 3 else 128)
    bursts = BurstTransmitter(config).transmit(0xCAFE0001, modulated, b"\x01\x02side", "multi-sc")

    total = len(bursts)
    assert total > 1 or len(names) == 16
    for sequence, burst in enumerate(bursts):
        description = struct.pack(">IHHB", 0xCAFE0001, sequence, total, MODES.index(mode) << 6 | len(names) - 1)
        description += b"\x08multi-sc" + b"\x06\x01\x02side" + bytes([len(names)])
        shares = []
        for i, (stream, sent) in enumerate(zip(made, modulated, strict=True)):
            d = sent.descriptor
            layout = {"16qam": 2 << 5 | 16 | 4, "analog": 5 << 5, "qpsk": 1 << 5}[stream.modulation]
            description += bytes([i, len(stream.name)]) + stream.name.encode() + bytes([layout])
            description += varint(d.length) + varint(sent.symbols.size)
            description += struct.pack(">h", -150 if i == 1 else 0)
            if stream.modulation == "analog":
                description += struct.pack(">f", d.gain)
            if stream.quantiser:
                description += struct.pack(">Bf", 4, 2.5)
            level = 10 ** ((-1.5 if i == 1 else 0.0) / 20)
            shares.append(sent.symbols[sequence::total] * level)
        content = payload(mode, shares)
        expected = np.concatenate([preamble(), ofdm(np.concatenate([header(description, len(content)), content]))])
        np.testing.assert_allclose(burst, expected, atol=2e-5)
