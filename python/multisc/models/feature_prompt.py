"""The diffusion model driven by a vision-language feature: y enters its cross-attention through a trained projection.

The projection is an IP-Adapter (decoupled cross-attention, Multi-SC eq. 10) of the kind that takes a row of tokens:
each of the N tokens of y is projected by itself, and each cross-attention layer has keys and values of its own for
them. The text prompt is empty. A linear map of y besides tells the picture's colours on a coarse grid: the denoising
starts from them, since what the first steps make of pure noise is the layout, and attention alone hardly steers it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.feature import FeatureStatistics
from multisc.errors import BadInputError, ModelError
from multisc.models.checkpoint import check_directory, find

if TYPE_CHECKING:
    from torch import Tensor

    from multisc.models.generator import Generator

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
GUIDANCE = 3.0
SKETCH = 8  # fields a side


@dataclass(frozen=True)
class FeatureProjection:
    """What is trained for a pair of BLIP-2 and diffusion model: the contents of a checkpoint directory.

    Args:
        statistics: of y, the way it travels.
        image_proj: weights of the projection of y's tokens, in the layout of an IP-Adapter file.
        ip_adapter: keys and values of each cross-attention, in that layout.
        colours: weights of the linear map, float32 of shape (N * d + 1, 192): from the first d dimensions of each
            token, as ``FeatureStatistics.whiten`` gives them, and 1, to red, green and blue in 8 x 8 fields, 0 to 1.
        models: names of the pair, as they were given for training.
    """

    statistics: FeatureStatistics
    image_proj: dict[str, Tensor]
    ip_adapter: dict[str, Tensor]
    colours: NDArray[np.float32]
    models: dict[str, str]

    @property
    def condition_width(self) -> int:
        """Values that a projected token has: the diffusion model's cross-attention takes as many."""
        return self.image_proj["proj.3.weight"].shape[0]

    def sketch(self, feature: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return the colours that y, (N, D), tells: uint8 (8, 8, 3)."""
        told = (len(self.colours) - 1) // self.statistics.tokens
        known = self.statistics.whiten(feature)[:, :told].ravel()
        grid = (known @ self.colours[:-1] + self.colours[-1]).reshape(SKETCH, SKETCH, 3)
        return (grid * 255.0).round().clip(0, 255).astype(np.uint8)

    def save(self, directory: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, in half precision."""
        import torch
        from safetensors.torch import save_file

        parts = {name: torch.from_numpy(getattr(self.statistics, name)) for name in ("mean", "basis", "deviation")}
        tensors = {f"feature.{name}": tensor for name, tensor in parts.items()}
        tensors["colours"] = torch.from_numpy(self.colours)
        tensors |= {f"image_proj.{name}": tensor for name, tensor in self.image_proj.items()}
        tensors |= {f"ip_adapter.{name}": tensor for name, tensor in self.ip_adapter.items()}
        directory.mkdir(parents=True, exist_ok=True)
        halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
        save_file(halves, directory / WEIGHTS, metadata={"format": "pt"})
        sizes = {"tokens": self.statistics.tokens, "width": self.statistics.width}
        document = {**sizes, "cross_attention_dim": self.condition_width, "models": self.models}
        (directory / CONFIG).write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, source: str | Path) -> FeatureProjection:
        """Read a checkpoint directory.

        Raises:
            ModelError: when it is missing, incomplete, or its parts do not fit each other.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        place = find(source)
        if not place.local:
            raise ModelError(f"model {source}: a projection is a directory that `multisc train vlf` writes")
        directory = Path(place.name)
        check_directory(directory, (CONFIG, WEIGHTS))
        try:
            models = json.loads((directory / CONFIG).read_text())["models"]
            tensors = {name: tensor.float() for name, tensor in load_file(directory / WEIGHTS).items()}
            colours = tensors.pop("colours").numpy()
            groups: dict[str, dict[str, Tensor]] = {"feature": {}, "image_proj": {}, "ip_adapter": {}}
            for name, tensor in tensors.items():
                group, _, rest = name.partition(".")
                groups[group][rest] = tensor
            statistics = FeatureStatistics(
                *(groups["feature"][name].numpy() for name in ("mean", "basis", "deviation"))
            )
            found = cls(statistics, groups["image_proj"], groups["ip_adapter"], colours, models)
            told, spare = divmod(len(colours) - 1, statistics.tokens)
            fits = colours.shape[1:] == (3 * SKETCH**2,) and 1 <= told <= statistics.width and not spare
            width_taken = groups["image_proj"]["proj.0.weight"].shape[1]
            width_given = found.condition_width
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError, BadInputError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"model directory {directory}: {reason}; copy it again, or train it: multisc train vlf"
            ) from error
        if width_taken != statistics.width or not width_given or not found.ip_adapter or not fits:
            raise ModelError(f"model directory {directory}: its parts are of different models; copy it again")
        return found


class FeatureGenerator:
    """Generates pictures from y. Made by ``FeatureGenerator.load``.

    Args:
        generator: of a diffusion pipeline that has the projection loaded as its IP-Adapter.
        projection: that is loaded.
    """

    def __init__(self, generator: Generator, projection: FeatureProjection) -> None:
        self._generator = generator
        self._projection = projection
        self.statistics = projection.statistics

    @classmethod
    def load(cls, stable_diffusion: str | Path, projection: str | Path, device: str = "cpu") -> FeatureGenerator:
        """Load the pipeline and the projection.

        Args:
            stable_diffusion: directory of a ``StableDiffusionPipeline``, or its name on the hub.
            projection: directory that ``multisc train vlf`` wrote.
            device: "cpu", "cuda", ...; half precision on CUDA, single on the CPU.

        Raises:
            ModelError: when a part is missing, refused, or does not fit the other.
        """
        from multisc.models.generator import Generator, load_pipeline

        found = FeatureProjection.load(projection)
        pipeline = load_pipeline(stable_diffusion, device)
        add_projection(pipeline.unet, found, str(stable_diffusion))
        return cls(Generator(pipeline.to(device)), found)

    def generate(
        self,
        feature: NDArray[np.floating],
        size: tuple[int, int],
        seed: int = 0,
        steps: int = 25,
        guidance: float = GUIDANCE,
    ) -> NDArray[np.uint8]:
        """Generate a picture. On the CPU the same arguments give the same picture, bit for bit.

        Args:
            feature: y as received, of shape (N, D).
            size: (width, height) of the picture in pixels.
            seed: of the noise.
            steps: denoising steps, 1 to 1000.
            guidance: classifier-free guidance; 1 is none.

        Returns:
            uint8 (height, width, 3).

        Raises:
            BadInputError: for an argument outside its range.
        """
        import torch

        shape = self.statistics.mean.shape
        if feature.shape != shape or not np.isfinite(feature).all():
            raise BadInputError(f"feature of shape {feature.shape}: must be {shape}, finite")
        image = torch.from_numpy(np.asarray(feature, np.float32))[None]
        return self._generator.draw(image, size, seed, steps, guidance, self._projection.sketch(feature))


def add_projection(unet: object, projection: FeatureProjection, name: str) -> None:
    """Give a UNet the projection as its IP-Adapter.

    Args:
        unet: ``UNet2DConditionModel`` without an adapter, changed in place.
        projection: trained for it.
        name: of the diffusion model, for the error.

    Raises:
        ModelError: when the projection was trained for another UNet.
    """
    wanted = set()
    for number, layer in cross_attentions(unet):
        width = unet.get_submodule(layer).to_k.weight.shape  # type: ignore[attr-defined]
        wanted |= {(f"{number}.{key}.weight", tuple(width)) for key in ("to_k_ip", "to_v_ip")}
    if wanted != {(key, tuple(tensor.shape)) for key, tensor in projection.ip_adapter.items()}:
        raise ModelError(
            f"model {name}: the vlf-projection was trained for another diffusion model "
            f"({projection.models.get('stable_diffusion', 'unknown')}); train one for this: multisc train vlf"
        )
    state = {"image_proj": projection.image_proj, "ip_adapter": projection.ip_adapter}
    unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)  # type: ignore[attr-defined]


def cross_attentions(unet: object) -> list[tuple[int, str]]:
    """Name the UNet's cross-attention layers with the numbers that an adapter's checkpoint gives them."""
    names = list(unet.attn_processors)  # type: ignore[attr-defined]
    return [(i, name.removesuffix(".processor")) for i, name in enumerate(names) if "attn2" in name]
