import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import emulated
import pytest
import torch

from torch_geometric_erwin import _native, ball_tree

pytestmark = pytest.mark.usefixtures("emulator")

CSRC = Path(__file__).parents[1] / "csrc"
HEADER = CSRC / "erwin.h"
C_TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "const erwin_context*": ctypes.POINTER(_native.Context),
    "const erwin_layout*": ctypes.POINTER(_native.Layout),
    "const erwin_queries*": ctypes.POINTER(_native.Queries),
    "const erwin_tree_bounds*": ctypes.POINTER(_native.TreeBounds),
    "const erwin_attention*": ctypes.POINTER(_native.Attention),
    "const erwin_heads*": ctypes.POINTER(_native.Heads),
    "const erwin_message*": ctypes.POINTER(_native.Message),
    "int64_t* const*": ctypes.POINTER(ctypes.c_void_p),
    "erwin_found**": ctypes.POINTER(ctypes.c_void_p),
}


def header():
    """The C header without its comments."""
    return re.sub(r"//.*", "", HEADER.read_text(encoding="utf-8"))


def declared():
    """The ctypes types of the arguments of every function in the header."""
    functions = {}
    for name, args in re.findall(r"ERWIN_API int32_t (\w+)\(([^)]*)\);", header()):
        types = [re.sub(r"\s*\w+$", "", arg.strip()) for arg in args.split(",")]
        functions[name] = [C_TYPES.get(t, ctypes.c_void_p) for t in types if t]
        assert all(t in C_TYPES or t.endswith("*") for t in types if t), types
    return functions


def enum(name):
    body = re.search(rf"typedef enum \{{([^}}]*)\}} {name};", header())
    return {k: int(v) for k, v in re.findall(r"(\w+) = (\d+)", body[1])}


def fields(name):
    body = re.search(rf"typedef struct \{{([^}}]*)\}} {name};", header())
    return re.findall(r"(\w+(?:\s*\*)?)\s+(\w+)(?:\[(\w+)\])?;", body[1])


def test_every_function_is_declared_as_in_the_header():
    functions = declared()
    without_arguments = {k for k, v in functions.items() if not v}
    assert without_arguments == {
        "erwin_abi_version",
        "erwin_has_openmp",
        "erwin_has_cuda",
        "erwin_cpu_isa",
    }
    assert set(_native._SIGNATURES) == set(functions) - without_arguments
    for name, types in _native._SIGNATURES.items():
        assert types == functions[name], name


def test_every_function_is_in_the_library():
    library = _native.library()
    for name in declared():
        assert getattr(library, name)


def test_numbers_are_those_of_the_header():
    defines = dict(re.findall(r"#define (ERWIN_\w+) (\d+)", header()))
    assert int(defines["ERWIN_ABI_VERSION"]) == _native.ABI_VERSION
    assert int(defines["ERWIN_MAX_LEVELS"]) == _native.MAX_LEVELS
    assert _native.library().erwin_abi_version() == _native.ABI_VERSION
    assert enum("erwin_layout_kind") == {
        f"ERWIN_{kind.upper()}": value for kind, value in _native.LAYOUTS.items()
    }
    assert enum("erwin_dtype") == {
        f"ERWIN_{str(dtype).removeprefix('torch.').upper()}": value
        for dtype, value in _native.DTYPES.items()
    }
    assert enum("erwin_cpu_isa_kind") == {
        f"ERWIN_CPU_{name.upper()}": value for name, value in _native.CPU_ISAS.items()
    }
    assert f"#define ERWIN_HOST ({_native.HOST})" in header()
    statuses = enum("erwin_status")
    assert statuses.pop("ERWIN_OK") == 0
    assert set(_native._STATUS) == set(statuses.values())


def test_structs_are_those_of_the_header():
    kinds = {
        "int32_t": ctypes.c_int32,
        "int64_t": ctypes.c_int64,
        "float": ctypes.c_float,
        "erwin_layout*": ctypes.POINTER(_native.Layout),
    }
    for struct, name in [
        (_native.Context, "erwin_context"),
        (_native.Layout, "erwin_layout"),
        (_native.Queries, "erwin_queries"),
        (_native.TreeBounds, "erwin_tree_bounds"),
        (_native.Message, "erwin_message"),
    ]:
        expected = []
        for kind, field, size in fields(name):
            base = kinds.get(kind, ctypes.c_void_p)
            expected.append((field, base * _native.MAX_LEVELS if size else base))
        assert struct._fields_ == expected


@pytest.fixture
def fresh():
    """Forgets the loaded library before and after the test; it is then loaded again."""
    _native.library.cache_clear()
    yield
    _native.library.cache_clear()


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_missing_library(spec, fresh, monkeypatch):
    monkeypatch.setattr(_native, "find_spec", lambda name: spec)
    with pytest.raises(
        ImportError, match=r"native library .* is missing; .*pip install"
    ):
        _native.library()


def test_library_of_another_version(fresh, monkeypatch):
    origin = _native.find_spec("torch_geometric_erwin._kernels").origin
    message = f"'{origin}' has ABI {_native.ABI_VERSION}, expected 999; reinstall"
    message = re.escape(message)
    monkeypatch.setattr(_native, "ABI_VERSION", 999)
    with pytest.raises(ImportError, match=message):
        _native.library()


def test_openmp_and_cuda_are_flags():
    library = _native.library()
    assert library.erwin_has_openmp() in (0, 1)
    assert library.erwin_has_cuda() in (0, 1)


def workspace(layout, ptr, dim=3):
    ptr = torch.tensor(ptr)
    args = (layout, 0, ptr.data_ptr(), ptr.numel() - 1, dim)
    return _native.size_of("erwin_tree_workspace", *args)


def test_size_of():
    layout = _native.layout([8, 8], [2], "balanced")
    assert workspace(layout, [0]) == workspace(layout, [0, 0]) == 0
    assert 0 < workspace(layout, [0, 10]) < workspace(layout, [0, 10, 30])


@pytest.mark.parametrize(
    ("layout", "ptr", "dim"),
    [
        (([8], [], "balanced"), [1, 5], 3),
        (([8], [], "balanced"), [0, 5, 3], 3),
        (([8], [], "balanced"), [0, 5], 0),
        (([0], [], "balanced"), [0, 5], 3),
        (([8, 8], [0], "balanced"), [0, 5], 3),
        (([2**40], [], "balanced"), [0, 5], 3),
        (([8] * 3, [2**16, 2**16], "balanced"), [0, 5], 3),
        (([12], [], "perfect"), [0, 5], 3),
        (([], [], "balanced"), [0, 5], 3),
    ],
)
def test_a_configuration_out_of_range_is_an_error(layout, ptr, dim):
    with pytest.raises(RuntimeError, match="erwin_tree_workspace: invalid argument"):
        workspace(_native.layout(*layout), ptr, dim)


HOST = _native.Context(-1, 1, None)
EMULATED = emulated.Context()


@pytest.mark.parametrize("dtype", [-1, 2, 7])
@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("erwin_tree_workspace", []),
        ("erwin_neighbors_workspace", [HOST]),
        ("erwin_neighbors_workspace", [EMULATED]),
    ],
)
def test_an_unknown_dtype_is_an_error(name, context, dtype):
    queries = [None] if context else []
    layout, ptr = _native.layout([8], [], "balanced"), torch.tensor([0, 5])
    with pytest.raises(RuntimeError, match=f"{name}: invalid argument"):
        _native.size_of(name, *context, layout, dtype, ptr.data_ptr(), 1, 3, *queries)


@pytest.mark.parametrize("strides", [[], [2] * 4, [1, 2], [3, 1]])
@pytest.mark.parametrize("points", [1, 1000, 100_001])
def test_workspace_of_a_tree_is_at_most_40_bytes_a_point(points, strides):
    layout = _native.layout([128] * (len(strides) + 1), strides, "balanced")
    assert workspace(layout, [0, points]) <= 40 * (points + 1)


@pytest.mark.parametrize("points", [3, 60, 300, 20_000])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_build_survives_positions_that_are_not_finite(value, points):
    pos, ptr = torch.rand(points, 3), torch.tensor([0, points])
    pos[::2, 1] = value
    pos[::3, 0] = -value
    layout, perm = _native.layout([8], [], "balanced"), torch.empty(points).long()
    size = workspace(layout, [0, points])
    space = torch.empty(size, dtype=torch.uint8)
    cloud = (pos.data_ptr(), ptr.data_ptr(), 1, 3, None)
    out = (perm.data_ptr(), None, _native.pointers([]))
    context = _native.context(pos)
    args = (layout, 0, *cloud, space.data_ptr(), size, *out)
    _native.call("erwin_tree_build", context, *args)
    assert torch.equal(perm.sort().values, torch.arange(points))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 4095, 4096, 4097, 9000])
