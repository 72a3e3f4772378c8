"""Two streams of one's own over a simulated channel, with the library alone: no GNU Radio, no models.

.venv/bin/python examples/own_streams.py
"""

import numpy as np

from multisc.channel import make_channel
from multisc.phy.assembly import Assembler
from multisc.phy.burst import BurstTransmitter
from multisc.phy.config import PhyConfig
from multisc.phy.receiver import BurstReceiver
from multisc.phy.transport import modulate
from multisc.phy.units import time_noise_variance
from multisc.streams import Stream

SNR_DB = 8.0

random = np.random.default_rng(1)
bits = random.integers(0, 2, 20_000).astype(np.uint8)
features = random.normal(size=5_000).astype(np.float32)
streams = [
    Stream("message", bits, "16qam", "nr:1/2"),
    Stream("features", features, "analog"),
]

config = PhyConfig(orthogonal="fdm")
bursts = BurstTransmitter(config).transmit(7, [modulate(stream) for stream in streams], system="example")
samples = np.concatenate([np.zeros(1000, np.complex64), *bursts, np.zeros(1000, np.complex64)])
channel = make_channel("awgn", time_noise_variance(SNR_DB), seed=2, sample_rate=2e6, cfo_hz=3000.0)

receiver, assembler = BurstReceiver(config), Assembler()
arrived = receiver.push(channel.process(samples)) + receiver.flush()
(image,) = [done for burst in arrived for done in assembler.add(burst)]
message, analog = image.receive().streams

print(f"{len(bursts)} bursts, {samples.size} samples; Es/N0 {image.snr_db:.2f} dB estimated, {SNR_DB:g} dB set")
print(f"message: {np.count_nonzero(message.data != bits)} wrong of {bits.size} bits, CRC right: {message.crc_ok}")
error = np.mean((analog.data - features) ** 2)
print(f"features: {10 * np.log10(np.mean(features**2) / error):.2f} dB signal to distortion")
