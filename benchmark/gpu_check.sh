#!/usr/bin/env bash
# Proves the CUDA code on a machine that has a GPU, without a network: builds, runs all tests, runs every kernel under
# compute-sanitizer, and measures. Logs and results go to $OUT; the last lines say of every group whether it passed.
#
#   OUT=folder benchmark/gpu_check.sh [build] [tests] [memcheck] [racecheck] [benchmarks]
#
# Without names it runs all groups. It needs Python with PyTorch for CUDA, torch_geometric, Triton, scikit-build-core,
# pytest, pytest-timeout and hypothesis, and the CUDA toolkit with compute-sanitizer.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
out=${OUT:-build/gpu_check}
mkdir -p "$out"
out=$(cd "$out" && pwd)

build() {
  CUDAARCHS=native "$python" -m pip install --no-build-isolation --no-deps --editable . &&
    "$python" -c "from torch_geometric_erwin import _native; assert _native.library().erwin_has_cuda()"
}

tests() {
  local workers=()
  "$python" -c "import xdist" 2>/dev/null && workers=(-n 8)
  "$python" -m pytest --ignore=tests/interop -q "${workers[@]}" --durations=20
}

# PyTorch's allocator hands out parts of large pieces; without it an access beyond a tensor is seen.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 "$python" -m benchmark.sanitize
}

memcheck() { sanitize memcheck && sanitize initcheck; }
racecheck() { sanitize racecheck && sanitize synccheck; }

benchmarks() {
  local cases
  cases=$("$python" -m benchmark --list | awk '$1 ~ /_cuda$/ {print $1}')
  # Every name is a word of its own.
  # shellcheck disable=SC2086
  "$python" -m benchmark $cases --limit 300 --out "$out"
}

groups=("$@")
[ $# -gt 0 ] || groups=(build tests memcheck racecheck benchmarks)
verdicts=()
failed=0
for group in "${groups[@]}"; do
  echo "== $group"
  start=$SECONDS
  if "$group" >"$out/$group.log" 2>&1; then verdict=pass; else verdict=fail failed=1; fi
  tail -n 15 "$out/$group.log"
  verdicts+=("$group $verdict $((SECONDS - start))")
done

commit=$(git rev-parse --short HEAD 2>/dev/null)
"$python" - "$out/gpu_check.json" "${commit:-unknown}" "${verdicts[@]}" <<'END'
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
    print(f"  {name:12} {group['verdict']}  {group['seconds']} s")
END
exit $failed
