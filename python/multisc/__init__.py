"""gr-multisc: semantic image transmission over real radios.

The library never imports GNU Radio; the blocks in ``gr-multisc/`` are thin adapters over it.
Data flows one way: image, streams, IQ, streams, image.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gr-multisc")  # stands in pyproject.toml
except PackageNotFoundError:  # a checkout that only stands on the path
    __version__ = "unknown"
