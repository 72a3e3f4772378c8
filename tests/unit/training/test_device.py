"""Training on another device than the CPU: every stage from the data to the files, on a simulated GPU.

What the real one would add is its own rounding; what is shown here is that nothing but the rounding differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartConfig

from multisc.models.shared_encoder import DIRECTORY
from multisc.training import bart, blip, blip2, clip, data, diffusion, fcn, jscc, llava, vae, vlf
from multisc.training.device import CPU, Device
from multisc.training.looks import Viewing
from multisc.training.loop import Schedule, fit
from tests.support.simulated_gpu import Remote, lowered, simulated_gpu
from tests.support.training_data import write_training_data

STAGE = Schedule(steps=2, learning_rate=1e-3, warm_up=1, save_every=2)


@pytest.fixture
def gpu() -> Iterator[str]:
    """The name of the simulated device, which exists while the test runs."""
    with simulated_gpu() as name:
        yield name


def trainings(root: Path, made: Path) -> dict[str, Callable[[Path, Path, Device], object]]:
    """Every stage in miniature: from work folder, folder to write to, and place to what was measured.

    Args:
        root: the training data.
        made: where the stages' results are that others go on from.
    """
    views = Viewing(views=2)
    small = llava.LlavaRecipe(
        grid=2, viewing=views, batch=4, photographs=4, named=1, language=STAGE, captions=STAGE, consensus_samples=2
    )
    text = bart.BartRecipe(batch=4, beams=2, schedule=STAGE, refinement=STAGE)
    feature = blip2.Blip2Recipe(
        grid=2, viewing=views, batch=4, named=1, language=STAGE, feature=STAGE, captions=STAGE
    )
    words = blip.BlipRecipe(width=40, viewing=views, batch=4, named=1, language=STAGE, captions=STAGE)
    pair = (str(made / "blip2"), str(made / "diffusion" / "sd"))
    projection = vlf.VlfRecipe(batch=2, schedule=STAGE)
    analog = jscc.JsccTraining(steps=2, later_steps=1, batch=2, crop=64)
    picture = diffusion.DiffusionTraining(
        steps=2, batch=2, encoders=clip.ClipTraining(steps=2, batch=4, named=1, shown=2, views=1)
    )
    encoder = made / DIRECTORY
    return {
        "llava": lambda work, out, at: llava.train(root, work, out, small, at),
        "bart": lambda work, out, at: bart.train(root, work, made / "llava", out, text, place=at),
        "blip2": lambda work, out, at: blip2.train(root, work, encoder, out, feature, at),
        "blip": lambda work, out, at: blip.train(root, work, encoder, out, words, at),
        "fcn": lambda work, out, at: fcn.train(root, work, out, fcn.FcnTraining(steps=2, batch=4), at),
        "vae": lambda work, out, at: vae.train(root, work, out, vae.VaeTraining(steps=2, batch=2), at),
        "diffusion": lambda work, out, at: diffusion.train(
            root, work, work, made / "vae", out / "sd", out / "adapter", setup=picture, place=at
        ),
        "vlf": lambda work, out, at: vlf.train(root, work, *pair, out, projection, at),
        "deep-jscc": lambda work, out, at: jscc.train(root, work, out, analog, at),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def miniature() -> Iterator[None]:
    """Little to measure, and nothing that two devices may do each in its way."""

    threads, cached = torch.get_num_threads(), torch.is_autocast_cache_enabled()
    l_simple, feature_loss = diffusion.measure, vlf.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "HELD_OUT_IMAGES", 2)
        patch.setattr(llava, "load_pretrained", lambda encoder: None)
        patch.setattr(fcn, "load_pretrained", lambda encoder: None)
        patch.setattr(llava, "write_block_captions", lambda *_: None)
        patch.setattr(bart, "MEASURED_SNR_DB", (5.0,))
        patch.setattr(diffusion, "measure", lambda *given, **named: l_simple(*given, **named, count=1))
        patch.setattr(vlf, "measure", lambda denoising, tests, _count: feature_loss(denoising, tests, 1))
        # Of all that is drawn, BART's dropout alone is drawn on the device.
        patch.setattr(bart, "BartConfig", lambda **sizes: BartConfig(**sizes | {"dropout": 0.0}))
        # Autocast would keep the weights' low precision for their next use, which the simulated device does not.
        torch.set_autocast_cache_enabled(False)
        torch.set_num_threads(1)
        yield
    torch.set_autocast_cache_enabled(cached)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_cpu(miniature: None, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of every stage's results on the CPU, and in ``work`` of their checkpoints."""
    made = tmp_path_factory.mktemp("made")
    for name, train in trainings(root, made).items():
        train(new(made / "work" / name), made / name, CPU)
    return made


