"""Native ball attention, called through the C interface (`csrc/erwin.h`)."""

import ctypes
from itertools import combinations

import pytest
import torch
from guarded import Guarded, Outputs

from torch_geometric_erwin import _native
from torch_geometric_erwin.nn import ball_attention

ISAS = range(_native.library().erwin_cpu_isa() + 1)
EPS = torch.finfo(torch.float32).eps
GRADIENTS = ["grad_q", "grad_k", "grad_v", "grad_sigma", "grad_pos"]
SHARED = {"grad_sigma"}  # sums over all balls, so not comparable for a ball alone


def status(name, *args):
    return _native._function(name)(*args)


class Arguments:
    """The arrays of a call, and of calls with each of its balls alone."""

    def __init__(self, balls, heads, channels, dim=3, dtype=torch.float32, mixed=False):
        generator = torch.Generator().manual_seed(1000 * len(balls) + sum(balls))
        n = sum(balls)
        shape = (n, heads, channels)
        rows = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
        self.q, self.k, self.v, self.grad = rows
        self.balls = torch.tensor(balls, dtype=torch.int64)
        self.pos = torch.randn(n, dim, generator=generator)
        self.sigma = torch.randn(heads, generator=generator)
        self.perm = None
        if mixed:
            parts = [torch.randperm(b, generator=generator) for b in balls]
            starts = [0, *self.balls.cumsum(0).tolist()]
            self.perm = torch.cat([p + s for p, s in zip(parts, starts)])

    def ball(self, i):
        """The arguments of ball `i` alone."""
        start = int(self.balls[:i].sum())
        rows = slice(start, start + int(self.balls[i]))
        alone = Arguments.__new__(Arguments)
        alone.balls, alone.sigma = self.balls[i : i + 1], self.sigma
        for name in ("q", "k", "v", "grad", "pos"):
            setattr(alone, name, getattr(self, name)[rows])
        alone.perm = None if self.perm is None else self.perm[rows] - start
        return rows, alone

    def struct(self, isa=-1, scale=0.3):
        perm = None if self.perm is None else self.perm.data_ptr()
        return _native.Attention(
            *(isa, _native.DTYPES[self.q.dtype], _native.DTYPES[self.pos.dtype], scale),
            *(*self.q.shape, self.pos.size(1), len(self.balls)),
            *(self.balls.data_ptr(), perm, self.pos.data_ptr(), self.sigma.data_ptr()),
            *[_native.heads(t) for t in (self.q, self.k, self.v)],
        )

    def run(self, isa=-1, threads=1, pos_grad=True):
        """Returns all results; checks that no byte outside the arrays was written."""
        context = _native.Context(_native.HOST, threads, None)
        struct, outputs = self.struct(isa), Outputs()
        out = outputs.new("out", *self.q.shape, dtype=self.q.dtype)
        lse = outputs.new("lse", *self.q.shape[:2])
        args = (_native.heads(out), lse.data_ptr())
        self.call("erwin_attention_forward", context, struct, 0, *args)
        rows = [
            outputs.new(name, *self.q.shape, dtype=self.q.dtype)
            for name in GRADIENTS[:3]
        ]
        sigma = outputs.new("grad_sigma", *self.sigma.shape)
        pos = outputs.new("grad_pos", *self.pos.shape) if pos_grad else None
        self.call(
            *("erwin_attention_backward", context, struct, 2 if pos_grad else 1),
            *(*args, _native.heads(self.grad), *map(_native.heads, rows)),
            *(sigma.data_ptr(), pos.data_ptr() if pos_grad else None),
        )
        return outputs.read()

    def call(self, name, context, struct, backward, *args):
        size = _native.size_of("erwin_attention_workspace", context, struct, backward)
        workspace = Guarded(size, shift=1 + len(self.balls) % 64)
        _native.call(name, context, struct, workspace.address, size, *args)
        assert workspace.is_intact()

    def reference(self):
        """The same results, computed by the reference implementation in float64."""
        leaves = [
            t.double().requires_grad_()
            for t in (self.q, self.k, self.v, self.sigma, self.pos)
        ]
        *qkv, sigma, pos = leaves
        size = max(1, int(self.balls.max()))
        options = {"scale": 0.3, "backend": "reference"}
        out = ball_attention(
            *(*qkv, pos, self.balls, sigma), ball_size=size, perm=self.perm, **options
        )
        grads = torch.autograd.grad(out, leaves, self.grad.double())
        return {"out": out.detach(), **dict(zip(GRADIENTS, grads))}


# Sizes near those of a vector, a block of queries, tiles of keys and the longest ball
# with cached distances: above it, scratch memory has another layout.
LENGTHS = [1, 2, 15, 17, 31, 33, 63, 65, 127, 129, 257, 511, 512, 513, 530, 640]
PAIRS = [*combinations(LENGTHS, 2)]
MIXES = [[513, 512], [140, 513], [512, 0, 513, 1], [1, 530], [129, 511, 17]]
MIXES += [[33, 31, 2, 65], [0, 15, 0, 257], [127, 63, 1, 1, 129]]


