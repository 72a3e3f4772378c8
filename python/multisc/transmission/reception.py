"""Samples become images and their files: what `multisc rx` and reception on the air share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multisc.evaluation.result import ChannelInfo, ImageInfo, Result, Scalar, StreamResult, TextInfo, finite
from multisc.files import make_folder
from multisc.images import save_png
from multisc.inference.backend import Backend
from multisc.phy.assembly import AssembledImage, Assembler
from multisc.phy.burst import channel_uses_total
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver, ReceivedBurst
from multisc.streams import ReceivedImage, Reconstruction
from multisc.systems.base import Options
from multisc.systems.registry import SYSTEMS, get_entry

STREAMS_ONLY = "not decoded: --streams-only"
MAX_ACCOUNTS = 64
TROUBLE = ("header_failures", "truncated", "refused", "contradictions", "duplicates", "bad_samples")


@dataclass
class _Uses:
    """Channel uses of the bursts of one image, overhead included, and how many bursts that were."""

    total: int = 0
    bursts: int = 0


@dataclass
class Reception:
    """Samples in, images out: the receiver, the assembler, and the accounts of what each image took.

    Args:
        config: numerology.
    """

    config: PhyConfig
    _uses: dict[int, _Uses] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._receiver = BurstReceiver(self.config)
        self._assembler = Assembler()

    def push(self, samples: NDArray[np.complex64]) -> list[tuple[AssembledImage, int]]:
        """Take in samples, complex64; return images that are finished, with their channel uses including overhead."""
        return self._assemble(self._receiver.push(samples))

    def flush(self) -> list[tuple[AssembledImage, int]]:
        """End the recording; return the images under way, as far as they came."""
        done = self._assemble(self._receiver.flush())
        return done + [self._account(image) for image in self._assembler.flush()]

    def counters(self) -> dict[str, int]:
        """What happened so far: counts of the receiver and of the assembler."""
        own = {"contradictions": self._assembler.contradictions, "duplicates": self._assembler.duplicates}
        return {**asdict(self._receiver.counters), **own}

    def _assemble(self, bursts: list[ReceivedBurst]) -> list[tuple[AssembledImage, int]]:
        done: list[tuple[AssembledImage, int]] = []
        for burst in bursts:
            uses = self._uses.setdefault(burst.header.image_id, _Uses())
            uses.total += channel_uses_total(self.config, burst.header_symbols, burst.header.payload_symbols)
            uses.bursts += 1
            if len(self._uses) > MAX_ACCOUNTS:  # bursts that the assembler dropped leave theirs behind
                self._uses.pop(next(iter(self._uses)))
            done += [self._account(image) for image in self._assembler.add(burst)]
        return done

    def _account(self, image: AssembledImage) -> tuple[AssembledImage, int]:
        """Bursts that were missed are taken to be as long as those that arrived."""
        payload = sum(descriptor.symbols for descriptor, _, _ in image.streams)
        uses = self._uses.pop(image.image_id, None)
        return image, max(payload, round(uses.total / uses.bursts * image.bursts_total)) if uses else payload


def found(images: int, counters: dict[str, int], *more: str) -> str:
    """Return what was found in one line: images, bursts, ``more``, and whatever went wrong.

    Args:
        images: finished.
        counters: from ``Reception.counters``.
        more: further parts.
    """
    counts = [
        f"{count} {name}{'s' * (count != 1)}" for count, name in ((images, "image"), (counters["bursts"], "burst"))
    ]
    trouble = [f"{counters[k]} {k.replace('_', ' ')}" for k in TROUBLE if counters[k]]
    return ", ".join([*counts, *more, *trouble])


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Args:
        kind: "recording" or "radio", as in ``ChannelInfo``.
        sample_rate: Hz; None when it is not known.
        parameters: further facts for ``ChannelInfo``.
        radio: what the radio says of itself at the moment of the call; None for a recording.
    """

    kind: str
    sample_rate: float | None
    parameters: dict[str, Scalar] = field(default_factory=dict)
    radio: Callable[[], dict[str, Scalar]] | None = None


