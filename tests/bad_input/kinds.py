"""How an argument is spoiled, by the role that it has in a call.

Every kind has a name, a function that spoils the valid value, and what a call must do
with the result: refuse it with a clear error, or give the same result as for the valid
value. With `FREE`, a call may do either, because only some calls can use the value.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch_geometric.data import Data, HeteroData

from torch_geometric_erwin import Level, TreeConfig, ball_tree
from torch_geometric_erwin.transforms import BallTree

REFUSED, SAME, FREE = "refused", "same", "free"


class Kind(NamedTuple):
    name: str
    spoil: Callable[[Any], Any]
    expected: str


def kinds(expected: str, **spoil: Callable[[Any], Any]) -> list[Kind]:
    return [Kind(k.replace("_", " "), f, expected) for k, f in spoil.items()]


def constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


# Tensors: values that are not tensors, have no memory, or have another layout.


def released(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def halved(t):
    t = t.clone(memory_format=torch.contiguous_format)
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


def fake(t):
    with FakeTensorMode() as mode:
        return mode.from_tensor(t)


def nested(t):
    return torch.nested.nested_tensor([t.float(), t.float()])


def other(t):
    return -t - 1 if t.is_floating_point() else ~t


class Subclass(torch.Tensor):
    pass


NO_TENSOR = kinds(
    REFUSED,
    a_list=lambda t: t.tolist(),
    an_array=lambda t: t.numpy(),
    none=constant(None),
    a_text=constant("x"),
    a_number=constant(2.5),
    data=lambda t: Data(pos=t),
    a_tuple=lambda t: (t, t),
)
NO_MEMORY = kinds(
    REFUSED,
    meta=lambda t: t.to("meta"),
    fake=fake,
    released=released,
    halved=halved,
    zero_tensor=lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
)
LAYOUTS = kinds(
    REFUSED,
    sparse=lambda t: t.to_sparse(),
    nested=nested,
)
SHAPES = kinds(
    REFUSED,
    scalar=lambda t: t.flatten()[0],
    one_more_axis=lambda t: t[None],
    axes_swapped=lambda t: t.movedim(0, -1)[:, None] if t.dim() == 1 else t.mT,
) + kinds(
    FREE,
    empty=lambda t: t[:0],
    a_row_less=lambda t: t[:-1],
    a_row_more=lambda t: torch.cat([t, t[-1:]]),
    an_entry_less=lambda t: t[..., :-1],
    an_entry_more=lambda t: torch.cat([t, t[..., -1:]], dim=-1),
)
VIEWS = kinds(
    SAME,
    copied=lambda t: t.clone(),
    column_major=lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    every_second_row=lambda t: torch.stack([t, other(t)], 1).flatten(0, 1)[::2],
    every_second_entry=lambda t: torch.stack([t, other(t)], dim=-1)[..., 0],
    at_an_odd_address=lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(
        t.shape
    ),
    a_subclass=lambda t: t.clone().as_subclass(Subclass),
    in_shared_memory=lambda t: t.clone().share_memory_(),
)
NEGATED = kinds(SAME, negated_in_memory=lambda t: torch._neg_view(-t))
GRADIENTS = kinds(
    SAME,
    requires_grad=lambda t: t.clone().requires_grad_(),
    a_parameter=lambda t: torch.nn.Parameter(t.clone()),
    no_leaf=lambda t: t.clone().requires_grad_() * 1,
    detached=lambda t: t.clone().requires_grad_().detach(),
)
TENSOR = [*NO_TENSOR, *NO_MEMORY, *LAYOUTS, *SHAPES, *VIEWS]


def with_entry(value: Any) -> Callable[[Any], Any]:
    """One entry replaced, in the middle."""

    def spoil(t):
        t = t.clone()
        t.view(-1)[t.numel() // 2] = value
        return t

    return spoil


FLOATS = [
    *(*TENSOR, *NEGATED, *GRADIENTS),
    *kinds(
        REFUSED,
        complex=lambda t: t.to(torch.complex64),
        bool=lambda t: t.bool(),
        int32=lambda t: t.int(),
        int64=lambda t: t.long(),
        uint8=lambda t: t.to(torch.uint8),
    ),
    *kinds(
        FREE,
        half=lambda t: t.half(),
        bfloat16=lambda t: t.bfloat16(),
        double=lambda t: t.double(),
        float8=lambda t: t.to(torch.float8_e4m3fn),
        denormal=with_entry(1e-42),
        equal_rows=lambda t: t[:1].expand_as(t),
    ),
]
# If features are not finite, the results are not either, as in PyTorch.
FEATURES = [
    *FLOATS,
    *kinds(
        FREE,
        NaN=with_entry(float("nan")),
        infinity=with_entry(float("inf")),
        overflow=with_entry(1e38),
    ),
]
POSITIONS = [
    *FLOATS,
    *kinds(
        REFUSED,
        NaN=with_entry(float("nan")),
        infinity=with_entry(float("inf")),
        minus_infinity=with_entry(-float("inf")),
    ),
    *kinds(FREE, overflow=with_entry(1e38), all_overflow=lambda t: t * 3e38),
]
INDICES = [
    *(*TENSOR, *NEGATED),
    *kinds(
        REFUSED,
        float=lambda t: t.float(),
        double=lambda t: t.double(),
        half=lambda t: t.half(),
        bool=lambda t: t.bool(),
        complex=lambda t: t.to(torch.complex64),
        int32=lambda t: t.int(),
        int16=lambda t: t.short(),
        uint8=lambda t: t.to(torch.uint8),
        negative=with_entry(-1),
        most_negative=with_entry(-(2**63)),
        too_large=with_entry(2**31),
        huge=with_entry(2**63 - 1),
    ),
]
OFFSETS = [
    *INDICES,
    *kinds(
        REFUSED,
        descending=lambda t: t.flip(0),
        not_from_zero=lambda t: torch.cat([t[:1] + 1, t[1:]]),
        beyond_the_end=lambda t: torch.cat([t[:-1], t[-1:] + 1]),
        before_the_end=lambda t: torch.cat([t[:-1], t[-1:] - 1]),
        lengths=lambda t: t.diff(),
        no_offsets=lambda t: t[:0],
    ),
]
CLOUDS = [
    *INDICES,
    *kinds(REFUSED, unsorted=lambda t: t.flip(0), from_minus_one=lambda t: t - 1),
    *kinds(FREE, gap=lambda t: t * 3),
]
EDGES = [
    *INDICES,
    *kinds(
        REFUSED,
        one_row=lambda t: t[:1],
        three_rows=lambda t: torch.cat([t, t[:1]]),
        one_beyond=lambda t: t + (1_000 - t.max()),
    ),
]
LENGTHS = [
    *INDICES,
    *kinds(
        REFUSED,
        sum_too_large=lambda t: torch.cat([t, t[:1]]),
        sum_too_small=lambda t: t[:-1],
        above_the_size=lambda t: torch.stack([t.sum(), *t[1:] * 0]),
        below_zero=lambda t: torch.cat([t, t.new_tensor([-1, 1])]),
    ),
]
ROWS = [*INDICES]
ORDERS = [
    *INDICES,
    *kinds(
        REFUSED,
        twice=lambda t: torch.cat([t[1:2], t[1:]]),
        one_beyond=lambda t: torch.where(t == t.max(), t + 1, t),
    ),
]
MASKS = [
    *TENSOR,
    *kinds(
        REFUSED,
        float=lambda t: t.float(),
        int64=lambda t: t.long(),
        uint8=lambda t: t.to(torch.uint8),
        indices=lambda t: t.nonzero().flatten(),
    ),
    *kinds(FREE, nothing=torch.zeros_like, everything=torch.ones_like),
]

# Numbers, texts, flags, and lists of them.


class Unknown:
    pass


ANYTHING = {
    "a_text": constant("x"),
    "an_empty_text": constant(""),
    "bytes": constant(b"x"),
    "a_dict": constant({}),
    "an_object": constant(Unknown()),
    "a_class": constant(Unknown),
    "complex": constant(1j),
}
NONE = kinds(REFUSED, none=constant(None))
COUNTS = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        digits=str,
        true=constant(True),
        a_float=lambda n: n + 0.5,
        a_whole_float=float,
        NaN=constant(float("nan")),
        infinity=constant(float("inf")),
        negative=lambda n: -1,
        most_negative=constant(-(2**63) - 1),
        zero=constant(0),
        a_list=lambda n: [n],
        no_list=constant([]),
        numpy_float=lambda n: np.float64(n),
        an_array=lambda n: np.array([n]),
        a_tensor=lambda n: torch.tensor([n]),
    ),
    *kinds(
        REFUSED,
        above_int32=constant(2**31),
        above_int64=constant(2**63),
        far_above=constant(10**30),
    ),
    *kinds(SAME, numpy_int=lambda n: np.int64(n), numpy_int32=lambda n: np.int32(n)),
]
NUMBERS = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        digits=str,
        true=constant(True),
        NaN=constant(float("nan")),
        infinity=constant(float("inf")),
        minus_infinity=constant(-float("inf")),
        negative=lambda x: -1.0,
        a_list=lambda x: [x],
        numpy_nan=constant(np.float32("nan")),
        an_array=lambda x: np.array([x]),
        a_tensor=lambda x: torch.tensor([x]),
    ),
    *kinds(
        FREE,
        zero=constant(0),
        above_int64=constant(2**63),
        overflow=constant(1e308),
        far_above=constant(10**400),
        denormal=constant(5e-324),
    ),
    *kinds(SAME, numpy_float=lambda x: np.float64(x)),
]
FLAGS = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        one=constant(1),
        zero=constant(0),
        a_float=constant(1.0),
        NaN=constant(float("nan")),
        true_as_text=constant("True"),
        a_tensor=lambda b: torch.tensor(b),
        an_empty_list=constant([]),
    ),
    *kinds(SAME, numpy_flag=lambda b: np.bool_(b)),
]
CHOICES = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        upper_case=str.upper,
        number=constant(3),
        true=constant(True),
        NaN=constant(float("nan")),
        a_list=lambda s: [s],
        with_a_space=lambda s: s + " ",
        a_tensor=constant(torch.ones(1)),
    ),
]
WORDS: list[Kind] = []
EDGE_TYPES = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        number=constant(3),
        true=constant(True),
        two_words=lambda t: t[:2],
        four_words=lambda t: (*t, "more"),
        numbers=constant((1, 2, 3)),
        a_tensor=constant(torch.ones(3)),
    ),
    *kinds(SAME, a_list=list),
]
PREFIXES = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        number=constant(3),
        true=constant(True),
        a_list=lambda s: [s],
        of_another_attribute=constant("edge_index_"),
        a_digit_first=constant("3_"),
        with_a_space=constant("my "),
        a_tensor=constant(torch.ones(1)),
    ),
]
SIZES = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        digits=lambda v: "".join(map(str, v)),
        true=constant(True),
        a_float=constant(4.0),
        NaN=constant(float("nan")),
        zero=constant(0),
        negative=constant(-2),
        above_int64=constant(2**63),
        far_above=constant(10**30),
        an_array=lambda v: np.array(v),
        a_tensor=lambda v: torch.tensor(v),
        a_set=set,
        too_long=lambda v: [*v, *v[-1:], *v[-1:]],
        too_short=lambda v: [*v][:-1],
        no_list=constant([]),
        list_with_none=lambda v: [None, *v[1:]],
        list_with_float=lambda v: [float(v[0]), *v[1:]],
        list_with_NaN=lambda v: [float("nan"), *v[1:]],
        list_with_true=lambda v: [True, *v[1:]],
        list_with_text=lambda v: [str(v[0]), *v[1:]],
        list_with_list=lambda v: [[v[0]], *v[1:]],
        list_with_zero=lambda v: [0, *v[1:]],
        list_with_negative=lambda v: [-v[0], *v[1:]],
        list_above_int32=lambda v: [2**31 + 1, *v[1:]],
        list_above_int64=lambda v: [2**63, *v[1:]],
    ),
    *kinds(
        SAME,
        a_tuple=tuple,
        numpy_ints=lambda v: [np.int64(n) for n in v],
    ),
]
FUNCTIONS = [
    *NONE,
    *kinds(
        REFUSED,
        **{k: v for k, v in ANYTHING.items() if k != "a_class"},
        number=constant(3),
        NaN=constant(float("nan")),
        a_tensor=constant(torch.ones(1)),
    ),
]
MODULES = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        number=constant(3),
        a_function=constant(lambda x, *_: x),
        module_class=constant(torch.nn.Identity),
        a_tensor=constant(torch.ones(1)),
    ),
]

# Trees and levels.


def first(tensors, spoil):
    return (spoil(tensors[0]), *tensors[1:])


def of_tree(name, spoil):
    """Spoils a tensor of a tree, or the one of its first level."""

    def changed(tree):
        value = getattr(tree, name)
        value = first(value, spoil) if isinstance(value, tuple) else spoil(value)
        return replace(tree, **{name: value})

    return changed


def built(tree, **kwargs):
    """A tree of the same number of clouds, for other nodes or another configuration."""
    generator = torch.Generator().manual_seed(5)
    c = tree.config
    pos = torch.rand(int(tree.node_ptr[-1]) + 4, 3, generator=generator)
    arguments = {
        "ball_sizes": c.ball_sizes,
        "strides": c.strides,
        "rotate": c.rotate,
        "layout": c.layout,
        **kwargs,
    }
    ptr = arguments.pop("ptr", tree.node_ptr)
    return ball_tree(pos[: int(ptr[-1])], ptr=ptr, **arguments)


def step(t):
    """Adds one to the first entry and subtracts one from the last; the sum stays."""
    t = t.clone()
    t.view(-1)[0] += 1
    t.view(-1)[-1] -= 1
    return t


def plus_one(t):
    t = t.clone()
    t.view(-1)[0] += 1
    return t


def longer(tree):
    ptr = tree.node_ptr.clone()
    ptr[-1] += 3
    return built(tree, ptr=ptr)


def shifted(tree):
    ptr = tree.node_ptr.clone()
    ptr[1] += 1
    return built(tree, ptr=ptr)


NO_TREE = kinds(
    REFUSED,
    none=constant(None),
    a_text=constant("x"),
    a_dict=constant({}),
    a_tuple=lambda tree: tuple(pytree.tree_leaves(tree)),
    a_tensor=constant(torch.arange(5)),
    data=constant(Data()),
    number=constant(2.5),
    config=constant(TreeConfig(4)),
)
TREES = [
    *NO_TREE,
    *kinds(
        REFUSED,
        meta=lambda tree: tree.to("meta"),
        of_more_nodes=longer,
        of_fewer_nodes=lambda tree: built(tree, ptr=(tree.node_ptr - 2).clamp(min=0)),
        of_other_clouds=shifted,
        of_no_nodes=lambda tree: built(tree, ptr=tree.node_ptr * 0),
        perm_twice=of_tree("perm", lambda t: torch.cat([t[1:2], t[1:]])),
        perm_negative=of_tree("perm", with_entry(-1)),
        perm_too_large=of_tree("perm", with_entry(2**40)),
        perm_int32=of_tree("perm", lambda t: t.int()),
        perm_short=of_tree("perm", lambda t: t[:-1]),
        perm_on_meta=of_tree("perm", lambda t: t.to("meta")),
        perm_a_list=of_tree("perm", lambda t: t.tolist()),
        perm_released=of_tree("perm", released),
        node_ptr_shifted=of_tree("node_ptr", plus_one),
        node_ptr_descending=of_tree("node_ptr", lambda t: t.flip(0)),
        node_ptr_short=of_tree("node_ptr", lambda t: t[:-1]),
        level_moved=of_tree("level", step),
        level_negative=of_tree("level", with_entry(-1)),
        level_transposed=of_tree("level", lambda t: t[:1].t()),
        level_float=of_tree("level", lambda t: t.float()),
        ball_len_moved=of_tree("ball_len", step),
        ball_len_zero=of_tree("ball_len", with_entry(0)),
        ball_len_negative=of_tree("ball_len", with_entry(-1)),
        ball_len_above_size=of_tree("ball_len", with_entry(100)),
        ball_len_short=of_tree("ball_len", lambda t: t[:-1]),
        group_len_moved=of_tree("group_len", step),
        group_len_short=of_tree("group_len", lambda t: t[:-1]),
        perm_rot_twice=of_tree("perm_rot", lambda t: torch.cat([t[1:2], t[1:]])),
        perm_rot_missing=lambda tree: replace(tree, perm_rot=()),
        ball_len_missing=lambda tree: replace(tree, ball_len=tree.ball_len[:1]),
        config_a_text=lambda tree: replace(tree, config=str(tree.config)),
    ),
    *kinds(
        FREE,
        other_config=lambda tree: built(tree, rotate=30.0),
        fewer_levels=lambda tree: built(tree, ball_sizes=[4], strides=[]),
        perfect=lambda tree: built(tree, layout="perfect"),
        without_rotation=lambda tree: built(tree, rotate=0.0),
    ),
    *kinds(
        SAME,
        copied=lambda tree: pytree.tree_map_only(torch.Tensor, torch.clone, tree),
        strided=lambda tree: pytree.tree_map_only(
            torch.Tensor, lambda t: torch.stack([t, other(t)], -1)[..., 0], tree
        ),
    ),
]


def of_level(name, spoil):
    def changed(level):
        value = getattr(level, name)
        return replace(level, **{name: value if value is None else spoil(value)})

    return changed


def small_level(level):
    pos = torch.rand(3, 3)
    return Level.build(pos, torch.tensor([2, 1]), ball_size=4)


LEVELS = [
    *NO_TREE,
    *kinds(
        REFUSED,
        meta=lambda level: pytree.tree_map_only(
            torch.Tensor, lambda t: t.to("meta"), level
        ),
        of_other_rows=small_level,
        ball_len_sum=of_level("ball_len", plus_one),
        ball_len_negative=of_level("ball_len", with_entry(-1)),
        ball_len_above_size=of_level(
            "ball_len", lambda t: torch.stack([t.sum(), *(t[1:] * 0)])
        ),
        ball_len_int32=of_level("ball_len", lambda t: t.int()),
        ball_len_float=of_level("ball_len", lambda t: t.float()),
        ball_len_a_list=of_level("ball_len", lambda t: t.tolist()),
        ball_len_on_meta=of_level("ball_len", lambda t: t.to("meta")),
        ball_size_zero=lambda level: replace(level, ball_size=0),
        ball_size_text=lambda level: replace(level, ball_size="4"),
        perm_rot_twice=of_level("perm_rot", lambda t: torch.cat([t[1:2], t[1:]])),
        perm_rot_negative=of_level("perm_rot", with_entry(-1)),
        perm_rot_short=of_level("perm_rot", lambda t: t[:-1]),
        ptr_descending=of_level("ptr", lambda t: t.flip(0)),
        ptr_beyond=of_level("ptr", lambda t: t + 1),
        ptr_int32=of_level("ptr", lambda t: t.int()),
        pos_one_axis=of_level("pos", lambda t: t[:, 0]),
        pos_NaN=of_level("pos", with_entry(float("nan"))),
        pos_int=of_level("pos", lambda t: t.long()),
        offset_short=of_level("offset", lambda t: t[:-1]),
        offset_NaN=of_level("offset", with_entry(float("nan"))),
        offset_on_meta=of_level("offset", lambda t: t.to("meta")),
    ),
    *kinds(
        SAME,
        copied=lambda level: pytree.tree_map_only(torch.Tensor, torch.clone, level),
        strided=lambda level: pytree.tree_map_only(
            torch.Tensor, lambda t: torch.stack([t, other(t)], -1)[..., 0], level
        ),
    ),
]
COARSE = [
    *LEVELS,
    *kinds(
        REFUSED,
        group_len_missing=lambda level: replace(level, group_len=None),
        group_len_sum=of_level("group_len", plus_one),
        group_len_negative=of_level("group_len", with_entry(-1)),
        group_len_int32=of_level("group_len", lambda t: t.int()),
        group_len_short=of_level("group_len", lambda t: t[:-1]),
        children_missing=lambda level: replace(level, children=None),
        children_short=of_level("children", lambda t: t[:-1]),
        children_of_one_axis=of_level("children", lambda t: t[..., :1]),
        children_on_meta=of_level("children", lambda t: t.to("meta")),
        children_a_list=of_level("children", lambda t: t.tolist()),
        children_int=of_level("children", lambda t: t.long()),
        children_NaN=of_level("children", with_entry(float("nan"))),
    ),
]

# Data.


def of_data(name, spoil):
    def changed(data):
        data = data.clone()
        if name in data:
            data[name] = spoil(data[name])
        return data

    return changed


def without(*names):
    def changed(data):
        data = data.clone()
        for name in names:
            if name in data:
                del data[name]
        return data

    return changed


def kept_nodes(index):
    """The data of some nodes, selected as in transforms of PyG."""

    def changed(data):
        data = data.clone()
        n = data.pos.size(0)
        rows = index(n)
        for name, value in data.items():
            if isinstance(value, torch.Tensor) and value.shape[:1] == (n,):
                data[name] = value[rows]
        if "edge_index" in data:
            data.edge_index = data.edge_index[:, :0]
        return data

    return changed


def more_nodes(data):
    data = data.clone()
    data.pos = torch.cat([data.pos, data.pos[:1]])
    if "x" in data:
        data.x = torch.cat([data.x, data.x[:1]])
    return data


NO_DATA = kinds(
    REFUSED,
    a_text=constant("x"),
    a_dict=lambda data: data.to_dict(),
    a_list=lambda data: [data],
    number=constant(2.5),
    data_class=constant(Data),
)
POINTS = [
    *NO_DATA,
    *NONE,
    *kinds(REFUSED, a_tensor=lambda data: data.pos),
    *kinds(
        REFUSED,
        without_pos=without("pos"),
        no_data=constant(Data()),
        pos_a_list=of_data("pos", lambda t: t.tolist()),
        pos_an_array=of_data("pos", lambda t: t.numpy()),
        pos_on_meta=of_data("pos", lambda t: t.to("meta")),
        pos_NaN=of_data("pos", with_entry(float("nan"))),
        pos_infinite=of_data("pos", with_entry(float("inf"))),
        pos_int=of_data("pos", lambda t: t.long()),
        pos_one_axis=of_data("pos", lambda t: t[:, 0]),
        pos_released=of_data("pos", released),
        ptr_int32=of_data("ptr", lambda t: t.int()),
        ptr_descending=of_data("ptr", lambda t: t.flip(0)),
        ptr_short=of_data("ptr", lambda t: t[:-1]),
        ptr_beyond=of_data("ptr", lambda t: t + 1),
        ptr_a_list=of_data("ptr", lambda t: t.tolist()),
        ptr_on_meta=of_data("ptr", lambda t: t.to("meta")),
    ),
    *kinds(FREE, hetero=constant(HeteroData()), without_ptr=without("ptr")),
    *kinds(SAME, cloned=lambda data: data.clone()),
]
TREE_DATA = [
    *POINTS,
    *kinds(
        REFUSED,
        nodes_removed=kept_nodes(lambda n: slice(1, None)),
        nodes_reordered=kept_nodes(lambda n: torch.arange(n).flip(0)),
        nodes_added=more_nodes,
        forgotten_ptr=without("ptr", "batch"),
        other_config=lambda data: BallTree([4, 4], [2], rotate=30.0)(data),
        perm_twice=of_data("perm", lambda t: torch.cat([t[1:2], t[1:]])),
        perm_negative=of_data("perm", with_entry(-1)),
        perm_too_large=of_data("perm", with_entry(2**30)),
        perm_short=of_data("perm", lambda t: t[:-1]),
        perm_on_meta=of_data("perm", lambda t: t.to("meta")),
        perm_a_list=of_data("perm", lambda t: t.tolist()),
        perm_float=of_data("perm", lambda t: t.float()),
        without_perm=without("perm"),
        without_level=without("level"),
        level_moved=of_data("level", step),
        level_one_axis=of_data("level", lambda t: t[:, 0]),
        level_a_list=of_data("level", lambda t: t.tolist()),
        tree_node_one_more_axis=of_data("tree_node", lambda t: t[:, None]),
        tree_node_a_list=of_data("tree_node", lambda t: t.tolist()),
        tree_node_on_meta=of_data("tree_node", lambda t: t.to("meta")),
        without_tree_code=without("tree_code"),
        tree_code_of_one_cloud=of_data("tree_code", lambda t: t[:1]),
        tree_code_one_axis=of_data("tree_code", lambda t: t[0]),
    ),
]
CONFIGURED = [
    *TREE_DATA,
    *kinds(
        REFUSED,
        without_ball_len=without("ball_len_1"),
        ball_len_moved=of_data("ball_len_0", step),
        ball_len_zero=of_data("ball_len_0", with_entry(0)),
        ball_len_negative=of_data("ball_len_0", with_entry(-1)),
        ball_len_a_list=of_data("ball_len_0", lambda t: t.tolist()),
        perm_rot_twice=of_data("perm_rot_0", lambda t: torch.cat([t[1:2], t[1:]])),
        perm_rot_short=of_data("perm_rot_1", lambda t: t[:-1]),
        without_perm_rot=without("perm_rot_1"),
        without_tree_config=without("tree_config"),
        tree_config_number=of_data("tree_config", constant(3)),
        tree_config_garbled=of_data("tree_config", lambda v: ["balls"] * len(v)),
        level_negative=of_data("level", with_entry(-1)),
    ),
]
CONFIGS = [
    *NONE,
    *kinds(
        REFUSED,
        as_text=str,
        a_dict=constant({}),
        a_class=constant(TreeConfig),
        number=constant(3),
        other_rotation=lambda c: TreeConfig(c.ball_sizes, c.strides, 30.0),
        other_sizes=lambda c: TreeConfig([8] * len(c.ball_sizes), c.strides),
    ),
]
MODELS = [
    *CONFIGURED,
    # If the tree is missing, a model builds it.
    *kinds(
        REFUSED,
        x_a_list=of_data("x", lambda t: t.tolist()),
        x_int=of_data("x", lambda t: t.long()),
        x_half=of_data("x", lambda t: t.half()),
        x_short=of_data("x", lambda t: t[:-1]),
        x_one_axis=of_data("x", lambda t: t[:, 0]),
        x_on_meta=of_data("x", lambda t: t.to("meta")),
        without_x=without("x"),
        without_edges=without("edge_index"),
        edge_beyond=of_data("edge_index", with_entry(1_000)),
        edges_int32=of_data("edge_index", lambda t: t.int()),
    ),
]
TRAJECTORIES = [
    *(kind for kind in NO_DATA if kind.name != "a list"),
    *NONE,
    *kinds(
        REFUSED,
        no_data=constant(Data()),
        without_states=without("states"),
        states_a_list=of_data("states", lambda t: t.tolist()),
        states_an_array=of_data("states", lambda t: t.numpy()),
        states_on_meta=of_data("states", lambda t: t.to("meta")),
        states_int=of_data("states", lambda t: t.long()),
        states_float8=of_data("states", lambda t: t.to(torch.float8_e4m3fn)),
        states_short=of_data("states", lambda t: t[:-1]),
        states_two_axes=of_data("states", lambda t: t[:, 0]),
        states_of_one_step=of_data("states", lambda t: t[:, :1]),
        states_none=of_data("states", lambda t: t[:, :0]),
        states_released=of_data("states", released),
        states_sparse=of_data("states", lambda t: t.to_sparse()),
        pos_short=of_data("pos", lambda t: t[:-1]),
        pos_a_list=of_data("pos", lambda t: t.tolist()),
        pos_on_meta=of_data("pos", lambda t: t.to("meta")),
        x_short=of_data("x", lambda t: t[:-1]),
        x_a_list=of_data("x", lambda t: t.tolist()),
        x_int=of_data("x", lambda t: t.long()),
        x_one_axis=of_data("x", lambda t: t[:, 0]),
        x_on_meta=of_data("x", lambda t: t.to("meta")),
        boundary_mask_short=of_data("boundary_mask", lambda t: t[:-1]),
        boundary_mask_int=of_data("boundary_mask", lambda t: t.long()),
        boundary_mask_a_list=of_data("boundary_mask", lambda t: t.tolist()),
        boundary_mask_on_meta=of_data("boundary_mask", lambda t: t.to("meta")),
        ptr_int32=of_data("ptr", lambda t: t.int()),
        ptr_short=of_data("ptr", lambda t: t[:-1]),
        ptr_beyond=of_data("ptr", lambda t: t + 1),
        hetero=constant(HeteroData()),
    ),
    *kinds(
        FREE,
        states_half=of_data("states", lambda t: t.half()),
        states_double=of_data("states", lambda t: t.double()),
        a_list=lambda data: [data],
        states_NaN=of_data("states", with_entry(float("nan"))),
        states_infinite=of_data("states", with_entry(float("inf"))),
    ),
    *kinds(SAME, cloned=lambda data: data.clone()),
]
# Data for a captured step: all its batches have the same form, and the step itself
# decides what it reads.
RECORDS = [*NO_DATA, *NONE, *kinds(FREE, no_data=constant(Data()))]
RUNS = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        number=constant(3),
        true=constant(True),
        a_tensor=lambda v: torch.tensor([2, 4]),
        too_long=lambda v: [*v, [2]],
        too_short=lambda v: v[:-1],
        flat=lambda v: [2, 4],
        with_text=lambda v: [["2"], *v[1:]],
        with_float=lambda v: [[2.0], *v[1:]],
        with_zero=lambda v: [[0], *v[1:]],
        with_none=lambda v: [None, *v[1:]],
        above_int64=lambda v: [[2**63], *v[1:]],
    ),
    *kinds(FREE, empty=constant([])),
    *kinds(SAME, tuples=lambda v: tuple(map(tuple, v))),
]
NORMS = [
    *kinds(FREE, none=constant(None)),
    *kinds(
        REFUSED,
        **{k: v for k, v in ANYTHING.items() if k != "a_class"},
        unknown_class=constant(Unknown),
        number=constant(3),
        true=constant(True),
        a_module=constant(torch.nn.Identity()),
        makes_none=constant(lambda *_: None),
        makes_text=constant(lambda *_: "norm"),
        a_tensor=constant(torch.ones(1)),
    ),
]
TABLES = [
    *NONE,
    *kinds(
        REFUSED,
        a_text=constant("x"),
        number=constant(3),
        empty=constant(()),
        one_less=lambda v: v[:-1],
        one_more=lambda v: (*v, v[-1]),
        lists=lambda v: tuple(t.tolist() for t in v),
        on_meta=lambda v: tuple(t.to("meta") for t in v),
        first_moved=lambda v: first(v, step),
        first_short=lambda v: first(v, lambda t: t[:-1]),
        first_int32=lambda v: first(v, lambda t: t.int()),
        first_negative=lambda v: first(v, with_entry(-1)),
        first_huge=lambda v: first(v, with_entry(2**62)),
        first_released=lambda v: first(v, released),
        first_of_two_axes=lambda v: first(v, lambda t: t[None]),
    ),
    *kinds(SAME, copied=lambda v: tuple(t.clone() for t in v)),
]
# For arguments that a valid call omits: other values in their place.
NOTHING = kinds(
    REFUSED,
    a_text=constant("x"),
    number=constant(3),
    a_list=constant([1]),
    on_meta=constant(torch.ones(20, device="meta")),
    floats=constant(torch.ones(20)),
    one_entry=constant(torch.ones(1, dtype=torch.int64)),
)
BLOCKS = [
    *NONE,
    *kinds(
        REFUSED,
        number=constant(3),
        empty=constant([]),
        a_text=constant("x"),
        a_block=lambda v: v[0],
        with_none=lambda v: [*v, None],
        with_function=lambda v: [*v, len],
        with_class=lambda v: [*v, torch.nn.Identity],
    ),
    *kinds(SAME, a_tuple=tuple, an_iterator=iter),
]
SOURCES = [
    *NONE,
    *kinds(
        REFUSED,
        **ANYTHING,
        true=constant(True),
        zero=constant(0.0),
        negative=constant(-1.0),
        NaN=constant(float("nan")),
        infinity=constant(float("inf")),
        underflow=constant(1e-300),
        a_tensor=constant(torch.ones(3)),
        no_data=constant(Data()),
        one_point=constant(Data(pos=torch.ones(1, 3))),
        other_coordinates=constant(Data(pos=torch.rand(5, 2))),
        data_with_NaN=constant(Data(pos=torch.full((5, 3), float("nan")))),
        no_list=constant([]),
        list_with_none=constant([None]),
        hetero=constant(HeteroData()),
    ),
    *kinds(SAME, a_whole_number=int, numpy_float=np.float64),
    *kinds(FREE, data_set=constant([Data(pos=torch.arange(12.0).view(4, 3))])),
]
PATHS = [
    *NONE,
    *kinds(
        REFUSED,
        number=constant(3),
        empty=constant(""),
        a_list=constant(["folder"]),
        a_dict=constant({}),
        bytes=constant(b"folder"),
    ),
]
VELOCITIES = [
    *NONE,
    *kinds(
        REFUSED,
        number=constant(3),
        empty=constant([]),
        a_text=constant("x"),
        data=lambda v: v[0],
        with_none=lambda v: [*v, None],
        with_dict=lambda v: [v[0].to_dict()],
        without_pos=lambda v: [without("pos")(v[0])],
        without_y=lambda v: [without("y")(v[0])],
        y_short=lambda v: [of_data("y", lambda t: t[:-1])(v[0])],
        y_int=lambda v: [of_data("y", lambda t: t.long())(v[0])],
        y_NaN=lambda v: [of_data("y", with_entry(float("nan")))(v[0])],
        y_a_list=lambda v: [of_data("y", lambda t: t.tolist())(v[0])],
        y_on_meta=lambda v: [of_data("y", lambda t: t.to("meta"))(v[0])],
        pos_NaN=lambda v: [of_data("pos", with_entry(float("nan")))(v[0])],
        pos_on_meta=lambda v: [of_data("pos", lambda t: t.to("meta"))(v[0])],
        pos_two_axes=lambda v: [Data(pos=v[0].pos[:, :2], y=v[0].y[:, :2])],
        no_points=lambda v: [Data(pos=v[0].pos[:0], y=v[0].y[:0])],
    ),
    *kinds(SAME, a_tuple=tuple, an_iterator=iter),
]
POSITIVES = [
    *NONE,
    *kinds(
        REFUSED,
        number=constant(0.5),
        empty=constant([]),
        a_text=constant("x"),
        with_none=lambda v: [None],
        with_text=lambda v: ["0.5"],
        with_zero=lambda v: [0.0],
        with_NaN=lambda v: [float("nan")],
        with_infinity=lambda v: [float("inf")],
        with_true=lambda v: [True],
    ),
    *kinds(SAME, a_tuple=tuple),
]
AXES = [
    *NONE,
    *kinds(
        REFUSED,
        number=constant(0),
        empty=constant(()),
        a_text=constant("xy"),
        one=constant((0,)),
        three=constant((0, 1, 2)),
        negative=constant((0, -1)),
        too_large=constant((0, 3)),
        floats=constant((0.0, 1.0)),
        texts=constant(("0", "1")),
        flags=constant((False, True)),
    ),
    *kinds(SAME, a_list=list),
]
AXES_OF_A_PICTURE = kinds(
    REFUSED, a_text=constant("x"), number=constant(3), a_list=constant([1])
)
ROLES = {
    name.lower(): value
    for name, value in list(globals().items())
    if name.isupper() and isinstance(value, list)
}
