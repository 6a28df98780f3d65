#!/usr/bin/env bash
# Runs the benchmarks that need an accelerator, in some ten minutes:
#
#     bash benchmarks/on_gpu.sh DIR [--tiny]
#
# DIR gets the output of each, the device and the commit. Needs jax, flax and optax alone. PYTHON names
# another interpreter than python3. A benchmark that takes too long is stopped, and the next one starts.
# --tiny tries three of them on a CPU.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: bash benchmarks/on_gpu.sh DIR}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$here/.." XLA_PYTHON_CLIENT_PREALLOCATE=false
{
  date --iso-8601
  git -C "$here" rev-parse --short HEAD 2>/dev/null
  "$python" -c 'import jax; print("jax", jax.__version__, jax.devices())'
} | tee "$out/about.txt"

run() {  # name, seconds, arguments
  local name=$1 seconds=$2
  shift 2
  echo "== $*"
  timeout "$seconds" "$python" "$here/$1" "${@:2}" 2>"$out/$name.err" | tee "$out/$name.txt" |
    grep -v '^{'
  [ "${PIPESTATUS[0]}" = 0 ] || echo "stopped or failed: see $out/$name.err"
}

if [ "${2:-}" = --tiny ]; then
  run draw 80 draw.py --rounds 1 --seconds 0.01 --sizes 2e3
  run step_cost 90 step_cost.py --rounds 1 --seconds 0.01 --networks mlp --methods plain uniform
  run profile 80 profile_step.py --networks mlp --methods uniform
  exit
fi
run draw 80 draw.py --rounds 7 --sizes 1e5 1e6 1e7 1e8
run step_cost 90 step_cost.py --rounds 9 --networks mlp cifar_cnn \
  --methods plain uniform last_loss mlp tree_last_loss tree_mlp tree_lstm
run step_cost_wrn 140 step_cost.py --rounds 9 --networks wrn --methods plain uniform tree_last_loss
run step_cost_bfloat16 110 step_cost.py --rounds 9 --networks wrn --bfloat16 \
  --methods plain uniform tree_last_loss
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer="
run profile 80 profile_step.py --networks mlp
run profile_wrn 80 profile_step.py --networks wrn
