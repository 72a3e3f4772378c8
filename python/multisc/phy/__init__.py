"""The physical layer: modulation, coding, OFDM bursts and their receiver. Imports no GNU Radio."""
