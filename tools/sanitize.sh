#!/usr/bin/env bash
# With AddressSanitizer and UndefinedBehaviorSanitizer, runs a fixed set of cases of the fuzzer of the C interface and the
# tests of the native code. With ThreadSanitizer, runs calls with many threads. PYTHON is the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/fuzzer.sh

# AddressSanitizer does not know the stacks of the emulator's fibers. Leaks in LLVM's OpenMP are not our fault.
export ASAN_OPTIONS=detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=suppressions=tools/known_leaks.txt:print_suppressions=0
log=build/sanitize.log

# run COMMAND: prints the last line of its output, or more of it if the command fails.
run() {
  if "$@" >$log 2>&1; then tail -n 1 $log; else grep -vE "ignoring requested __asan|False positive" $log | tail -n 60; return 1; fi
}

if has clang++ "clang libomp-dev" "libFuzzer, using g++"; then
  build asan -DCMAKE_CXX_COMPILER=clang++ -DERWIN_SANITIZE=fuzzer,address,undefined
  preload=$(clang++ -print-file-name="libclang_rt.asan-$(uname -m).so")
  echo "sanitize: the fuzzer of the C interface, seeds and then libFuzzer"
  run build/asan/c_interface --seed 0 --cases 1500
  run build/asan/c_interface -seed=1 -runs=1500 -max_len=256 -len_control=0 -print_final_stats=0
else
  build asan -DCMAKE_CXX_COMPILER=g++ -DERWIN_SANITIZE=address,undefined
  preload=$(g++ -print-file-name=libasan.so)
  echo "sanitize: the fuzzer of the C interface"
  run build/asan/c_interface --seed 0 --cases 1500
fi

if [[ -n ${PYTHON:-} ]]; then
  echo "sanitize: the tests of the native library"
  # Leaks are not checked, because Python has many. The sanitizer looks up the functions for C++ exceptions only when it
  # starts, so the C++ library must be loaded before.
  run env ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" LD_PRELOAD="$preload $(g++ -print-file-name=libstdc++.so.6)" ERWIN_KERNELS="$PWD/build/asan/_kernels.so" \
    ERWIN_EMULATOR="$PWD/build/asan/_kernels.so" \
    PYTHONPATH="tools${PYTHONPATH:+:$PYTHONPATH}" PYTHONMALLOC=malloc \
    "$PYTHON" -m pytest -q --capture=sys -p other_kernels -k "not compile and not opcheck" tests/test_native.py \
    tests/ops/test_ball_tree.py tests/ops/test_neighbors.py tests/ops/test_message.py tests/ops/test_edges.py
fi

archer=
if has clang++ "clang libomp-dev" "ThreadSanitizer"; then
  archer=$(clang++ -print-resource-dir)/../../libarcher.so
  [[ -f $archer ]] || { echo "sanitize: SKIPPED ThreadSanitizer: no libarcher.so (Debian, Ubuntu: apt install libomp-dev)"; archer=; }
fi
if [[ -n $archer ]]; then  # Archer tells the sanitizer how OpenMP's threads are synchronised
  build tsan -DCMAKE_CXX_COMPILER=clang++ -DERWIN_SANITIZE=thread
  echo "sanitize: calls with many threads"
  run env OMP_TOOL_LIBRARIES="$archer" TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
    build/tsan/c_interface --threaded --seed 0 --cases 60
fi
