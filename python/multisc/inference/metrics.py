"""Counters of the inference process, for ``multisc serve --status``."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

REMEMBERED = 200  # requests whose durations are kept
LOGGED_OF_EACH_KIND = 5


class Metrics:
    """What has happened since the start; every refusal is counted, and the first of each kind are logged."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._started = time.monotonic()
        self.requests: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.connections: Counter[str] = Counter()
        self.batches: Counter[int] = Counter()
        """How often a worker was given how many requests at once."""
        self.bytes_in = 0
        self.bytes_out = 0
        self._waited: deque[float] = deque(maxlen=REMEMBERED)
        self._worked: deque[float] = deque(maxlen=REMEMBERED)

    def refuse(self, kind: str, line: str) -> None:
        """Count a message that was refused; log the first few of its kind, then every hundredth."""
        self.refused[kind] += 1
        count = self.refused[kind]
        if count <= LOGGED_OF_EACH_KIND or count % 100 == 0:
            self._log(f"refused ({kind}, {count} so far): {line}")

    def finished(self, outcome: str, waited_s: float, worked_s: float) -> None:
        """Count a request that a worker has answered; its work lasted as long as that of its whole batch."""
        self.outcomes[outcome] += 1
        self._waited.append(waited_s)
        self._worked.append(worked_s)

    def report(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "uptime_s": round(time.monotonic() - self._started, 3),
            "requests": dict(self.requests),
            "outcomes": dict(self.outcomes),
            "refused": dict(self.refused),
            "connections": dict(self.connections),
            "batches": {str(size): count for size, count in sorted(self.batches.items())},
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "waited_s": _quantiles(self._waited),
            "worked_s": _quantiles(self._worked),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
        }


def _quantiles(values: deque[float]) -> dict[str, float] | None:
    if not values:
        return None
    middle, high = np.quantile(np.array(values), [0.5, 0.95])
    return {"median": round(float(middle), 4), "p95": round(float(high), 4), "last": round(values[-1], 4)}
