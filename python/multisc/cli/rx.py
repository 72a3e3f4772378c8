"""Receive the images in a recording: any length, any level, any number of bursts, silence between them.

Writes DIR/recording.json with what was found, and for each image DIR/<image id>/result.json and, when there is a
picture to show, received.png. With --streams-only no models are needed: then received.npz holds the received bits or
coefficients, the soft bits and the symbols of each stream.

examples:
  multisc rx photo.sigmf-meta --out received
  multisc rx hackrf.ci8 --sample-rate 2e6 --out received
  multisc rx photo.sigmf-meta --out received --streams-only
  multisc rx photo.sigmf-meta --out received --inference tcp://127.0.0.1:5555 --set steps=10
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from multisc.cli import radio
from multisc.cli.arguments import finite_float, options, seed
from multisc.errors import BadInputError
from multisc.evaluation.result import ChannelInfo, ImageInfo, Result, StreamResult, TextInfo, finite
from multisc.files import printable, write_atomically
from multisc.images import save_png
from multisc.link.backend import Backend
from multisc.phy.assembly import AssembledImage, Assembler
from multisc.phy.burst import channel_uses_total
from multisc.phy.config import PhyConfig
from multisc.phy.preamble import preamble_of
from multisc.phy.receiver import BurstReceiver, ReceivedBurst
from multisc.recording import FORMATS, Recording, open_recording
from multisc.streams import ReceivedImage, Reconstruction
from multisc.systems.registry import SYSTEMS, get_entry

STREAMS_ONLY = "not decoded: --streams-only"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("recording", type=Path, help=".sigmf-meta, .sigmf-data, or a raw .cf32, .ci16, .ci8, .cu8")
    parser.add_argument("--out", type=Path, default=Path("received"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--format", choices=list(FORMATS), help="of a raw file; default: by its ending")
    parser.add_argument("--sample-rate", type=finite_float, metavar="HZ", help="of a raw file, to give offsets in Hz")
    parser.add_argument("--streams-only", action="store_true", help="write received streams, decode no pictures")
    parser.add_argument("--seed", type=seed, default=0, help="of the models; default: %(default)s")
    radio.add_waveform(parser)
    radio.add_inference(parser)


def run(args: argparse.Namespace) -> int:
    """Receive, decode, write."""
    config = radio.waveform(args)
    recording = open_recording(args.recording, args.format, args.sample_rate)
    shortest = preamble_of(config).length + 2 * config.symbol_samples
    if recording.count < shortest:
        raise BadInputError(
            f"{printable(args.recording)}: {recording.count} samples, the shortest burst has more than {shortest}"
        )
    for note in recording.notes:
        _say(note)
    _make(args.out)
    reception = Reception(config)
    summary: list[dict[str, Any]] = []
    with (
        Backend(args.inference, args.models, args.inference_keys, on_progress=_say) as backend,
        tqdm(
            total=recording.count, unit="sample", unit_scale=True, leave=False, disable=None, file=sys.stderr
        ) as bar,
    ):
        finisher = _Finisher(args, recording, backend)
        for block in recording.blocks():
            for image, uses in reception.push(block):
                summary.append(finisher.finish(image, uses, reception))
            bar.update(block.size)
        for image, uses in reception.flush():
            summary.append(finisher.finish(image, uses, reception))
    counters = reception.counters()
    report = {
        "recording": str(args.recording),
        "sample_rate_hz": recording.sample_rate,
        **counters,
        "images": summary,
    }
    _write_json(args.out / "recording.json", report)
    found = f"{len(summary)} image{'s' * (len(summary) != 1)}, {counters['bursts']} bursts"
    trouble = [f"{counters[k]} {k.replace('_', ' ')}" for k in _TROUBLE if counters[k]]
    print(f"{printable(args.recording)}: {recording.count} samples: {', '.join([found, *trouble])}")
    return 0


_TROUBLE = ("header_failures", "truncated", "refused", "contradictions", "duplicates", "bad_samples")


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

    def push(self, samples: np.ndarray) -> list[tuple[AssembledImage, int]]:
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
            done += [self._account(image) for image in self._assembler.add(burst)]
        return done

    def _account(self, image: AssembledImage) -> tuple[AssembledImage, int]:
        """Bursts that were missed are taken to be as long as those that arrived."""
        uses = self._uses.pop(image.image_id)
        payload = sum(descriptor.symbols for descriptor, _, _ in image.streams)
        return image, max(payload, round(uses.total / uses.bursts * image.bursts_total))


class _Finisher:
    """Turns an assembled image into files."""

    def __init__(self, args: argparse.Namespace, recording: Recording, backend: Backend) -> None:
        self._args = args
        self._recording = recording
        self._backend = backend
        self._options = options(args.options)
        self._seen: Counter[int] = Counter()
        self._spacing = (recording.sample_rate or float("nan")) / args.fft_size

    def finish(self, image: AssembledImage, uses: int, reception: Reception) -> dict[str, Any]:
        """Decode one image and write its files; return its line of recording.json."""
        self._seen[image.image_id] += 1
        times = self._seen[image.image_id]
        name = str(image.image_id) if times == 1 else f"{image.image_id}-{times}"
        folder = self._args.out / name
        _make(folder)
        begin = time.perf_counter()
        received = image.receive()
        demodulated = time.perf_counter()
        files: dict[str, str] = {}
        if self._args.streams_only:
            shown = Reconstruction(None, outage_reason=STREAMS_ONLY)
            np.savez(folder / "received.npz", **_arrays(image, received))
            files["streams"] = "received.npz"
        else:
            shown = self._decode(image, received)
        timings = {"demodulate": demodulated - begin, "decode": time.perf_counter() - demodulated}
        (folder / "received.png").unlink(missing_ok=True)  # of an earlier run
        if shown.image is not None:
            save_png(folder / "received.png", shown.image)
            files["received"] = "received.png"
        result = self._result(image, received, shown, uses, reception, timings, files)
        result.write(folder / "result.json")
        what = (
            "streams" if self._args.streams_only else f"outage: {result.outage_reason}" if shown.outage else "picture"
        )
        _say(f"{name}: {image.system or 'no system'}, {image.bursts_received} of {image.bursts_total} bursts, {what}")
        return {"image_id": image.image_id, "directory": name, "complete": image.complete, "outage": result.outage}

    def _decode(self, image: AssembledImage, received: ReceivedImage) -> Reconstruction:
        """Run the system's receiver; what came over the air may be anything, and then it is an outage."""
        if image.system not in SYSTEMS:
            return Reconstruction(None, outage_reason=f"the header names system {image.system!r}, not known here")
        facts = {"seed": self._args.seed, "snr_db": image.snr_db}
        context = {name: facts[name] for name in get_entry(image.system).context}
        return self._backend.decode(image.system, received, {**context, **self._options})

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
            models="none" if self._args.streams_only else self._backend.models_of(image.system),
            image=ImageInfo(None, width, height),
            channel=ChannelInfo(
                "recording",
                snr_estimated_db=finite(image.snr_db),
                sample_rate_hz=self._recording.sample_rate,
                cfo_estimated_hz=finite(image.cfo * self._spacing),
                parameters={"cfo_estimated_subcarriers": finite(image.cfo), "recording": str(self._args.recording)},
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
        )


def _arrays(image: AssembledImage, received: ReceivedImage) -> dict[str, np.ndarray]:
    """What --streams-only keeps, by "<stream>.<what>"; plain numbers, to be read without pickle."""
    arrays: dict[str, np.ndarray] = {"side_info": np.frombuffer(image.side_info, np.uint8)}
    for (descriptor, symbols, variance), stream in zip(image.streams, received.streams, strict=True):
        parts = {"data": stream.data, "llrs": stream.llrs, "symbols": symbols, "noise_variance": variance}
        arrays.update({f"{descriptor.name}.{what}": array for what, array in parts.items()})
    return arrays


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"{printable(folder)}: cannot be made: {reason}") from error


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")


def _say(line: str) -> None:
    tqdm.write(f"multisc rx: {line}", file=sys.stderr)  # which keeps clear of the progress bar
