"""Functions that run on every machine do not use instructions that only some have.

Inline functions are the danger: a file compiled for AVX has its own copy of, for
example, `std::min`, and the linker keeps one copy for all files.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torch_geometric_erwin import _native

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
TOOLS = {name: shutil.which(name, path=PATH) for name in ("cmake", "c++", "objdump")}
# An instruction of AVX or AVX-512: these, and almost no others, start with v.
AVX = re.compile(r"^\s+[0-9a-f]+:\s+(?:\{\w+\} )?v(?!er[rw]\b)\w+", re.MULTILINE)

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86-64"),
    pytest.mark.skipif(TOOLS["objdump"] is None, reason="needs objdump"),
]


def shared_functions(library):
    """The inline functions of the standard library, and whether they use AVX."""
    command = [TOOLS["objdump"], "-d", "-C", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions = {}
    for block in text.split("\n\n"):
        head, _, body = block.lstrip("\n").partition("\n")
        name = re.match(r"[0-9a-f]+ <(.*)>:$", head)
        # The type of the result may come before the name.
        if name and re.match(r"([\w:<>*& ,]+ )?std::", name[1]):
            functions[name[1]] = AVX.search(body) is not None
    return functions


def library():
    return _native.find_spec("torch_geometric_erwin._kernels").origin


def symbols(*options):
    command = [TOOLS["objdump"], *options, str(library())]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_library():
    # Without a symbol table, objdump counts everything after a function as part of it.
    if "no symbols" in symbols("--syms"):
        pytest.skip("the library has no symbols")
    functions = shared_functions(library())
    assert functions
    assert not [name for name, uses_avx in functions.items() if uses_avx]


@pytest.mark.skipif(
    sys.platform != "linux", reason="the list is for the linker of Linux"
)
def test_library_exports_its_interface_alone():
    lines = symbols("--dynamic-syms").splitlines()
    names = {
        line.split()[-1] for line in lines if "Base" in line and "*UND*" not in line
    }
    assert set(_native._SIGNATURES) <= names
    assert all(name.startswith("erwin_") for name in names)


SOURCE = """
#include <algorithm>
namespace {{ float at(const float* x, int i) {{ return x[i]; }} }}
extern "C" float largest_{name}(const float* x) {{
  return std::max(at(x, 0), std::max(at(x, 1), at(x, 2)));
}}
"""


@pytest.mark.skipif(None in TOOLS.values(), reason="needs CMake and a C++ compiler")
def test_build(tmp_path):
    """Builds other sources with the project's CMake files, without optimisation."""
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    folder = tmp_path / "csrc" / "cpu"
    folder.mkdir(parents=True)
    for name in ("quads_avx512", "search_avx2", "search_avx512", "tree"):
        source = SOURCE.format(name=name)
        (folder / f"{name}.cpp").write_text(source, encoding="utf-8")
    build = tmp_path / "build"
    configure = [TOOLS["cmake"], "-S", tmp_path, "-B", build]
    configure += ["-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_COMPILER={TOOLS['c++']}"]
    for command in (configure, [TOOLS["cmake"], "--build", build]):
        subprocess.run(command, check=True, capture_output=True)
    shared = "float const& std::max<float>(float const&, float const&)"
    for wide in build.rglob("*_avx*.cpp.o"):
        assert shared_functions(wide) == {shared: True}
    assert shared_functions(build / "_kernels.so") == {shared: False}
