#!/usr/bin/env bash
# Builds the library with other compilers and for other processors, and runs the fuzzer of the C interface with each build.
# The digests (hashes) of trees and neighbours must be equal for all; the fuzzer compares other results with oracles.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/fuzzer.sh

native=800 emulated=150  # number of cases; emulated processors are slow

# run NAME CASES COMMAND: runs this many cases; their digest must equal that of the first run with as many.
declare -A reference
run() {
  local name=$1 cases=$2 digest
  shift 2
  "$@" --seed 0 --cases "$cases" >build/portability.log 2>&1 || { tail -n 20 build/portability.log; return 1; }
  digest=$(sed -n "s/^digest of trees and neighbours: //p" build/portability.log)
  : "${reference[$cases]:=$digest}"
  echo "portability: $cases cases, digest $digest: $name"
  [[ $digest == "${reference[$cases]}" ]] || { echo "portability: the digest is not ${reference[$cases]}"; return 1; }
}

build portable-gcc -DCMAKE_CXX_COMPILER=g++ -DERWIN_WERROR=ON
gcc=build/portable-gcc/c_interface
run "GCC" $native $gcc
run "GCC" $emulated $gcc
run "GCC, searches without AVX" $native env ATEN_CPU_CAPABILITY=default $gcc
run "GCC, searches with AVX2" $native env ATEN_CPU_CAPABILITY=avx2 $gcc

build portable-debug -DCMAKE_CXX_COMPILER=g++ -DCMAKE_BUILD_TYPE=Debug -DERWIN_WERROR=ON
debug=build/portable-debug/c_interface
run "GCC, Debug" $native $debug

if has qemu-x86_64 qemu-user "a processor without AVX" && [[ $(uname -m) == x86_64 ]]; then
  run "GCC, a processor without AVX" $emulated qemu-x86_64 -cpu Nehalem $gcc
  run "GCC, Debug, a processor without AVX" $emulated qemu-x86_64 -cpu Nehalem $debug
fi

if has clang++ "clang libomp-dev" "Clang"; then
  build portable-clang -DCMAKE_CXX_COMPILER=clang++
  run "Clang" $native build/portable-clang/c_interface
  build portable-serial -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=Debug -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON
  run "Clang, Debug, no OpenMP" $native build/portable-serial/c_interface
fi

if has aarch64-linux-gnu-g++ g++-aarch64-linux-gnu "aarch64" && has qemu-aarch64 qemu-user "aarch64"; then
  build portable-aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64
  run "GCC, aarch64" $emulated qemu-aarch64 -L /usr/aarch64-linux-gnu build/portable-aarch64/c_interface
fi
