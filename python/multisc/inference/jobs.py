"""Requests in progress: which of them a worker may run at once, and how several travel to it in one message."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import numpy as np
import zmq

from multisc.inference import wire

F = TypeVar("F")
_PIECE = struct.Struct(">QI")  # number of a job, number of its frames


@dataclass
class Job:
    """A request of a client, from its arrival to its answer; ``kind`` is what jobs of one batch have in common."""

    number: int
    client: bytes
    message_id: int
    frames: Sequence[zmq.Frame]
    kind: bytes
    received: float
    deadline: float
    started: float | None = None
    worker: int | None = None


class Queue:
    """Jobs that wait for a worker, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Put a job at the end."""
        self._jobs[job.number] = job

    def remove(self, number: int) -> None:
        """Take a job out."""
        del self._jobs[number]

    def batch(self, limit: int, idle: int = 1) -> list[Job]:
        """Return, without taking them out, the jobs that a worker should run at once.

        They are the oldest one and others of its kind, at most ``limit``, and at most the share of one of ``idle``
        workers in all that waits: half of the work for each of two is done sooner than all of it for one.
        """
        share = -(-len(self._jobs) // idle)
        first = next(iter(self._jobs.values()))
        return [job for job in self._jobs.values() if job.kind == first.kind][: min(limit, share)]

    def places(self) -> dict[int, int]:
        """Return how many jobs are before each."""
        return {number: place for place, number in enumerate(self._jobs)}


def kind_of(request: wire.Request) -> bytes:
    """Return a digest that is the same for requests that may run at once.

    These are of the same class, for the same system and with the same options: equal values of equal types, in
    any order of the names. (1, 1.0 and True are equal in Python, and not the same to a system.)
    """
    parts = [type(request).__name__, request.system, _canonical(request.options)]
    return hashlib.sha256(msgpack.packb(parts)).digest()


def _canonical(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        content = msgpack.packb([value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).digest()])
        return msgpack.ExtType(wire.ARRAY_EXTENSION, content)
    if isinstance(value, Mapping):
        return {name: _canonical(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value


def layout_of(batch: Sequence[tuple[int, Sequence[Any]]]) -> bytes:
    """Return the frame that says whose the frames after it are, when those of several jobs travel in one message."""
    return b"".join(_PIECE.pack(number, len(frames)) for number, frames in batch)


def split(layout: bytes, frames: Sequence[F]) -> list[tuple[int, Sequence[F]]]:
    """Return the number and the frames of each job.

    Raises:
        ValueError: when the layout does not fit the frames.
    """
    batch, start = [], 0
    if len(layout) % _PIECE.size == 0:
        for number, count in _PIECE.iter_unpack(layout):
            batch.append((number, frames[start : start + count]))
            start += count
    if start != len(frames):
        raise ValueError(f"a layout of {len(layout)} bytes that does not fit {len(frames)} frames")
    return batch
