"""Builds the loopback device and says by which environment programs find it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "device.cpp"
HEADER = Path("/usr/include/SoapySDR/Device.hpp")
# What makes loops over samples fast, without the flags that change the whole process's arithmetic.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffinite-math-only", "-fno-trapping-math", "-fcx-limited-range"]


def build(folder: Path) -> dict[str, str]:
    """Compile the device into a folder.

    Returns:
        The environment in which SoapySDR finds it, and nothing else.
    """
    command = ["g++", *FLAGS, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "libmultisc_loopback.so"), "-lSoapySDR"], check=True)
    return {**os.environ, "SOAPY_SDR_PLUGIN_PATH": str(folder)}
