"""Every operator, called directly with arguments that it must refuse."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

import torch_geometric_erwin.nn  # noqa: F401  (registers all operators)
from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.ops.contract import CONTRACTS, Contract, argument_names
from torch_geometric_erwin.ops.edges import sorted_groups
from torch_geometric_erwin.ops.linear import has_onednn

OPERATORS = sorted(
    name
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("erwin::") and torch._C._dispatch_has_kernel(name)
)
DEVICES = ("CPU", "CUDA")


def attention_args(*qkv):
    pos, ball_len = torch.rand(12, 3), torch.tensor([5, 4, 3])
    return *qkv, pos, ball_len, -torch.rand(2), torch.randperm(12), 5, 0.5


def valid_args() -> dict[str, tuple]:
    """A call of every operator that runs on a CPU."""
    torch.manual_seed(0)
    pos, ptr = torch.rand(12, 3), torch.tensor([0, 5, 12])
    perm = ball_tree(pos, ptr=ptr, ball_sizes=4).perm
    search = pos, ptr, perm, [4], []
    others = torch.rand(9, 3), torch.tensor([0, 2, 9])
    pair = *search, *others, torch.tensor([0, 1, *range(7)])
    qkv = torch.rand(12, 3, 2, 4)
    attention = attention_args(*qkv.unbind(1))
    out, lse, centred, ends = torch.ops.erwin.ball_attention(*attention)
    source, target = torch.randint(12, (2, 30))
    edges = source, target, *sorted_groups(target, 12), *sorted_groups(source, 12)
    rows = torch.rand(12, 6), torch.rand(12, 6), pos, torch.rand(6, 3)
    message = *rows, torch.rand(6), torch.rand(6), 1e-5, *edges
    layer = torch.rand(12, 6), torch.rand(16, 6), torch.rand(16), torch.rand(6, 8)
    return {
        "erwin::ball_tree": (pos, ptr, [4, 4], [2], 45.0, "balanced"),
        "erwin::ball_tree_order": (pos, ptr, [12, 7], 7, [4, 4], [2], 45.0, "balanced"),
        "erwin::knn": (*search, 3, False),
        "erwin::radius": (*search, 0.5, -1, False),
        "erwin::cross_knn": (*pair, 3),
        "erwin::cross_radius": (*pair, 0.5, -1),
        "erwin::ball_attention": attention,
        "erwin::ball_attention_packed": attention_args(qkv),
        "erwin::ball_attention_backward": (
            *(torch.rand(12, 2, 4), out, lse, centred, ends, *attention),
            True,
        ),
        "erwin::group": (target, 12),
        "erwin::message": message,
        "erwin::message_backward": (*message, torch.rand(12, 6)),
        "erwin::linear": (torch.rand(1024, 32), torch.rand(32, 32), torch.rand(32)),
        "erwin::swiglu": (*layer, torch.rand(6)),
        "erwin::swiglu_backward": (torch.rand(12, 6), *layer),
    }


def call(operator, args):
    return getattr(torch.ops.erwin, operator.removeprefix("erwin::"))(*args)


def results(operator, args):
    return pytree.tree_leaves(call(operator, args))


def test_every_implementation_has_a_contract():
    implemented = {
        (name, device)
        for name in OPERATORS
        for device in DEVICES
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, device)
    }
    assert implemented == {*CONTRACTS}
    assert {name for name, _ in implemented} == {*OPERATORS}
    assert {name for name, device in implemented if device == "CPU"} == {*valid_args()}
    for (name, _), contract in CONTRACTS.items():
        schema = torch._C._get_schema(name, "")
        tensors = [a.name for a in schema.arguments if "Tensor" in str(a.type)]
        assert [argument.name for argument in contract.tensors] == tensors


def released(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def halved(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


def fake(t: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(t)


def other_float(t: Tensor) -> Tensor:
    return t.to(torch.float16 if t.is_floating_point() else torch.float32)


def other_int(t: Tensor) -> Tensor:
    return t.to(torch.int32)


# Changes that make any tensor argument invalid, and changes of the shape of an axis.
DAMAGES = {
    "meta": lambda t: t.to("meta"),
    "released": released,
    "halved": halved,
    "other float": other_float,
    "other int": other_int,
    "complex": lambda t: t.to(torch.complex64),
    "one more axis": lambda t: t[None],
    "no axis": lambda t: t.flatten()[0],
}
RESIZES = {
    "short": lambda t, axis: t.narrow(axis, 0, t.size(axis) - 1),
    "long": lambda t, axis: torch.cat([t, t.narrow(axis, 0, 1)], axis),
    "empty": lambda t, axis: t.narrow(axis, 0, 0),
}
# Axes whose length no other argument has, so that any length is right.
FREE = {
    ("erwin::ball_tree", "pos", 1),
    ("erwin::ball_tree_order", "pos", 1),
    ("erwin::knn", "pos", 1),
    ("erwin::radius", "pos", 1),
    ("erwin::group", "key", 0),
    ("erwin::linear", "x", 0),
    ("erwin::swiglu", "x", 0),
    ("erwin::ball_attention", "pos", 1),
    ("erwin::ball_attention_packed", "pos", 1),
    ("erwin::ball_attention_packed", "qkv", 3),
}
ERRORS = (ValueError, TypeError)


def tensors_of(operator: str) -> Iterator[tuple[int, str, Tensor]]:
    args = valid_args()[operator]
    for i, (name, value) in enumerate(zip(argument_names(operator), args, strict=True)):
        if isinstance(value, Tensor):
            yield i, name, value


def refused(operator, i, value, error=ERRORS, match=None):
    args = [*valid_args()[operator]]
    args[i] = value
    with pytest.raises(error, match=match):
        call(operator, args)


CPU_OPERATORS = [*valid_args()] if has_onednn() else []


@pytest.fixture(params=CPU_OPERATORS)
def operator(request):
    return request.param


def test_valid_calls_are_served(operator):
    for result in pytree.tree_leaves(call(operator, valid_args()[operator])):
        assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=[*DAMAGES])
def test_no_argument_of_another_kind(operator, damage):
    for i, name, value in tensors_of(operator):
        if value.numel() > 0 and (operator, damage) != (
            "erwin::group",
            DAMAGES["meta"],
        ):
            memory = damage in (released, halved)
            refused(operator, i, damage(value), match=f"'{name}'" if memory else None)


@pytest.mark.parametrize("resize", RESIZES.values(), ids=[*RESIZES])
def test_no_argument_of_another_size(operator, resize):
    for i, name, value in tensors_of(operator):
        for axis in range(value.dim()):
            if (operator, name, axis) not in FREE and value.size(axis) > 0:
                # The kernel finds lengths whose sum is not the number of rows.
                errors = (*ERRORS, RuntimeError) if name == "ball_len" else ERRORS
                refused(operator, i, resize(value, axis), errors)


def test_a_fake_tensor_among_others_is_refused(operator):
    # PyTorch refuses it, before an implementation is chosen.
    for i, _, value in tensors_of(operator):
        if len([*tensors_of(operator)]) > 1:
            refused(operator, i, fake(value), error=(AssertionError, *ERRORS))


def test_no_argument_on_the_wrong_layout(operator):
    for i, _, value in tensors_of(operator):
        refused(operator, i, value.to_sparse(), error=(*ERRORS, NotImplementedError))


def test_views_are_read_as_views(operator):
    args = valid_args()[operator]
    expected = results(operator, args)
    for i, _, value in tensors_of(operator):
        for view in (
            value.repeat_interleave(2, dim=0)[::2],
            value.T.contiguous().T if value.dim() == 2 else value,
            torch.stack([value, value], -1)[..., 1],
        ):
            views = (*args[:i], view, *args[i + 1 :])
            for a, b in zip(results(operator, views), expected, strict=True):
                torch.testing.assert_close(a, b)


_BACKWARD = ("target", "source_ptr", "source_order")
VALUES = [-1, -(2**63), 2**62, 2**31]


@pytest.mark.parametrize("wrong", VALUES)
def test_integers_never_lead_out_of_memory(operator, wrong):
    # A wrong entry of a table: kernels check the entries that they read.
    for i, name, value in tensors_of(operator):
        if value.dtype != torch.int64 or value.numel() == 0:
            continue
        if operator == "erwin::message" and name in _BACKWARD:
            continue  # only the gradient reads it
        for place in (0, -1):
            bad = value.clone()
            bad[place] = wrong
            refused(operator, i, bad, (*ERRORS, RuntimeError))


@pytest.mark.parametrize("wrong", VALUES)
def test_numbers_out_of_range(operator, wrong):
    for i, (name, value) in enumerate(
        zip(argument_names(operator), valid_args()[operator], strict=True)
    ):
        if type(value) is int and wrong < 0 and (name, wrong) != ("cap", -1):
            refused(operator, i, wrong, match=f"'{name}' must be at least")
        if isinstance(value, list) and value and wrong != 2**31:
            refused(operator, i, [*value[:-1], wrong], (*ERRORS, RuntimeError))
            refused(operator, i, value * 17)
            if name != "num_rows":
                refused(operator, i, value[:-1])
        if name == "layout":
            refused(operator, i, "ball", match="'layout' must be one of")
        if name in ("rotate", "radius"):
            refused(operator, i, float("nan"), match=f"'{name}' must be")


def test_a_gpu_is_asked_for_nothing_but_shapes():
    # The checks of implementations that this machine may not be able to run.
    args = valid_args()["erwin::ball_attention_packed"]
    with FakeTensorMode():
        qkv, pos, *rest = (
            torch.empty(t.shape, dtype=t.dtype, device="cuda")
            if isinstance(t, Tensor)
            else t
            for t in args
        )
        contract = CONTRACTS["erwin::ball_attention_packed", "CUDA"]
        contract.check((qkv, pos, *rest))
        for bad in (qkv.narrow(1, 0, 2), qkv.double(), qkv.select(1, 0)):
            with pytest.raises(ERRORS, match="ball_attention_packed: 'qkv' must"):
                contract.check((bad, pos, *rest))
        with pytest.raises(ValueError, match=r"'pos' must have shape \[12, D\]"):
            contract.check((qkv, pos.narrow(0, 0, 11), *rest))


def test_messages_say_what_would_be_right():
    contract = Contract("erwin::linear", x="float32 [N, C]", weight="float32 [M, C]")
    with pytest.raises(
        ValueError, match=r"linear: 'weight' must have shape \[4, 3\] \(got \[4, 2\]\)"
    ):
        contract.check((torch.rand(5, 3), torch.rand(4, 2), None))
