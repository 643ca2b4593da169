#!/usr/bin/env bash
# What only a GPU can tell, in one go: the kernels against float64, then the table of every shape.
#
#     bash benchmarks/gpu.sh [shape ...]        all shapes if none is named; results in $OUT or benchmarks/results
#
# Needs torch with CUDA, triton and pytest; trl and liger_kernel join the table where they can be imported.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
shapes=("$@")
((${#shapes[@]})) || shapes=(reference small_student gemma long)
results=${OUT:-benchmarks/results}
mkdir -p "$results"
python3 -m pytest -q -o minversion=0 -p no:cacheprovider -n 8 tests/kernels/test_triton.py | tee "$results/kernels.txt"
for shape in "${shapes[@]}"; do
    python3 benchmarks/loss.py --shape "$shape" --json "$results/loss-$shape.json" | tee "$results/loss-$shape.txt"
done
