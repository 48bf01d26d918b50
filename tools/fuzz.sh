#!/usr/bin/env bash
# Runs the fuzzers of the C interface and of the Python operators; both take --seed and --cases.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/fuzzer.sh

[[ $# -gt 0 ]] || set -- --seed 0 --cases 1000
build fuzz
status=0
build/fuzz/c_interface "$@" || status=1
"$PYTHON" tests/fuzz/operators.py "$@" || status=1
exit $status
