"""Measures reception over the loopback device in real time; each command prints one line of JSON.

  images   100 images from one process to another at 2 Msample/s and 15 dB: lost, overflows, processor time
  idle     an hour of noise and of an idle channel, as fast as the processor is: false images, memory. What was done
           is kept in FILE; a run that is cut short goes on where it was.

examples:
  .venv/bin/python -m tests.support.soapy_loopback.measure images
  .venv/bin/python -m tests.support.soapy_loopback.measure idle --seconds 3600 --state runs/idle.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from tests.support.soapy_loopback.build import build

PROGRAM = [sys.executable, str(ROOT / "run_flowgraph.py"), "--sdr", "soapy", "--freq", "433.92e6"]
RATE = 2e6
# -51 dBm full scale + 30 dB of gain - 12 dB of amplitude = -33 dBm, less 53 dB; noise -174 + 63 + 10 = -101 dBm.
FOR_15_DB = "attenuation=53"
TX_GAIN, RX_GAIN = "VGA=30", "LNA=40,VGA=30"
PIECE_S = 300  # of samples in one process of `idle`


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "idle"))
    parser.add_argument("--images", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--interval", type=float, default=0.3, help="seconds between images; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of samples, idle; default: %(default)s")
    parser.add_argument("--state", type=Path, default=Path("runs/idle.json"), help="of idle; default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = build(Path(folder))
        if args.what == "images":
            print(json.dumps(images(Path(folder), environment, args.images, args.interval)))
        else:
            idle(Path(folder), environment, args.seconds, args.state)


def images(folder: Path, environment: dict[str, str], count: int, interval: float) -> dict[str, Any]:
    """Send images from one process to another in real time."""
    device = f"driver=multisc_loopback,air={folder}"
    receive = ["--rx", "--system", "bpg-ldpc", "--args", f"{device},serial=b,{FOR_15_DB}", "--rx-gain", RX_GAIN]
    limit = 20 + count * (interval + 0.3)
    receive += ["--count", str(count), "--duration", str(limit), "--out", str(folder / "rx")]
    receiver = subprocess.Popen([*PROGRAM, *receive], env=environment, stderr=subprocess.PIPE, text=True)
    assert receiver.stderr is not None
    while "receiving" not in (line := receiver.stderr.readline()):
        assert line, "the receiver ended"
    begin = processor_seconds(receiver.pid)
    send = ["--tx", "--system", "bpg-ldpc", "--snr", "12", "--args", f"{device},serial=a", "--tx-gain", TX_GAIN]
    send += ["--repeat", str(count), "--interval", str(interval), "--out", str(folder / "tx")]
    transmitter = subprocess.Popen([*PROGRAM, *send], env=environment, stdout=subprocess.DEVNULL)
    while receiver.stderr.readline():
        pass
    _, _, used = os.wait4(receiver.pid, 0)
    transmitter.wait()
    reception = json.loads((folder / "rx" / "reception.json").read_text())
    sent = json.loads((folder / "tx" / "transmission.json").read_text())
    results = [json.loads(path.read_text()) for path in (folder / "rx").glob("*/result.json")]
    stream_s = reception["samples"] / RATE
    snrs = [result["channel"]["snr_estimated_db"] for result in results]
    return {
        "images_sent": sent["images_sent"],
        "images_right": sum(not result["outage"] for result in results),
        "snr_estimated_db": round(sum(snrs) / max(1, len(snrs)), 2),
        "overflows": reception["radio"]["overflows"],
        "underflows": sent["radio"]["underflows"],
        "stream_s": round(stream_s, 1),
        "receive_process_core": round((used.ru_utime + used.ru_stime - begin) / stream_s, 3),
        "receive_process_mb": round(used.ru_maxrss / 1024),
    }


def idle(folder: Path, environment: dict[str, str], seconds: float, state: Path) -> None:
    """Receive noise, and in every sixth piece a channel so weak that the converter hardly moves."""
    done: list[dict[str, Any]] = json.loads(state.read_text()) if state.exists() else []
    while sum(piece["stream_s"] for piece in done) < seconds:
        number = len(done)
        quiet = number % 6 == 5
        device = f"driver=multisc_loopback,throttle=0,seed={number + 1},leak={0.004 if quiet else 0.05}"
        command = [*PROGRAM, "--rx", "--streams-only", "--duration", str(PIECE_S), "--out", str(folder / str(number))]
        command += ["--args", device, "--rx-gain", "VGA=20" if quiet else RX_GAIN]
        receiver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        sizes = []
        while True:
            try:
                receiver.wait(5.0)
                break
            except subprocess.TimeoutExpired:
                sizes.append(resident_mb(receiver.pid))
        reception = json.loads((folder / str(number) / "reception.json").read_text())
        middle = sizes[len(sizes) // 3 : -1]  # when all is loaded, and before it ends
        piece = {
            "stream_s": reception["samples"] / RATE,
            "quiet": quiet,
            "images": len(reception["images"]),
            "detections": reception["detections"],
            "resident_mb": [round(size, 1) for size in (middle[0], middle[-1])] if middle else [],
        }
        done.append(piece)
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(json.dumps(done))
        print(json.dumps(piece), flush=True)


def processor_seconds(pid: int) -> float:
    """Processor time of a running process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a running process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
