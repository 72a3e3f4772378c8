"""Every system over the same channel: pictures through transmitter, channel and receiver at several SNRs.

The physical layer is the one of the flowgraphs, run without GNU Radio's scheduler. Each picture's result is kept in a
file of its own, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, t

from multisc import __version__
from multisc.channel import ChannelConfig
from multisc.errors import BadInputError
from multisc.evaluation import metrics
from multisc.evaluation.result import finite
from multisc.files import printable, write_atomically
from multisc.images import load_image
from multisc.phy.assembly import AssembledImage, Assembler
from multisc.phy.burst import BurstTransmitter, burst_uses
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver
from multisc.phy.transport import modulate
from multisc.phy.units import time_noise_variance
from multisc.streams import Encoded, ReceivedImage, Reconstruction
from multisc.systems.base import Options
from multisc.systems.registry import get_entry

SCHEMA = "multisc-sweep/1"
SILENCE = 1000  # samples before the first burst and after the last
CONFIDENCE = 0.95


class Backend(Protocol):
    """Runs systems; ``multisc.link.backend.Backend`` is one."""

    def encode(self, system: str, image: NDArray[np.uint8], options: Options) -> Encoded:
        """Run a system's transmitter."""

    def decode(self, system: str, received: ReceivedImage, options: Options) -> Reconstruction:
        """Run a system's receiver."""


@dataclass(frozen=True)
class Variant:
    """A system with options, under the name that the results carry.

    Args:
        label: as given, such as "bpg-ldpc,snr_db=10".
        system: its name in the registry.
        options: by name.
    """

    label: str
    system: str
    options: dict[str, Any]


