#!/usr/bin/env python3
"""Send one image through a real GNU Radio flowgraph: `.venv/bin/python run_flowgraph.py --help`."""

import sys

try:
    import gnuradio  # noqa: F401
except ImportError:
    sys.exit(
        f"run_flowgraph.py: {sys.executable} has no GNU Radio: run `make setup` once, "
        "then .venv/bin/python run_flowgraph.py"
    )
try:
    from gnuradio.multisc.run import main
except ImportError as error:
    sys.exit(f"run_flowgraph.py: {error}: run `make setup` once, then .venv/bin/python run_flowgraph.py")

if __name__ == "__main__":
    sys.exit(main())
