#!/usr/bin/env bash
# Makes the virtual environment $1 over the system's Python, which sees the distribution's GNU Radio.
# Idempotent; prints what it does. Without root it says which packages to ask an administrator for.
set -euo pipefail
venv=${1:?usage: setup.sh VENV}
python=${PYTHON:-/usr/bin/python3}
root=$(cd "$(dirname "$0")" && pwd)
say() { printf 'setup: %s\n' "$*"; }

packages=()
# Without a file it is a folder that some out-of-tree module left behind, not GNU Radio.
"$python" -c 'import gnuradio; open(gnuradio.__file__)' 2>/dev/null || packages+=(gnuradio)
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
# For the tests alone, which build a radio that hears itself and open windows; without root they do with less.
if [[ $(id -u) -eq 0 ]]; then
    command -v g++ >/dev/null || packages+=(g++)
    [[ -e /usr/include/SoapySDR/Device.hpp ]] || packages+=(libsoapysdr-dev)
    command -v Xvfb >/dev/null || packages+=(xvfb)  # a screen for the flowgraphs with a window
elif [[ ! -e /usr/include/SoapySDR/Device.hpp ]]; then
    say "without libsoapysdr-dev and g++ the tests of the radio front ends are skipped"
fi
if ((${#packages[@]})); then
    if [[ $(id -u) -ne 0 ]]; then
        say "missing: ${packages[*]}. Ask an administrator for: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    if ! command -v apt-get >/dev/null; then
        say "missing: ${packages[*]}, and there is no apt-get here: install them with this system's package manager" >&2
        exit 1
    fi
    say "installing ${packages[*]} from the distribution (about a minute)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then  # missing, or its making was cut short
    say "making $venv over $("$python" --version)"
    "$python" -m venv --system-site-packages "$venv"
fi
install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/requirements.lock" "$@"
}
say "installing the locked Python packages (about a minute)"
# pyldpc comes as source whose setup.py imports NumPy without asking for it: the isolated build of newer pips has none.
install "setuptools>=68" wheel numba scipy
install --no-build-isolation pyldpc
install --editable "$root[inference,dev]"

# Without an __init__.py in gnuradio/ Python joins this folder to the distribution's package, so that
# `from gnuradio import multisc` works from the checkout; an installed gr-multisc does not need it.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/gnuradio"
ln -sfn "$root/gr-multisc/python/multisc" "$site/gnuradio/multisc"

# Companion runs in the Python of its first line, and so does what it starts: the distribution's sees no .venv.
for program in gnuradio-companion grcc; do
    cat >"$venv/bin/$program" <<SH
#!/bin/sh
export GRC_BLOCKS_PATH="$root/gr-multisc/grc\${GRC_BLOCKS_PATH:+:\$GRC_BLOCKS_PATH}"
exec "\$(dirname "\$0")/python" /usr/bin/$program "\$@"
SH
    chmod +x "$venv/bin/$program"
done

"$venv/bin/python" - <<'PY'
import sys

import numpy
from gnuradio import gr

print(f"setup: Python {sys.version.split()[0]}, NumPy {numpy.__version__}, GNU Radio {gr.version()}")
PY
say "compiling the inner loops once (half a minute); they are kept beside the sources"
"$venv/bin/python" "$root/examples/own_streams.py" >/dev/null
touch "$venv/.ready"
