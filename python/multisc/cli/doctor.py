"""Look at everything that gr-multisc stands on and name the fix for what is wrong.

Exit code 1 when something is broken that `make demo` needs; what is only optional is listed and does not count.

examples:
  multisc doctor
  multisc doctor --json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0
OLDEST_PYTHON = (3, 11)
NEEDED_MODELS = ("fcn", "llava", "bart", "stable-diffusion", "ip-adapter")
SETUP = "run `make setup` in the checkout and use .venv/bin/python"
GRC_FOLDER = Path(__file__).resolve().parents[3] / "gr-multisc" / "grc"

# Run in processes of their own, because the library does not import GNU Radio, and because a driver may hang.
GNU_RADIO = """
from gnuradio import gr
say(version=gr.version(), path=gr.__file__)
"""
BLOCKS = """
from gnuradio import multisc
say(blocks=len(multisc.__all__), path=multisc.__file__)
"""
COMPANION = """
import os
from gnuradio import gr
from gnuradio.grc.core.platform import Platform
platform = Platform(name="doctor", prefs=gr.prefs(), version=gr.version(), version_parts=("3", "10", "0"))
paths = [*os.environ.get("GRC_BLOCKS_PATH", "").split(os.pathsep)]
for name in ("local_blocks_path", "global_blocks_path"):
    paths += gr.prefs().get_string("grc", name, "").split(os.pathsep)
platform.build_library([os.path.expanduser(path) for path in paths if path])
say(blocks=sum(name.startswith("multisc_") for name in platform.blocks))
"""
SOAPY = """
import ctypes, ctypes.util
soapy = ctypes.CDLL(ctypes.util.find_library("SoapySDR"))
class Pairs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("keys", ctypes.POINTER(ctypes.c_char_p)),
                ("values", ctypes.POINTER(ctypes.c_char_p))]
soapy.SoapySDRDevice_enumerateStrArgs.restype = ctypes.POINTER(Pairs)
count = ctypes.c_size_t()
found = soapy.SoapySDRDevice_enumerateStrArgs(b"", ctypes.byref(count))
say(devices=[{d.keys[i].decode("utf-8", "replace"): d.values[i].decode("utf-8", "replace") for i in range(d.size)}
             for d in (found[n] for n in range(count.value))])
"""
UHD = """
import ctypes, ctypes.util
uhd = ctypes.CDLL(ctypes.util.find_library("uhd"))
found = ctypes.c_void_p()
uhd.uhd_string_vector_make(ctypes.byref(found))
if uhd.uhd_usrp_find(b"", ctypes.byref(found)) != 0:
    raise RuntimeError("uhd_usrp_find failed")
count = ctypes.c_size_t()
uhd.uhd_string_vector_size(found, ctypes.byref(count))
text, devices = ctypes.create_string_buffer(1024), []
for n in range(count.value):
    uhd.uhd_string_vector_at(found, ctypes.c_size_t(n), text, ctypes.c_size_t(1024))
    devices.append(text.value.decode("utf-8", "replace"))
say(devices=devices)
"""
TORCH = """
import torch
gpu = torch.cuda.is_available()
say(version=torch.__version__, gpu=torch.cuda.get_device_name(0) if gpu else None)
"""
QT = """
from PyQt5 import Qt
say(version=Qt.PYQT_VERSION_STR)
"""
_HEAD = """
import json
def say(**facts):
    print("\\n" + json.dumps(facts))
"""


@dataclass(frozen=True)
class Check:
    """What was found out about one thing.

    Args:
        name: of the thing.
        state: "ok", "absent" (optional, and not there) or "broken" (needed, and not usable).
        detail: what is there, or what is wrong, in one line.
        fix: what to do; empty when there is nothing to do.
    """

    name: str
    state: str
    detail: str
    fix: str = ""


class ProbeError(Exception):
    """A probe failed; the message is its last line."""


def probe(code: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run Python code in a process of its own and return what it says with ``say(name=value)``.

    Raises:
        ProbeError: when it fails or takes longer than the time-out.
    """
    return _last_object([sys.executable, "-c", _HEAD + code], timeout_s)


