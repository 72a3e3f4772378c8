"""The programs: ``multisc flowgraph`` and ``multisc air``."""
