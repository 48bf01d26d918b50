"""Every entry point of trees and neighbours checks the rules for arguments in the
header: each is called with valid arguments, and then with one wrong argument."""

import copy
import ctypes
import re

import emulated
import pytest
import torch
from test_native import header

from torch_geometric_erwin import _native

OK, INVALID, UNSUPPORTED, TOO_SMALL = 0, 1, 2, 3
MAX_DIM = int(re.search(r"ERWIN_MAX_DIM (\d+)", header())[1])
SIZES, DIM = (3, 0, 40), 3
POINTS, CLOUDS, LARGEST = sum(SIZES), len(SIZES), max(SIZES)
SLACK = 64  # bytes around every output that no call may write


class Guarded:
    """Memory between guard bytes."""

    def __init__(self, size, at=SLACK):
        self.bytes = torch.full((size + at + SLACK,), 0x5A, dtype=torch.uint8)
        self.at, self.size = at, size

    def copy(self):
        other = copy.copy(self)
        other.bytes = self.bytes.clone()
        return other

    def data_ptr(self):
        return self.bytes.data_ptr() + self.at

    def is_untouched_around(self):
        before, after = self.bytes[: self.at], self.bytes[self.at + self.size :]
        return bool(before.eq(0x5A).all() and after.eq(0x5A).all())


def longs(count):
    return Guarded(8 * count)


def function(name, context):
    """An entry point of the library that a context belongs to."""
    of_emulator = isinstance(context, emulated.Context)
    return (emulated.function if of_emulator else _native._function)(name)


class Call:
    """The arguments of an entry point, by name and in order."""

    def __init__(self, name, **arguments):
        self.name, self.arguments = name, arguments
        self.function = function(name, arguments.get("context"))

    def status(self, **changes):
        assert set(changes) <= set(self.arguments)
        arguments = {**self.arguments, **changes}.values()
        if self.name == "erwin_radius_count":
            self.arguments["found"].free()
        return self.function(
            *[
                value.data_ptr() if hasattr(value, "data_ptr") else value
                for value in arguments
            ]
        )

    def outputs(self):
        return [v for v in self.arguments.values() if isinstance(v, Guarded)]


def batch():
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(POINTS, DIM, generator=generator)
    ptr = torch.tensor([0, *SIZES]).cumsum(0)
    perm = torch.cat([torch.arange(n) for n in SIZES])
    return pos, ptr, perm


def workspace_of(name, *args):
    size = ctypes.c_int64()
    assert function(name, args[0])(*args, ctypes.byref(size)) == OK
    return size.value


def make_sizes(context):
    _, ptr, _ = batch()
    layout = _native.layout([8, 4], [2], "balanced")
    return Call(
        "erwin_tree_sizes",
        **{"layout": layout, "ptr": ptr, "clouds": CLOUDS},
        **{"rows": longs(2 * CLOUDS), "total": longs(2 * 2)},
    )


def make_tables(context):
    _, ptr, _ = batch()
    layout = _native.layout([8, 4], [2], "balanced")
    tables = [longs(POINTS) for _ in range(3)]
    call = Call(
        "erwin_tree_tables",
        **{"layout": layout, "ptr": ptr, "clouds": CLOUDS},
        ball_len=_native.pointers(tables[:2]),
        group_len=_native.pointers(tables[2:]),
    )
    call.tables = tables
    return call


def make_tree_workspace(context):
    _, ptr, _ = batch()
    layout = _native.layout([8, 4], [2], "balanced")
    return Call(
        "erwin_tree_workspace",
        **{"layout": layout, "dtype": 0, "ptr": ptr, "clouds": CLOUDS, "dim": DIM},
        bytes=longs(1),
    )


def make_build(context):
    pos, ptr, _ = batch()
    layout = _native.layout([8, 4], [2], "balanced")
    args = (layout, 0, ptr.data_ptr(), CLOUDS, DIM)
    size = workspace_of("erwin_tree_workspace", *args)
    rotated = [longs(POINTS), longs(POINTS)]
    call = Call(
        "erwin_tree_build",
        **{"context": context, "layout": layout, "dtype": 0, "pos": pos, "ptr": ptr},
        **{"clouds": CLOUDS, "dim": DIM, "rotation": torch.eye(DIM)},
        **{"workspace": Guarded(size), "workspace_bytes": size},
        **{"perm": longs(POINTS), "mask": None},
        perm_rot=_native.pointers(rotated),
    )
    call.rotated = rotated
    return call


