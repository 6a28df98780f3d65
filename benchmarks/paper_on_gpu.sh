#!/usr/bin/env bash
# The authors' CIFAR-10 experiment on an accelerator, some four minutes of one:
#
#     bash benchmarks/paper_on_gpu.sh DIR --data cifar10_jpeg.npz [--time-limit 230] [...]
#
# The output goes to DIR, with the device and the commit; what follows DIR goes to paper_on_gpu.py.
# Needs jax, flax, optax and pillow alone; PYTHON names another interpreter than python3.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: bash benchmarks/paper_on_gpu.sh DIR --data FILE}
shift
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$here/.."
{
  date --iso-8601
  git -C "$here" rev-parse --short HEAD 2>/dev/null
  "$python" -c 'import jax; print("jax", jax.__version__, jax.devices())'
} | tee "$out/about.txt"
"$python" "$here/paper_on_gpu.py" "$@" 2>"$out/paper.err" | tee "$out/paper.txt" | stdbuf -oL cut -c1-300
[ "${PIPESTATUS[0]}" = 0 ] || echo "stopped or failed: see $out/paper.err"
