"""torchvision's FCN-ResNet50 with VOC labels as the segmentation network of the foundation profile (Multi-SC [11]).

torchvision is imported only when such a checkpoint is loaded. Its published weights are a pickle, which
``multisc models fetch`` converts once to ``model.safetensors`` beside a ``config.json`` of ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from multisc.errors import ModelError, reason_of
from multisc.models.fcn import CONFIG_NAME, WEIGHTS_NAME, FcnConfig

MODEL_TYPE = "torchvision-fcn_resnet50"
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LONG_SIDE = 780  # a photograph of 3:2 is then 520 pixels high, as torchvision's evaluation transform makes it
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class TorchvisionFcn(nn.Module):
    """The network: pictures to per-pixel log-probabilities of the classes, as ``multisc.models.fcn.Fcn``.

    Args:
        network: ``torchvision.models.segmentation.fcn_resnet50``.
        config: classes and size of the pictures.
    """

    def __init__(self, network: nn.Module, config: FcnConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Classify each pixel.

        Args:
            pictures: float (B, 3, H, W) in [0, 1].

        Returns:
            float32 (B, classes, H, W): log p(class | picture); and float32 (B, H, W): the probability of the subject,
            which is all that is not background, since the network knows no main subject.
        """
        scores = self.network((pictures - self.mean) / self.deviation)["out"]
        log = functional.log_softmax(scores.float(), dim=1)
        return log, 1.0 - log[:, 0].exp()

    @classmethod
    def from_pretrained(cls, directory: Path) -> TorchvisionFcn:
        """Read a converted checkpoint.

        Raises:
            ModelError: when torchvision or a file is missing, or the weights do not fit.
        """
        try:
            from torchvision.models.segmentation import fcn_resnet50
        except (ImportError, RuntimeError) as error:  # RuntimeError: one that was built for another torch
            raise ModelError(
                f"FCN checkpoint {directory}: needs a torchvision that fits torch ({reason_of(error, lines=2)}); "
                "install it, or use --models embedded"
            ) from error
        network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=len(CLASSES), aux_loss=True)
        file = directory / WEIGHTS_NAME
        try:
            network.load_state_dict(load_file(file))
        except FileNotFoundError:
            raise ModelError(f"FCN checkpoint {directory}: {WEIGHTS_NAME} is missing; fetch it again") from None
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(f"FCN checkpoint {file}: {reason_of(error, lines=2)}; fetch it again") from error
        return cls(network, FcnConfig(CLASSES, long_side=LONG_SIDE)).eval()


def write_config(directory: Path) -> None:
    """Write the ``config.json`` that tells a converted checkpoint from one of our own network."""
    text = json.dumps({"model_type": MODEL_TYPE, "classes": CLASSES, "long_side": LONG_SIDE}, indent=1)
    (directory / CONFIG_NAME).write_text(text + "\n")


def is_converted(directory: Path) -> bool:
    """Whether a directory holds such a checkpoint; False for one without a readable configuration."""
    try:
        values: Any = json.loads((directory / CONFIG_NAME).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE
