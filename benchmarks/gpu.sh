#!/usr/bin/env bash
# Builds the package for this machine's GPU, runs the CUDA tests and measures everything that has a bar, within nine
# minutes: benchmarks/gpu.py says what the options are and what comes of it. PYTHON is a Python that has torch with
# CUDA, scikit-build-core, cmake, ninja, pytest, hypothesis and matplotlib; nothing is downloaded.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
