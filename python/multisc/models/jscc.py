"""Deep joint source-channel coding of pictures of any size: a picture to real features, noisy features to a picture.

    jscc = Jscc.load("models/deep-jscc")
    features = jscc.encode(picture, 1 / 6)                   # float32; sent as an analog stream, two to a channel use
    shown = jscc.decode(received, (width, height), 1 / 6, snr_db)

The network is in ``jscc_network``; docs/explanation/deep-jscc.md describes it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from multisc.errors import BadInputError, ModelError
from multisc.models.checkpoint import check_directory
from multisc.models.jscc_network import CHANNELS, STRIDE, JsccNetwork, JsccWidths

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
EXPECTED_DB = 10.0
# What the network is trained for; a level beyond is taken as the nearest.
EXPECTED_RANGE_DB = (-5.0, 20.0)
MEASURED_RANGE_DB = (-10.0, 30.0)


@dataclass(frozen=True)
class JsccConfig:
    """What a checkpoint's ``config.json`` says.

    Args:
        lowest_cbr, highest_cbr: the channel bandwidth ratios that the checkpoint serves, as fractions; at most 1/6.
        widths: of the network.

    Raises:
        ModelError: when a value is out of its range.
    """

    lowest_cbr: str = "1/48"
    highest_cbr: str = "1/6"
    widths: JsccWidths = field(default_factory=JsccWidths)

    def __post_init__(self) -> None:
        try:
            lowest, highest = Fraction(self.lowest_cbr), Fraction(self.highest_cbr)
        except (ValueError, TypeError, ZeroDivisionError):
            raise ModelError("JSCC config: lowest_cbr and highest_cbr must be fractions such as 1/6") from None
        if not 0 < lowest <= highest <= Fraction(1, 6):
            raise ModelError("JSCC config: lowest_cbr must be above 0, highest_cbr not below it and at most 1/6")

    def check_cbr(self, cbr: float | Fraction) -> Fraction:
        """Return a channel bandwidth ratio as an exact fraction.

        Raises:
            BadInputError: when the checkpoint does not serve it.
        """
        exact = Fraction(cbr).limit_denominator(10**6) if math.isfinite(cbr) else Fraction(0)
        if not Fraction(self.lowest_cbr) <= exact <= Fraction(self.highest_cbr):
            raise BadInputError(
                f"deep-jscc at cbr {cbr}: the checkpoint serves {self.lowest_cbr} to {self.highest_cbr}"
            )
        return exact


class Jscc:
    """Encoder and decoder.

    Args:
        network: in evaluation mode.
        config: of its checkpoint.
        device: where it runs.
    """

    def __init__(self, network: JsccNetwork, config: JsccConfig, device: str = "cpu") -> None:
        self._network = network.to(device).eval()
        self.config = config
        self._device = device

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Jscc:
        """Read a checkpoint directory; every tensor's name and shape is checked.

        Raises:
            ModelError: when a file is missing or damaged, a pickle, or does not fit the configuration.
        """
        directory = Path(path)
        check_directory(directory, (CONFIG_NAME,))
        config = _read_config(directory / CONFIG_NAME)
        return cls(_read_network(directory / WEIGHTS_NAME, config.widths), config, device)

    def features(self, size: tuple[int, int], cbr: float | Fraction) -> int:
        """Return how many features a picture of a size (width, height) takes: two for each channel use at most.

        Raises:
            BadInputError: for a side below 16 pixels, or a ratio that the checkpoint does not serve.
        """
        exact = self.config.check_cbr(cbr)
        width, height = size
        if min(size) < STRIDE:
            raise BadInputError(
                f"deep-jscc: a picture of {width}x{height} pixels is smaller than the encoder's stride; "
                f"must be at least {STRIDE}x{STRIDE}"
            )
        rows, columns = _places(size)
        return min(2 * math.floor(exact * 3 * height * width), CHANNELS * rows * columns)

    def encode(
        self, image: NDArray[np.uint8], cbr: float | Fraction, expected_db: float = EXPECTED_DB
    ) -> NDArray[np.float32]:
        """Turn a picture into features, the most important first.

        Args:
            image: uint8 of shape (H, W, 3), at least 16 pixels a side.
            cbr: channel bandwidth ratio: at most ``2 * cbr * 3 * H * W`` features are made.
            expected_db: Es/N0 per channel use that the link is expected to have; NaN when not known. The receiver
                must be told the same.

        Returns:
            float32 of shape (``features(size, cbr)``,), finite, of any power: an analog stream normalises it and
            tells the receiver the gain.

        Raises:
            BadInputError: for a picture that is too small, or a ratio that the checkpoint does not serve.
        """
        height, width = image.shape[:2]
        count = self.features((width, height), cbr)
        rows, columns = _places((width, height))
        picture = torch.from_numpy(np.array(image, np.float32) / 255.0).permute(2, 0, 1)[None]
        padding = (0, columns * STRIDE - width, 0, rows * STRIDE - height)
        padded = functional.pad(picture, padding, mode="replicate").to(self._device)
        sent = self._sent(count, rows, columns)
        with torch.inference_mode():
            features = self._network.encode(padded, sent, self._level(expected_db, EXPECTED_RANGE_DB))
        return features.flatten()[:count].float().cpu().numpy()

    def decode(
        self,
        features: NDArray[np.float32],
        size: tuple[int, int],
        cbr: float | Fraction,
        snr_db: float,
        expected_db: float = EXPECTED_DB,
    ) -> NDArray[np.uint8]:
        """Turn features as received into a picture.

        Args:
            features: float32 of the shape that ``encode`` made, at its scale, plus noise; 0 where nothing was
                received.
            size: (width, height) of the picture.
            cbr: as given to ``encode``.
            snr_db: Es/N0 per channel use as the receiver estimates it; NaN when not known: then ``expected_db``.
            expected_db: as given to ``encode``.

        Returns:
            uint8 of shape (H, W, 3).

        Raises:
            BadInputError: when the features are not as many as a picture of this size and ratio has.
        """
        count = self.features(size, cbr)
        if features.shape != (count,):
            raise BadInputError(
                f"deep-jscc: {features.size} features received, a picture of {size[0]}x{size[1]} pixels at cbr {cbr} "
                f"has {count}"
            )
        rows, columns = _places(size)
        received = torch.zeros(CHANNELS * rows * columns)
        received[:count] = torch.from_numpy(np.nan_to_num(features, nan=0.0, posinf=0.0, neginf=0.0))
        # Finite but absurd values must not overflow in squares.
        received = received.clamp(-1e6, 1e6).view(1, CHANNELS, rows, columns).to(self._device)
        expected = self._level(expected_db, EXPECTED_RANGE_DB)
        measured = expected if math.isnan(snr_db) else self._level(snr_db, MEASURED_RANGE_DB)
        with torch.inference_mode():
            shown = self._network.decode(received, self._sent(count, rows, columns), expected, measured)
        pixels = shown[0].permute(1, 2, 0)[: size[1], : size[0]].clamp(0.0, 1.0) * 255.0
        return pixels.round().byte().cpu().numpy()

    def _sent(self, count: int, rows: int, columns: int) -> Tensor:
        sent = torch.zeros(CHANNELS * rows * columns, device=self._device)
        sent[:count] = 1.0
        return sent.view(1, CHANNELS, rows, columns)

    def _level(self, snr_db: float, limits: tuple[float, float]) -> Tensor:
        level = EXPECTED_DB if math.isnan(snr_db) else snr_db
        return torch.tensor([min(max(level, limits[0]), limits[1])], device=self._device)


def save_pretrained(network: JsccNetwork, config: JsccConfig, directory: Path) -> None:
    """Write ``config.json`` and float16 ``model.safetensors``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_NAME).write_text(json.dumps({"model_type": "deep-jscc", **asdict(config)}, indent=1) + "\n")
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, directory / WEIGHTS_NAME)


def _places(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of blocks that cover a picture of (width, height)."""
    return -(-size[1] // STRIDE), -(-size[0] // STRIDE)


def _read_config(file: Path) -> JsccConfig:
    try:
        values = json.loads(file.read_text())
        return JsccConfig(values["lowest_cbr"], values["highest_cbr"], JsccWidths(**values["widths"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"JSCC checkpoint {file}: not a valid JSCC configuration ({error})") from error


def _read_network(file: Path, widths: JsccWidths) -> JsccNetwork:
    network = JsccNetwork(widths)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"JSCC checkpoint {file}: not a safetensors file ({error})") from error
    wanted = network.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        trouble = "missing" if name in wanted else "not one of this network"
        raise ModelError(f"JSCC checkpoint {file}: tensor {name} is {trouble}")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise ModelError(
                f"JSCC checkpoint {file}: tensor {name} has shape {tuple(tensors[name].shape)}, "
                f"config.json asks for {tuple(tensor.shape)}"
            )
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network
