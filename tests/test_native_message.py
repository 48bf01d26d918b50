"""Native message passing, called through the C interface (`csrc/erwin.h`)."""

import ctypes
from itertools import product

import pytest
import torch
from guarded import Guarded, Outputs

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops.message import composite

ISAS = range(_native.library().erwin_cpu_isa() + 1)
EPS = 1e-5
INVALID, UNSUPPORTED, TOO_SMALL = 1, 2, 3
HUGE = 2**60


def status(name, *args):
    return _native._function(name)(*args)


def group(key, groups):
    ptr, order = torch.empty(groups + 1).long(), torch.empty_like(key)
    args = (key.data_ptr(), key.numel(), groups, ptr.data_ptr(), order.data_ptr())
    _native.call("erwin_group", *args)
    return ptr, order


class Arguments:
    """The arrays of a call on several clouds, each with its own edges."""

    def __init__(self, clouds, channels, dim=3, pos_dtype=torch.float32):
        generator = torch.Generator().manual_seed(channels)
        self.clouds, self.channels, self.dim = clouds, channels, dim
        self.nodes, self.width = sum(n for n, _ in clouds), -(-channels // 16) * 16
        edges, start = [], 0
        for n, per_node in clouds:
            edges.append(
                torch.randint(max(n, 1), (2, n * per_node), generator=generator)
            )
            edges[-1] += start
            start += n
        self.source, self.target = torch.cat(edges, dim=1).contiguous()

        def rows(n):
            x = torch.zeros(n, self.width)
            x[:, :channels] = torch.randn(n, channels, generator=generator)
            return x

        self.source_rows, self.target_rows, self.grad = (
            rows(self.nodes) for _ in range(3)
        )
        self.pos = torch.randn(self.nodes, dim, generator=generator).to(pos_dtype)
        self.weight, self.norm_weight, self.norm_bias = rows(dim), rows(1), rows(1)
        self.sort()

    def sort(self):
        self.target_ptr, self.target_order = group(self.target, self.nodes)
        self.source_ptr, self.source_order = group(self.source, self.nodes)

    def cloud(self, i):
        """The arguments of cloud `i` alone."""
        start = sum(n for n, _ in self.clouds[:i])
        rows = slice(start, start + self.clouds[i][0])
        alone = Arguments.__new__(Arguments)
        vars(alone).update(vars(self))
        alone.clouds, alone.nodes = self.clouds[i : i + 1], self.clouds[i][0]
        for name in ("source_rows", "target_rows", "grad", "pos"):
            setattr(alone, name, getattr(self, name)[rows])
        inside = (self.source >= rows.start) & (self.source < rows.stop)
        alone.source = self.source[inside] - start
        alone.target = self.target[inside] - start
        alone.sort()
        return rows, alone

    def struct(self, isa=-1):
        sizes = (self.nodes, self.source.numel(), self.channels, self.dim)
        pointers = [getattr(self, name).data_ptr() for name in ARRAYS]
        first = (isa, _native.DTYPES[self.pos.dtype], EPS)
        return _native.Message(*first, *sizes, *pointers)

    def run(self, isa=-1, threads=1):
        """Returns all results; checks that no byte outside the arrays was written."""
        context = _native.Context(_native.HOST, threads, None)
        struct, outputs = self.struct(isa), Outputs()
        mean, source, target = (
            outputs.new(name, self.nodes, self.width)
            for name in ("mean", "source", "target")
        )
        weights = outputs.new("weights", self.dim + 2, self.width)
        _native.call("erwin_message_forward", context, struct, mean.data_ptr())
        size = _native.size_of("erwin_message_workspace", struct)
        workspace = Guarded(size, shift=1 + self.nodes % 64)
        _native.call(
            *("erwin_message_backward", context, struct, self.grad.data_ptr()),
            *(workspace.address, size),
            *[t.data_ptr() for t in (source, target, weights)],
        )
        assert workspace.is_intact()
        return {k: v[:, : self.channels] for k, v in outputs.read().items()}

    def reference(self):
        """The same results, computed by the reference implementation in float64."""
        c = self.channels
        rows = [self.source_rows[:, :c], self.target_rows[:, :c], self.pos]
        rows += [self.weight[:, :c].t(), self.norm_weight[0, :c], self.norm_bias[0, :c]]
        leaves = [t.double().requires_grad_() for t in rows]
        mean = composite(leaves, EPS, self.source, self.target)
        source, target, _, weight, *norm = torch.autograd.grad(
            mean, leaves, self.grad[:, :c].double()
        )
        weights = torch.cat([weight.t(), torch.stack(norm)])
        results = {"mean": mean.detach(), "source": source, "target": target}
        return {**results, "weights": weights}


ARRAYS = [name for name, kind in _native.Message._fields_ if kind is ctypes.c_void_p]
# For every cloud, points and edges per point: none, one, and near a task of 128 nodes.
CLOUDS = [
    [(1, 0)],
    [(1, 1), (2, 5), (5, 0)],
    [(127, 3), (1, 2), (129, 4)],
    [(128, 20), (70, 40), (3, 0), (300, 9)],
]
# Lengths of rows that stay in registers, and others.
WIDTHS = [(1, 3), (16, 3), (32, 3), (64, 3), (64, 2), (100, 5)]
WIDTHS = [(*width, torch.float32) for width in WIDTHS] + [(40, 3, torch.float64)]


@pytest.mark.parametrize("clouds", CLOUDS, ids=str)
@pytest.mark.parametrize("channels, dim, pos_dtype", WIDTHS)
def test_clouds_of_a_batch(clouds, channels, dim, pos_dtype):
    """Results are right, and for a cloud alone they are the same bits."""
    args = Arguments(clouds, channels, dim, pos_dtype)
    expected = args.reference()
    for isa in ISAS:
        actual = args.run(isa)
        for name, want in expected.items():
            tolerance = 1e-3 if channels == 1 else 1e-5  # a variance of zero
            error = (actual[name].double() - want).abs().max()
            assert error <= tolerance * max(1, want.abs().max()), name
        for name, value in args.run(isa, threads=3).items():
            assert torch.equal(value, actual[name]), name
        for i in range(len(clouds)):
            rows, alone = args.cloud(i)
            for name, value in alone.run(isa, threads=2).items():
                # Gradients of weights are sums over all clouds.
                same = name == "weights" or torch.equal(value, actual[name][rows])
                assert same, (isa, i, name)


class Entry:
    """A valid call of every entry point, which tests then spoil."""

    def __init__(self):
        self.args = Arguments([(5, 3), (4, 2)], 20)
        self.context = _native.Context(_native.HOST, 2, None)
        self.struct = self.args.struct()
        self.bytes = _native.size_of("erwin_message_workspace", self.struct)
        self.workspace = torch.empty(self.bytes, dtype=torch.uint8)
        self.out = torch.zeros(3, 9, 32)
        self.weights = torch.zeros(5, 32)

    def statuses(self, **change):
        """The statuses of the workspace, the forward and the backward call."""
        values = {
            "context": self.context,
            "message": self.struct,
            "size": ctypes.byref(ctypes.c_int64()),
            "mean": self.out[0].data_ptr(),
            "grad": self.args.grad.data_ptr(),
            "workspace": self.workspace.data_ptr(),
            "bytes": self.bytes,
            "source": self.out[1].data_ptr(),
            "target": self.out[2].data_ptr(),
            "weights": self.weights.data_ptr(),
            **change,
        }
        calls = {
            "erwin_message_workspace": "message size",
            "erwin_message_forward": "context message mean",
            "erwin_message_backward": "context message grad workspace bytes source "
            "target weights",
        }
        return tuple(
            status(name, *[values[k] for k in words.split()])
            for name, words in calls.items()
        )


def test_a_right_call():
    assert Entry().statuses() == (0, 0, 0)


SIZES = ["nodes", "edges", "channels", "dim"]


@pytest.mark.parametrize("value", [-1, HUGE, 2**63 - 1])
@pytest.mark.parametrize("field", SIZES)
def test_a_wrong_size(field, value):
    entry = Entry()
    setattr(entry.struct, field, value)
    assert entry.statuses() == (INVALID,) * 3


@pytest.mark.parametrize(
    "field, value, workspace, expected",
    [
        *[("isa", -2, 0, INVALID), ("isa", 7, 0, UNSUPPORTED)],
        *[("pos_dtype", value, INVALID, INVALID) for value in (-1, 2)],
        *[(field, 0, INVALID, INVALID) for field in ("channels", "dim")],
        *[("edges", edges, 0, INVALID) for edges in (22, 24)],
    ],
)
def test_a_wrong_field(field, value, workspace, expected):
    entry = Entry()
    setattr(entry.struct, field, value)
    assert entry.statuses() == (workspace, expected, expected)


@pytest.mark.parametrize("field", ARRAYS)
def test_a_missing_array(field):
    entry = Entry()
    setattr(entry.struct, field, None)
    forward = 0 if field in ("source_ptr", "source_order") else INVALID
    assert entry.statuses() == (0, forward, INVALID)


@pytest.mark.parametrize(
    "name", ["size", "mean", "grad", "workspace", "source", "target", "weights"]
)
def test_a_missing_argument(name):
    expected = [INVALID if name == "size" else 0, INVALID if name == "mean" else 0, 0]
    if name not in ("size", "mean"):
        expected[2] = INVALID
    assert Entry().statuses(**{name: None}) == tuple(expected)


def test_a_missing_struct():
    assert Entry().statuses(message=None) == (INVALID,) * 3
    assert Entry().statuses(context=None) == (0, INVALID, INVALID)


@pytest.mark.parametrize(
    "device, threads, expected",
    [(0, 1, UNSUPPORTED), (-2, 1, UNSUPPORTED), (-7, 1, UNSUPPORTED), (-1, 0, INVALID)],
)
def test_a_wrong_context(device, threads, expected):
    context = _native.Context(device, threads, None)
    assert Entry().statuses(context=context) == (0, expected, expected)


def test_a_small_workspace():
    entry = Entry()
    assert entry.statuses(bytes=entry.bytes - 1) == (0, 0, TOO_SMALL)
    assert entry.statuses(bytes=-1) == (0, 0, TOO_SMALL)


def test_no_nodes():
    nothing = Arguments([(0, 0)], 20)
    assert nothing.source_rows.data_ptr() == 0
    assert nothing.run()["weights"].eq(0).all()


def test_a_workspace_of_any_size():
    """The size is never smaller than the contents, and refused if it overflows."""
    sizes = [0, 1, 2**20, 2**44, 2**48]
    for nodes, edges in product(sizes, sizes):
        for channels, dim in product([1, 2**15, 2**24], [1, 2**24]):
            struct = _native.Message(-1, 0, EPS, nodes, edges, channels, dim)
            width = -(-channels // 16) * 16
            partial = -(-nodes // 128) * (dim + 2) * width
            needed = 4 * (nodes * width + 4 * edges + partial)
            size = ctypes.c_int64(-5)
            args = ("erwin_message_workspace", struct, ctypes.byref(size))
            if status(*args) == 0:
                assert needed <= size.value <= needed + 4 * 64
            else:
                assert (size.value, needed > 2**63 - 256) == (-5, True)


def wrong_tables(edges, nodes):
    """Changes of the offsets and the order of a table: kind, place, value."""
    for value in (-1, 1, 2**62):
        yield "ptr", 0, value
    for value in (-1, edges - 1, edges + 1, 2**62, -(2**62)):
        yield "ptr", nodes, value
    for value in (-1, edges + 1, 2**62):
        yield "ptr", nodes // 2, value
    for place in (0, edges // 2, edges - 1):
        for value in (-1, edges, 2**62, -(2**62)):
            yield "order", place, value


@pytest.mark.parametrize("end", ["target", "source"])
def test_tables_of_other_edges(end):
    """Every wrong value is refused before it is used as an index."""
    args = Arguments([(5, 3), (4, 2)], 20)
    forward = INVALID if end == "target" else 0
    for kind, place, value in wrong_tables(edges=23, nodes=9):
        entry = Entry()
        table = getattr(entry.args, f"{end}_{kind}")
        table[place] = value
        assert entry.statuses() == (0, forward, INVALID), (kind, place, value)
    entry = Entry()
    order = getattr(entry.args, f"{end}_order")
    for swapped in (order.flip(0), order[[*range(22), 0]], order.roll(1)):
        order.copy_(swapped)
        assert entry.statuses() == (0, forward, INVALID)
        order.copy_(getattr(args, f"{end}_order"))
    # The edges of a node in another order, or one of them twice.
    ptr = getattr(args, f"{end}_ptr")
    node = int(ptr.diff().argmax())
    first, last = int(ptr[node]), int(ptr[node + 1])
    for order_of_node in (order[first:last].flip(0), order[first : first + 1]):
        order[first:last] = order_of_node
        assert entry.statuses() == (0, forward, INVALID)
        order.copy_(getattr(args, f"{end}_order"))
    assert entry.statuses() == (0, 0, 0)


@pytest.mark.parametrize("end", ["target", "source"])
@pytest.mark.parametrize("value", [-1, 9, 2**62, -(2**62)])
@pytest.mark.parametrize("place", [0, 11, 22])
def test_an_end_that_is_no_node(end, value, place):
    entry = Entry()
    getattr(entry.args, end)[place] = value
    assert entry.statuses() == (0, INVALID, INVALID)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_end_that_is_no_node_in_any_task(threads):
    args = Arguments([(200, 20), (190, 20)], 32)
    context = _native.Context(_native.HOST, threads, None)
    mean = torch.empty(args.nodes, args.width)
    for edge in (0, 4000, 7799):
        kept = int(args.source[edge])
        args.source[edge] = args.nodes
        call = ("erwin_message_forward", context, args.struct(), mean.data_ptr())
        assert status(*call) == INVALID
        args.source[edge] = kept


@pytest.mark.parametrize(
    "count, groups", [(-1, 3), (3, -1), (HUGE, 3), (3, HUGE), (2**63 - 1,) * 2]
)
def test_group_of_a_wrong_number(count, groups):
    key, order, ptr = (torch.zeros(4).long() for _ in range(3))
    args = (key.data_ptr(), count, groups, ptr.data_ptr(), order.data_ptr())
    assert status("erwin_group", *args) == INVALID


def test_group_of_missing_arrays():
    arrays = torch.zeros(3, 4).long()
    key, order, ptr = (t.data_ptr() for t in arrays)
    for args in [(None, 3, 3, ptr, order), (key, 3, 3, None, order)]:
        assert status("erwin_group", *args) == INVALID
    assert status("erwin_group", key, 3, 3, ptr, None) == INVALID
    assert status("erwin_group", None, 0, 3, ptr, None) == 0
    assert status("erwin_group", None, 0, 0, ptr, None) == 0


@pytest.mark.parametrize("value", [-1, 3, 2**62, -(2**62)])
def test_group_of_a_wrong_key(value):
    key, order, ptr = (torch.zeros(4).long() for _ in range(3))
    key[2] = value
    args = (key.data_ptr(), 4, 3, ptr.data_ptr(), order.data_ptr())
    assert status("erwin_group", *args) == INVALID


@pytest.mark.parametrize("count", [-1, HUGE])
def test_finite_values_of_a_wrong_number(count):
    x, finite = torch.zeros(4), ctypes.byref(ctypes.c_int32())
    for values, n, result in [(x.data_ptr(), count, finite), (None, 4, finite)]:
        assert status("erwin_is_finite", 0, values, n, result) == INVALID
    assert status("erwin_is_finite", 0, x.data_ptr(), 4, None) == INVALID
    assert status("erwin_is_finite", 0, None, 0, finite) == 0
