"""A fully convolutional network for semantic segmentation (Long, Shelhamer, Darrell: Multi-SC [11], eq. 1 and 7).

The classifier is an EfficientNet-Lite0 whose layers are convolutions, so that a picture of any size gives a map of
its own size; class scores taken at strides 4, 8, 16 and 32 are upsampled and added (the skip connections). The
features that they are taken from pass from coarse to fine first (Lin et al. 2017).
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
from multisc.models.efficientnet_lite import CHANNELS, DEVIATION, MEAN, EfficientNetLite

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
STRIDE = 32  # of the coarsest feature map
GROUPS = 8  # of channels that are normalised together in the decoder


@dataclass(frozen=True)
class FcnConfig:
    """What a checkpoint's ``config.json`` says.

    Args:
        classes: names of the classes; the first is the background.
        width: channels of the decoder, a multiple of 8, at least 16.
        long_side: length in pixels of the longer side that pictures are brought to.

    Raises:
        ModelError: when a value is out of its range.
    """

    classes: tuple[str, ...]
    width: int = 64
    long_side: int = 320

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 1000 or not all(isinstance(name, str) and name for name in self.classes):
            raise ModelError("FCN config: classes must be 2 to 1000 names, the background first")
        if not isinstance(self.width, int) or not 2 * GROUPS <= self.width <= 1024 or self.width % GROUPS:
            raise ModelError(f"FCN config: width must be a multiple of {GROUPS}, {2 * GROUPS} to 1024")
        if not isinstance(self.long_side, int) or not STRIDE <= self.long_side <= 4096:
            raise ModelError(f"FCN config: long_side must be an integer of {STRIDE} to 4096")


class _Separable(nn.Sequential):
    """A 3x3 convolution of each channel, then a mix of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(inplace=True),
        )


def _place(features: Tensor) -> Tensor:
    """Coordinates of each cell from -1 to 1, down and across, and their squares; (1, 4, H, W)."""
    height, width = features.shape[-2:]
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width * 2 - 1).expand(height, width)
    return torch.stack([y, x, y * y, x * x])[None].to(features)


def _enlarge(maps: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


class Fcn(nn.Module):
    """The network: pictures to per-pixel log-probabilities of the classes, and to the probability of the subject.

    Args:
        config: classes and width.
    """

    def __init__(self, config: FcnConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.classes) + 1  # the last score is the subject's
        self.encoder = EfficientNetLite()
        self.encoder.head = nn.Identity()  # type: ignore[assignment]
        self.encoder.classifier = nn.Identity()  # type: ignore[assignment]
        self.laterals = nn.ModuleList([nn.Conv2d(channels, config.width, 1) for channels in CHANNELS])
        self.refine = nn.ModuleList(
            [nn.Sequential(_Separable(config.width), _Separable(config.width)) for _ in CHANNELS]
        )
        self.scores = nn.ModuleList([nn.Conv2d(config.width, count, 1) for _ in CHANNELS])
        # From the whole picture's mean feature: which classes to expect at all.
        self.scene = nn.Linear(CHANNELS[-1], count)
        self.place = nn.Conv2d(4, count, 1, bias=False)  # where in the picture: subjects are seldom at its border

    def train(self, mode: bool = True) -> Fcn:
        """Switch to training; the encoder keeps the statistics of its normalisation."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Classify each pixel.

        Args:
            pictures: float (B, 3, H, W) in [0, 1]; any H and W.

        Returns:
            float32 (B, classes, H, W): log p(class | picture), whose negative at the true class is eq. 7; and float32
            (B, H, W): the probability that the pixel belongs to the main subject.
        """
        scores = _enlarge(self.scores_at_quarter(pictures).float(), pictures.shape[-2:])
        return functional.log_softmax(scores[:, :-1], dim=1), scores[:, -1].sigmoid()

    def scores_at_quarter(self, pictures: Tensor) -> Tensor:
        """Return the scores of the classes before the softmax, and of the subject before the sigmoid.

        They have a quarter of the pictures' size, (B, classes + 1, ceil(H/4), ceil(W/4)).
        """
        maps = self.encoder.pyramid((pictures - MEAN) / DEVIATION)
        coarsest = maps[-1]
        total = self.scene(coarsest.mean((2, 3)))[:, :, None, None] + self.place(_place(coarsest))
        features: Tensor | None = None
        for level in reversed(range(len(maps))):
            lateral = self.laterals[level](maps[level])
            if features is not None:
                lateral = lateral + _enlarge(features, lateral.shape[-2:])
                total = _enlarge(total, lateral.shape[-2:])
            features = self.refine[level](lateral)
            total = total + self.scores[level](features)
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
            config = FcnConfig(tuple(values["classes"]), values["width"], values["long_side"])
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
