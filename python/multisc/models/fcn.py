"""A fully convolutional network for semantic segmentation (Long, Shelhamer, Darrell: Multi-SC [11], eq. 1 and 7).

The classifier's layers are convolutions, so that a picture of any size gives a map of its own size; class scores
taken at strides 4, 8, 16 and 32 are upsampled and added (the skip connections).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from multisc.errors import ModelError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
STRIDE = 32  # of the coarsest feature map
MAX_WEIGHTS = 100_000_000  # in the residual blocks: what memory a configuration may ask for
_MEAN = (0.47, 0.45, 0.41)
_DEVIATION = (0.27, 0.26, 0.28)


@dataclass(frozen=True)
class FcnConfig:
    """What a checkpoint's ``config.json`` says.

    Args:
        classes: names of the classes; the first is the background.
        channels: width of the feature maps at strides 2, 4, 8, 16 and 32.
        blocks: how many residual blocks refine those at strides 4, 8, 16 and 32; the kernels of every second one are
            spread twice as wide.
        long_side: length in pixels of the longer side that pictures are brought to.

    Raises:
        ModelError: when a value is out of its range.
    """

    classes: tuple[str, ...]
    channels: tuple[int, ...] = (16, 40, 80, 160, 256)
    blocks: tuple[int, ...] = (1, 2, 4, 2)
    long_side: int = 256

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or not all(isinstance(name, str) and name for name in self.classes):
            raise ModelError("FCN config: classes must be two or more names, the background first")
        if len(self.channels) != 5 or not all(isinstance(c, int) and 1 <= c <= 4096 for c in self.channels):
            raise ModelError("FCN config: channels must be five integers of 1 to 4096")
        if len(self.blocks) != 4 or not all(isinstance(b, int) and 0 <= b <= 64 for b in self.blocks):
            raise ModelError("FCN config: blocks must be four integers of 0 to 64")
        weights = sum(18 * width**2 * count for width, count in zip(self.channels[1:], self.blocks, strict=True))
        if weights > MAX_WEIGHTS:
            raise ModelError(f"FCN config: channels and blocks must make at most {MAX_WEIGHTS} weights")
        if not isinstance(self.long_side, int) or not STRIDE <= self.long_side <= 4096:
            raise ModelError(f"FCN config: long_side must be an integer of {STRIDE} to 4096")


class _Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(features + self.body(features))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _place(features: Tensor) -> Tensor:
    """Coordinates of each cell from -1 to 1, down and across, and their squares; (1, 4, H, W)."""
    height, width = features.shape[-2:]
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width * 2 - 1).expand(height, width)
    return torch.stack([y, x, y * y, x * x])[None].to(features)


class Fcn(nn.Module):
    """The network: pictures to per-pixel log-probabilities of the classes.

    Args:
        config: classes, widths and blocks.
    """

    def __init__(self, config: FcnConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.classes)
        self.stem = _down(3, config.channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                _down(inputs, outputs), *(_Residual(outputs, dilation=1 + index % 2) for index in range(blocks))
            )
            for inputs, outputs, blocks in zip(config.channels, config.channels[1:], config.blocks, strict=False)
        )
        self.scores = nn.ModuleList([nn.Conv2d(width, count, 1) for width in config.channels[1:]])
        # From the whole picture's mean feature: which classes to expect at all.
        self.scene = nn.Linear(config.channels[-1], count)
        self.place = nn.Conv2d(4, count, 1, bias=False)  # where in the picture: subjects are seldom at its border
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Classify each pixel.

        Args:
            pictures: float (B, 3, H, W) in [0, 1]; any H and W.

        Returns:
            float32 (B, classes, H, W): log p(class | picture), whose negative at the true class is eq. 7.
        """
        scores = self.scores_at_quarter(pictures).float()
        scores = functional.interpolate(scores, pictures.shape[-2:], mode="bilinear", align_corners=False)
        return functional.log_softmax(scores, dim=1)

    def scores_at_quarter(self, pictures: Tensor) -> Tensor:
        """Return the scores before the softmax at a quarter of the size, (B, classes, ceil(H/4), ceil(W/4))."""
        return self.combine(self.features(pictures))

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Return the feature maps at strides 4, 8, 16 and 32."""
        features = self.stem((pictures - self.mean) / self.deviation)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps

    def combine(self, maps: list[Tensor]) -> Tensor:
        """Add up the class scores of the feature maps, at the size of the first."""
        scores = [score(features) for score, features in zip(self.scores, maps, strict=True)]
        coarsest = maps[-1]
        total = scores.pop() + self.scene(coarsest.mean((2, 3)))[:, :, None, None] + self.place(_place(coarsest))
        while scores:
            finer = scores.pop()
            total = finer + functional.interpolate(total, finer.shape[-2:], mode="bilinear", align_corners=False)
        return total

    def save_pretrained(self, directory: Path) -> None:
        """Write ``config.json`` and float16 ``model.safetensors``."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_NAME).write_text(
            json.dumps({"model_type": "fcn", **asdict(self.config)}, indent=1) + "\n"
        )
        tensors = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        save_file(tensors, directory / WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, directory: Path) -> Fcn:
        """Read a checkpoint; every tensor's name and shape is checked.

        Raises:
            ModelError: when a file is missing or damaged, or does not fit the configuration.
        """
        config_file, weights_file = directory / CONFIG_NAME, directory / WEIGHTS_NAME
        for file in (config_file, weights_file):
            if not file.is_file():
                raise ModelError(f"FCN checkpoint {directory}: {file.name} is missing")
        try:
            values = json.loads(config_file.read_text())
            config = FcnConfig(
                tuple(values["classes"]), tuple(values["channels"]), tuple(values["blocks"]), values["long_side"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"FCN checkpoint {config_file}: not a valid FCN configuration ({error})") from error
        model = cls(config)
        try:
            tensors = load_file(weights_file)
        except SafetensorError as error:
            raise ModelError(f"FCN checkpoint {weights_file}: not a safetensors file ({error})") from error
        wanted = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
        for name in sorted(wanted.keys() ^ tensors.keys()):
            raise ModelError(f"FCN checkpoint {weights_file}: tensor {name} is {_trouble(name in wanted)}")
        for name, tensor in wanted.items():
            if tensor.shape != tensors[name].shape:
                raise ModelError(
                    f"FCN checkpoint {weights_file}: tensor {name} has shape {tuple(tensors[name].shape)}, "
                    f"config.json asks for {tuple(tensor.shape)}"
                )
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        return model.eval()


def _trouble(is_wanted: bool) -> str:
    return "missing" if is_wanted else "not one of this network"
