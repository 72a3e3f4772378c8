"""The network of deep joint source-channel coding: a picture to real features, noisy features to a picture.

After Bourtsoulatze, Kurka, Gunduz, "Deep Joint Source-Channel Coding for Wireless Image Transmission" (2019):
convolutions and generalised divisive normalisation (GDN) at either end of an analog channel; after Xu et al. (ADJSCC,
2021) gates over the channels of feature maps see the SNR, so that one network serves all of them. Two things are our
own. What the convolutional branches learn is added to a linear code that is optimal for Gaussian sources: the
Karhunen-Loeve transform of 16x16 blocks with the power of each coefficient after Lee and Petersen (1976) and a Wiener
filter at the receiver. And coefficients are sent in the order of their variance, so that one network serves every
bandwidth: a smaller one is the head of a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from multisc.errors import ModelError

STRIDE = 16  # side in pixels of the block that one place of the feature maps stands for
CHANNELS = STRIDE * STRIDE  # features of one block at most: CBR 1/6
_PRIOR_BLOCKS = 16.0  # how many blocks the training photographs' variance counts for beside the picture's own
_CONDITIONS = 3


@dataclass(frozen=True)
class JsccWidths:
    """Width of the feature maps of the branches at strides 4, 8 and 16.

    Raises:
        ModelError: when a width is not within 8 to 1024.
    """

    quarter: int = 64
    eighth: int = 96
    sixteenth: int = 128

    def __post_init__(self) -> None:
        for width in (self.quarter, self.eighth, self.sixteenth):
            if type(width) is not int or not 8 <= width <= 1024:
                raise ModelError("JSCC config: widths must be three integers of 8 to 1024")


class Gdn(nn.Module):
    """Generalised divisive normalisation in its simplified form, x / (beta + gamma |x|), or its inverse."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise feature maps (B, C, H, W)."""
        weight = self.gamma.abs()[:, :, None, None]
        norm = functional.conv2d(features.abs(), weight, self.beta.abs() + 1e-3)
        return features * norm if self.inverse else features / norm


class Attention(nn.Module):
    """Attention feature module of ADJSCC: a gate for each channel from the map's mean and the channel's state."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels + _CONDITIONS, channels // 4)
        self.gate = nn.Linear(channels // 4, channels)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Tensor, conditions: Tensor) -> Tensor:
        """Gate feature maps (B, C, H, W) under conditions (B, 3)."""
        pooled = torch.cat([features.mean((2, 3)), conditions.to(features.dtype)], 1)
        gate = 2 * torch.sigmoid(self.gate(functional.relu(self.hidden(pooled))))
        return features * gate[:, :, None, None]


class Block(nn.Module):
    """Two convolutions and a gate around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = Attention(channels)

    def forward(self, features: Tensor, conditions: Tensor) -> Tensor:
        """Refine feature maps (B, C, H, W) under conditions (B, 3)."""
        change = self.second(functional.leaky_relu(self.first(features), 0.1))
        return features + self.attention(change, conditions)


class Stage(nn.Module):
    """Blocks one after another, all at one stride."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(channels) for _ in range(blocks)])

    def forward(self, features: Tensor, conditions: Tensor) -> Tensor:
        """Refine feature maps (B, C, H, W) under conditions (B, 3)."""
        for block in self.blocks:
            features = block(features, conditions)
        return features


class Balance(nn.Module):
    """Factors on the coefficients of a picture, from their powers in it relative to what is usual."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(CHANNELS + _CONDITIONS, 96)
        self.factor = nn.Linear(96, CHANNELS)
        nn.init.zeros_(self.factor.weight)
        nn.init.zeros_(self.factor.bias)

    def forward(self, relative_power: Tensor, conditions: Tensor) -> Tensor:
        """Return factors within 1/e to e, (B, 256), for powers relative to the usual ones, (B, 256)."""
        logarithm = relative_power.clamp(1e-3, 1e3).log() / 3.0
        hidden = functional.leaky_relu(self.hidden(torch.cat([logarithm, conditions], 1)), 0.1)
        return torch.exp(torch.tanh(self.factor(hidden)))


