#!/usr/bin/env bash
# Sets up this checkout. Idempotent; prints what it does. Without root it names the packages to ask for.
#   setup.sh VENV          what a user needs: GNU Radio, and a virtual environment VENV over the system's Python
#   setup.sh --tests VENV  on top of that, what the tests need: test tools, a compiler, CMake, a screen
#   setup.sh --docs VENV   on top of that, MkDocs
set -euo pipefail
stage=user
if [[ ${1:-} == --tests || ${1:-} == --docs ]]; then
    stage=${1#--}
    shift
fi
venv=${1:?usage: setup.sh [--tests|--docs] VENV}
python=${PYTHON:-/usr/bin/python3}
root=$(cd "$(dirname "$0")" && pwd)
say() { printf 'setup: %s\n' "$*"; }

apt_install() {
    say "installing $* from the distribution (about a minute)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/requirements.lock" "$@"
}

if [[ $stage == tests ]]; then
    packages=()
    command -v cmake >/dev/null || packages+=(cmake)
    command -v g++ >/dev/null || packages+=(g++)
    [[ -e /usr/include/SoapySDR/Device.hpp ]] || packages+=(libsoapysdr-dev)
    command -v Xvfb >/dev/null || packages+=(xvfb)
    if ((${#packages[@]})); then
        if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
            apt_install "${packages[@]}"
        else
            say "the tests that need ${packages[*]} are skipped"
        fi
    fi
    say "installing the locked test tools"
    pip_install --editable "$root[inference,dev]"
    touch "$venv/.ready-tests"
    exit
elif [[ $stage == docs ]]; then
    say "installing the locked MkDocs"
    pip_install --editable "$root[inference,docs]"
    touch "$venv/.ready-docs"
    exit
fi

packages=()
# Without a file it is a folder that some out-of-tree module left behind, not GNU Radio.
"$python" -c 'import gnuradio; open(gnuradio.__file__)' 2>/dev/null || packages+=(gnuradio)
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
if ((${#packages[@]})); then
    if [[ $(id -u) -ne 0 ]]; then
        say "missing: ${packages[*]}. Ask an administrator for: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    if ! command -v apt-get >/dev/null; then
        say "missing: ${packages[*]}, and there is no apt-get here: install them with this system's package manager" >&2
        exit 1
    fi
    apt_install "${packages[@]}"
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then  # missing, or its making was cut short
    say "making $venv over $("$python" --version)"
    "$python" -m venv --system-site-packages "$venv"
fi
say "installing the locked Python packages (about a minute)"
# pyldpc comes as source whose setup.py imports NumPy without asking for it: the isolated build of newer pips has none.
pip_install "setuptools>=68" wheel numba scipy
pip_install --no-build-isolation pyldpc
pip_install --editable "$root[inference]"

# Without an __init__.py in gnuradio/ Python joins this folder to the distribution's package, so that
# `from gnuradio import multisc` works from the checkout; an installed gr-multisc does not need it.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/gnuradio"
ln -sfn "$root/gr-multisc/python/multisc" "$site/gnuradio/multisc"

# Companion runs in the Python of its first line, and so does what it starts: the distribution's sees no .venv.
programs=$("$python" -c 'import sys; print(sys.prefix)')/bin
for program in gnuradio-companion grcc; do
    cat >"$venv/bin/$program" <<SH
#!/bin/sh
export GRC_BLOCKS_PATH="$root/gr-multisc/grc\${GRC_BLOCKS_PATH:+:\$GRC_BLOCKS_PATH}"
exec "\$(dirname "\$0")/python" "$programs/$program" "\$@"
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
