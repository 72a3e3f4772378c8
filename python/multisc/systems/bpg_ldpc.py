"""The classic chain: a BPG picture that fills the channel uses there are, CRC, LDPC code, QAM.

docs/explanation/bpg-ldpc.md describes every step.

All or nothing: a bit stream whose CRC fails is an outage, and so is one that cannot be decoded. Needs no models and
no torch, so it runs wherever the streams are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from multisc.codecs import bpg
from multisc.codecs.bpg.encoder import FORMATS, MAX_QP
from multisc.codecs.bpg.sandbox import decoder_process
from multisc.errors import BadInputError
from multisc.streams import Encoded, ReceivedImage, Reconstruction, Stream
from multisc.systems import mcs as schemes
from multisc.systems.base import Options, parse_options
from multisc.systems.budget import channel_uses, parse_cbr
from multisc.systems.mcs import Mcs

STREAM = "bpg"
CONCEALED = "concealed, not a decode"


@dataclass(frozen=True)
class BpgLdpcOptions:
    """What can be chosen for one picture; validated when built.

    Args:
        cbr: channel bandwidth ratio, channel uses over 3 H W: a fraction such as "1/6" or a number in (0, 4].
        mcs: "auto" for the scheme that carries most at ``snr_db``, or RATE:MODULATION such as "1/2:16qam".
        code: "nr" for the 5G NR chain at the scheme's rate, or "pyldpc:N:DV:DC", whose rate 1 - DV/DC must be the
            scheme's.
        snr_db: Es/N0 per channel use that "auto" is for; NaN when not known.
        chroma: "420" or "444".
        conceal: also show what an error-concealing decoder makes of a stream whose CRC failed; it stays an outage.

    Raises:
        BadInputError: for a value outside its range.
    """

    cbr: str = "1/6"
    mcs: str = "auto"
    code: str = "nr"
    snr_db: float = math.nan
    chroma: str = "420"
    conceal: bool = False

    def __post_init__(self) -> None:
        _ = self.ratio
        if self.chroma not in FORMATS:
            raise BadInputError(f"option chroma is {self.chroma!r}: must be one of {', '.join(FORMATS)}")
        if self.mcs != "auto":
            scheme = Mcs.parse(self.mcs)
            if self.code != "nr" and Fraction(scheme.rate) != self._gallager_rate():
                raise BadInputError(f"mcs {self.mcs}: the code {self.code} has the rate {self._gallager_rate()}")
        elif self.code != "nr":
            raise BadInputError("mcs auto: measured for code nr only; name a scheme such as mcs=1/2:16qam")

    @property
    def ratio(self) -> Fraction:
        """The channel bandwidth ratio as an exact fraction."""
        return parse_cbr(self.cbr)

    def code_of(self, scheme: Mcs) -> str:
        """The specification of the code for ``multisc.phy.fec``."""
        return scheme.code if self.code == "nr" else self.code

    def _gallager_rate(self) -> Fraction:
        parts = self.code.split(":")
        if len(parts) != 4 or parts[0] != "pyldpc" or not all(p.isascii() and p.isdigit() for p in parts[1:]):
            raise BadInputError(f"option code is {self.code!r}: must be nr or pyldpc:N:DV:DC")
        return 1 - Fraction(int(parts[2]), max(int(parts[3]), 1))


class BpgLdpc:
    """The system; see the module's description."""

    name = "bpg-ldpc"

    def encode(self, image: NDArray[np.uint8], options: Options) -> Encoded:
        """See ``System.encode``; one stream of bits, the BPG file.

        Raises:
            BadInputError: also when no BPG file of the picture is small enough for the channel uses.
        """
        chosen = parse_options(BpgLdpcOptions, options, self.name)
        uses = channel_uses(chosen.ratio, *image.shape[:2])
        encoder = bpg.PictureEncoder(image, chosen.chroma)
        try:
            scheme, found = self._fit(chosen, uses, encoder)
        except BadInputError as error:
            raise BadInputError(f"cbr {chosen.cbr}, mcs {chosen.mcs}: {error}") from error
        code = chosen.code_of(scheme)
        budget = schemes.payload_bits(code, scheme.modulation, uses) // 8
        facts = [
            f"mcs {scheme}, code {code}",
            f"{uses} channel uses at cbr {chosen.cbr}: {budget} bytes",
            f"BPG at qp {found.qp}: {len(found.data)} bytes",
        ]
        stream = Stream(STREAM, np.unpackbits(np.frombuffer(found.data, np.uint8)), scheme.modulation, code)
        return Encoded([stream], preview={"sent": bpg.decode(found.data).rgb, "coding": facts})

    def decode(self, received: ReceivedImage, options: Options) -> Reconstruction:
        """See ``System.decode``; an outage unless the CRC holds and the file is sound."""
        chosen = parse_options(BpgLdpcOptions, options, self.name)
        stream = next((s for s in received.streams if s.name == STREAM), None)
        if stream is None or not stream.delivered:
            return Reconstruction(None, outage_reason="nothing of the BPG stream was received")
        if stream.crc_ok is False:
            preview = self._conceal(stream.data) if chosen.conceal else {}
            reason = "the CRC of the BPG stream failed: its bits hold errors that the LDPC code could not correct"
            return Reconstruction(None, outage_reason=reason, preview=preview)
        try:
            return Reconstruction(bpg.decode(np.packbits(stream.data).tobytes()).rgb)
        except BadInputError as error:
            return Reconstruction(None, outage_reason=f"the BPG stream was received but is no picture: {error}")

    @staticmethod
    def _fit(chosen: BpgLdpcOptions, uses: int, encoder: bpg.PictureEncoder) -> tuple[Mcs, bpg.SizeSearch]:
        """The scheme, and the picture that fills what it carries."""

        def fill(scheme: Mcs) -> tuple[Mcs, bpg.SizeSearch]:
            return scheme, encoder.fit(schemes.payload_bits(chosen.code_of(scheme), scheme.modulation, uses) // 8)

        if chosen.mcs != "auto":
            return fill(Mcs.parse(chosen.mcs))
        if not math.isfinite(chosen.snr_db):
            raise BadInputError("auto needs the SNR, as snr_db=10, or name a scheme such as mcs=1/2:16qam")
        try:
            return fill(schemes.choose(chosen.snr_db, uses))
        except BadInputError:
            # What would get through at this SNR holds no picture. Then the smallest one is sent by the scheme that
            # comes closest, which most likely is an outage.
            return fill(schemes.choose(chosen.snr_db, uses, 8 * len(encoder.encode(MAX_QP))))

    @staticmethod
    def _conceal(bits: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        """What FFmpeg makes of a damaged file, if it makes anything of it."""
        try:
            return {CONCEALED: bpg.decode(np.packbits(bits).tobytes(), strict=False).rgb}
        except BadInputError:
            return {}


def bpg_ldpc(models: str = "") -> BpgLdpc:
    """The system's factory; it has no models. Starts the process that decodes, which takes a moment."""
    decoder_process.start()
    return BpgLdpc()