@pytest.mark.parametrize("backward", [0, 1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_workspace_has_room_for_every_ball(isa, backward):
    context = _native.Context(_native.HOST, 1, None)

    def size(*balls):
        lengths = torch.tensor(balls)
        struct = _native.Attention(isa, 0, 0, 1.0, sum(balls), 2, 8, 3, len(balls))
        struct.ball_len = lengths.data_ptr()
        args = (context, struct, backward)
        return _native.size_of("erwin_attention_workspace", *args)

    alone = {length: size(length) for length in LENGTHS}
    for pair in PAIRS:
        assert size(*pair) >= max(alone[length] for length in pair), pair


@pytest.mark.parametrize("balls", MIXES, ids=str)
def test_mixed_lengths(balls):
    """Results are right, and for a ball alone they are the same bits."""
    mixed = len(balls) % 2 == 1
    args = Arguments(balls, heads=2, channels=8 if mixed else 16, mixed=mixed)
    expected = args.reference()
    for isa in ISAS:
        actual = args.run(isa)
        for name, want in expected.items():
            error = (actual[name].double() - want).abs().max()
            size = args.q.numel() if name in SHARED else args.q.size(2)
            assert error <= 32 * EPS * size**0.5 * max(1, want.abs().max()), name
        for i in range(len(balls)):
            rows, alone = args.ball(i)
            for name, value in alone.run(isa).items():
                assert name in SHARED or torch.equal(value, actual[name][rows]), name
        for name, value in args.run(isa, threads=2).items():
            assert torch.equal(value, actual[name]), name
        without = args.run(isa, threads=2, pos_grad=False)
        for name, value in without.items():
            assert torch.equal(value, actual[name]), name


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 32])
def test_a_ball_depends_on_no_other(dtype, channels, mixed):
    balls = [130, 0, 64, 1, 513, 65]
    args = Arguments(balls, 5, channels, dim=2, dtype=dtype, mixed=mixed)
    for isa in ISAS:
        for threads in (1, 3):
            actual = args.run(isa, threads)
            for i in range(len(balls)):
                rows, alone = args.ball(i)
                for name, value in alone.run(isa, 4 - threads).items():
                    same = torch.equal(value, actual[name][rows])
                    assert name in SHARED or same, (isa, threads, i, name)


@pytest.mark.parametrize(
    "heads, channels, dim, rows",
    [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 0, 5), (2, 4, 3, 0)],
)
def test_sizes_of_zero(heads, channels, dim, rows):
    args = Arguments([rows, 0], heads, channels, dim)
    for isa in ISAS:
        actual = args.run(isa, threads=2)
        assert all(t.isfinite().all() for t in actual.values())


INVALID, UNSUPPORTED, TOO_SMALL = 1, 2, 3
HUGE = 2**60
# A field of the struct, a wrong value, and the expected status.
FIELDS = [
    *[("isa", -2, INVALID), ("isa", 7, UNSUPPORTED)],
    *[("dtype", 1, INVALID), ("dtype", -1, INVALID), ("dtype", 3, INVALID)],
    *[("pos_dtype", 2, INVALID), ("pos_dtype", -1, INVALID)],
    *[(name, value, INVALID) for value in (-1, HUGE, 2**63 - 1) for name in
      ("rows", "heads", "channels", "dim", "balls")],
    *[("rows", 6, INVALID), ("rows", 8, INVALID), ("balls", 1, INVALID)],
    ("ball_len", None, INVALID),
]  # fmt: skip
ARRAYS = [("pos", None), ("sigma", None)]
STRIDES = [(-1, 4), (8, -1), (HUGE, 4), (8, HUGE), (2**63 - 1, 2**63 - 1)]


class Entry:
    """A valid call of every entry point on 7 rows, which tests then spoil."""

    def __init__(self):
        self.args = Arguments([3, 4], 2, 4, mixed=True)
        self.context = _native.Context(_native.HOST, 1, None)
        self.struct = self.args.struct()
        self.bytes = [self.size(backward) for backward in (0, 2)]
        self.workspace = torch.empty(max(self.bytes), dtype=torch.uint8)
        self.rows = [torch.zeros_like(self.args.q) for _ in range(4)]
        self.out, *self.grads = map(_native.heads, self.rows)
        self.lse, self.sigma = torch.zeros(7, 2), torch.zeros(2)
        self.pos = torch.zeros(7, 3)

    def size(self, backward):
        args = (self.context, self.struct, backward)
        return _native.size_of("erwin_attention_workspace", *args)

    def statuses(self, **change):
        """The statuses of the workspace, the forward and the backward call."""
        struct, context = self.struct, self.context
        values = {
            "context": context,
            "attention": struct,
            "workspace": self.workspace.data_ptr(),
            "forward_bytes": self.bytes[0],
            "backward_bytes": self.bytes[1],
            "out": self.out,
            "lse": self.lse.data_ptr(),
            "grad_out": self.out,
            **dict(zip(GRADIENTS, self.grads)),
            "grad_sigma": self.sigma.data_ptr(),
            "grad_pos": self.pos.data_ptr(),
            "bytes": ctypes.byref(ctypes.c_int64()),
            "backward": 2,
            **change,
        }
        get = [values[k] for k in ("context", "attention")]
        space = values["workspace"]
        return (
            status(
                *("erwin_attention_workspace", *get),
                *(values["backward"], values["bytes"]),
            ),
            status(
                *("erwin_attention_forward", *get, space, values["forward_bytes"]),
                *(values["out"], values["lse"]),
            ),
            status(
                *("erwin_attention_backward", *get, space, values["backward_bytes"]),
                *[values[k] for k in ("out", "lse", "grad_out", *GRADIENTS)],
            ),
        )


