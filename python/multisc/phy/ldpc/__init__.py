"""5G NR LDPC codes (TS 38.212)."""
