"""A valid call of every public name, and the role of each argument."""

import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch
from bad_input.kinds import ROLES, Kind
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GPSConv, MessagePassing

from torch_geometric_erwin import (
    CapturedStep,
    Level,
    Tree,
    TreeConfig,
    ball_tree,
    batch_to_ptr,
    datasets,
    knn,
    knn_graph,
    knn_interpolate,
    masked_mean,
    nn,
    pad_batch,
    radius,
    radius_graph,
    to_original,
    transforms,
    visualization,
)
from torch_geometric_erwin.nn.norm import make_norm, normalise

N, CHANNELS, SIZES = 20, 8, [12, 8]
BALLS, STRIDES = [4, 4], [2]


class Argument(NamedTuple):
    """A valid value, its role, and its exceptions.

    `fine`: kinds that other arguments must refuse but that may be valid here. `names`:
    other names that a message may use for the argument.
    """

    value: Any
    role: str
    fine: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()

    @property
    def kinds(self) -> list[Kind]:
        return ROLES[self.role]


def an(value: Any, role: str, *fine: str, names: tuple[str, ...] = ()) -> Argument:
    return Argument(value, role, frozenset(fine), names)


class Call(NamedTuple):
    function: Callable[..., Any]
    arguments: dict[str, Argument]


# Values that hold no tensors, so that the numbers of a call can be looked at.
def shown(make: Callable[..., Any]) -> Callable[..., str]:
    return lambda **kwargs: repr(make(**kwargs))


# Names that messages use for data and its tree.
OF_DATA = ("data", "tree", "batch", "positions", "edge_index")
OF_STATES = (*OF_DATA, "states", "boundary_mask", "x", "pos", "ptr")
NOT_LOOKED_AT = (
    *("pos short", "pos a list", "pos on meta", "x short", "x a list", "x int"),
    *("x one axis", "x on meta", "ptr int32", "ptr short", "ptr beyond"),
    *("states short", "states on meta"),
)
UNUSED_POS = ("pos NaN", "pos infinite", "pos int", "pos one axis")
MORE_ROWS = ("empty", "a row less", "a row more")
OTHER_WIDTH = ("an entry less", "an entry more")
# Kinds that do not matter where only dtypes, devices and gradients are looked at, as in
# the choice of a backend.
SHAPE_ALONE = (
    *(*MORE_ROWS, *OTHER_WIDTH, "axes swapped", "a subclass", "requires grad"),
    *("a parameter", "no leaf", "NaN", "infinity", "minus infinity"),
)
ANY_SHAPE = ("scalar", "one more axis", "axes swapped")
ANY_DTYPE = ("complex", "bool", "int32", "int64", "uint8")
# Edges of a tree are any edges, and there may be none.
OTHER_EDGES = ("empty", "one less", "first moved")
LARGE = ("above int32", "above int64", "far above")