def test_a_right_call():
    assert Entry().statuses() == (0, 0, 0)
    assert Entry().statuses(grad_pos=None) == (0, 0, 0)


@pytest.mark.parametrize("field, value, expected", FIELDS)
def test_a_wrong_field(field, value, expected):
    entry = Entry()
    setattr(entry.struct, field, value)
    assert entry.statuses() == (expected,) * 3


@pytest.mark.parametrize("field", ["pos", "sigma"])
def test_a_missing_array(field):
    entry = Entry()
    setattr(entry.struct, field, None)
    assert entry.statuses() == (0, INVALID, INVALID)


@pytest.mark.parametrize("strides", [*STRIDES, None])
@pytest.mark.parametrize("field", ["q", "k", "v"])
def test_wrong_strides_of_an_input(field, strides):
    entry = Entry()
    tensor = getattr(entry.struct, field)
    if strides is None:
        tensor.data = None
    else:
        tensor.row_stride, tensor.head_stride = strides
    assert entry.statuses() == (0, INVALID, INVALID)


@pytest.mark.parametrize("strides", [*STRIDES, None])
@pytest.mark.parametrize("name", ["out", "grad_out", *GRADIENTS[:3]])
def test_wrong_strides_of_an_argument(name, strides):
    data = torch.empty(100).data_ptr()
    wrong = (
        _native.Heads(None, 8, 4) if strides is None else _native.Heads(data, *strides)
    )
    forward = INVALID if name == "out" else 0
    for value in (wrong, None):
        assert Entry().statuses(**{name: value}) == (0, forward, INVALID)


def test_missing_arguments():
    everywhere = (INVALID,) * 3
    assert Entry().statuses(context=None) == everywhere
    assert Entry().statuses(attention=None) == everywhere
    assert Entry().statuses(bytes=None) == (INVALID, 0, 0)
    assert Entry().statuses(workspace=None) == (0, INVALID, INVALID)
    assert Entry().statuses(lse=None) == (0, INVALID, INVALID)
    assert Entry().statuses(grad_sigma=None) == (0, 0, INVALID)


@pytest.mark.parametrize("backward", [-1, 3])
def test_a_wrong_kind_of_call(backward):
    assert Entry().statuses(backward=backward) == (INVALID, 0, 0)


@pytest.mark.parametrize(
    "device, threads, expected",
    [(0, 1, UNSUPPORTED), (-2, 1, UNSUPPORTED), (-7, 1, UNSUPPORTED), (-1, 0, INVALID)],
)
def test_a_wrong_context(device, threads, expected):
    context = _native.Context(device, threads, None)
    assert Entry().statuses(context=context) == (expected,) * 3


def test_a_small_workspace():
    entry = Entry()
    small = {f"{k}_bytes": n - 1 for k, n in zip(("forward", "backward"), entry.bytes)}
    assert entry.statuses(**small) == (0, TOO_SMALL, TOO_SMALL)
    assert entry.statuses(forward_bytes=-1) == (0, TOO_SMALL, 0)


@pytest.mark.parametrize("backward", [0, 1, 2])
@pytest.mark.parametrize(
    "rows, heads, channels, dim, threads",
    [
        (2**48, 2, 2**24, 3, 1),
        (2**48, 2, 8, 2**24, 1),
        (2**40, 2**24, 2**24, 2**24, 1),
        (2**44, 2**24, 8, 3, 2**31 - 1),
    ],
)
def test_a_workspace_beyond_int64(rows, heads, channels, dim, threads, backward):
    lengths = torch.tensor([rows])
    struct = _native.Attention(-1, 0, 0, 1.0, rows, heads, channels, dim, 1)
    struct.ball_len = lengths.data_ptr()
    context, size = _native.Context(_native.HOST, threads, None), ctypes.c_int64(-5)
    args = (context, struct, backward, ctypes.byref(size))
    assert status("erwin_attention_workspace", *args) == INVALID
    assert size.value == -5
