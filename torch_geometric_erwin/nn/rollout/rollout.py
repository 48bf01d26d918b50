r"""Autoregressive prediction of a field on fixed points, or of points that move."""

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn.inits import reset

from torch_geometric_erwin.data.padding import masked_mean
from torch_geometric_erwin.nn.conv.call import check_adjacency
from torch_geometric_erwin.nn.rollout.inputs import (
    Scene,
    each_data,
    free_nodes,
    read_scene,
    read_states,
)
from torch_geometric_erwin.nn.rollout.names import taken_names
from torch_geometric_erwin.nn.rollout.noise import random_walk
from torch_geometric_erwin.nn.rollout.standardise import Moments, Standardise
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.reading import Nodes
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_finite_number,
    check_flag,
    check_floating,
    check_instance,
    check_int,
    check_rows,
    check_shape,
    check_tensor,
    has_memory,
    is_readable,
)

#: Deviations of changes that a model can learn without statistics.
ORDINARY = (0.01, 100.0)


class Rollout(Module):
    r"""Predicts step after step, each from its own predictions, as in `"Learning to
    Simulate Complex Physics with Graph Networks" <https://arxiv.org/abs/2002.09405>`_
    and `"Learning Mesh-Based Simulation with Graph Networks"
    <https://arxiv.org/abs/2010.03409>`_.

    - A field on **fixed points**: the model gets the last :obj:`history` states
      :math:`u` and predicts the change,
      :math:`u_{t+1} = u_t + f(u_t, u_{t-1}, \ldots)`.
    - Points that **move** (:obj:`moving=True`): states are positions :math:`p`. The
      model gets the last :obj:`history` velocities :math:`v_t = p_t - p_{t-1}` and
      predicts the acceleration, :math:`v_{t+1} = v_t + f` and
      :math:`p_{t+1} = p_t + v_{t+1}` (semi-implicit Euler). Time is counted in steps.
      Every step updates the tree by :meth:`~torch_geometric_erwin.Tree.update` and, if
      there is :obj:`graph`, searches the edges.

    Data has these attributes, all of nodes, so that PyG batches them:

    - :obj:`states` :math:`(N, W, C)`: consecutive states of every node, oldest first.
      The first :attr:`window` are known, the rest is what should follow. The window
      has :obj:`history` states, or, for points that move, one more, because velocities
      are differences.
    - :obj:`pos`: where fixed points are. For points that move it is only needed by the
      transforms that attach a tree, of which the sizes alone are used.
    - :obj:`x` :math:`(N, F)`, optional: features that do not change, such as the kind
      of a node. :obj:`edge_index` and :obj:`edge_attr`, optional.
    - :obj:`boundary_mask` :math:`(N)`, optional: nodes whose state is prescribed and
      not predicted. :obj:`node_mask` of :func:`~torch_geometric_erwin.pad_batch` is
      respected too.

    In training, the window gets the noise of a random walk, with the deviation
    :obj:`noise` for the last state (velocity), so that the model learns to undo errors
    like its own: the target is the change that leads from the noisy state (velocity) to
    the true one. Boundary nodes get no noise. If data has several states after the
    window, the model is trained through as many steps, each from its own prediction.

    Trajectories have the layout of :obj:`states`, not one frame after the other: then
    they can be compared with it, cut by :obj:`ptr` and stored in data as they are. If
    the data carries its tree and :obj:`graph` is not used, nothing is read from a GPU
    in any step.

    Args:
        model: The model. Its first argument are :math:`H C + F` features; of
            :obj:`pos`, :obj:`edge_index`, :obj:`edge_attr`, :obj:`batch`, :obj:`ptr`
            and :obj:`tree` it gets what its :meth:`forward` names. It returns
            :math:`C` features.
        history: The number :math:`H` of states, or velocities, that the model gets.
            Zero is allowed for points that move: then they have a velocity, but the
            model does not see it, which suits forces that depend on positions alone.
        moving: Whether the points move.
        noise: The deviation of the noise, in the unit of states.
        features: A function of the positions :math:`(N, D)` that returns further
            features :math:`(N, F')`, such as distances from walls, or positions.
        graph: A function that searches the edges of points that move in every step,
            such as :obj:`partial(knn_graph, k=8)`. Its first argument are the
            positions; of :obj:`batch`, :obj:`ptr` and :obj:`tree` it gets what it
            names. It returns :obj:`edge_index`, or, for models with edge features,
            :obj:`(edge_index, edge_attr)`. (default: the edges of the data)
        detach_every: After this number of steps, gradients are cut. (default: never)

    Shapes:
        - **states:** :math:`(N, W, C)`; **output:** :math:`(N, T, C)`, as states are.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is out of range.

    Example:
        >>> from torch_geometric_erwin.nn import Erwin
        >>> model = Erwin(2 * 3, [16], out_channels=3, ball_sizes=8, mp_steps=0)
        >>> model = Rollout(model, history=2, moving=True, noise=1e-3)
        >>> data = Data(states=torch.rand(20, 5, 3).cumsum(1))
        >>> model = model.set_statistics(data)
        >>> model.loss(data).backward()  # through the two steps after the window of 3
        >>> model.eval().rollout(data, steps=10).shape
        torch.Size([20, 10, 3])
    """

    def __init__(
        self,
        model: Module,
        history: int = 1,
        *,
        moving: bool = False,
        noise: float = 0.0,
        features: Optional[Callable[[Tensor], Tensor]] = None,
        graph: Optional[Callable[..., Union[Tensor, tuple[Tensor, Tensor]]]] = None,
        detach_every: Optional[int] = None,
    ) -> None:
        super().__init__()
        check_instance("model", model, Module, "a module")
        self.model = model
        self.moving = check_flag("moving", moving)
        self.history = check_int("history", history, 0 if self.moving else 1)
        self.noise = check_finite_number("noise", noise, 0.0)
        for name, function in (("features", features), ("graph", graph)):
            if function is not None and not callable(function):
                raise TypeError(f"'{name}' must be a function (got {function!r})")
        if graph is not None and not self.moving:
            raise ValueError(
                "'graph' is for points that move: 'moving' must be True, or the data "
                "must have the edges"
            )
        self.features, self.graph = features, graph
        if detach_every is not None:
            detach_every = check_int("detach_every", detach_every, 1)
        self.detach_every = detach_every
        self.state_scale, self.change_scale = Standardise(), Standardise()
        self._takes = taken_names("model", model, _known(model))
        if graph is not None:
            clouds = ["batch", "ptr", "tree"]
            self._graph_takes = taken_names("graph", graph, clouds)
        self._has_warned = False

    @property
    def window(self) -> int:
        r"""The number of states that must be known before the first step."""
        return max(self.history, 1) + self.moving

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the model."""
        reset(self.model)

    def set_statistics(self, source: Union[Nodes, Iterable[Nodes]]) -> "Rollout":
        r"""Measures the scale of states (velocities) and of their changes, per channel.

        The model then gets and predicts values of mean zero and deviation one. The
        statistics are buffers, so they are saved with the weights. The deviation of the
        noise is included.

        Args:
            source: Data with :obj:`states`, or an iterable of it, such as a loader.

        Raises:
            TypeError: If it is something else.
            ValueError: If states are missing, too few or not finite.

        Example:
            >>> model = Rollout(torch.nn.Linear(1, 1))
            >>> data = Data(states=torch.tensor([[[0.0], [2.0]], [[1.0], [5.0]]]))
            >>> model.set_statistics(data).change_scale.mean
            tensor([3.])
        """
        state, change = Moments(), Moments()
        for data in each_data("source", source):
            states = self._states(data, 1)
            if not has_memory(states):
                raise ValueError("'states' must have values (got a tensor without)")
            series, free = self._series(states), free_nodes(data)
            real, changes = getattr(data, "node_mask", None), series.diff(dim=1)
            state.add((series if real is None else series[real]).flatten(0, 1))
            change.add((changes if free is None else changes[free]).flatten(0, 1))
        if change.count == 0:
            raise ValueError(
                "'source' must have a node with at least one change (got none)"
            )
        if not bool(torch.isfinite(state.mean + change.mean).all()):
            raise ValueError("'states' must be finite, those of 'source' are not")
        self.state_scale.measure(state, self.noise)
        self.change_scale.measure(change, self.noise)
        self._has_warned = False
        return self

    def windows(
        self, data: Union[Data, Iterable[Data]], steps: int = 1, stride: int = 1
    ) -> list[Data]:
        r"""Cuts trajectories into samples for training.

        Args:
            data: Data whose :obj:`states` are a whole trajectory, or an iterable of it,
                whose samples follow each other.
            steps: The number of states after the window, through which is trained.
            stride: How many states lie between the starts of two samples.

        Raises:
            TypeError: If the data is not :class:`~torch_geometric.data.Data`.
            ValueError: If the trajectory is too short.

        Example:
            >>> model = Rollout(torch.nn.Linear(2, 2), moving=True)
            >>> samples = model.windows(Data(states=torch.rand(7, 10, 2)), steps=3)
            >>> len(samples), samples[0].states.shape, samples[0].pos.shape
            (6, torch.Size([7, 5, 2]), torch.Size([7, 2]))
        """
        steps, stride = check_int("steps", steps, 1), check_int("stride", stride, 1)
        length, samples = self.window + steps, []
        for whole in each_data("data", data):
            check_instance("data", whole, Data)
            states = self._states(whole, steps)
            for start in range(0, states.size(1) - length + 1, stride):
                sample = copy.copy(whole)
                sample.states = states[:, start : start + length]
                if self.moving:
                    sample.pos = states[:, start + self.window - 1]
                samples.append(sample)
        return samples

    def forward(
        self, data: Nodes, generator: Optional[torch.Generator] = None
    ) -> tuple[Tensor, Tensor]:
        r"""Predicts the states after the window, and returns what the model predicted
        and what it should have.

        Both are standardised changes of the state (velocity). The target of a step
        leads from the state (velocity) that was reached, which is noisy in training and
        predicted from the second step on, to the true one. Boundary nodes have no
        target; they get their state from the data.

        Args:
            data: The data, with at least one state after the window.
            generator: The source of the noise, on the device of the states. (default:
                PyTorch's)

        Shapes:
            - **output:** :math:`(N, T, C)` each, for :math:`T` states after the window.

        Raises:
            TypeError: If the data is something else.
            ValueError: If an attribute is missing or does not fit.
        """
        if generator is not None:
            check_instance("generator", generator, torch.Generator)
        states = self._states(data, 1)
        pos = self._position(states, data)
        scene = read_scene(data, states, pos, self.model)
        series, start = self._series(states), self.window - self.moving
        known = series[:, :start]
        if self.training and self.noise > 0:
            walk = random_walk(known, self.noise, generator)
            if scene.boundary is not None:
                walk = walk.masked_fill(scene.boundary[:, None], 0)
            known = known + walk
            pos = pos + walk.sum(1) if self.moving else pos
        if self.training:
            self._warn_of_scale(series[:, start - 1 :], free_nodes(data))
        recent, outs, targets = [*known.unbind(1)], [], []
        for step, true in enumerate(series[:, start:].unbind(1)):
            last = recent[-1]
            out, recent, pos = self._step(
                recent, pos, scene, states[:, self.window + step]
            )
            outs.append(out)
            targets.append(self.change_scale(true - last))
            if self.detach_every is not None and (step + 1) % self.detach_every == 0:
                recent = [state.detach() for state in recent]
                pos = pos.detach() if self.moving else pos
        return torch.stack(outs, 1), torch.stack(targets, 1)

    def loss(self, data: Nodes, generator: Optional[torch.Generator] = None) -> Tensor:
        r"""Returns the mean square of :obj:`prediction - target` (:meth:`forward`).

        Boundary nodes and nodes that padding added do not count.

        Args:
            data: The data, with at least one state after the window.
            generator: The source of the noise. (default: PyTorch's)

        Shapes:
            - **output:** a scalar.
        """
        out, target = self(data, generator)
        free = free_nodes(data)
        if free is None:
            free = torch.ones(out.size(0), dtype=torch.bool, device=out.device)
        return masked_mean((out - target).square(), free)

    def rollout(
        self, data: Nodes, steps: int, boundary: Optional[Tensor] = None
    ) -> Tensor:
        r"""Predicts the states after the window, without noise.

        Args:
            data: The data; states after the window are not used.
            steps: The number of steps :math:`T`.
            boundary: The states after the window of boundary nodes; what it has for
                other nodes is not used. (default: boundary nodes keep their last state)

        Shapes:
            - **boundary:** :math:`(N, T, C)`; **output:** :math:`(N, T, C)`.

        Raises:
            TypeError: If an argument has another type.
            ValueError: If an attribute is missing or does not fit.

        Example:
            >>> decay = Rollout(torch.nn.Linear(1, 1, bias=False))
            >>> _ = torch.nn.init.constant_(decay.model.weight, -0.5)
            >>> data = Data(states=torch.tensor([[[8.0]]]))
            >>> decay.rollout(data, steps=3).flatten().tolist()
            [4.0, 2.0, 1.0]
        """
        steps = check_int("steps", steps, 1)
        states = self._states(data)
        pos = self._position(states, data)
        scene = read_scene(data, states, pos, self.model)
        if boundary is not None:
            wanted = (states.size(0), steps, states.size(2))
            check_shape("boundary", boundary, wanted)
            check_floating("boundary", boundary)
            check_devices(states=states, boundary=boundary)
            if scene.boundary is None:
                raise ValueError(
                    "'boundary' was given, but the data has no 'boundary_mask', which "
                    "must say for which nodes it is"
                )
            boundary = boundary.to(states.dtype)
        recent, path = [*self._series(states[:, : self.window]).unbind(1)], []
        for step in range(steps):
            given = None if boundary is None else boundary[:, step]
            _, recent, pos = self._step(recent, pos, scene, given)
            path.append(pos if self.moving else recent[-1])
        return torch.stack(path, 1)

    def _states(self, data: Nodes, more: int = 0) -> Tensor:
        return read_states(data, self.window, more)

    def _series(self, states: Tensor) -> Tensor:
        # What the model sees: states or velocities.
        return states.diff(dim=1) if self.moving else states

    def _position(self, states: Tensor, data: Nodes) -> Any:
        # Positions at the end of the window; models without positions need none.
        if self.moving:
            # Not a view, for which code would be compiled that serves the first step
            # only: later positions are none.
            return states[:, self.window - 1].clone(
                memory_format=torch.contiguous_format
            )
        return getattr(data, "pos", None)

    def _warn_of_scale(self, series: Tensor, free: Optional[Tensor]) -> None:
        # Warns once, and only on a CPU, because it would have to wait for a GPU.
        if self._has_warned or not (is_readable(series) and has_memory(series)):
            return
        changes = series.detach().diff(dim=1)
        changes = changes if free is None else changes[free]
        if changes.numel() == 0 or self.change_scale.is_measured:
            return
        size = float(changes.double().square().mean() + self.noise**2) ** 0.5
        if size == 0 or ORDINARY[0] <= size <= ORDINARY[1]:
            return
        what = "accelerations" if self.moving else "changes"
        warnings.warn(
            f"{what} are about {size:.2g} per step, an untrained model predicts about "
            "1; call 'model.set_statistics(data)', or give states in a unit in which "
            f"{what} are of order one",
            stacklevel=6,  # names the line that calls `loss`
        )
        self._has_warned = True

    def _step(
        self,
        recent: list[Tensor],
        pos: Any,
        scene: Scene,
        given: Optional[Tensor],
    ) -> tuple[Tensor, list[Tensor], Any]:
        # Returns the prediction, the recent states (velocities) and the positions. New
        # velocities are not differences of the new positions, which would round them.
        out = self._predict(recent, pos, scene)
        last = recent[-1]
        new = last + self.change_scale.inverse(out)
        mask = scene.boundary
        if self.moving:
            moved = pos + new
            if mask is not None:
                given = pos if given is None else given
                new = torch.where(mask, given - pos, new)
                moved = torch.where(mask, given, moved)
            pos = moved
        elif mask is not None:
            new = torch.where(mask, last if given is None else given, new)
        return out, [*recent[1:], new], pos

    def _predict(self, recent: list[Tensor], pos: Any, scene: Scene) -> Tensor:
        tree, edge_index, edge_attr = scene.tree, scene.edge_index, scene.edge_attr
        if self.moving and tree is not None:
            tree = tree.update(pos)
        if self.graph is not None:
            # Only the balanced layout can be searched.
            fits = tree is not None and tree.config.layout == "balanced"
            edge_index, edge_attr = self._search(pos, scene, tree if fits else None)
        seen = recent[len(recent) - self.history :]
        parts = [self.state_scale(state) for state in seen]
        if scene.x is not None:
            parts.append(scene.x)
        if self.features is not None:
            if pos is None:
                raise ValueError("'pos' is missing, which 'features' needs")
            more = self.features(pos)
            check_tensor("features(pos)", more)
            check_rows("features(pos)", more, pos.size(0), more.shape[-1:].numel())
            parts.append(more)
        given = self._takes.of(
            pos=pos,
            edge_index=edge_index,
            edge_attr=edge_attr,
            batch=scene.batch,
            ptr=scene.ptr,
            tree=tree,
        )
        out = self.model(torch.cat(parts, dim=-1) if parts else None, **given)
        check_rows("model(x)", out, *recent[-1].shape)
        return out

    def _search(
        self, pos: Tensor, scene: Scene, tree: Optional[Tree]
    ) -> tuple[Tensor, Optional[Tensor]]:
        assert self.graph is not None
        clouds = self._graph_takes.of(batch=scene.batch, ptr=scene.ptr, tree=tree)
        edges, edge_attr = self.graph(pos, **clouds), None
        if isinstance(edges, tuple):
            if len(edges) != 2:
                raise ValueError(
                    "'graph(pos)' must be edge_index or (edge_index, edge_attr) (got a "
                    f"tuple of {len(edges)})"
                )
            edges, edge_attr = edges
        check_adjacency("graph(pos)", edges, pos)
        width = getattr(self.model, "edge_dim", None)
        if edge_attr is None:
            if isinstance(width, int) and width > 0:
                raise ValueError(
                    f"'graph(pos)' must be (edge_index, edge_attr), because the model "
                    f"takes {width} edge features (got edge_index alone)"
                )
            return edges, None
        check_tensor("graph(pos)[1]", edge_attr)
        dense = isinstance(edges, Tensor) and edges.layout is torch.strided
        if dense and edge_attr.shape[:1] != edges.shape[1:]:
            raise ValueError(
                f"'graph(pos)[1]' must have {edges.size(1)} rows, one per edge (got "
                f"{[*edge_attr.shape]})"
            )
        if "edge_attr" not in self._takes.names:
            raise ValueError(
                "'graph(pos)' must be edge_index alone, because the model takes no "
                "edge features (got (edge_index, edge_attr))"
            )
        return edges, edge_attr

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.model}, history={self.history}, "
            f"moving={self.moving}, noise={self.noise:g})"
        )


def _known(model: Module) -> list[str]:
    # What a model may be called with by name.
    known = ["pos", "edge_index", "edge_attr", "batch", "ptr", "tree"]
    takes_edges = getattr(model, "supports_edge_attr", True)  # False in PyG's GCN
    if getattr(model, "edge_dim", None) == 0 or not takes_edges:
        known.remove("edge_attr")  # which the data may have all the same
    return known