def bounds(clouds=CLOUDS, points=POINTS, largest=LARGEST, rows=(POINTS, POINTS)):
    rows = (ctypes.c_int64 * _native.MAX_LEVELS)(*rows)
    return _native.TreeBounds(clouds, points, largest, rows)


def make_device_workspace(context):
    layout = _native.layout([8, 4], [2], "balanced")
    return Call(
        "erwin_tree_device_workspace",
        **{"context": context, "layout": layout, "dtype": 0, "dim": DIM},
        **{"bounds": bounds(), "rotated": 1, "bytes": longs(1)},
    )


def make_device_build(context):
    pos, ptr, _ = batch()
    layout = _native.layout([8, 4], [2], "balanced")
    args = (context, layout, 0, DIM, bounds(), 1)
    size = workspace_of("erwin_tree_device_workspace", *args)
    rotated = [longs(POINTS), longs(POINTS)]
    call = Call(
        "erwin_tree_build_device",
        **{"context": context, "layout": layout, "dtype": 0, "pos": pos, "ptr": ptr},
        **{"dim": DIM, "bounds": bounds(), "rotation": torch.eye(DIM)},
        **{"workspace": Guarded(size), "workspace_bytes": size},
        **{"perm": longs(POINTS), "mask": None},
        perm_rot=_native.pointers(rotated),
    )
    call.rotated = rotated
    return call


def points(sizes=(2, 5, 30), **changes):
    """Queries: points of as many clouds, whose neighbours are searched."""
    generator = torch.Generator().manual_seed(1)
    fields = {
        "layout": _native.layout([4], [], "balanced"),
        "pos": torch.rand(sum(sizes), DIM, generator=generator),
        "ptr": torch.tensor([0, *sizes]).cumsum(0),
        "perm": torch.cat([torch.arange(n) for n in sizes]),
        **changes,
    }
    layout, *memory = fields.values()
    made = _native.Queries(
        None if layout is None else ctypes.pointer(layout),
        *[None if tensor is None else tensor.data_ptr() for tensor in memory],
    )
    made.fields = fields  # keeps them alive
    return made


def search(name, context, queries=None, **outputs):
    pos, ptr, perm = batch()
    layout = _native.layout([8], [], "balanced")
    args = (context, layout, 0, ptr.data_ptr(), CLOUDS, DIM, queries)
    size = workspace_of("erwin_neighbors_workspace", *args)
    scalars = {"k": 2} if name == "erwin_knn" else {"radius": 9.0, "cap": 2}
    return Call(
        name,
        **{"context": context, "layout": layout, "dtype": 0, "pos": pos, "ptr": ptr},
        **{"clouds": CLOUDS, "dim": DIM, "perm": perm, "queries": queries},
        **{"box": None, **scalars},
        **{"loop": 0, "workspace": Guarded(size), "workspace_bytes": size, **outputs},
    )


def make_neighbors_workspace(context, queries=None):
    _, ptr, _ = batch()
    layout = _native.layout([8], [], "balanced")
    return Call(
        "erwin_neighbors_workspace",
        **{"context": context, "layout": layout, "dtype": 0, "ptr": ptr},
        **{"clouds": CLOUDS, "dim": DIM, "queries": queries, "bytes": longs(1)},
    )


def make_knn(context, queries=None):
    edges = {"source": longs(2 * POINTS), "target": longs(2 * POINTS)}
    return search("erwin_knn", context, queries, **edges)


class Found(ctypes.c_void_p):
    """The result of a count, which is freed at the end."""

    def free(self):
        _native.library().erwin_found_free(self)
        self.value = None

    __del__ = free


def make_count(context, queries=None):
    found = {"degree": longs(POINTS), "found": Found()}
    return search("erwin_radius_count", context, queries, **found)