class EncoderBranch(nn.Module):
    """Convolutional part of the transmitter: pictures to a correction of each coefficient."""

    def __init__(self, widths: JsccWidths) -> None:
        super().__init__()
        c4, c8, c16 = widths.quarter, widths.eighth, widths.sixteenth
        self.stem = nn.Conv2d(3, c4, 8, stride=4, padding=2)
        self.quarter = Stage(c4, 1)
        self.to_eighth = nn.Sequential(Gdn(c4), nn.Conv2d(c4, c8, 3, stride=2, padding=1))
        self.eighth = Stage(c8, 1)
        self.to_sixteenth = nn.Sequential(Gdn(c8), nn.Conv2d(c8, c16, 3, stride=2, padding=1))
        self.sixteenth = Stage(c16, 1)
        self.out = nn.Conv2d(c16, CHANNELS, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor, conditions: Tensor) -> Tensor:
        """Return corrections (B, 256, H/16, W/16), in units of each coefficient's deviation."""
        features = self.quarter(self.stem(pictures), conditions)
        features = self.eighth(self.to_eighth(features), conditions)
        return self.out(self.sixteenth(self.to_sixteenth(features), conditions))


class DecoderBranch(nn.Module):
    """Convolutional part of the receiver: linear estimate and its coefficients to a correction of each pixel."""

    def __init__(self, widths: JsccWidths) -> None:
        super().__init__()
        c4, c8, c16 = widths.quarter, widths.eighth, widths.sixteenth
        self.stem = nn.Conv2d(3, c4, 8, stride=4, padding=2)
        self.quarter = Stage(c4, 1)
        self.to_eighth = nn.Conv2d(c4, c8, 3, stride=2, padding=1)
        self.eighth = Stage(c8, 1)
        self.to_sixteenth = nn.Conv2d(c8, c16, 3, stride=2, padding=1)
        self.coefficients = nn.Conv2d(CHANNELS, c16, 1)
        self.sixteenth = Stage(c16, 2)
        self.from_sixteenth = nn.Sequential(Gdn(c16, inverse=True), nn.Conv2d(c16, 4 * c8, 1), nn.PixelShuffle(2))
        self.eighth_again = Stage(c8, 1)
        self.from_eighth = nn.Sequential(Gdn(c8, inverse=True), nn.Conv2d(c8, 4 * c4, 1), nn.PixelShuffle(2))
        self.quarter_again = Stage(c4, 2)
        self.out = nn.Conv2d(c4, 48, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, estimate: Tensor, coefficients: Tensor, conditions: Tensor) -> Tensor:
        """Return corrections (B, 3, H, W) of a linear estimate, given its coefficients over their deviation."""
        quarter = self.quarter(self.stem(estimate), conditions)
        eighth = self.eighth(self.to_eighth(quarter), conditions)
        sixteenth = self.to_sixteenth(eighth) + self.coefficients(coefficients)
        sixteenth = self.sixteenth(sixteenth, conditions)
        eighth = self.eighth_again(eighth + self.from_sixteenth(sixteenth), conditions)
        quarter = self.quarter_again(quarter + self.from_eighth(eighth), conditions)
        return functional.pixel_shuffle(self.out(quarter), 4)