@cache
def calls() -> dict[str, Call]:
    torch.manual_seed(0)
    pos, x = torch.rand(N, 3), torch.rand(N, CHANNELS)
    ptr, batch = torch.tensor([0, 12, N]), torch.tensor([0] * 12 + [1] * 8)
    edge_index = torch.stack([torch.arange(12).repeat(2), torch.arange(24) % 11])
    tree = ball_tree(pos, ptr=ptr, ball_sizes=BALLS, strides=STRIDES)
    config = tree.config
    fine, coarse = tree.levels(pos, edge_index)
    coarse_x = torch.rand(coarse.num_rows, CHANNELS)
    q, k, v = torch.rand(3, N, 2, 4).unbind()
    mask = torch.arange(N) % 3 > 0
    transform = transforms.BallTree(BALLS, STRIDES)
    ends = ptr.tolist()
    clouds = [
        Data(x=x[a:b], pos=pos[a:b], edge_index=torch.randint(b - a, (2, 9)))
        for a, b in pairwise(ends)
    ]
    points = Batch.from_data_list(clouds)
    data = transform(points)
    sorted_data = transforms.BallTree(BALLS, STRIDES, reorder=True)(points)

    def model(mp_steps=1, **kwargs):
        torch.manual_seed(0)
        sizes = {"ball_sizes": BALLS, "strides": STRIDES}
        kwargs = {"enc_depths": 1, "dec_depths": 1, **kwargs}
        return nn.Erwin(
            CHANNELS, [8, 8], 2, mp_steps=mp_steps, **sizes, **kwargs
        ).eval()

    erwin, mpnn = model(), nn.MPNN(CHANNELS, 8, 2, num_layers=1).eval()

    def count(value, *more, **kwargs):
        return an(value, "counts", *more, **kwargs)

    def number(value, *more, **kwargs):
        return an(value, "numbers", *more, **kwargs)

    def flag(value=False, *more):
        return an(value, "flags", *more)

    def choice(value, *more, **kwargs):
        return an(value, "choices", *more, **kwargs)

    def sizes(value, *more, **kwargs):
        return an(value, "sizes", *more, **kwargs)

    def function(value, *more, **kwargs):
        return an(value, "functions", *more, **kwargs)

    def rollout_of(model):
        return nn.Rollout(model, moving=True).eval()

    # Five features beside the velocity, and the positions of three steps.
    moves = torch.rand(N, 4, 3).cumsum(1)
    path = points.clone().update(
        {"x": x[:, :5], "states": moves, "boundary_mask": mask}
    )
    rollout = rollout_of(nn.MPNN(CHANNELS, 8, 3, num_layers=1))
    trajectory = an(path, "trajectories", names=OF_STATES)
    generator = function(torch.Generator(), "none")

    # Arguments that several calls have in common.
    positions = an(pos, "positions", names=("positions",))
    other_config = an(config, "configs", names=("needed",))
    any_positions = an(pos, "positions", *MORE_ROWS, *OTHER_WIDTH, "axes swapped")
    offsets = an(ptr, "offsets", "none")
    assignment = an(batch, "clouds", "none", names=("ptr",))
    edges = an(edge_index, "edges", *OTHER_WIDTH)
    some_edges = an(edge_index, "edges", "none", *OTHER_WIDTH)
    edge_attr = torch.rand(edge_index.size(1), 4)
    some_edge_attr = an(
        edge_attr, "features", "none", *OTHER_WIDTH, names=("edge_index",)
    )
    features = an(x, "features")
    level = an(fine, "levels")
    coarse_level = an(coarse, "coarse")
    balls = {
        "ball_sizes": sizes(BALLS),
        # One number is valid for all levels.
        "strides": sizes(STRIDES, names=("ball_sizes",)),
        "rotate": number(45.0, "zero", "negative"),
        "layout": choice("balanced"),
        "runs": an([[2], [2, 4]], "runs"),
    }
    flow = choice("source_to_target")
    norm = an("graph", "norms")
    channels, dim = count(CHANNELS), count(3)
    search = {
        "pos": any_positions,
        "batch": assignment,
        "ptr": offsets,
        "loop": flag(),
        "flow": flow,
        "tree": an(tree, "trees", "none", "other config", "fewer levels"),
    }
    # Two sets of points with the same clouds.
    others, other_ptr = torch.rand(9, 3), torch.tensor([0, 4, 9])
    other_batch = torch.tensor([0] * 4 + [1] * 5)
    names = ("x", "y", "pos_x", "pos_y", "ptr", "batch_x", "batch_y", "ptr_x", "ptr_y")
    clouds_of_both = {
        # Without them, the clouds are those of the tree.
        "batch_x": an(batch, "clouds", "none", names=names),
        "batch_y": an(other_batch, "clouds", names=names),
        "ptr_x": an(ptr, "offsets", "none", names=names),
        "ptr_y": an(other_ptr, "offsets", names=names),
        "tree": an(tree, "trees", "none", "other config", "fewer levels"),
    }
    pair = {
        "x": an(pos, "positions", names=("y",)),
        "y": an(others, "positions", *MORE_ROWS, names=("x",)),
        **clouds_of_both,
    }
    pooling = {
        "in_channels": channels,
        "out_channels": channels,
        "stride": count(2),
        "dim": dim,
        "norm": norm,
    }
    inputs = {
        "x": features,
        "pos": positions,
        "edge_index": edges,
        "ptr": offsets,
        "batch": assignment,
        "edge_attr": an(None, "nothing"),
    }
    layer = nn.BallAttention(CHANNELS, 2, 4).eval()
    block = nn.Block(
        CHANNELS, layer, nn.SwiGLU(CHANNELS, 8), nn.MPNNConv(CHANNELS)
    ).eval()
    on_level = {"x": features, "level": level}

    def reads(name):
        return lambda level: getattr(tree, name)(level)

    def records(cls, use):
        """A record of tensors, which is checked by the function that uses it."""
        return lambda **kwargs: use(cls(**kwargs))

    def level_uses(level):
        turned = level.rotated()
        return turned.from_balls(turned.to_balls(x)), layer(x, turned)

    return {
        "CapturedStep": Call(
            shown(CapturedStep),
            {"step": function(len), "warmup": count(3)},
        ),
        "CapturedStep.__call__": Call(
            lambda batch: CapturedStep(lambda b: b.x.sum())(batch),
            {"batch": an(data, "records")},
        ),
        "Level": Call(
            records(Level, level_uses),
            {
                "pos": positions,
                "ptr": an(fine.ptr, "offsets"),
                "ball_len": an(fine.ball_len, "lengths"),
                "ball_size": count(4),
                "offset": positions,
                "offset_rot": positions,
                "perm": an(None, "nothing"),
                "perm_rot": an(fine.perm_rot, "orders", "none"),
                "group_len": an(None, "nothing"),
                "children": an(None, "nothing"),
                "real": an(None, "nothing"),
                "edge_index": edges,
                "edge_attr": some_edge_attr,
                "node": an(None, "nothing"),
                "runs": an({}, "nothing"),
            },
        ),
        "Level.build": Call(
            Level.build,
            {
                "pos": an(pos, "positions", *OTHER_WIDTH),
                "ball_len": an(fine.ball_len, "lengths"),
                "ball_size": count(4),
                "ptr": offsets,
                "perm_rot": an(fine.perm_rot, "orders", "none"),
                "edge_index": edges,
                "edge_attr": some_edge_attr,
            },
        ),
        "Level.check": Call(fine.check, {"name": an("level", "words")}),
        "Level.to_balls": Call(
            lambda x: fine.to_balls(x),
            {"x": an(x, "features", *OTHER_WIDTH, *ANY_DTYPE)},
        ),
        "Level.from_balls": Call(
            lambda y: fine.from_balls(y),
            {"y": an(fine.to_balls(x), "features", *OTHER_WIDTH, *ANY_DTYPE)},
        ),
        "Tree": Call(
            records(Tree, lambda tree: tree.validate(N, config)),
            {
                "perm": an(tree.perm, "orders", names=("nodes",)),
                "node_ptr": an(ptr, "offsets"),
                "level": an(tree.level, "rows"),
                "ball_len": an(tree.ball_len, "tables"),
                "group_len": an(tree.group_len, "tables"),
                "perm_rot": an(tree.perm_rot, "tables"),
                "mask": an(None, "nothing"),
                "config": other_config,
                "runs": an((), "nothing"),
                "real": an(None, "nothing"),
                "edges": an((edge_index % 3,), "tables", *OTHER_EDGES),
                "edge_means": an((), "nothing"),
                "edge_code": an(None, "nothing"),
            },
        ),
        "Tree.from_data": Call(
            Tree.from_data,
            {
                "data": an(data, "configured", "other config", names=OF_DATA),
                "config": an(config, "configs", "none", names=("needed",)),
                "prefix": an("", "prefixes", "an empty text", names=("data",)),
            },
        ),
        **{
            f"Tree.{name}": Call(reads(name), {"level": count(0, "zero")})
            for name in (
                *("num_rows", "ptr", "batch", "real_rows", "global_perm_rot"),
                "row_of_node",
            )
        },
        "Tree.to_rows": Call(
            lambda x: tree.to_rows(x),
            {"x": an(x, "features", *OTHER_WIDTH, *ANY_DTYPE)},
        ),
        "Tree.to_nodes": Call(
            lambda rows: tree.to_nodes(rows),
            {"rows": an(x, "features", *OTHER_WIDTH, *ANY_DTYPE)},
        ),
        "Tree.levels": Call(
            tree.levels,
            {
                "pos": an(pos, "positions", *OTHER_WIDTH),
                "edge_index": edges,
                "edge_attr": some_edge_attr,
            },
        ),
        "Tree.levels without edges": Call(
            tree.levels,
            {"pos": an(pos, "positions", *OTHER_WIDTH), "edge_index": some_edges},
        ),
        "Tree.coarse_edges": Call(
            tree.coarse_edges,
            {
                "edge_index": edges,
                "level": count(1, "zero"),
                "edge_attr": some_edge_attr,
            },
        ),
        "Tree.with_edges": Call(
            tree.with_edges, {"edge_index": edges, "edge_attr": some_edge_attr}
        ),
        "Tree.extents": Call(tree.extents, {"pos": an(pos, "positions", *OTHER_WIDTH)}),
        "Tree.pad": Call(tree.pad, {"num_nodes": count(26), "num_clouds": count(4)}),
        "Tree.update": Call(
            tree.update,
            {
                "pos": an(pos, "positions", *OTHER_WIDTH),
                "max_points": count(12, "none", *LARGE[:1]),
            },
        ),
        "Tree.to": Call(tree.to, {"device": choice("cpu")}),
        "Tree.validate": Call(
            tree.validate,
            {
                "num_nodes": count(N, names=("perm", "nodes")),
                "config": other_config,
                "ptr": offsets,
                "values": flag(True),
            },
        ),
        "TreeConfig": Call(shown(TreeConfig), balls),
        "TreeConfig.padded_sizes": Call(
            config.padded_sizes,
            {"num_nodes": count(26, "zero"), "num_clouds": count(4)},
        ),
        "TreeConfig.padded_runs": Call(
            config.padded_runs,
            {
                "level": count(0, "zero"),
                "size": count(4),
                "num_rows": count(26, "zero"),
                "num_clouds": count(4),
            },
        ),
        "TreeConfig.runs_of": Call(config.runs_of, {"level": count(0, "zero")}),
        "TreeConfig.parse": Call(
            shown(TreeConfig.parse), {"text": choice(str(config))}
        ),
        "ball_tree": Call(
            ball_tree,
            {
                "pos": an(pos, "positions", *OTHER_WIDTH),
                "batch": assignment,
                "ptr": offsets,
                **balls,
                "ties": choice("coordinates"),
                "validate": flag(),
            },
        ),
        "batch_to_ptr": Call(
            batch_to_ptr,
            {
                "batch": an(batch, "clouds", *MORE_ROWS, *OTHER_WIDTH),
                "num_clouds": count(4, "none"),
            },
        ),
        "explainable": Call(shown(nn.explainable), {"model": an(mpnn, "modules")}),
        "knn_graph": Call(knn_graph, {**search, "k": count(3, "above int32")}),
        "knn": Call(knn, {**pair, "k": count(3, "above int32")}),
        "knn_interpolate": Call(
            knn_interpolate,
            {
                "x": an(x, "features", *OTHER_WIDTH),
                "pos_x": an(pos, "positions", names=("pos_y",)),
                "pos_y": an(others, "positions", *MORE_ROWS, names=("pos_x",)),
                **clouds_of_both,
                "k": count(3, "above int32"),
            },
        ),
        "masked_mean": Call(
            masked_mean,
            {
                "value": an(x, "features", *OTHER_WIDTH, *ANY_DTYPE),
                "mask": an(mask, "masks"),
            },
        ),
        "pad_batch": Call(
            pad_batch,
            {
                "batch": an(
                    data, "configured", *UNUSED_POS, "other config", names=OF_DATA
                ),
                "num_nodes": count(26),
                "num_graphs": count(4),
                "num_edges": count(30, names=("edge_index",)),
            },
        ),
        "radius": Call(
            radius,
            {
                **pair,
                "r": number(0.5, "zero", "infinity"),
                "max_num_neighbors": count(4, "none", "above int32"),
            },
        ),
        "radius_graph": Call(
            radius_graph,
            {
                **search,
                "r": number(0.5, "zero", "infinity"),
                "max_num_neighbors": count(4, "none", "above int32"),
            },
        ),
        "to_original": Call(
            to_original,
            {
                "x": an(x, "features", *OTHER_WIDTH, *ANY_DTYPE),
                "data": an(
                    sorted_data,
                    "points",
                    *UNUSED_POS,
                    names=(*OF_DATA, "original_node"),
                ),
            },
        ),
        # Layers and models.
        "MPNN": Call(
            shown(nn.MPNN),
            {
                "in_channels": count(8, "zero"),
                "hidden_channels": channels,
                "out_channels": channels,
                "num_layers": count(1),
                "dim": dim,
                "edge_dim": count(2, "zero"),
                "pos_encoding": an("linear", "norms", "none"),
            },
        ),
        "MPNN.forward": Call(mpnn, inputs),
        "MPNN.forward with edge features": Call(
            nn.MPNN(CHANNELS, 8, 2, num_layers=1, edge_dim=4).eval(),
            {**inputs, "edge_attr": an(edge_attr, "features", *OTHER_WIDTH)},
        ),
        "MPNN.forward of data": Call(
            lambda data: mpnn(data), {"data": an(points, "points", names=OF_DATA)}
        ),
        "BallAttention": Call(
            shown(nn.BallAttention),
            {
                "channels": channels,
                "heads": count(2),
                "ball_size": count(4),
                "dim": dim,
                "backend": choice("native", "none"),
                "distance": choice("absolute"),
            },
        ),
        "BallAttention.attention_weights": Call(layer.attention_weights, on_level),
        "BallAttention.forward": Call(
            layer,
            {**on_level, "return_attention_weights": flag(False, "none")},
        ),
        "BallPooling": Call(shown(nn.BallPooling), pooling),
        "BallPooling.forward": Call(
            nn.BallPooling(CHANNELS, 8, 2).eval(),
            {"x": features, "coarse": coarse_level},
        ),
        "BallUnpooling": Call(shown(nn.BallUnpooling), pooling),
        "BallUnpooling.forward": Call(
            nn.BallUnpooling(CHANNELS, 8, 2).eval(),
            {
                "x": an(coarse_x, "features"),
                "skip": features,
                "fine": level,
                "coarse": coarse_level,
            },
        ),
        "BatchNorm": Call(shown(nn.BatchNorm), {"num_features": channels}),
        "BatchNorm.forward": Call(
            lambda **kwargs: nn.BatchNorm(CHANNELS)(**kwargs),
            {
                "input": an(x, "features", *MORE_ROWS),
                "mask": an(mask, "masks", "none"),
            },
        ),
        "BatchNorm.on_level": Call(
            nn.BatchNorm(CHANNELS).eval().on_level, {"input": features, "level": level}
        ),
        "Block": Call(
            shown(nn.Block),
            {
                "channels": channels,
                "attention": an(layer, "modules"),
                "mlp": an(nn.SwiGLU(CHANNELS, 8), "modules"),
                "conv": an(nn.MPNNConv(CHANNELS), "modules", "none"),
                "norm": norm,
                "dropout": number(0.5, "zero"),
                "drop_path": number(0.5, "zero"),
            },
        ),
        "Block.forward": Call(block, on_level),
        "DropPath": Call(shown(nn.DropPath), {"p": number(0.5, "zero")}),
        "DropPath.forward": Call(
            lambda **kwargs: nn.DropPath(0.5)(**kwargs),
            {"x": an(x, "features", *OTHER_WIDTH), "level": level},
        ),
        "Erwin": Call(
            shown(nn.Erwin),
            {
                "in_channels": count(8, "zero"),
                "hidden_channels": sizes([8, 8]),
                "out_channels": count(8, "none"),
                "ball_sizes": sizes(BALLS),
                "strides": sizes(STRIDES),
                "enc_depths": sizes([1, 1]),
                "enc_heads": sizes([2, 2], "none"),
                "dec_depths": sizes([1]),
                "dec_heads": sizes([2], "none"),
                "attention": an("ball", "norms"),
                "conv": an(nn.MPNNConv, "functions", "none", "a class"),
                "edge_dim": count(0, "zero"),
                "pos_encoding": an("fourier", "norms", "none"),
                "dim": dim,
                "rotate": number(45.0, "zero", "negative"),
                "mp_steps": count(1, "zero"),
                "mlp_ratio": count(4),
                "norm": norm,
                "block_norm": norm,
                "dropout": number(0.5, "zero"),
                "drop_path": number(0.5, "zero"),
                "decode": flag(True),
                "layout": choice("balanced"),
                "distance": choice("absolute"),
                "backend": choice("native", "none"),
                "checkpoint": flag(),
            },
        ),
        "Erwin.forward": Call(
            erwin,
            {k: v for k, v in inputs.items() if k != "batch"}
            | {"tree": an(tree, "trees", "none")},
        ),
        "Erwin.forward of a batch": Call(
            erwin, {k: v for k, v in inputs.items() if k != "ptr"}
        ),
        "Erwin.forward of data": Call(
            lambda data: erwin(data), {"data": an(data, "models", names=OF_DATA)}
        ),
        "Erwin.set_length_scale": Call(
            lambda source: model().set_length_scale(source).length_scale,
            {"source": an(2.0, "sources", names=("length scale", "pos"))},
        ),
        "Erwin.tree_transform": Call(
            shown(model().tree_transform),
            {
                "ties": choice("index"),
                "reorder": flag(False),
                "prefix": an("ball_", "prefixes", "a text", "an empty text"),
            },
        ),
        "Erwin.from_preset": Call(
            shown(nn.Erwin.from_preset),
            {
                "name": choice("cosmology-small"),
                "in_channels": count(1, "zero"),
                "out_channels": count(1, "none"),
            },
        ),
        "ErwinBlock": Call(
            shown(nn.ErwinBlock),
            {
                "channels": channels,
                "heads": count(2),
                "ball_size": count(4),
                "mlp_ratio": count(2),
                "dim": dim,
                "backend": choice("native", "none"),
            },
        ),
        "ErwinBlock.forward": Call(nn.ErwinBlock(CHANNELS, 2, 4).eval(), on_level),
        "ErwinStage": Call(
            shown(nn.ErwinStage),
            {"blocks": an([block], "blocks"), "checkpoint": flag()},
        ),
        "ErwinStage.forward": Call(nn.ErwinStage([block]).eval(), on_level),
        "GraphNorm": Call(
            shown(nn.GraphNorm),
            {"num_features": channels, "eps": number(1e-5, "zero")},
        ),
        "GraphNorm.forward": Call(
            nn.GraphNorm(CHANNELS), {"x": features, "ptr": offsets}
        ),
        "GraphNorm.on_level": Call(nn.GraphNorm(CHANNELS).on_level, on_level),
        "HybridConv": Call(
            shown(nn.HybridConv),
            {
                "channels": channels,
                "conv": an(nn.MPNNConv(CHANNELS), "modules", "none"),
                "attention": an("ball", "norms"),
                "heads": count(2),
                "ball_size": count(4),
                "dim": dim,
                "rotated": flag(),
                "dropout": number(0.5, "zero"),
                "act": function("relu"),
                "act_kwargs": an(None, "nothing"),
                "norm": norm,
                "norm_kwargs": an(None, "nothing"),
                "attn_kwargs": an(None, "nothing"),
            },
        ),
        "HybridConv.from_gps": Call(
            shown(nn.HybridConv.from_gps),
            {
                "conv": an(GPSConv(CHANNELS, None, heads=2), "modules"),
                "ball_size": count(4),
                "dim": dim,
                "rotated": flag(),
            },
        ),
        "HybridConv.forward": Call(
            nn.HybridConv(CHANNELS, Mean(), heads=2, ball_size=4, rotated=True).eval(),
            {
                **inputs,
                "tree": an(
                    *(tree, "trees", "none", "other config", "fewer levels"),
                    *("perfect", "without rotation"),
                ),
                "edge_attr": an(
                    torch.rand(24, 3), "features", "none", *OTHER_WIDTH, *ANY_DTYPE
                ),
                "return_attention_weights": flag(False, "none"),
            },
        ),
        "MPNNConv": Call(
            shown(nn.MPNNConv),
            {"channels": channels, "dim": dim, "edge_dim": count(2, "none")},
        ),
        "MPNNConv.forward": Call(
            nn.MPNNConv(CHANNELS).eval(),
            {
                "x": features,
                "pos": positions,
                "edge_index": an(edge_index, "edges", "int32", *OTHER_WIDTH),
            },
        ),
        "MPNNConv.forward with edge features": Call(
            nn.MPNNConv(CHANNELS, edge_dim=4).eval(),
            {
                "x": features,
                "pos": positions,
                "edge_index": an(edge_index, "edges", "int32", *OTHER_WIDTH),
                "edge_attr": an(edge_attr, "features", *OTHER_WIDTH),
            },
        ),
        "MPNNEmbedding": Call(
            shown(nn.MPNNEmbedding),
            {
                "in_channels": count(8, "zero"),
                "channels": channels,
                "num_steps": count(1, "zero"),
                "dim": dim,
                "checkpoint": flag(),
                "edge_dim": count(2, "zero"),
                "pos_encoding": an("linear", "norms", "none"),
            },
        ),
        "MPNNEmbedding.forward": Call(
            nn.MPNNEmbedding(CHANNELS, 8, 1).eval(),
            {"x": features, "pos": positions, "edge_index": edges},
        ),
        "Rollout": Call(
            shown(nn.Rollout),
            {
                "model": an(erwin, "modules"),
                "history": count(1),
                "moving": flag(),
                "noise": number(0.1, "zero"),
                "features": function(None, "none"),
                "graph": function(None, "none"),
                "detach_every": count(1, "none"),
            },
        ),
        "Rollout.forward": Call(rollout, {"data": trajectory, "generator": generator}),
        "Rollout.loss": Call(
            rollout.loss, {"data": trajectory, "generator": generator}
        ),
        "Rollout.rollout": Call(
            rollout.rollout,
            {
                "data": trajectory,
                "steps": count(2, names=("boundary",)),
                "boundary": an(moves[:, :2], "features", "none", names=("pos",)),
            },
        ),
        "Rollout.windows": Call(
            lambda **kwargs: [[*w.pos.shape] for w in rollout.windows(**kwargs)],
            {
                "data": an(path, "trajectories", *NOT_LOOKED_AT, names=OF_STATES),
                "steps": count(1, names=("states",)),
                "stride": count(1),
            },
        ),
        "Rollout.set_statistics": Call(
            lambda source: rollout_of(mpnn).set_statistics(source).state_dict(),
            {"source": an(path, "trajectories", *NOT_LOOKED_AT, names=OF_STATES)},
        ),
        "MPNNEmbedding.forward with edge features": Call(
            nn.MPNNEmbedding(CHANNELS, 8, 1, edge_dim=4).eval(),
            {
                "x": features,
                "pos": positions,
                "edge_index": edges,
                "edge_attr": an(edge_attr, "features", *OTHER_WIDTH),
            },
        ),
        "FourierEncoding": Call(
            shown(nn.FourierEncoding),
            {"dim": dim, "channels": channels, "num_frequencies": count(4)},
        ),
        "FourierEncoding.forward": Call(
            nn.FourierEncoding(3, CHANNELS), {"pos": an(pos, "positions", *MORE_ROWS)}
        ),
        "LinearEncoding": Call(
            shown(nn.LinearEncoding), {"dim": dim, "channels": channels}
        ),
        "LinearEncoding.forward": Call(
            nn.LinearEncoding(3, CHANNELS), {"pos": an(pos, "positions", *MORE_ROWS)}
        ),
        "SwiGLU": Call(
            shown(nn.SwiGLU), {"channels": channels, "hidden_channels": channels}
        ),
        "SwiGLU.forward": Call(
            nn.SwiGLU(CHANNELS, 8),
            {"x": an(x, "features", *MORE_ROWS, *ANY_SHAPE)},
        ),
        "attention_weights": Call(
            lambda model: nn.attention_weights(model, x, fine)[0].alpha,
            {"model": an(layer, "modules")},
        ),
        "ball_attention": Call(
            nn.ball_attention,
            {
                "q": an(q, "features"),
                "k": an(k, "features"),
                "v": an(v, "features"),
                "pos": an(pos, "positions", *OTHER_WIDTH),
                "ball_len": an(fine.ball_len, "lengths"),
                "sigma": an(-torch.ones(2), "features"),
                "ball_size": count(4),
                "perm": an(fine.perm_rot, "orders", "none"),
                "scale": number(0.5, "none", "zero", "negative"),
                "backend": choice("reference", "none"),
            },
        ),
        **{
            name: Call(
                function_,
                {
                    "q": an(q, "features", *SHAPE_ALONE),
                    "pos": an(pos, "positions", *SHAPE_ALONE),
                    **more,
                },
            )
            for name, function_, more in (
                (
                    "choose_backend",
                    nn.choose_backend,
                    {"wanted": choice("reference", "none", names=("backend",))},
                ),
                ("explain_backends", nn.explain_backends, {}),
            )
        },
        "make_mixer": Call(
            shown(nn.make_mixer),
            {
                "attention": an("ball", "norms"),
                "channels": channels,
                "heads": count(2),
                "ball_size": count(4),
                "dim": dim,
            },
        ),
        "make_norm": Call(
            shown(make_norm),
            {
                "norm": norm,
                "channels": channels,
                "name": an("norm", "words"),
                "kwargs": an(None, "nothing", names=("norm_kwargs",)),
            },
        ),
        "normalise": Call(
            normalise,
            {"norm": an(nn.GraphNorm(CHANNELS), "modules"), **on_level},
        ),
        # Transforms.
        "BallTree": Call(
            shown(transforms.BallTree),
            {
                **balls,
                "ties": choice("index"),
                "reorder": flag(False),
                "edges": flag(),
                "prefix": an("ball_", "prefixes", "a text", "an empty text"),
            },
        ),
        "BallTree with edges of a type": Call(
            shown(transforms.BallTree),
            {**balls, "edges": an(("atom", "bond", "atom"), "edge_types", "true")},
        ),
        "BallTree.forward": Call(transform, {"data": an(points, "points")}),
        "TreeKNNGraph": Call(
            shown(transforms.TreeKNNGraph),
            {
                "k": count(3, "above int32"),
                "loop": flag(),
                "force_undirected": flag(),
                "flow": flow,
                "edge_type": an(("atom", "near", "atom"), "edge_types", "none"),
            },
        ),
        "TreeKNNGraph.forward": Call(
            transforms.TreeKNNGraph(2), {"data": an(points, "points")}
        ),
        "TreeRadiusGraph": Call(
            shown(transforms.TreeRadiusGraph),
            {
                "r": number(0.5, "zero", "infinity"),
                "loop": flag(),
                "max_num_neighbors": count(3, "none", "above int32"),
                "flow": flow,
                "edge_type": an(("atom", "near", "atom"), "edge_types", "none"),
            },
        ),
        "TreeRadiusGraph.forward": Call(
            transforms.TreeRadiusGraph(0.5), {"data": an(points, "points")}
        ),
        # Data sets and pictures.
        "CosmologyLPT": Call(
            universe,
            {
                "root": an("folder", "paths"),
                "split": choice("train"),
                "num_clouds": count(1, "none"),
                "num_halos": count(5),
                "box_size": number(60.0),
                "mesh_size": count(32),
                "redshift": number(0.0, "zero"),
                "seed": count(0, "zero", *LARGE),
                "num_workers": count(1, "none"),
                "transform": function(None, "none"),
                "pre_transform": function(None, "none"),
                "pre_filter": function(None, "none"),
                "force_reload": flag(),
            },
        ),
        "fit_linear_velocity": Call(
            lambda **kwargs: torch.tensor(datasets.fit_linear_velocity(**kwargs)),
            {
                "clouds": an(
                    [Data(pos=pos, y=pos.flip(0))], "velocities", names=("cloud",)
                ),
                "smoothings": an([0.5], "positives", "none"),
                "box_size": number(3.0, names=("clouds",)),
                "mesh_size": count(8),
            },
        ),
        "linear_velocity": Call(
            datasets.linear_velocity,
            {
                "pos": an(pos, "positions", *MORE_ROWS),
                "smoothing": number(0.5),
                "amplitude": number(1.0, "zero", "negative"),
                "box_size": number(3.0),
                "mesh_size": count(8),
            },
        ),
        "plot_ball_tree": Call(
            picture,
            {
                "pos": an(pos, "positions", "an entry more", "an entry less"),
                "tree": an(tree, "trees", "of other clouds"),
                "level": count(0, "zero"),
                "mask": an(mask, "masks", "none"),
                "axes": an((0, 1), "axes"),
                "ax": an(None, "axes_of_a_picture", "none"),
            },
        ),
        "ball_of_row": Call(
            visualization.ball_of_row,
            {
                # Any tree has balls.
                "tree": an(
                    *(tree, "trees", "meta", "of more nodes", "of fewer nodes"),
                    *("of other clouds", "of no nodes"),
                ),
                "level": count(0, "zero"),
            },
        ),
    }