def make_fill(context, radius=9.0, queries=None):
    count = make_count(context, queries)
    assert count.status(radius=radius) == OK
    memory = {name: count.arguments[name] for name in ("workspace", "degree", "found")}
    edges = {"source": longs(2 * POINTS), "target": longs(2 * POINTS)}
    found = {"degree": memory["degree"], "found": memory["found"]}
    call = search("erwin_radius_fill", context, queries, **found, **edges)
    call.arguments |= {**memory, "radius": radius}
    return call


def make_cross_workspace(context):
    return make_neighbors_workspace(context, points())


def make_cross_knn(context):
    return make_knn(context, points())


def make_cross_count(context):
    return make_count(context, points())


def make_cross_fill(context):
    return make_fill(context, queries=points())


CONTEXTS = {
    "host": _native.Context(_native.HOST, 2),
    "emulated": emulated.Context(),
}
HOST_CALLS = [
    *[make_sizes, make_tables, make_tree_workspace, make_build],
    *[make_neighbors_workspace, make_knn, make_count, make_fill],
    *[make_cross_workspace, make_cross_knn, make_cross_count, make_cross_fill],
]
DEVICE_CALLS = [
    *[make_device_workspace, make_device_build],
    *[make_neighbors_workspace, make_knn, make_count, make_fill],
    *[make_cross_workspace, make_cross_knn, make_cross_count, make_cross_fill],
]
CALLS = [
    *[pytest.param(make, "host", id=f"{make.__name__}-host") for make in HOST_CALLS],
    *[pytest.param(make, "emulated", id=make.__name__) for make in DEVICE_CALLS],
]

WRONG = {
    "context": [
        None,
        *[_native.Context(device, n) for device in (-1, 0) for n in (0, -1)],
    ],
    "layout": [
        None,
        _native.layout([], [], "balanced"),
        _native.layout([0], [], "balanced"),
        _native.layout([-8], [], "balanced"),
        _native.layout([2**40], [], "balanced"),
        _native.layout([8, 8], [0], "balanced"),
        _native.layout([8, 8, 8], [2**31, 2**31], "balanced"),
        _native.Layout(7, 1, (ctypes.c_int64 * 16)(8)),
        _native.Layout(0, 17, (ctypes.c_int64 * 16)(8)),
        _native.Layout(0, -1, (ctypes.c_int64 * 16)(8)),
    ],
    "dtype": [-1, 2, 7],
    "ptr": [None, torch.tensor([1, 3, 3, 43]), torch.tensor([0, 3, 2, 43])],
    "clouds": [-1, -(2**62)],
    "dim": [0, -1, MAX_DIM + 1, 2**31, 2**32 + 3, 2**60, 2**63 - 1],
    "bytes": [None],
    "rows": [None],
    "total": [None],
    "ball_len": [None, _native.pointers([])],
    "group_len": [None],
    "pos": [None],
    "perm": [None],
    "queries": [
        points(ptr=None),
        points(layout=None),
        points(layout=_native.layout([0], [], "balanced")),
        points(layout=_native.layout([4], [], "perfect")),
        points(ptr=torch.tensor([1, 2, 7, 37])),
        points(ptr=torch.tensor([0, 7, 2, 37])),
    ],
    "memory of queries": [points(pos=None), points(perm=None)],
    "perm_rot": [None, _native.pointers([])],
    "workspace": [None],
    "k": [0, -1, -(2**63)],
    "radius": [-1.0, float("nan"), -float("inf")],
    "degree": [None],
    "found": [None],
    "source": [None],
    "target": [None],
    "bounds": [
        None,
        *[bounds(clouds=n) for n in (-1, 2**62)],
        *[bounds(points=n) for n in (-1, LARGEST - 1, 2**62)],
        *[bounds(largest=n) for n in (-1, POINTS + 1, 2**31)],
        *[bounds(rows=(n, POINTS)) for n in (-1, 2**62)],
        *[bounds(rows=(POINTS, n)) for n in (-1, 2**62)],
    ],
}