class JsccNetwork(nn.Module):
    """Transmitter and receiver; see the module's description.

    ``mean`` (3,) is the mean colour and ``deviation`` (256,) the standard deviation of each coefficient over the
    training photographs, descending; both belong to the checkpoint.
    """

    def __init__(self, widths: JsccWidths) -> None:
        super().__init__()
        self.analysis = nn.Conv2d(3, CHANNELS, STRIDE, stride=STRIDE, bias=False)
        self.synthesis = nn.ConvTranspose2d(CHANNELS, 3, STRIDE, stride=STRIDE, bias=False)
        self.encoder = EncoderBranch(widths)
        self.decoder = DecoderBranch(widths)
        self.encoder_balance = Balance()
        self.decoder_balance = Balance()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.full((3,), 0.45))
        self.register_buffer("deviation", torch.linspace(2.0, 0.02, CHANNELS))

    def start_from(self, mean: Tensor, transform: Tensor, deviation: Tensor) -> None:
        """Set the linear code.

        Args:
            mean: float (3,), mean colour.
            transform: float (256, 768), orthonormal rows over pixels of a block in the order row, column, colour.
            deviation: float (256,), of the coefficients, descending.
        """
        rows = transform.view(CHANNELS, STRIDE, STRIDE, 3).permute(0, 3, 1, 2)
        with torch.no_grad():
            self.mean.copy_(mean)
            self.deviation.copy_(deviation)
            self.analysis.weight.copy_(rows)
            self.synthesis.weight.copy_(rows)

    def encode(self, pictures: Tensor, sent: Tensor, expected_db: Tensor) -> Tensor:
        """Turn pictures into features.

        Args:
            pictures: float (B, 3, H, W) in [0, 1]; H and W multiples of 16.
            sent: float (B, 256, H/16, W/16), 1 where a feature is sent and 0 where not.
            expected_db: float (B,), Es/N0 that the link is expected to have.

        Returns:
            float32 of the shape of ``sent``, 0 where nothing is sent; of any power.
        """
        centred = pictures - self.mean.view(1, 3, 1, 1)
        conditions = _conditions(expected_db, expected_db, sent)
        power, weight = self._allocation(sent, expected_db)
        change = self.encoder(centred, conditions).float()
        features = (self.analysis(centred).float() + self.deviation.view(1, -1, 1, 1) * change) * weight * sent
        balance = self.encoder_balance(_mean_power(features, sent) / power, conditions).float()
        return features * balance[:, :, None, None]

    def decode(self, received: Tensor, sent: Tensor, expected_db: Tensor, snr_db: Tensor) -> Tensor:
        """Turn features as received into pictures.

        Args:
            received: float (B, 256, h, w), sent features plus noise.
            sent: as for ``encode``.
            expected_db: the Es/N0 that the transmitter expected, float (B,).
            snr_db: the Es/N0 that the receiver measured, float (B,).

        Returns:
            float32 (B, 3, 16 h, 16 w), about [0, 1], not clipped.
        """
        conditions = _conditions(snr_db, expected_db, sent)
        power, weight = self._allocation(sent, expected_db)
        ratio = 10.0 ** (-snr_db.float() / 10.0)
        # Noise on a feature: the share N0 / (1 + N0) of the power received.
        total = (received**2 * sent).sum((1, 2, 3)) / sent.sum((1, 2, 3)).clamp(min=1.0)
        noise = (total * ratio / (1.0 + ratio)).clamp(min=1e-9)[:, None]
        blocks = sent.sum((2, 3))
        own = (_mean_power(received, sent) - noise).clamp(min=0.0)
        expected = (blocks * own + _PRIOR_BLOCKS * power) / (blocks + _PRIOR_BLOCKS)
        wiener = expected / (expected + noise) * self.decoder_balance(expected / power, conditions).float()
        estimate = received * sent * wiener[:, :, None, None] / weight
        linear = self.synthesis(estimate)
        change = self.decoder(linear, estimate / self.deviation.view(1, -1, 1, 1), conditions).float()
        return linear + 0.1 * change + self.mean.view(1, 3, 1, 1)

    def _allocation(self, sent: Tensor, expected_db: Tensor) -> tuple[Tensor, Tensor]:
        """Power (B, 256) and factor (B, 256, 1, 1) of the coefficients: least mean squared error at mean power 1.

        The power of a coefficient of variance v on noise n is sqrt(v n) m - n, with m such that the mean is 1; where
        that is not positive a small one is left for the branches to use.
        """
        noise = 10.0 ** (-expected_db.float()[:, None] / 10.0)
        used = (sent.amax((2, 3)) > 0).float()
        root = self.deviation * noise.sqrt()
        level = (1.0 + noise) * used.sum(1, keepdim=True) / (root * used).sum(1, keepdim=True).clamp(min=1e-9)
        power = (root * level - noise).clamp(min=0.01)
        return power, (power.sqrt() / self.deviation)[:, :, None, None]


def _mean_power(features: Tensor, sent: Tensor) -> Tensor:
    """Mean square of each channel over the places that are sent, (B, C)."""
    return (features**2 * sent).sum((2, 3)) / sent.sum((2, 3)).clamp(min=1.0)


def _conditions(snr_db: Tensor, expected_db: Tensor, sent: Tensor) -> Tensor:
    """What the gates see of channel and bandwidth, (B, 3)."""
    return torch.stack(
        [snr_db.float() / 10.0, expected_db.float() / 10.0, (sent.mean((1, 2, 3)) * 2).clamp(min=1e-3).log2()], 1
    )