@dataclass(frozen=True)
class SweepConfig:
    """What is measured.

    Args:
        variants: systems.
        images: picture files.
        snr_db: Es/N0 values, the noise of each picture.
        seed: of noise, fading and diffusion; each picture and SNR has noise of its own.
        channel: its kind and impairments; noise and seed are set here.
        phy: numerology.
        models: what the results were made with: the profile and a digest of its checkpoints.

    Raises:
        BadInputError: when two variants have the same label or two images the same name.
    """

    variants: tuple[Variant, ...]
    images: tuple[Path, ...]
    snr_db: tuple[float, ...]
    seed: int
    channel: ChannelConfig
    phy: PhyConfig
    models: str

    def __post_init__(self) -> None:
        for what, names in (
            ("systems", [variant.label for variant in self.variants]),
            ("images", [path.name for path in self.images]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise BadInputError(f"two of the {what} are called {printable(twice)}: must be named once")


@dataclass(frozen=True)
class Passage:
    """What became of an image between the two ends.

    Args:
        received: what arrived; None when no burst did.
        channel_uses: payload data symbols of all streams.
        channel_uses_total: these and preamble, header, pilots and padding.
        snr_estimated_db: Es/N0 as the receiver estimates it; NaN when nothing arrived.
    """

    received: ReceivedImage | None
    channel_uses: int
    channel_uses_total: int
    snr_estimated_db: float


def pass_through(encoded: Encoded, system: str, phy: PhyConfig, channel: ChannelConfig) -> Passage:
    """Send what a system's transmitter made over a simulated channel.

    Args:
        encoded: streams and side information.
        system: name of the system for the header.
        phy: numerology of both ends.
        channel: with noise and seed.

    Raises:
        BadInputError: for a stream that cannot be sent.
    """
    streams = [modulate(stream) for stream in encoded.streams]
    bursts = BurstTransmitter(phy).transmit(0, streams, encoded.side_info, system)
    chain, receiver, assembler = channel.build(), BurstReceiver(phy), Assembler()
    silence = np.zeros(SILENCE, np.complex64)
    images: list[AssembledImage] = []
    for samples in (silence, *bursts, silence):
        images += [image for burst in receiver.push(chain.process(samples)) for image in assembler.add(burst)]
    for burst in [*receiver.push(chain.finish()), *receiver.flush()]:
        images += assembler.add(burst)
    images += assembler.flush()
    # A burst that noise imitated would be another image.
    ours = next((image for image in images if image.image_id == 0 and image.system == system), None)
    return Passage(
        ours.receive() if ours else None,
        sum(stream.symbols.size for stream in streams),
        sum(burst_uses(phy, burst) for burst in bursts),
        ours.snr_db if ours else float("nan"),
    )


def measure(
    config: SweepConfig,
    backend: Backend,
    kept: Path,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> dict[str, Any]:
    """Send every picture by every system at every SNR.

    Args:
        config: what is measured.
        backend: runs the systems.
        kept: directory of the results of single pictures; those of the same configuration are not measured again.
        progress: called with the number of pictures done and of all.

    Returns:
        What ``sweep.json`` holds; docs/how-to/sweep.md describes it.

    Raises:
        BadInputError: for a picture that cannot be read, or that a system cannot encode.
    """
    kept.mkdir(parents=True, exist_ok=True)
    pictures: list[dict[str, Any]] = []
    total = len(config.variants) * len(config.images) * len(config.snr_db)
    for path in config.images:
        image = load_image(path)
        for variant in config.variants:
            for record in _records(config, variant, path, image, backend, kept):
                pictures.append(record)
                progress(len(pictures), total)
    order = {variant.label: place for place, variant in enumerate(config.variants)}
    pictures.sort(key=lambda record: (order[record["system"]], record["snr_db"], record["image"]))
    return {
        "schema": SCHEMA,
        "version": __version__,
        "models": config.models,
        "seed": config.seed,
        "snr": "Es/N0 per channel use, dB",
        "channel": {
            name: value
            for name, value in asdict(config.channel).items()
            if name not in ("noise_variance", "seed") and value != getattr(ChannelConfig(), name)
        }
        | {"kind": config.channel.kind},
        "images": [path.name for path in config.images],
        "rows": [
            summarise([r for r in pictures if r["system"] == variant.label and r["snr_db"] == snr_db])
            for variant in config.variants
            for snr_db in config.snr_db
        ],
        "pictures": pictures,
    }


def _records(
    config: SweepConfig, variant: Variant, path: Path, image: NDArray[np.uint8], backend: Backend, kept: Path
) -> Iterator[dict[str, Any]]:
    """The results of one picture by one system, of every SNR."""
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    encoded: Encoded | None = None
    entry = get_entry(variant.system)
    models = config.models if entry.needs_models else ""
    for snr_db in config.snr_db:
        facts = {"seed": config.seed, "snr_db": snr_db}
        options = {name: facts[name] for name in entry.context} | variant.options
        about = [SCHEMA, __version__, models, variant.system, options, digest, image.shape, snr_db]
        about += [config.seed, asdict(config.channel), asdict(config.phy)]
        file = kept / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"
        if file.exists():
            record = json.loads(file.read_text())
        else:
            if encoded is None or "snr_db" in options:  # a transmitter that knows the SNR may code for it
                try:
                    encoded = backend.encode(variant.system, image, options)
                except BadInputError as error:
                    raise BadInputError(f"{variant.label}, {printable(path)}: {error}") from error
            seed = zlib.crc32(f"{config.seed} {digest} {snr_db}".encode())
            noise = time_noise_variance(snr_db, config.phy.amplitude)
            channel = replace(config.channel, noise_variance=noise, seed=seed)
            passage = pass_through(encoded, variant.system, config.phy, channel)
            record = _judge(image, encoded, passage, variant, options, backend)
            write_atomically(file, json.dumps(record, allow_nan=False).encode())
        yield {"system": variant.label, "image": path.name, "snr_db": snr_db, **record}


def _judge(
    image: NDArray[np.uint8],
    encoded: Encoded,
    passage: Passage,
    variant: Variant,
    options: Options,
    backend: Backend,
) -> dict[str, Any]:
    """Decode what arrived and measure it."""
    shown = Reconstruction(None, outage_reason="no burst of the picture was received")
    if passage.received is not None:
        shown = backend.decode(variant.system, passage.received, options)
    texts = {"sent": encoded.preview.get("captions", []), **shown.text}
    values, _ = metrics.measure(image, shown.image, texts, shown.outage_reason)
    return {
        "outage": shown.outage,
        "outage_reason": shown.outage_reason,
        "channel_uses": passage.channel_uses,
        "channel_uses_total": passage.channel_uses_total,
        "cbr": passage.channel_uses / image.size,
        "snr_estimated_db": finite(round(passage.snr_estimated_db, 4)),
        "metrics": {name: None if value is None else round(value, 5) for name, value in values.items()},
        "text": texts,
    }


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of one system at one SNR with their 95 % confidence intervals.

    The pictures count as a random sample: a mean has Student's interval over them, the outage rate Clopper and
    Pearson's. A metric's mean is over the pictures that have it; an outage has none.

    Args:
        records: of pictures, at least one.
    """
    count, lost = len(records), sum(record["outage"] for record in records)
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, lost, count - lost + 1)) if lost else 0.0
    high = float(beta.ppf(1 - tail, lost + 1, count - lost)) if lost < count else 1.0
    means: dict[str, dict[str, Any]] = {}
    for name in records[0]["metrics"]:
        values = [value for record in records if (value := record["metrics"][name]) is not None]
        if values:
            means[name] = _mean(values)
    first = records[0]
    return {
        "system": first["system"],
        "snr_db": first["snr_db"],
        "pictures": count,
        "outage": lost / count,
        "outage_ci95": [low, high],
        "cbr": float(np.mean([record["cbr"] for record in records])),
        "channel_uses": float(np.mean([record["channel_uses"] for record in records])),
        "channel_uses_total": float(np.mean([record["channel_uses_total"] for record in records])),
        "metrics": means,
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean, Student's interval (None for a single value) and count."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "ci95": None, "count": count}
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return {"mean": mean, "ci95": [mean - half, mean + half], "count": count}
