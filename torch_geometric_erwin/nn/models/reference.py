r"""Converting the configuration, weights and trees of the original implementation.

In https://github.com/maxxxzdn/erwin, rows of the query-key-value map are ordered
(head, channel, {q, k, v}), the map of a message takes [source, target, offset], and
trees index the rows of the whole batch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_geometric_erwin.tree import Tree, TreeConfig
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.reading import Nodes
from torch_geometric_erwin.utils.rows import segment_ids

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def convert_config(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""Returns the arguments of :class:`~torch_geometric_erwin.nn.Erwin`.

    Args:
        config: The arguments of the original's constructor.

    Example:
        >>> convert_config(dict(
        ...     c_in=4, c_hidden=[8], ball_sizes=[8], enc_num_heads=[2], enc_depths=[1],
        ...     dec_num_heads=[], dec_depths=[], strides=[], rotate=0))["rotate"]
        0.0
    """
    return {
        "in_channels": config["c_in"],
        "hidden_channels": config["c_hidden"],
        "ball_sizes": config["ball_sizes"],
        "strides": config["strides"],
        "enc_depths": config["enc_depths"],
        "enc_heads": config["enc_num_heads"],
        "dec_depths": config["dec_depths"],
        "dec_heads": config["dec_num_heads"],
        # In the original, a negative angle means no rotation.
        "rotate": max(float(config["rotate"]), 0.0),
        "dim": config.get("dimensionality", 3),
        "mp_steps": config.get("mp_steps", 3),
        "mlp_ratio": config.get("mlp_ratio", 4),
        "decode": config.get("decode", True),
        "norm": "batch",
        "layout": "perfect",
    }


def convert_state_dict(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    r"""Returns the weights with the names and the order of rows of this package.

    Args:
        state: The original's weights.
        model: The :class:`~torch_geometric_erwin.nn.Erwin` that they are for.

    Raises:
        KeyError: If a weight is missing.
    """
    out: dict[str, Tensor] = {}

    def copy(target: str, source: str, names: tuple[str, ...]) -> None:
        out.update({f"{target}.{n}": state[f"{source}.{n}"] for n in names})

    linear = ("weight", "bias")
    copy("embed.start", "embed.embed_fn", linear)
    for i, conv in enumerate(model.embed.convs):
        message, update = f"embed.mpnn.message_fns.{i}", f"embed.mpnn.update_fns.{i}"
        new, c = f"embed.convs.{i}", conv.channels
        source, target, offset = state[f"{message}.0.weight"].split([c, c, conv.dim], 1)
        out[f"{new}.lin_source.weight"] = source
        out[f"{new}.lin_target.weight"] = target
        out[f"{new}.lin_target.bias"] = state[f"{message}.0.bias"]
        out[f"{new}.lin_offset.weight"] = offset
        copy(f"{new}.norm_message", f"{message}.2", linear)
        copy(f"{new}.lin_update", f"{update}.0", linear)
        copy(f"{new}.norm_update", f"{update}.1", linear)

    last = len(model.encoder) - 1
    coarsest_first = reversed(range(len(model.decoder)))
    stages = [
        *((f"encoder.{l}", f"encoder.{l}") for l in range(last)),
        (f"encoder.{last}", "bottleneck"),
        *((f"decoder.{l}", f"decoder.{i}") for i, l in enumerate(coarsest_first)),
    ]
    for new, old in stages:
        for i, block in enumerate(model.get_submodule(new).blocks):
            _copy_block(f"{new}.blocks.{i}", f"{old}.blocks.{i}", block, state, out)
    for l, stride in enumerate(model.tree_config.strides):
        if stride > 1:
            copy(f"pools.{l}.lin", f"encoder.{l}.pool.proj", linear)
            copy(f"pools.{l}.norm", f"encoder.{l}.pool.norm", _NORM)
        if model.decode:
            old = f"decoder.{len(model.decoder) - 1 - l}.unpool"
            copy(f"unpools.{l}.lin", f"{old}.proj", linear)
            copy(f"unpools.{l}.norm", f"{old}.norm", _NORM)
    return out


def _copy_block(
    new: str,
    old: str,
    block: Any,
    state: Mapping[str, Tensor],
    out: dict[str, Tensor],
) -> None:
    heads = block.attention.heads
    out[f"{new}.norm_attention.weight"] = state[f"{old}.norm1.weight"]
    out[f"{new}.norm_mlp.weight"] = state[f"{old}.norm2.weight"]
    out[f"{new}.attention.sigma"] = state[f"{old}.BMSA.sigma_att"].flatten()
    for name in ("weight", "bias"):
        qkv = state[f"{old}.BMSA.qkv.{name}"].unflatten(0, (heads, -1, 3))
        out[f"{new}.attention.lin_qkv.{name}"] = qkv.movedim(2, 0).flatten(0, 2)
        out[f"{new}.attention.lin_out.{name}"] = state[f"{old}.BMSA.proj.{name}"]
        out[f"{new}.attention.lin_pos.{name}"] = state[f"{old}.BMSA.pe_proj.{name}"]
        gate, value = (state[f"{old}.swiglu.w{i}.{name}"] for i in (1, 2))
        out[f"{new}.mlp.lin_in.{name}"] = torch.cat([gate, value])
        out[f"{new}.mlp.lin_out.{name}"] = state[f"{old}.swiglu.w3.{name}"]


def has_tree(nodes: Nodes) -> bool:
    r"""Whether the data carries the original's tree.

    Args:
        nodes: The data.
    """
    return getattr(nodes, "tree_idx", None) is not None


def read_tree(nodes: Nodes, config: TreeConfig, ptr: Tensor) -> Tree:
    r"""Reads the original's tree from data.

    The order of points is taken from the data. Lengths are computed, because they
    follow from the sizes of the clouds.

    Args:
        nodes: The data, with :obj:`tree_idx`, :obj:`tree_mask`, :obj:`tree_idx_rot`.
        config: The model's configuration.
        ptr: The row offsets of the clouds.

    Raises:
        ValueError: If a table is missing, or the tree is of other clouds.
    """
    wanted = ["tree_mask", "tree_idx_rot"] if config.rotate else ["tree_mask"]
    for name in wanted:
        if getattr(nodes, name, None) is None:
            raise ValueError(f"the data has the original's 'tree_idx' but no '{name}'")
    # Lengths do not depend on positions, so that zeros will do.
    pos = nodes.pos
    lengths = build_tree(torch.zeros_like(pos[:, :1]), ptr, config)
    perm = nodes.tree_idx
    if perm.shape != lengths.perm.shape:
        raise ValueError(
            f"'tree_idx' must have {lengths.perm.size(0)} entries for these clouds "
            f"(got {perm.size(0)})"
        )
    perm_rot = []
    for l in range(config.num_levels if config.rotate else 0):
        rows = lengths.level[:, l]
        first = rows.cumsum(0) - rows
        perm_rot.append(
            nodes.tree_idx_rot[l] - first[segment_ids(rows, lengths.num_rows(l))]
        )
    cloud = segment_ids(lengths.level[:, 0], perm.size(0))
    return replace(
        lengths,
        perm=perm.long() - ptr[cloud],
        perm_rot=tuple(perm_rot),
        mask=nodes.tree_mask,
        config=config,
    )
