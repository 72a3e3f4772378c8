"""The ``multisc`` command: one module per subcommand, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from multisc import __version__
from multisc.cli.arguments import Parser
from multisc.cli.output import EXIT_UNREAD, nobody_reads
from multisc.errors import MultiscError
from multisc.libraries import settle

# name -> (module, one line of help). Each module has configure(parser) and run(args) -> int.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("multisc.cli.serve", "run the inference process"),
    "tx": ("multisc.cli.tx", "transmit an image into a SigMF recording"),
    "rx": ("multisc.cli.rx", "receive the images in a recording"),
    "bpg": ("multisc.cli.bpg", "encode and decode BPG pictures"),
    "ber": ("multisc.cli.ber", "link-level Monte Carlo of one code and modulation"),
    "bench": ("multisc.cli.bench", "measure speed beside other implementations"),
    "curve": ("multisc.cli.curve", "quality against SNR of a digital reference chain"),
    "sweep": ("multisc.cli.sweep", "quality against SNR of every system"),
    "train": ("multisc.cli.train", "train the embedded models"),
    "models": ("multisc.cli.models", "list, fetch and verify the checkpoints of the models"),
    "doctor": ("multisc.cli.doctor", "check what gr-multisc stands on, and name the fix"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 on success, 2 on bad usage or bad input, 1 on any other failure, 130 on Ctrl-C,
        141 when nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    settle(os.environ)
    parser = Parser(
        prog="multisc",
        description="Semantic image transmission over radio waveforms. Each COMMAND has --help with an example.",
    )
    parser.add_argument("--version", action="version", version=f"multisc {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = argv[0] if argv and argv[0] in COMMANDS else None
    for name, (module, summary) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            importlib.import_module(module).configure(sub)
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    try:
        code = int(importlib.import_module(COMMANDS[args.command][0]).run(args))
        sys.stdout.flush()
        return code
    except MultiscError as error:
        print(f"multisc {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not nobody_reads():
            raise
        return EXIT_UNREAD
