"""A vision-language feature y of N tokens of D values as N x d coefficients, and its estimate from noisy ones.

Both ends hold the statistics of y over photographs: its mean, its principal axes, and the deviation of each token
along each axis. Of each token the first d axes are sent. Analog coefficients are scaled by the inverse root of their
deviation, which among linear scalings leaves the least squared error at a given power (Lee and Petersen 1976);
quantised ones are scaled to unit deviation. The receiver's estimate is the linear least-squares one; what it does not
know stays at the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.quantise import Quantiser
from multisc.errors import BadInputError

TRANSPORTS = ("analog", "digital")
# The multiple of the standard deviation at which a uniform quantiser of 1, 2, ... 8 bits loses least of a Gaussian.
LIMITS = (1.596, 1.991, 2.345, 2.681, 2.995, 3.289, 3.566, 3.829)
_SMALLEST = 1e-4  # of the largest deviation; less is as good as known


@dataclass(frozen=True)
class FeatureStatistics:
    """What both ends know of y before it is sent.

    Args:
        mean: float32 of shape (N, D).
        basis: orthonormal columns, strongest axis first, float32 of shape (D, D).
        deviation: of each token along each axis, float32 of shape (N, D), not negative.

    Raises:
        BadInputError: when the shapes do not fit each other or a value is not finite.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def __post_init__(self) -> None:
        fits = self.mean.ndim == 2 and self.mean.size and self.deviation.shape == self.mean.shape
        if not fits or self.basis.shape != (self.mean.shape[1],) * 2:
            raise BadInputError("statistics of a feature: their shapes do not fit each other")
        if not all(np.isfinite(part).all() for part in (self.mean, self.basis, self.deviation)):
            raise BadInputError("statistics of a feature: a value is not finite")
        floor = max(_SMALLEST * float(self.deviation.max()), 1e-9)
        object.__setattr__(self, "deviation", np.maximum(self.deviation, np.float32(floor)))

    @property
    def tokens(self) -> int:
        """N, tokens of y."""
        return self.mean.shape[0]

    @property
    def width(self) -> int:
        """D, values of a token."""
        return self.mean.shape[1]

    @classmethod
    def measure(cls, features: NDArray[np.float32]) -> FeatureStatistics:
        """Measure many features, float32 of shape (pictures, N, D); at least two pictures.

        The axes are those of the differences between pictures, all tokens together.
        """
        mean = features.mean(axis=0, dtype=np.float64)
        centred = (features - mean).astype(np.float32)
        flat = centred.reshape(-1, features.shape[2])
        _, vectors = np.linalg.eigh(flat.T.astype(np.float64) @ flat / len(flat))
        basis = vectors[:, ::-1].astype(np.float32)
        return cls(mean.astype(np.float32), np.ascontiguousarray(basis), (centred @ basis).std(axis=0))

    def whiten(self, feature: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return y (..., N, D) along its axes in units of their deviations, float32."""
        return ((np.asarray(feature, np.float32) - self.mean) @ self.basis) / self.deviation

    def restore(self, whitened: NDArray[np.floating]) -> NDArray[np.float32]:
        """Undo ``whiten``."""
        return (np.asarray(whitened, np.float32) * self.deviation) @ self.basis.T + self.mean


class FeatureCodec:
    """y as coefficients and back.

    Args:
        statistics: that both ends hold.
        tokens: tokens sent, 1 to N.
        dimensions: coefficients of each, d, 1 to D.
        transport: one of ``TRANSPORTS``.
        bits: of a quantised coefficient, 1 to 8.

    Raises:
        BadInputError: for a parameter outside its range.
    """

    def __init__(
        self, statistics: FeatureStatistics, tokens: int, dimensions: int, transport: str = "analog", bits: int = 1
    ) -> None:
        if transport not in TRANSPORTS:
            raise BadInputError(f"transport {transport!r}: must be one of {', '.join(TRANSPORTS)}")
        if not 1 <= tokens <= statistics.tokens:
            raise BadInputError(f"{tokens} tokens of the feature: must be 1 to {statistics.tokens}")
        if not 1 <= dimensions <= statistics.width:
            raise BadInputError(f"{dimensions} dimensions of the feature: must be 1 to {statistics.width}")
        self._statistics, self._tokens, self._dimensions = statistics, tokens, dimensions
        self._deviation = statistics.deviation[:tokens, :dimensions]
        self.quantiser = None
        if transport == "digital":
            self.quantiser = Quantiser(bits, LIMITS[bits - 1] if 1 <= bits <= len(LIMITS) else 1.0)

    def coefficients(self, feature: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the coefficients of y.

        Args:
            feature: y, of shape (N, D).

        Returns:
            float32 of shape (tokens * dimensions,): for ``quantiser``, or where there is none to be sent as they are.

        Raises:
            BadInputError: for a feature of another shape.
        """
        if feature.shape != self._statistics.mean.shape:
            raise BadInputError(f"feature of shape {feature.shape}: must be {self._statistics.mean.shape}")
        sent = self._statistics.whiten(feature)[: self._tokens, : self._dimensions]
        return (sent if self.quantiser else sent * np.sqrt(self._deviation)).ravel()

    def whitened(self, received: NDArray[np.floating], snr_db: float = np.inf) -> NDArray[np.float32]:
        """Estimate y, as ``FeatureStatistics.whiten`` gives it, from its coefficients.

        Args:
            received: of shape (tokens * dimensions,): as they arrived, or from the quantiser's ``expect``.
            snr_db: Es/N0 of analog coefficients; NaN when unknown: then they are taken as they are.

        Returns:
            float32 of shape (N, D); 0 where nothing was sent.

        Raises:
            BadInputError: for another number of coefficients, or one that is not finite.
        """
        flat = np.asarray(received, np.float32).ravel()
        if flat.size != self._deviation.size:
            raise BadInputError(f"{flat.size} coefficients received: {self._deviation.size} make the feature")
        if not np.isfinite(flat).all():
            raise BadInputError("a received coefficient is not finite")
        estimate = flat.reshape(self._deviation.shape)
        if self.quantiser is None:
            ratio = 10.0 ** (-snr_db / 10.0) if snr_db == snr_db else 0.0
            noise = float(np.mean(flat**2)) * ratio / (1.0 + ratio)
            # The variance of a coefficient is its deviation: the scaling took the root of it off.
            estimate = estimate * np.sqrt(self._deviation) / (self._deviation + noise)
        whole = np.zeros(self._statistics.mean.shape, np.float32)
        whole[: self._tokens, : self._dimensions] = estimate
        return whole