def test_finite_values(count, dtype):
    info = torch.finfo(dtype)
    x = torch.randn(count, dtype=dtype)
    extremes = [info.max, info.min, info.tiny, -info.tiny, info.tiny / 2, 0.0, -0.0]
    x[: len(extremes)] = torch.tensor(extremes, dtype=dtype)[:count]
    assert _native.is_finite(x)
    for place in sorted({0, count // 2, count - 1} if count else {}):
        for value in [float("inf"), -float("inf"), float("nan"), -float("nan")]:
            y = x.clone()
            y[place] = value
            assert not _native.is_finite(y), (place, value)


@pytest.mark.parametrize("lengths", [[], [0], [1], [3, 0, 9, 1, 64, 7]])
def test_permutations(lengths):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    runs = [torch.randperm(n) for n in lengths.tolist()]
    perm = torch.cat([torch.empty(0, dtype=torch.int64), *runs])
    assert _native.no_permutation(perm, lengths) is None
    run = torch.repeat_interleave(lengths)
    for place in range(len(perm)):
        for value in (-1, -(2**63), int(lengths[run[place]]), int(perm[place - 1])):
            wrong = perm.clone()
            wrong[place] = value
            if wrong[place] != perm[place]:
                assert _native.no_permutation(wrong, lengths) == run[place]
    if len(perm) > 0:
        with pytest.raises(Exception, match="erwin_permutations: invalid argument"):
            _native.no_permutation(perm, lengths[:-1])


def test_finite_values_of_another_dtype_or_number_are_an_error():
    x, finite = torch.zeros(4), ctypes.c_int32()
    for dtype, count in [(2, 4), (0, -1)]:
        args = (dtype, x.data_ptr(), count, ctypes.byref(finite))
        with pytest.raises(RuntimeError, match="erwin_is_finite: invalid argument"):
            _native.call("erwin_is_finite", *args)


def test_builds_in_several_threads_share_their_helpers():
    clouds = [torch.rand(n, 3) for n in [3000, 40_000, 5000, 70_000]]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [ball_tree(pos, ball_sizes=16).perm for pos in clouds]
        torch.set_num_threads(3)

        def build_all(shift):
            for i in [*range(shift, 4), *range(shift)] * 5:
                torch.set_num_threads(2 + (i + shift) % 3)
                assert torch.equal(
                    ball_tree(clouds[i], ball_sizes=16).perm, expected[i]
                )

        with ThreadPoolExecutor(4) as pool:
            for result in [pool.submit(build_all, shift) for shift in range(4)]:
                result.result(timeout=60)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", [-3, 1000])
def test_a_device_that_there_is_none_of_is_an_error(device):
    if device >= 0 and _native.library().erwin_has_cuda():
        pytest.skip("sizes need no device, and searches need memory there")
    layout, ptr = _native.layout([8], [], "balanced"), torch.tensor([0, 5])
    args = (_native.Context(device, 1, None), layout, 0, ptr.data_ptr(), 1, 3, None)
    match = "erwin_neighbors_workspace: not supported by this build"
    with pytest.raises(RuntimeError, match=match):
        _native.size_of("erwin_neighbors_workspace", *args)


def build(context, workspace_bytes):
    pos, ptr, perm = torch.rand(5, 3), torch.tensor([0, 5]), torch.empty(5).long()
    scratch = torch.empty(10_000, dtype=torch.uint8)
    layout = _native.layout([8], [], "balanced")
    cloud = (pos.data_ptr(), ptr.data_ptr(), 1, 3, None)
    space = (scratch.data_ptr(), workspace_bytes)
    out = (perm.data_ptr(), None, _native.pointers([]))
    _native.call("erwin_tree_build", context, layout, 0, *cloud, *space, *out)
    return perm


def test_status_of_a_call():
    host = _native.context(torch.empty(0))
    assert build(host, 10_000).sort().values.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="erwin_tree_build: workspace too small"):
        build(host, 8)


class Radius:
    r"""The two passes of a radius search that finds all of 5 points, call by call."""

    def __init__(self, context):
        self.context = context
        self.pos, self.ptr = torch.rand(5, 3), torch.tensor([0, 5])
        self.perm = torch.arange(5)
        self.layout = _native.layout([8], [], "balanced")
        sizes = (self.context, self.layout, 0, self.ptr.data_ptr(), 1, 3, None)
        self.bytes = _native.size_of("erwin_neighbors_workspace", *sizes)
        self.workspace = torch.empty(self.bytes, dtype=torch.uint8)
        self.edges = torch.full((2, 25), -1)
        self.degree = torch.zeros(5).long()

    def call(self, name, outputs, workspace_bytes):
        clouds = (self.pos.data_ptr(), self.ptr.data_ptr(), 1, 3, self.perm.data_ptr())
        space = (self.workspace.data_ptr(), workspace_bytes)
        out = [t.data_ptr() if isinstance(t, torch.Tensor) else t for t in outputs]
        first = (self.context, self.layout, 0)
        _native.call(name, *first, *clouds, None, None, 9.0, -1, 1, *space, *out)

    def count(self, found):
        self.call("erwin_radius_count", [self.degree, found], self.bytes)

    def fill(self, found, workspace_bytes):
        outputs = [self.degree, found, *self.edges]
        self.call("erwin_radius_fill", outputs, workspace_bytes)


DEVICES = pytest.mark.parametrize("context", [HOST, EMULATED], ids=["host", "emulated"])


@DEVICES
def test_radius_fill_checks_its_workspace(context):
    search = Radius(context)
    with _native.found() as found:
        search.count(found)
        with pytest.raises(
            RuntimeError, match="erwin_radius_fill: workspace too small"
        ):
            search.fill(found, search.bytes - 1)
        search.fill(found, search.bytes)
    assert search.edges[1].tolist() == [i for i in range(5) for _ in range(5)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_emulated_search_refuses_positions_that_are_not_finite(value):
    search = Radius(EMULATED)
    with _native.found() as found:
        search.count(found)
        search.pos[4, 1] = value
        with pytest.raises(RuntimeError, match="erwin_radius_count: invalid argument"):
            search.count(found)


@DEVICES
@pytest.mark.parametrize("wrong", [-1, 6])
def test_radius_fill_refuses_a_degree_that_was_not_counted(wrong, context):
    search = Radius(context)
    with _native.found() as found:
        search.count(found)
        assert search.degree.tolist() == [5] * 5
        search.degree[4] = wrong
        with pytest.raises(RuntimeError, match="erwin_radius_fill: invalid argument"):
            search.fill(found, search.bytes)
    assert search.edges[:, 20:].eq(-1).all()


def test_radius_fill_on_the_host_writes_what_its_count_found():
    search = Radius(HOST)
    with _native.found() as found:
        search.count(found)
        search.degree[4] = 4  # a number that is possible but wrong
        with pytest.raises(RuntimeError, match="erwin_radius_fill: invalid argument"):
            search.fill(found, search.bytes)
    search.degree[4] = 5
    with pytest.raises(RuntimeError, match="erwin_radius_fill: invalid argument"):
        search.fill(None, search.bytes)
    assert search.edges.eq(-1).all()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("header", sorted(CSRC.rglob("*.h")), ids=lambda p: p.name)
def test_every_header_compiles_alone(header):
    flags = ["-std=c++17", "-fsyntax-only", f"-I{CSRC}", f"-I{emulated.SOURCE}"]
    command = ["c++", *flags, "-x", "c++", header]
    subprocess.run(command, check=True, capture_output=True)


def test_a_status_without_a_name(monkeypatch):
    monkeypatch.setattr(_native, "_function", lambda name: lambda: 77)
    with pytest.raises(RuntimeError, match="erwin_tree_build: status 77"):
        _native.call("erwin_tree_build")


def test_context_follows_the_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    context = _native.context(torch.empty(0))
    torch.set_num_threads(before)
    assert (context.device, context.num_threads, context.stream) == (-1, 3, None)


def test_pointers():
    tensors = [torch.rand(3), torch.rand(2)]
    array = _native.pointers(tensors)
    assert len(array) == _native.MAX_LEVELS
    assert array[:3] == [*[t.data_ptr() for t in tensors], None]
