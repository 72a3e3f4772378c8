"""gr-multisc: semantic image transmission over real radios.

The library never imports GNU Radio; the blocks in ``gr-multisc/`` are thin adapters over it.
Data flows one way: image, streams, IQ, streams, image.
"""

__version__ = "0.1.0"
