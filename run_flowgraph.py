#!/usr/bin/env python3
"""Send one image through a real GNU Radio flowgraph: `.venv/bin/python run_flowgraph.py --help`."""

import sys

REMEDY = "run `make setup` once, then .venv/bin/python run_flowgraph.py"


def main() -> int:
    """Import what the command needs, or say what is missing, and run it."""
    try:
        import gnuradio  # noqa: F401
    except ImportError:
        print(f"run_flowgraph.py: {sys.executable} has no GNU Radio: {REMEDY}", file=sys.stderr)
        return 1
    try:
        from gnuradio.multisc.apps import flowgraph
    except ImportError as error:
        print(f"run_flowgraph.py: {error}: {REMEDY}", file=sys.stderr)
        return 1
    return flowgraph.main()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while the imports were under way
        print("run_flowgraph.py: interrupted", file=sys.stderr)
        sys.exit(130)