def _last_object(command: list[str], timeout_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no answer within {timeout_s:g} s") from None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode == 0 and lines:
        try:
            return dict(json.loads(lines[-1]))
        except ValueError:
            raise ProbeError(f"unexpected answer {lines[-1][:200]!r}") from None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise ProbeError(said[-1][:400] if said else ended)


def check_interpreter() -> Check:
    """Whether this Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    detail = f"Python {version}, {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("interpreter", "broken", detail, f"Python 3.11 or later is needed: {SETUP}")
    return Check("interpreter", "ok", detail)


def check_numpy() -> Check:
    """Whether this NumPy is of the series that the distribution's GNU Radio is built against."""
    fix = f"{sys.executable} -m pip install 'numpy<2'"
    try:
        version = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        return Check("NumPy", "broken", "not installed", fix)
    if int(version.split(".")[0]) >= 2:
        return Check("NumPy", "broken", f"NumPy {version}; GNU Radio needs 1.x", fix)
    return Check("NumPy", "ok", f"NumPy {version}")


def check_gnu_radio() -> Check:
    """Whether GNU Radio can be imported."""
    try:
        found = probe(GNU_RADIO)
    except ProbeError as error:
        said = str(error)
        if "No module named" in said:
            fix = f"apt-get install gnuradio, then {SETUP}: this interpreter does not see the distribution's packages"
        elif "numpy" in said.lower() or "initialization failed" in said:
            fix = f"it is built against another NumPy: {sys.executable} -m pip install 'numpy<2'"
        else:
            fix = SETUP
        return Check("GNU Radio", "broken", said, fix)
    return Check("GNU Radio", "ok", f"{found['version']}, {found['path']}")


def check_blocks() -> Check:
    """Whether the blocks are beside GNU Radio."""
    try:
        found = probe(BLOCKS)
    except ProbeError as error:
        return Check("gr-multisc", "broken", str(error), f"{SETUP}, or install with cmake --install build")
    return Check("gr-multisc", "ok", f"{found['blocks']} names, {found['path']}")


def check_companion() -> Check:
    """Whether GNU Radio Companion finds the blocks."""
    where = str(GRC_FOLDER) if GRC_FOLDER.is_dir() else "the folder gr-multisc/grc of the checkout"
    fix = f"export GRC_BLOCKS_PATH={where}, or install with cmake --install build"
    # `make setup` puts a start script beside the interpreter that tells Companion where the blocks are.
    script = Path(sys.executable).with_name("gnuradio-companion")
    told = re.search(r'GRC_BLOCKS_PATH="([^"$]+)', script.read_text("utf-8", "replace")) if script.is_file() else None
    try:
        found = probe(COMPANION)
        if found["blocks"]:
            return Check("Companion", "ok", f"finds {found['blocks']} blocks of gr-multisc")
        if told:
            found = probe(f"import os; os.environ['GRC_BLOCKS_PATH'] = {told[1]!r}\n{COMPANION}")
    except ProbeError as error:
        return Check("Companion", "absent", str(error), "apt-get install gnuradio, which brings it")
    if not found["blocks"]:
        return Check("Companion", "absent", "it does not find the blocks of gr-multisc", fix)
    return Check("Companion", "ok", f"finds {found['blocks']} blocks of gr-multisc, started as {script}")


def check_soapy() -> Check:
    """Which radios SoapySDR finds."""
    try:
        devices = probe(SOAPY)["devices"]
    except ProbeError as error:
        return Check("SoapySDR", "absent", str(error), "apt-get install gnuradio, which brings it")
    if not devices:
        return Check(
            "SoapySDR", "absent", "no device found",
            "plug it in; its module must be installed too, such as apt-get install soapysdr-module-hackrf",
        )  # fmt: skip
    shown = [", ".join(f"{key}={device[key]}" for key in ("driver", "serial") if key in device) for device in devices]
    return Check("SoapySDR", "ok", "; ".join(shown))


def check_uhd() -> Check:
    """Which USRPs UHD finds."""
    try:
        devices = probe(UHD)["devices"]
    except ProbeError as error:
        return Check("UHD", "absent", str(error), "apt-get install gnuradio, which brings it")
    if not devices:
        return Check(
            "UHD", "absent", "no USRP found", "plug it in; apt-get install uhd-host brings udev rules, and "
            "uhd_images_downloader its firmware",
        )  # fmt: skip
    return Check("UHD", "ok", "; ".join(devices))


def check_torch() -> Check:
    """Whether the inference process can run, and where."""
    try:
        found = probe(TORCH)
    except ProbeError as error:
        return Check("torch", "broken", str(error), SETUP)
    where = found["gpu"] or "no GPU: the models run on the processor"
    return Check("torch", "ok", f"torch {found['version']}, {where}")


def check_models() -> Check:
    """Which models are here; the embedded ones are needed."""
    try:
        rows = _last_object([sys.executable, "-m", "multisc", "models", "list", "--json"], TIMEOUT_S)["rows"]
    except ProbeError as error:
        return Check("models", "broken", str(error), SETUP)
    here = {(row["profile"], row["part"]) for row in rows if row["present"]}
    missing = [part for part in NEEDED_MODELS if ("embedded", part) not in here]
    if missing:
        fix = "check the checkout out anew: they lie in python/multisc/models/embedded"
        return Check("models", "broken", f"embedded: {', '.join(missing)} missing", fix)
    present = Counter(profile for profile, _ in here)
    shown = [
        f"{profile} {present[profile]} of {count}" for profile, count in Counter(r["profile"] for r in rows).items()
    ]
    return Check("models", "ok", ", ".join(shown))


def check_windows() -> Check:
    """Whether flowgraphs with windows can run, here or on a virtual screen."""
    try:
        qt = f"PyQt {probe(QT)['version']}"
    except ProbeError as error:
        return Check("windows", "absent", str(error), "apt-get install python3-pyqt5, for flowgraphs with windows")
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY") and not shutil.which("xvfb-run"):
        return Check("windows", "absent", f"{qt}, no screen and no virtual one", "apt-get install xvfb")
    return Check("windows", "ok", qt)


CHECKS: tuple[Callable[[], Check], ...] = (
    check_interpreter, check_numpy, check_gnu_radio, check_blocks, check_companion, check_soapy, check_uhd,
    check_torch, check_models, check_windows,
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = __doc__
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Check everything and say what was found."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        checks = list(pool.map(lambda check: check(), CHECKS))
    broken = any(check.state == "broken" for check in checks)
    if args.json:
        print(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=2))
        return int(broken)
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.state:<7} {check.name:<{width}}  {_one_line(check.detail)}")
        if check.fix:
            print(f"{'':<{width + 8}}  to fix it: {check.fix}")
    return int(broken)


def _one_line(text: str) -> str:
    """Text that comes from elsewhere, without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)