@pytest.mark.parametrize(("make", "device"), CALLS)
def test_valid_arguments(make, device):
    call = make(CONTEXTS[device])
    assert call.status() == OK
    assert all(output.is_untouched_around() for output in call.outputs())


@pytest.mark.parametrize(("make", "device"), CALLS)
def test_a_wrong_argument_is_invalid_and_nothing_is_written(make, device):
    call = make(CONTEXTS[device])
    workspace = call.arguments.get("workspace")
    outputs = [output for output in call.outputs() if output is not workspace]
    before = [output.bytes.clone() for output in outputs]
    for title, values in WRONG.items():
        name = title.split()[-1]
        if title != name and workspace is None:  # sizes are computed without memory
            continue
        for value in values if name in call.arguments else []:
            # On a device, kernels check the offsets, and write zeros if they are wrong.
            if name == "ptr" and value is not None and "device" in call.name:
                continue
            # On a device, the result of a count is in the workspace.
            if name == "found" and call.name.endswith("fill") and device != "host":
                continue
            space = {} if workspace is None else {"workspace": workspace.copy()}
            assert call.status(**{**space, name: value}) == INVALID, (name, value)
    for output, bytes_ in zip(outputs, before, strict=True):
        assert torch.equal(output.bytes, bytes_)


@pytest.mark.parametrize(("make", "device"), CALLS)
def test_another_device_or_a_box_is_unsupported(make, device):
    call = make(CONTEXTS[device])
    missing = [0, 1000]  # ordinals of GPUs
    if device == "emulated":
        missing = [-1] if "device" in call.name else []
    elif _native.library().erwin_has_cuda():
        missing = []
    for number in (-2, -7, -(2**31), *missing):
        if "context" in call.arguments:
            context = _native.Context(number, 1)
            assert call.status(context=context) == UNSUPPORTED, number
    if "box" in call.arguments:
        assert call.status(box=torch.ones(DIM)) == UNSUPPORTED


def test_builders_run_where_they_say():
    call = make_build(CONTEXTS["host"])
    assert call.status(context=_native.Context(0, 1)) == UNSUPPORTED
    for make in (make_device_workspace, make_device_build):
        call = make(CONTEXTS["emulated"])
        call.function = _native._function(call.name)
        assert call.status(context=CONTEXTS["host"]) == UNSUPPORTED


@pytest.mark.parametrize(
    ("make", "device"), [p for p in CALLS if "work" not in p.id and "s-" not in p.id]
)
def test_the_workspace_must_be_large_enough(make, device):
    call = make(CONTEXTS[device])
    size = call.arguments["workspace_bytes"]
    for value in (0, size - 1, -1, -(2**63)):
        assert call.status(workspace_bytes=value) == TOO_SMALL
    assert call.status(workspace_bytes=2**62) == OK


@pytest.mark.parametrize(
    "make", [make_build, make_knn, make_count, make_cross_knn, make_cross_count]
)
@pytest.mark.parametrize("dtype", [0, 1])
def test_a_workspace_on_the_host_may_start_anywhere(make, dtype):
    expected = None
    for shift in range(65):
        call = make(CONTEXTS["host"])
        arguments = call.arguments
        arguments["dtype"] = dtype
        if dtype == 1:
            arguments["pos"] = arguments["pos"].double()
            arguments["rotation"] = torch.eye(DIM).double()
            if arguments.get("queries"):
                pos = arguments["queries"].fields["pos"]
                arguments["queries"] = points(pos=pos.double())
            names = {
                make_build: ("layout", "dtype", "ptr", "clouds", "dim"),
            }.get(
                make, ("context", "layout", "dtype", "ptr", "clouds", "dim", "queries")
            )
            args = [arguments[name] for name in names]
            args = [a.data_ptr() if hasattr(a, "data_ptr") else a for a in args]
            name = "tree" if make is make_build else "neighbors"
            size = workspace_of(f"erwin_{name}_workspace", *args)
            arguments["workspace_bytes"] = size
            if make is not make_build:
                del arguments["rotation"]
        arguments["workspace"] = Guarded(arguments["workspace_bytes"], SLACK + shift)
        assert call.status() == OK
        assert all(output.is_untouched_around() for output in call.outputs())
        outputs = [o.bytes for o in call.outputs() if o is not arguments["workspace"]]
        expected = expected or outputs
        assert all(map(torch.equal, outputs, expected))


