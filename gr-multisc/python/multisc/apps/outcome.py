"""What a run tells whose both ends are here: result.json, pictures, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pmt
from numpy.typing import NDArray

from multisc import images
from multisc.errors import MultiscError
from multisc.evaluation import metrics
from multisc.evaluation.report import write_report
from multisc.evaluation.result import ChannelInfo, ImageInfo, Result, StreamResult, TextInfo, finite
from multisc.files import printable
from multisc.phy.config import PhyConfig
from multisc.phy.units import linear
from multisc.streams import Reconstruction

from .. import pdu
from ..blocks.burst import burst_receiver, burst_transmitter
from ..blocks.channel import channel as channel_block
from ..blocks.message_block import collector
from ..blocks.modulator import demodulator
from ..blocks.semantic import semantic_decoder, semantic_encoder

PICTURES = {name: f"{name}.png" for name in ("received", "slice_sent", "slice_received")}


class Ends(Protocol):
    """The blocks to ask, such as those of ``loopback``; without a simulated channel its place is None."""

    encoder: semantic_encoder
    sent_bits: collector
    sent_symbols: collector
    transmitter: burst_transmitter
    channel: channel_block | None
    receiver: burst_receiver
    received_symbols: collector
    demodulator: demodulator
    received_bits: collector
    decoder: semantic_decoder


def stream_results(graph: Ends, config: PhyConfig, asked_db: dict[str, float]) -> list[StreamResult]:
    """Sent against received, stream by stream.

    Args:
        graph: after its run.
        config: its numerology.
        asked_db: Es/N0 asked for, by the name of the stream; empty when nothing is simulated.
    """
    sent_bits = _by_stream(graph.sent_bits.messages)
    received_bits = _by_stream(graph.received_bits.messages)
    results = []
    for name, (meta, symbols) in _by_stream(graph.sent_symbols.messages).items():
        modulated = pdu.unpack_symbols(meta, symbols)
        digital = modulated.descriptor.modulation != "analog"
        bits = sent_bits[name][1]
        received = pdu.unpack_received(*received_bits[name]) if name in received_bits else None
        delivered = received is not None and received.delivered
        errors = None
        if received is not None and delivered and digital and received.data.size == bits.size:
            errors = int(np.count_nonzero(received.data != bits))
        energy = float(np.mean(np.abs(symbols) ** 2)) if symbols.size else 0.0
        energy *= linear(modulated.power_db) * config.amplitude**2
        results.append(
            StreamResult(
                name=name,
                kind="digital" if digital else "analog",
                modulation=modulated.descriptor.modulation,
                code=modulated.descriptor.code,
                symbols=symbols.size,
                delivered=delivered,
                bits=bits.size if digital else None,
                bit_errors=errors,
                snr_db=asked_db.get(name),
                snr_measured_db=_measured_db(graph, energy),
                snr_estimated_db=finite(received.snr_db) if received else None,
                crc_ok=received.crc_ok if received else None,
            )
        )
    return results


def collect(
    graph: Ends,
    image: NDArray[np.uint8],
    shown_path: str,
    channel: ChannelInfo,
    config: PhyConfig,
    asked_db: dict[str, float],
    about: dict[str, Any],
) -> Result:
    """Everything that is known of the image, without the files.

    Args:
        graph: after its run.
        image: the source.
        shown_path: how the source is called.
        channel: what was asked for; measurements are added here.
        config: numerology.
        asked_db: Es/N0 asked for, by the name of the stream; empty when nothing is simulated.
        about: further fields of ``Result``: system, models, options.
    """
    reconstruction = _reconstruction(graph)
    preview = _preview(graph)
    text = TextInfo(
        preview.get("captions", []),
        reconstruction.text.get("received", []),
        reconstruction.text.get("corrected", []),
    )
    texts = {"sent": text.sent, "received": text.received, "corrected": text.corrected}
    values, reasons = metrics.measure(image, reconstruction.image, texts, reconstruction.outage_reason)
    _measure_slice(values, reasons, preview.get("slice"), reconstruction.preview.get("slice"))
    arrived = graph.receiver.last_image
    counters = graph.receiver.receiver.counters
    return Result(
        image=ImageInfo(shown_path, image.shape[1], image.shape[0]),
        channel=ChannelInfo(
            kind=channel.kind,
            seed=channel.seed,
            snr_db=channel.snr_db,
            snr_measured_db=_measured_db(graph, config.amplitude**2),
            snr_estimated_db=finite(arrived.snr_db) if arrived else None,
            sample_rate_hz=channel.sample_rate_hz,
            cfo_hz=channel.cfo_hz,
            cfo_estimated_hz=finite(arrived.cfo * channel.sample_rate_hz / config.fft_size) if arrived else None,
            parameters=channel.parameters,
        ),
        streams=stream_results(graph, config, asked_db),
        channel_uses=graph.transmitter.channel_uses,
        channel_uses_total=graph.transmitter.channel_uses_total,
        outage_reason=reconstruction.outage_reason if reconstruction.outage else None,
        text=text,
        metrics=values,
        metrics_reasons=reasons,
        receiver={
            "bursts_sent": graph.transmitter.bursts,
            "bursts_received": counters.bursts,
            "detections": counters.detections,
            "header_failures": counters.header_failures,
            "truncated": counters.truncated,
            "refused": counters.refused,
            "bad_samples": counters.bad_samples,
            "contradictions": graph.demodulator.contradictions,
        },
        **about,
    )


def write(folder: Path, result: Result, graph: Ends, image: NDArray[np.uint8]) -> None:
    """Write the report, the pictures and, last, ``result.json`` into a folder.

    A picture that an earlier run left there and this one does not have is removed: on an outage nothing may be
    taken for what was received.

    Raises:
        MultiscError: when a file cannot be written or removed.
    """
    for file in sorted(set(PICTURES.values()) - set(result.files.values())):
        try:
            (folder / file).unlink(missing_ok=True)
        except OSError as error:
            raise MultiscError(f"{printable(folder / file)}: cannot be removed: {error.strerror}") from error
    reconstruction = _reconstruction(graph)
    preview = _preview(graph)
    pictures = {"source": image}
    pictures |= {name: preview[key] for name, key in (("mask", "mask"), ("slice_sent", "slice")) if key in preview}
    if reconstruction.image is not None:
        pictures["received"] = reconstruction.image
    if "slice" in reconstruction.preview:
        pictures["slice_received"] = reconstruction.preview["slice"]
    others = {name: value for name, value in reconstruction.preview.items() if name != "slice"}
    pictures |= {name: value for name, value in others.items() if isinstance(value, np.ndarray)}
    for name, file in result.files.items():
        if name not in ("result", "report"):
            images.save_png(folder / file, pictures[name])
    write_report(
        folder / result.files["report"],
        result,
        pictures,
        {name: _arrived(meta, data) for name, (meta, data) in _by_stream(graph.received_symbols.messages).items()},
        box=tuple(preview["box"]) if "box" in preview else None,
        label=preview.get("label", ""),
    )
    result.write(folder / result.files["result"])


def files_of(graph: Ends) -> dict[str, str]:
    """The files of ``write`` by what they are."""
    reconstruction = _reconstruction(graph)
    preview = _preview(graph)
    files = {"result": "result.json", "report": "report.html"}
    if reconstruction.image is not None:
        files["received"] = PICTURES["received"]
    if "slice" in preview:
        files["slice_sent"] = PICTURES["slice_sent"]
    if "slice" in reconstruction.preview:
        files["slice_received"] = PICTURES["slice_received"]
    return files


def _measured_db(graph: Ends, symbol_energy: float) -> float | None:
    return finite(graph.channel.snr_db(symbol_energy)) if graph.channel is not None else None


def _preview(graph: Ends) -> dict[str, Any]:
    """What the transmitter knows and does not send."""
    return graph.encoder.encoded.preview if graph.encoder.encoded else {}


def _reconstruction(graph: Ends) -> Reconstruction:
    return graph.decoder.reconstruction or Reconstruction(None, outage_reason="no burst of the picture was received")


def _arrived(meta: dict[str, Any], symbols: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The symbols of which anything was received."""
    return symbols[np.isfinite(meta["noise_variance"])]


def _by_stream(messages: list[pmt.pmt_base]) -> dict[str, tuple[dict[str, Any], NDArray]]:
    taken = [pdu.unpack(message) for message in messages]
    return {str(meta["stream"]): (meta, data) for meta, data in taken}


def _measure_slice(
    values: dict[str, float | None],
    reasons: dict[str, str],
    sent: NDArray[np.uint8] | None,
    received: NDArray[np.uint8] | None,
) -> None:
    if sent is None:
        return
    values["slice_psnr_db"] = None
    if received is None:
        reasons["slice_psnr_db"] = "the slice was not received"
    elif np.array_equal(sent, received):
        reasons["slice_psnr_db"] = "the slice arrived without any difference"
    else:
        values["slice_psnr_db"] = metrics.psnr_db(sent, received)
