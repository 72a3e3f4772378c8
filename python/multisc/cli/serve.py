"""The inference process: encodes and decodes images for flowgraphs, here or on another machine.

examples:
  multisc serve --models embedded                      on this machine
  multisc serve --models foundation --workers 2        two processes with models of their own
  multisc serve --make-keys keys                       keys for other machines; then
  multisc serve --bind tcp://0.0.0.0:5555 --keys keys  and copy keys/client.key to the client
  multisc serve --status tcp://127.0.0.1:5555          is it well? what has it done?
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from multisc.errors import BadInputError, MultiscError
from multisc.link.address import DEFAULT_ADDRESS
from multisc.link.client import InferenceClient
from multisc.link.handler import SYSTEMS
from multisc.link.keys import add_client, load_server_keys, make_keys
from multisc.link.process import Parent
from multisc.link.server import Server, ServerConfig, log_to_stderr
from multisc.link.wire import MESSAGE_LIMIT, one_line


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument(
        "--bind", metavar="ADDRESS", default=DEFAULT_ADDRESS, help="default: %(default)s; port 0: any"
    )
    parser.add_argument(
        "--models", metavar="PROFILE", default="embedded", help="embedded (default), foundation, or a directory"
    )
    parser.add_argument(
        "--preload",
        metavar="SYSTEM,...",
        default="multi-sc",
        help="loaded before the first request; default: %(default)s",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes with models of their own")
    parser.add_argument(
        "--queue", type=int, default=8, metavar="N", help="requests that may wait; default: %(default)s"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=4,
        metavar="N",
        help="requests of one kind that a worker may run at once; default: %(default)s",
    )
    parser.add_argument("--devices", metavar="ID,...", help="CUDA devices for the workers, one each in turn")
    parser.add_argument(
        "--max-message",
        type=int,
        default=MESSAGE_LIMIT >> 20,
        metavar="MIB",
        help="largest message; default: %(default)s",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="PATH",
        help="directory made by --make-keys; with --status, the client.key file in it",
    )
    parser.add_argument(
        "--handler",
        metavar="MODULE:FACTORY",
        default=SYSTEMS,
        help="serve systems of your own (docs/reference/inference.md)",
    )
    parser.add_argument(
        "--parent-fd", type=int, metavar="FD", help="a socket to the parent: report there, end with it"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--status", metavar="ADDRESS", help="show health and metrics of a running inference process")
    action.add_argument("--make-keys", type=Path, metavar="DIR", help="make keys for a server and one client")
    action.add_argument("--add-client", metavar="NAME", help="with --keys: make keys for one more client")
    parser.add_argument("--json", action="store_true", help="with --status: as JSON")


def run(args: argparse.Namespace) -> int:
    """Serve, show the status, or make keys."""
    if args.make_keys:
        for path in make_keys(args.make_keys):
            print(path)
        return 0
    if args.add_client is not None:
        if args.keys is None:
            raise BadInputError("--add-client needs --keys DIR, the directory with the server's keys")
        print(add_client(args.keys, args.add_client))
        return 0
    if args.status:
        with InferenceClient(args.status, keys=args.keys) as client:
            status = client.status()
        print(json.dumps(status, indent=2) if args.json else describe(status))
        return 0
    return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    parent = Parent(args.parent_fd) if args.parent_fd is not None else None
    server = Server(
        ServerConfig(
            bind=args.bind,
            models=args.models,
            preload=tuple(filter(None, args.preload.split(","))),
            workers=args.workers,
            queue=args.queue,
            batch=args.batch,
            devices=tuple(args.devices.split(",")) if args.devices is not None else (),
            message_limit=args.max_message << 20,
            keys=load_server_keys(args.keys) if args.keys else None,
            handler=args.handler,
        )
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    if parent is not None:
        parent.watch(server.stop)

    def notify(event: str, detail: str) -> None:
        log_to_stderr({"ready": f"ready at {detail}"}.get(event, detail))
        if parent is not None:
            parent.tell(event, detail)

    try:
        server.run(notify)
    except MultiscError as error:
        if parent is not None:
            parent.tell("failed", type(error).__name__)
        raise
    return 0


def describe(status: dict[str, Any]) -> str:
    """Say a status in lines for people."""
    queue, metrics = status["queue"], status["metrics"]
    lines = [
        f"{status['address']}: {status['health']}, {status['server']}, models {status['models']}, "
        f"up {metrics['uptime_s']:.0f} s, {'encrypted' if status['encrypted'] else 'loopback only'}",
        f"queue: {queue['waiting']} of {queue['limit']} waiting, {status['running']} running, "
        f"{status['clients']} clients",
    ]
    for index, worker in enumerate(status["workers"]):
        lines.append(
            f"worker {index}: {worker['state']} {worker['detail']} (pid {worker['pid']}, {worker['jobs_done']} done, "
            f"{worker['restarts']} restarts{', ' if worker['last_error'] else ''}{worker['last_error']})"
        )
    for name in ("requests", "outcomes", "refused", "connections"):
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(metrics[name].items()))
        lines.append(f"{name}: {counts or 'none'}")
    batches = ", ".join(f"{count} of {size}" for size, count in metrics["batches"].items())
    lines.append(f"batches: {batches + ' requests' if batches else 'none'}")
    for name in ("waited_s", "worked_s"):
        if metrics[name]:
            lines.append(f"{name}: median {metrics[name]['median']}, 95 % {metrics[name]['p95']}")
    return "\n".join(one_line(line) for line in lines)
