"""In the place of torchvision, which has no build for a torch without CUDA: its FCN at any size, and its server."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from multisc.models.hub import digest
from multisc.models.profile import CATALOGUE, Checkpoint, Pickle


class TinyFcn(torch.nn.Module):
    """The names and the output of ``fcn_resnet50``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.classifier = torch.nn.Conv2d(4, classes, 1)
        self.aux_classifier = torch.nn.Conv2d(4, classes, 1)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.backbone(pictures)
        return {"out": self.classifier(features), "aux": self.aux_classifier(features)}


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Put a module of torchvision's interface into its place."""

    def fcn_resnet50(*, weights: None, weights_backbone: None, num_classes: int, aux_loss: bool) -> TinyFcn:
        assert (weights, weights_backbone, aux_loss) == (None, None, True)
        return TinyFcn(num_classes)

    for name in ("torchvision", "torchvision.models", "torchvision.models.segmentation"):
        patch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision.models.segmentation"].fcn_resnet50 = fcn_resnet50  # type: ignore[attr-defined]


@contextmanager
def published_fcn(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Checkpoint]]:
    """Serve the pickle from a folder; returns its path and the checkpoint that is in the catalogue meanwhile."""
    folder.mkdir()
    torch.manual_seed(0)
    file = folder / "fcn.pth"
    torch.save(TinyFcn(21).state_dict(), file)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    patch.setenv("NO_PROXY", "127.0.0.1")
    pickled = Pickle(f"http://127.0.0.1:{server.server_port}/fcn.pth", digest(file)[:8])
    checkpoint = Checkpoint("torchvision/fcn", "V1", "BSD-3-Clause", (), 1000, 1000, pickled)
    for parts in CATALOGUE.values():
        patch.setitem(parts, "fcn", checkpoint)  # type: ignore[arg-type]  # a dictionary, though not meant to change
    try:
        yield file, checkpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
