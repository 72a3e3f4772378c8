#!/usr/bin/env bash
# conda-build sets CMAKE_ARGS, PREFIX, PYTHON and SP_DIR. Nothing is compiled.
set -euo pipefail
cmake ${CMAKE_ARGS:-} -S . -B build -G Ninja \
    -DCMAKE_INSTALL_PREFIX="$PREFIX" \
    -DPython3_EXECUTABLE="$PYTHON" \
    -DGR_PYTHON_DIR="${SP_DIR#"$PREFIX"/}"
cmake --build build
cmake --install build
