"""The child process in which foreign HEVC data meets FFmpeg; see ``sandbox``.

Reads length-prefixed msgpack requests from standard input, answers on standard output, ends when its input ends.
"""

from __future__ import annotations

import resource
import sys

from multisc.codecs.bpg.ffmpeg import decode_intra
from multisc.codecs.bpg.sandbox import read_message, write_message
from multisc.errors import BadInputError

# The largest picture the container allows needs about a quarter of this beyond what the libraries map.
MEMORY_BYTES = 4 << 30


def _answer(request: dict) -> dict:
    if not request:
        return {}  # the parent asks whether we are up
    try:
        planes = decode_intra(**request)
    except BadInputError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "damaged BPG file: decoding it takes too much memory"}
    return {"planes": [(plane.shape, plane.dtype.str, plane.tobytes()) for plane in planes]}


def main() -> None:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (request := read_message(sys.stdin.buffer)) is not None:
        write_message(sys.stdout.buffer, _answer(request))


if __name__ == "__main__":
    main()