class Mean(MessagePassing):
    """A layer that takes edges with features of any kind, or without."""

    def forward(self, x, edge_index, edge_attr=None):
        return self.propagate(edge_index, x=x) + (edge_attr is not None)


def universe(**kwargs):
    if kwargs.get("root") == "folder":
        kwargs["root"] = mkdtemp()
    return repr(datasets.CosmologyLPT(**kwargs))


def picture(**kwargs):
    from matplotlib.figure import Figure

    ax = kwargs.pop("ax", None)
    ax = Figure().subplots() if ax is None else ax
    axes = visualization.plot_ball_tree(ax=ax, **kwargs)
    return [torch.tensor(c.get_offsets().data) for c in axes.collections]


def parameters(function: Callable[..., Any]) -> set[str]:
    """The named parameters of a public function; others pass keywords on."""
    named = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in named if p.kind not in kinds and p.name not in HIDDEN}


#: `self`, and `shared`, what layers on the same edges share internally.
HIDDEN = {"self", "cls", "shared"}

#: Public names that do not check their arguments, and why.
TRUSTED = {
    "AttentionWeights": "is what a function returns",
    "Level.of": "takes tensors that are known to fit",
    "Tree.order": "takes the number of nodes, where it is known",
    "Erwin.from_reference": "takes what the original implementation wrote",
}
