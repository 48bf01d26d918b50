# Functions for the other scripts in this folder: they build the library together with the fuzzer of its C interface, and
# check that commands are installed.

step=$(basename "$0" .sh)

# build NAME [CMAKE OPTION ...]: makes build/NAME/c_interface and build/NAME/_kernels.so, where an emulator stands in for a GPU.
build() {
  local name=$1 log=build/$1.log
  shift
  mkdir -p build
  echo "$step: building $name"
  { cmake -S . -B "build/$name" -DERWIN_FUZZ=ON "$@" && cmake --build "build/$name" --parallel "$(nproc)"; } \
    >"$log" 2>&1 || { grep -E "error|warning" "$log" || tail -n 20 "$log"; return 1; }
}

# has COMMAND PACKAGE WHAT: whether the command is installed; if not, prints that WHAT is skipped.
has() {
  command -v "$1" >/dev/null && return
  echo "$step: SKIPPED $3: there is no '$1' (Debian, Ubuntu: apt install $2)"
  return 1
}
