# What the scripts beside it share: builds of the library with the fuzzer of its C interface, and what they need.

step=$(basename "$0" .sh)

# build NAME [CMAKE OPTION ...]: makes build/NAME/c_interface and build/NAME/_kernels.so, whose GPU is an emulator.
build() {
  local name=$1 log=build/$1.log
  shift
  mkdir -p build
  echo "$step: building $name"
  { cmake -S . -B "build/$name" -DERWIN_FUZZ=ON "$@" && cmake --build "build/$name" --parallel "$(nproc)"; } \
    >"$log" 2>&1 || { grep -E "error|warning" "$log" || tail -n 20 "$log"; return 1; }
}

# has COMMAND PACKAGE WHAT: whether there is a command; says what is skipped if not.
has() {
  command -v "$1" >/dev/null && return
  echo "$step: SKIPPED $3: there is no '$1' (Debian, Ubuntu: apt install $2)"
  return 1
}
