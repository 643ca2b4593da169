#!/usr/bin/env bash
# What only a GPU can tell, in two runs of about 5 minutes each: the kernels, then training.
#
#     bash benchmarks/gpu.sh [--results FOLDER] [--dry-run]
#
# Needs torch with CUDA, triton, transformers and trl; a step whose packages are missing is passed over. Records of every
# step go to FOLDER (default: benchmarks/results). With --dry-run: tiny shapes, on any machine.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
"$python" benchmarks/gpu/kernels.py "$@"
"$python" benchmarks/gpu/training.py "$@"
