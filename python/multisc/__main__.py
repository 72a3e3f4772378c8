"""``python -m multisc``: the same as the ``multisc`` command."""

import sys

from multisc.cli import main

sys.exit(main())
