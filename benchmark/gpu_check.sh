#!/usr/bin/env bash
# Checks the CUDA code on a machine with a GPU; it needs no network. It builds the package, runs all tests, runs every
# kernel under compute-sanitizer, and measures. Logs and results go to $OUT; the last lines tell which groups passed.
#
#   OUT=folder benchmark/gpu_check.sh [GROUP...]
#
# Groups: build, kernels (the tests of the CUDA code), tests (all of them), memcheck, initcheck, racecheck, synccheck, and
# every GPU case of the benchmark by its name (`python -m benchmark --list`). Without names all run. A group may take $LIMIT
# seconds (default 540); QUICK=1 measures smaller sizes. It needs Python with PyTorch for CUDA, torch_geometric, Triton,
# scikit-build-core, pytest, pytest-timeout and hypothesis, and the CUDA toolkit with compute-sanitizer.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
out=${OUT:-build/gpu_check}
mkdir -p "$out"
out=$(cd "$out" && pwd)

cases() { "$python" -m benchmark --list | awk '$1 ~ /_cuda$/ {print $1}'; }

pytest() {
  local workers=()
  "$python" -c "import xdist" 2>/dev/null && workers=(-n 4)
  "$python" -m pytest -q "${workers[@]}" --durations=20 "$@"
}

# PyTorch's caching allocator is off, because with it the tool cannot see an access beyond the end of a tensor. Only our
# kernels (csrc/cuda and ops/triton) are checked, selected by parts of their mangled names; if the tool has no option
# --kernel-name, all kernels are. initcheck must also see what PyTorch's kernels write, so it runs on all kernels, but only
# its reports about ours count.
sanitize() {
  local names=(erwin) only=() log=$out/$1.txt name
  names+=($(sed -n 's/^def \([a-z_]*_kernel\)(.*/\1/p' torch_geometric_erwin/ops/triton/*.py | sort -u))
  if [ "$1" != initcheck ] && compute-sanitizer --help | grep -q -- '--kernel-name '; then
    for name in "${names[@]}"; do only+=(--kernel-name "kns=$name"); done
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" "${only[@]}" --error-exitcode 86 --print-limit 1000 \
    "$python" -m tools.sanitize_cuda 2>&1 | tee "$log"
  local status=${PIPESTATUS[0]}
  [ "$1" = initcheck ] && [ "$status" = 86 ] || return "$status"
  ! grep -E "^=+ +at .*($(IFS='|' && echo "${names[*]}"))" "$log"
}

run() {
  case $1 in
  build)
    : "${CUDAARCHS:=$("$python" -c "import torch; print('%d%d-real' % torch.cuda.get_device_capability())")}"
    CUDAARCHS=$CUDAARCHS "$python" -m pip install --no-build-isolation --no-deps --editable . &&
      "$python" -c "from torch_geometric_erwin import _native; assert _native.library().erwin_has_cuda()"
    ;;
  kernels)
    pytest tests/ops/test_ball_tree_cuda.py tests/test_neighbors_cuda.py tests/ops/triton tests/nn/models/test_no_sync.py \
      tests/nn/test_block_cuda.py tests/test_cuda_graph.py
    ;;
  tests) pytest --ignore=tests/interop ;;
  memcheck | initcheck | racecheck | synccheck) sanitize "$1" ;;
  *_cuda) "$python" -m benchmark "$1" ${QUICK:+--quick} --limit 300 --out "$out" ;;
  *)
    echo "there is no group '$1'"
    return 1
    ;;
  esac
}

# Called after every group, so that the results so far are kept if a time limit ends the whole run.
report() {
  "$python" - "$out/gpu_check.json" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$@" <<'END'
import json
import sys

import torch

path, commit, *verdicts = sys.argv[1:]
groups = {
    name: {"verdict": verdict, "seconds": int(seconds)}
    for name, verdict, seconds in map(str.split, verdicts)
}
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
with open(path, "w") as file:
    json.dump(
        {"device": device, "commit": commit, "torch": torch.__version__, **groups},
        file,
        indent=2,
    )
print(f"\n{device}, commit {commit}, torch {torch.__version__}")
for name, group in groups.items():
    print(f"  {name:18} {group['verdict']}  {group['seconds']} s")
END
}

export -f run pytest sanitize
export python out
groups=("$@")
[ $# -gt 0 ] || groups=(build kernels tests memcheck initcheck racecheck synccheck $(cases))
verdicts=()
failed=0
for group in "${groups[@]}"; do
  echo "== $group"
  start=$SECONDS
  if timeout "${LIMIT:-540}" bash -c 'run "$1"' run "$group" >"$out/$group.log" 2>&1; then
    verdict=pass
  else
    verdict=fail failed=1
  fi
  tail -n 15 "$out/$group.log"
  verdicts+=("$group $verdict $((SECONDS - start))")
  report "${verdicts[@]}" >"$out/gpu_check.txt"
done
cat "$out/gpu_check.txt"
exit $failed
