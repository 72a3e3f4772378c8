"""Train the embedded models from scratch, on a laptop or on a GPU.

examples:
  multisc train all --data ../shared/data --out models     every model, in the order that they need each other
  multisc train bart --data ../shared/data --out models    one model; those it builds on are read from --out
  run_flowgraph.py --image photo.jpg --models models       use the result
  multisc train all --data ../shared/data --out models --device cuda
                                                           the same on a GPU
  multisc train bart --models foundation --data ../shared/data --device cuda
                                                           the published BART, on captions that the channel damaged
  multisc train vlf --models foundation --data ../shared/data --device cuda
                                                           the projection of vlf-msc, for published models

A run that was interrupted goes on from its last checkpoint in --work when the same command is given again,
with another --device too.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from multisc.errors import BadInputError, ModelError
from multisc.models.profile import CATALOGUE, load_profile, trained_directory

if TYPE_CHECKING:
    from multisc.training.device import Device


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("model", choices=[*STAGES, "all"], help="what to train")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="captions and photographs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="one checkpoint directory per model")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="unfinished checkpoints; default: the directory work in --out"
    )
    parser.add_argument(
        "--models",
        choices=sorted(CATALOGUE),
        help="only for bart, vlf: train for the models of this profile, and write to where the profile looks for it",
    )
    parser.add_argument(
        "--start", type=Path, metavar="DIR", help="only for bart: a finished checkpoint to go on from"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="to train on: cpu, cuda or cuda:N; default: %(default)s, even where there is a GPU",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the processor; default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Train, and print what each model reached on held-out data.

    Raises:
        BadInputError: for a missing directory, a number of threads below 1, a device that is not there,
            ``--models`` or ``--start`` with a stage that does not know it.
        ModelError: when the device's memory is short.
    """
    if args.start and args.model != "bart":
        raise BadInputError("--start is for bart alone")
    if args.models and (args.model not in ("bart", "vlf") or args.out):
        raise BadInputError("--models is for bart and vlf alone, and takes the place of --out")
    if not args.models and not args.out:
        raise BadInputError("--out is missing: name the directory that the checkpoints go to")
    out = args.out or trained_directory(args.models)
    if not args.data.is_dir():
        raise BadInputError(f"training data {args.data}: no such directory")
    if args.threads < 1:
        raise BadInputError(f"--threads {args.threads}: must be at least 1")
    import torch

    from multisc.training.device import find_device

    place = find_device(args.device)
    torch.set_num_threads(args.threads)
    work = args.work or out / "work"
    stages = dict(STAGES)
    if args.models:
        stages["bart"] = functools.partial(_published_bart, models=args.models, start=args.start)
        stages["vlf"] = functools.partial(_vlf, models=args.models)
    elif args.start:
        stages["bart"] = functools.partial(_bart, start=args.start)
    for name in STAGES if args.model == "all" else [args.model]:
        try:
            quality = stages[name](args.data, work, out, place)
        except (torch.OutOfMemoryError, MemoryError):
            remedy = "end other programs on it, or give another --device: the run goes on from its last checkpoint"
            raise ModelError(f"{name}: the memory of {place.device} is short; {remedy}") from None
        print(f"{name}: {json.dumps(quality)}", flush=True)
    return 0


def _llava(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.training import llava

    return llava.train(data, work / "text", out / "llava", place=place)


def _bart(data: Path, work: Path, out: Path, place: Device, start: Path | None = None) -> object:
    from multisc.training import bart

    return bart.train(data, work / "text", out / "llava", out / "bart", start=start, place=place)


def _published_bart(data: Path, work: Path, out: Path, place: Device, models: str, start: Path | None) -> object:
    from multisc.training import bart

    # Not the profile's own, which is what an earlier training left.
    published = str(start or CATALOGUE[models]["bart"].source)
    llava = load_profile(models).llava
    return bart.train_published(data, work / "text", llava, published, out / "bart", place=place)


def _fcn(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.training import fcn

    return fcn.train(data, work / "image", out / "fcn", place=place)


def _diffusion(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.training import diffusion, vae

    autoencoder = work / "image" / "vae"
    quality = vae.train(data, work / "image", autoencoder, place=place)
    block_captions = work / "text" / "block_captions.json"
    return quality | diffusion.train(
        data,
        work / "image",
        work / "text",
        autoencoder,
        out / "stable-diffusion",
        out / "ip-adapter",
        block_captions,
        place=place,
    )


def _blip2(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.models.shared_encoder import DIRECTORY
    from multisc.training import blip2

    return blip2.train(data, work / "text", out / DIRECTORY, out / "blip2", place=place)


def _blip(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.models.shared_encoder import DIRECTORY
    from multisc.training import blip

    return blip.train(data, work / "text", out / DIRECTORY, out / "blip", place=place)


def _vlf(data: Path, work: Path, out: Path, place: Device, models: str | None = None) -> object:
    from multisc.training import vlf

    profile = load_profile(models or out)
    sources = (profile.blip2, profile.stable_diffusion)
    return vlf.train(data, work / "image", *sources, out / "vlf-projection", place=place)


def _deep_jscc(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.training import jscc

    return jscc.train(data, work / "image", out / "deep-jscc", place=place)


def _slice_denoiser(data: Path, work: Path, out: Path, place: Device) -> object:
    from multisc.training import slice_denoiser

    return slice_denoiser.train(data, work / "image", out / "slice-denoiser", place=place)


# In the order that "all" trains them: each may read what those before it wrote.
STAGES: dict[str, Callable[[Path, Path, Path, Device], object]] = {
    "llava": _llava,
    "bart": _bart,
    "fcn": _fcn,
    "diffusion": _diffusion,
    "blip2": _blip2,
    "blip": _blip,
    "vlf": _vlf,
    "deep-jscc": _deep_jscc,
    "slice-denoiser": _slice_denoiser,
}
