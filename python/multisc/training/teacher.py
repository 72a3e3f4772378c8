"""What a DeepLab v3 (MobileNet v2, the 21 VOC classes) sees in photographs: the teacher of the small networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multisc.errors import BadInputError

TEACHER_FILE = "teacher/deeplabv3_mnv2_pascal_quant.tflite"  # below the data directory
TEACHER_SIDE = 513  # of its canvas, in pixels
GRID = 33  # cells of its features on a side


class Teacher:
    """The network, asked for some of its layers.

    Args:
        model: the TFLite file.
        taps: names of the tensors to return, each (1, 33, 33, channels).

    Raises:
        BadInputError: when the file or the runtime is missing.
    """

    def __init__(self, model: Path, taps: Sequence[str]) -> None:
        if not model.is_file():
            raise BadInputError(f"training data: the teacher {model} is missing")
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            raise BadInputError("training needs the teacher's runtime: pip install 'gr-multisc[train]'") from None
        self._net = Interpreter(
            str(model),
            # The default delegate rejects this quantised graph, the plain kernels run it.
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
            num_threads=1,
        )
        self._net.allocate_tensors()
        by_name = {tensor["name"]: tensor["index"] for tensor in self._net.get_tensor_details()}
        self._canvas = self._net.get_input_details()[0]["index"]
        self._taps = [by_name[name] for name in taps]

    def look(self, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return features (33, 33, channels), as quantised, of a canvas (513, 513, 3)."""
        self._net.set_tensor(self._canvas, canvas[None])
        self._net.invoke()
        return np.concatenate([self._net.get_tensor(index)[0] for index in self._taps], axis=-1)
