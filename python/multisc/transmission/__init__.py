"""From streams to samples and back without GNU Radio: transmitter, receiver, simulated channel."""