class Finisher:
    """Turns assembled images into files: DIR/<image id>/result.json and what was received.

    Args:
        out: folder for all images, which must exist.
        config: numerology.
        source: where the samples come from.
        backend: where systems run; None writes the received streams and decodes no picture.
        options: the systems' options.
        seed: of the models.
        say: called with a line for each image.

    Attributes:
        summary: for each image its id, folder, and whether it is complete and an outage.
    """

    def __init__(
        self,
        out: Path,
        config: PhyConfig,
        source: Source,
        backend: Backend | None,
        options: Options,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._out = out
        self._source = source
        self._backend = backend
        self._options = dict(options)
        self._seed = seed
        self._say = say
        self._seen: Counter[int] = Counter()
        self._spacing = (source.sample_rate or float("nan")) / config.fft_size
        self.summary: list[dict[str, Any]] = []

    def finish(self, image: AssembledImage, uses: int, reception: Reception) -> None:
        """Decode one image, write its files and add it to the summary.

        Args:
            image: as it was assembled.
            uses: its channel uses, overhead included.
            reception: where it comes from.

        Raises:
            MultiscError: when a file cannot be written or the inference process fails.
        """
        self._seen[image.image_id] += 1
        times = self._seen[image.image_id]
        name = str(image.image_id) if times == 1 else f"{image.image_id}-{times}"
        folder = self._out / name
        make_folder(folder)
        begin = time.perf_counter()
        received = image.receive()
        demodulated = time.perf_counter()
        files: dict[str, str] = {}
        if self._backend is None:
            shown = Reconstruction(None, outage_reason=STREAMS_ONLY)
            np.savez(folder / "received.npz", **_arrays(image, received))
            files["streams"] = "received.npz"
        else:
            shown = self._decode(self._backend, image, received)
        timings = {"demodulate": demodulated - begin, "decode": time.perf_counter() - demodulated}
        (folder / "received.png").unlink(missing_ok=True)  # of an earlier run
        if shown.image is not None:
            save_png(folder / "received.png", shown.image)
            files["received"] = "received.png"
        result = self._result(image, received, shown, uses, reception, timings, files)
        result.write(folder / "result.json")
        what = (
            "streams" if self._backend is None else f"outage: {result.outage_reason}" if shown.outage else "picture"
        )
        system = image.system or "no system"
        self._say(f"{name}: {system}, {image.bursts_received} of {image.bursts_total} bursts, {what}")
        self.summary.append(
            {"image_id": image.image_id, "directory": name, "complete": image.complete, "outage": result.outage}
        )

    def _decode(self, backend: Backend, image: AssembledImage, received: ReceivedImage) -> Reconstruction:
        """Run the system's receiver; what came over the air may be anything, and then it is an outage."""
        if image.system not in SYSTEMS:
            return Reconstruction(None, outage_reason=f"the header names system {image.system!r}, not known here")
        facts = {"seed": self._seed, "snr_db": image.snr_db}
        context = {name: facts[name] for name in get_entry(image.system).context}
        return backend.decode(image.system, received, {**context, **self._options})

    def _result(
        self,
        image: AssembledImage,
        received: ReceivedImage,
        shown: Reconstruction,
        uses: int,
        reception: Reception,
        timings: dict[str, float],
        files: dict[str, str],
    ) -> Result:
        height, width = shown.image.shape[:2] if shown.image is not None else (None, None)
        streams = [
            StreamResult(
                name=descriptor.name,
                kind="analog" if descriptor.modulation == "analog" else "digital",
                modulation=descriptor.modulation,
                code=descriptor.code,
                symbols=descriptor.symbols,
                delivered=stream.delivered,
                bits=None if descriptor.modulation == "analog" else descriptor.length,
                snr_estimated_db=finite(stream.snr_db),
                crc_ok=stream.crc_ok,
            )
            for (descriptor, _, _), stream in zip(image.streams, received.streams, strict=True)
        ]
        return Result(
            system=image.system,
            models=self._backend.models_of(image.system) if self._backend else "none",
            image=ImageInfo(None, width, height),
            channel=ChannelInfo(
                self._source.kind,
                snr_estimated_db=finite(image.snr_db),
                sample_rate_hz=self._source.sample_rate,
                cfo_estimated_hz=finite(image.cfo * self._spacing),
                parameters={"cfo_estimated_subcarriers": finite(image.cfo), **self._source.parameters},
            ),
            streams=streams,
            channel_uses=sum(stream.symbols for stream in streams),
            channel_uses_total=uses,
            outage_reason=shown.outage_reason if shown.outage else None,
            text=TextInfo(received=shown.text.get("received", []), corrected=shown.text.get("corrected", [])),
            metrics={},
            metrics_reasons={},
            options=self._options,
            receiver={
                "image_id": image.image_id,
                "complete": image.complete,
                "bursts_received": image.bursts_received,
                "bursts_total": image.bursts_total,
                **reception.counters(),
            },
            timings_s=timings,
            files=files,
            radio=self._source.radio() if self._source.radio else None,
        )


def _arrays(image: AssembledImage, received: ReceivedImage) -> dict[str, NDArray]:
    """What --streams-only keeps, by "<stream>.<what>"; plain numbers, to be read without pickle."""
    arrays: dict[str, NDArray] = {"side_info": np.frombuffer(image.side_info, np.uint8)}
    for (descriptor, symbols, variance), stream in zip(image.streams, received.streams, strict=True):
        parts = {"data": stream.data, "llrs": stream.llrs, "symbols": symbols, "noise_variance": variance}
        arrays.update({f"{descriptor.name}.{what}": array for what, array in parts.items()})
    return arrays