@pytest.mark.parametrize(
    "make",
    [
        *[make_device_build, make_knn, make_count, make_fill],
        *[make_cross_knn, make_cross_count, make_cross_fill],
    ],
)
def test_a_workspace_on_a_device_is_aligned(make):
    call = make(CONTEXTS["emulated"])
    size = call.arguments["workspace_bytes"]
    for shift in (1, 8, 32):
        assert call.status(workspace=Guarded(size, SLACK + shift)) == INVALID


DEVICES = pytest.mark.parametrize("device", [*CONTEXTS])


@DEVICES
@pytest.mark.parametrize("place", [0, 2, 20, POINTS - 1])
@pytest.mark.parametrize("value", [-1, -(2**31), -(2**63), 2**62, POINTS + 1, 3])
def test_a_degree_that_no_count_gives_writes_nothing(value, place, device):
    call = make_fill(CONTEXTS[device])
    degree = call.arguments["degree"]
    numbers = degree.bytes[degree.at : degree.at + degree.size].view(torch.int64)
    numbers[place] = value
    assert call.status() == INVALID
    for name in ("source", "target"):
        assert bool(call.arguments[name].bytes.eq(0x5A).all())


@DEVICES
def test_outputs_without_elements_may_be_null(device):
    layout, ptr = _native.layout([8], [], "balanced"), torch.zeros(3).long()
    call = make_knn(CONTEXTS[device])
    missing = dict.fromkeys(("pos", "perm", "source", "target"))
    assert call.status(layout=layout, ptr=ptr, clouds=2, **missing) == OK
    # Single points have no neighbours either.
    lone = {"ptr": torch.arange(4), "clouds": 3, "perm": torch.zeros(3).long()}
    missing = dict.fromkeys(("source", "target"))
    assert call.status(**lone, **missing) == OK
    assert make_fill(CONTEXTS[device], radius=0.0).status(**missing) == OK


def test_sizes_beyond_any_memory_are_invalid():
    # Each number is valid, but their product overflows.
    layout = _native.layout([8] * 16, [1] * 15, "balanced")
    clouds = 2**14
    ptr = torch.arange(clouds + 1) * 2**30
    for make in (make_tree_workspace, make_neighbors_workspace):
        call = make(CONTEXTS["host"])
        changes = {"layout": layout, "ptr": ptr, "clouds": clouds}
        if make is make_neighbors_workspace:  # which counts leaves one by one
            changes |= {"ptr": torch.arange(2**12 + 1) * 16, "clouds": 2**12}
            assert call.status(**changes, dim=MAX_DIM) == OK
            continue
        assert call.status(**changes, dim=MAX_DIM) == INVALID
        assert call.status(**changes, dim=5) == OK
        assert call.arguments["bytes"].is_untouched_around()


@pytest.mark.parametrize("dtype", [0, 1])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 1000])
def test_the_workspace_grows_with_the_dimension(dim, dtype):
    for make in (make_tree_workspace, make_neighbors_workspace):
        call = make(CONTEXTS["host"])
        sizes = []
        for d in (dim, dim + 1, 8 * dim):
            assert call.status(dtype=dtype, dim=d) == OK
            out = call.arguments["bytes"]
            sizes.append(int(out.bytes[out.at : out.at + 8].view(torch.int64)))
        assert sizes[2] > sizes[0] > 0


def test_a_fill_wants_what_its_own_count_found():
    call = make_fill(CONTEXTS["host"])
    fewer = torch.tensor([0, 3, 3, POINTS - 1])
    perm = torch.cat([torch.arange(n) for n in (3, POINTS - 4)])
    for changes in ({"cap": 1}, {"ptr": fewer, "perm": perm}):
        other = make_count(CONTEXTS["host"])
        assert other.status(**changes) == OK
        assert call.status(found=other.arguments["found"]) == INVALID
