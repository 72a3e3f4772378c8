"""The GNU Radio blocks: thin adapters over the library ``multisc``."""
