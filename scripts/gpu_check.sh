#!/usr/bin/env bash
# The GPU suite and the benchmarks on CUDA, everything left in one folder.
#
#   scripts/gpu_check.sh OUT [WHEELS]
#
# For a machine with torch, pytest and hypothesis but perhaps neither chatterbox-tts nor a network: what it lacks is
# installed from the folder WHEELS. Works in a copy of the repository, with nothing of this library installed.
set -uo pipefail
out=$(realpath -m "${1:?usage: scripts/gpu_check.sh OUT [WHEELS]}")
wheels=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
if [ -n "$wheels" ]; then
  "$python" -m pip install -q --no-index --no-deps --target "$work/packages" "$wheels"/*.whl || exit 1
fi
export HF_HUB_OFFLINE=1 TTS_COMPILE_CACHE_DIR="$work/cache"
export PYTHONPATH="$PWD/src:$work/packages${PYTHONPATH:+:$PYTHONPATH}"

failed=0
run() { # a name, then a command, which has what is left of 7.5 minutes; its output is NAME.log
  local name=$1
  shift
  timeout -k 5 $((SECONDS < 445 ? 450 - SECONDS : 5)) "$@" > "$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit code $code after ${SECONDS} s"
  [ $code -eq 0 ] || failed=1
}

run doctor "$python" -m tts_compile.cli.main doctor
run tests "$python" -m pytest -q -m gpu tests/test_gpu.py
for subject in e2e t3 flow vocoder "batch --no-stock --chunks 64 --sizes 1 4 16 32 64"; do
  name=${subject%% *}
  # shellcheck disable=SC2086 - subject holds an option too
  run "bench-$name" "$python" -m tts_compile.cli.main bench $subject --repeats 3 \
    --size full --device cuda --checkpoint-dir "$work/checkpoint" --out "$out/$name.json"
done
exit $failed