def new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that was written."""
    return {
        f"{path.relative_to(folder)} {name}": tuple(tensor.shape)
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def gradients(checkpoint: Path) -> torch.Tensor:
    """The optimiser's running mean of the gradients, all in one."""
    states = torch.load(checkpoint, weights_only=True)["optimiser"]["state"].values()
    return torch.cat([state["exp_avg"].flatten() for state in states])


@pytest.mark.slow
@pytest.mark.parametrize("stage", trainings(Path(), Path()))
def test_every_stage_goes_on_a_gpu_as_on_the_cpu(
    stage: str,
    gpu: str,
    root: Path,
    on_cpu: Path,
    tmp_path: Path,
) -> None:
    optimise = torch.optim.AdamW.step

    def step(optimiser: torch.optim.AdamW) -> None:
        trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        assert {type(parameter.grad) for parameter in trained if parameter.grad is not None} == {Remote}
        assert lowered
        lowered.clear()
        optimise(optimiser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        trainings(root, on_cpu)[stage](new(tmp_path / "work"), tmp_path / "out", Device(gpu))
    assert weights(tmp_path / "out") == weights(on_cpu / stage)
    checkpoints = [path for path in (on_cpu / "work" / stage).glob("*.pt") if ".best" not in path.name]
    assert checkpoints
    for checkpoint in checkpoints:
        wanted, found = gradients(checkpoint), gradients(tmp_path / "work" / checkpoint.name)
        # Attention is another formula there, and some sums have another order, all in bfloat16.
        assert (found - wanted).norm() < 0.05 * wanted.norm()


class Interrupted(Exception):
    """In the middle of a run."""


@pytest.mark.parametrize("moves", ["there", "back"])
def test_a_run_goes_on_where_another_device_left_it(moves: str, gpu: str, tmp_path: Path) -> None:
    """The best state too, which here is that of before the move."""
    schedule = Schedule(steps=6, learning_rate=0.1, warm_up=1, save_every=2)
    first, second = (CPU, Device(gpu)) if moves == "there" else (Device(gpu), CPU)

    def run(work: Path, place: Device, stop: int = 6) -> torch.nn.Linear:
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 2)

        measured: list[float] = []

        def loss(step: int) -> torch.Tensor:
            if step == stop:
                raise Interrupted
            measured.append(float(step))
            drawn = torch.randn(8, 3).to(place.device)
            return (model(drawn) - drawn[:, :2]).square().mean()

        fit("model", model, loss, schedule, work, lambda: {"error": measured[-1]}, best="error", place=place)
        assert {parameter.device.type for parameter in model.parameters()} == {torch.device(place.device).type}
        return model.cpu()

    whole = run(tmp_path / "whole", CPU)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", first, stop=4)
    resumed = run(tmp_path / "parts", second)
    last = [torch.load(tmp_path / work / "model.pt", weights_only=True)["model"] for work in ("whole", "parts")]
    for wanted, found in (last, (whole.state_dict(), resumed.state_dict())):
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)
    assert float((last[0]["weight"] - whole.weight.detach()).abs().max()) > 0.1
    log = json.loads((tmp_path / "parts" / "model.json").read_text())
    assert [row.get("step") for row in log] == [None, 2, 4, 6]
    assert log[0]["device"] == second.device
