"""The posterior mean of an uncoded slice of quantised pixels: what photographs are like, and what the channel says.

Each pixel's bits by themselves leave it wide open at a low SNR; its neighbours do not. The network takes the soft
bits of all pixels and gives the picture of least mean squared error, so that a noisy slice is soft, not speckled.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from multisc.codecs.quantise import MAX_BITS
from multisc.errors import BadInputError, ModelError
from multisc.models.checkpoint import check_directory

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
COLOURS = 3
INPUTS = COLOURS * (MAX_BITS + 2)  # soft bits, mean and deviation of each colour
REACH = 2.0  # how far a sample may be moved from its own mean, in its own deviations, by an output of 1
SHRINK = 4
MAX_WIDTH = 256


class DenoiserNetwork(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) of three sizes.

    Args:
        width: channels at full size; twice and three times as many below.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_conv(INPUTS, width), _conv(width, width))
        self.second = nn.Sequential(_conv(width, 2 * width), _conv(2 * width, 2 * width))
        self.third = nn.Sequential(
            _conv(2 * width, 3 * width), _conv(3 * width, 3 * width), _conv(3 * width, 2 * width)
        )
        self.second_back = nn.Sequential(_conv(4 * width, 2 * width), _conv(2 * width, width))
        self.first_back = nn.Sequential(_conv(2 * width, width), nn.Conv2d(width, COLOURS + 1, 3, padding=1))

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture and its expected error.

        Args:
            given: (B, ``INPUTS``, H, W), sides multiples of ``SHRINK``; see ``inputs``.

        Returns:
            (B, 3, H, W), about -1 to 1, and the logarithm of its mean squared error at each pixel, (B, 1, H, W).
        """
        first = self.first(given)
        second = self.second(functional.avg_pool2d(first, 2))
        third = self.third(functional.avg_pool2d(second, 2))
        second = self.second_back(torch.cat([second, _double(third)], 1))
        made = self.first_back(torch.cat([first, _double(second)], 1))
        mean, deviation = given[:, -2 * COLOURS : -COLOURS], given[:, -COLOURS:]
        # Where the bits are sure nothing is left to estimate, and a clear slice stays as it is.
        return mean + REACH * deviation * made[:, :COLOURS], made[:, COLOURS:]


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.SiLU())


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def inputs(llrs: Tensor) -> Tensor:
    """What the network is given.

    With fewer than 8 bits a sample the last ones count as not received: Gray labels of a coarse quantiser are the
    first bits of those of a fine one.

    Args:
        llrs: of the Gray-labelled bits of each colour sample, (B, bits, 3, H, W).

    Returns:
        (B, 30, H, W): 8 soft bits of each colour, then the mean and the deviation of each given its own bits, for
        values of -1 to 1.
    """
    soft = torch.tanh(llrs.float().clamp(-40.0, 40.0) / 2.0)
    soft = functional.pad(soft, (0, 0, 0, 0, 0, 0, 0, MAX_BITS - llrs.shape[1]))
    # The sign of a natural bit is the product of those of the Gray bits up to it; the value is the sum of the signs,
    # each worth half of the one before. From the last bit on, the signs' joint mean square is built up.
    weights = torch.tensor([0.5**k for k in range(1, MAX_BITS + 1)]).to(soft).view(1, -1, 1, 1, 1)
    mean = -(torch.cumprod(soft, 1) * weights).sum(1)
    rest, square = torch.zeros_like(mean), torch.zeros_like(mean)
    for k in range(MAX_BITS - 1, -1, -1):
        square = square + weights[:, k] ** 2 + 2.0 * weights[:, k] * rest
        rest = soft[:, k] * (weights[:, k] + rest)
    deviation = (square - mean.square()).clamp(min=0.0).sqrt()
    return torch.cat([soft.flatten(1, 2), mean, deviation], 1)


class SliceDenoiser:
    """Turns soft bits into a slice. Made by ``SliceDenoiser.load``.

    Args:
        network: in evaluation mode.
        device: where it runs.
    """

    def __init__(self, network: DenoiserNetwork, device: str = "cpu") -> None:
        self._network, self._device = network.to(device).eval(), device

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> SliceDenoiser:
        """Read a checkpoint directory; every tensor's name and shape is checked.

        Raises:
            ModelError: when a file is missing or damaged, or does not fit the configuration.
        """
        directory = Path(path)
        check_directory(directory, (CONFIG_NAME,))
        try:
            width = json.loads((directory / CONFIG_NAME).read_text())["width"]
            if type(width) is not int or not 1 <= width <= MAX_WIDTH:
                raise ValueError(f"width {width!r}: must be 1 to {MAX_WIDTH}")
            network = DenoiserNetwork(width)
            tensors = load_file(directory / WEIGHTS_NAME)
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"slice denoiser {directory}: {reason}; copy it again") from error
        return cls(network, device)

    @torch.inference_mode()
    def restore(self, llrs: NDArray[np.float32], bits: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
        """Estimate a slice.

        Args:
            llrs: log(p(0)/p(1)) of its bits, float32 (width * height * 3 * bits,); 0 where nothing was received.
            bits: of each colour sample, 1 to 8.
            size: (width, height).

        Returns:
            uint8 (height, width, 3), and the expected root mean square of its error, of full scale.

        Raises:
            BadInputError: when the ratios are not as many as such a slice has.
        """
        width, height = size
        if llrs.size != width * height * COLOURS * bits:
            raise BadInputError(
                f"{llrs.size} soft bits: a slice of {width}x{height} pixels has {bits} a colour sample"
            )
        given = torch.from_numpy(np.nan_to_num(llrs)).view(1, height, width, COLOURS, bits).permute(0, 4, 3, 1, 2)
        wide = inputs(given.to(self._device))
        padded = functional.pad(wide, (0, -width % SHRINK, 0, -height % SHRINK), mode="replicate")
        picture, error = self._network(padded)
        levels = ((picture[0, :, :height, :width].clamp(-1, 1) + 1.0) * 128.0 - 0.5).round().clamp(0, 255)
        spread = error[0, :, :height, :width].clamp(-20.0, 2.0).exp().mean().sqrt().item() / 2.0
        return levels.byte().permute(1, 2, 0).cpu().numpy(), min(1.0, spread)


def save_pretrained(network: DenoiserNetwork, width: int, directory: Path) -> None:
    """Write ``config.json`` and float16 ``model.safetensors``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_NAME).write_text(json.dumps({"model_type": "slice-denoiser", "width": width}) + "\n")
    save_file({n: t.half().contiguous() for n, t in network.state_dict().items()}, directory / WEIGHTS_NAME)
