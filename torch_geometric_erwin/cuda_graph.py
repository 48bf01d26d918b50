r"""Training or inference steps that are recorded in a CUDA graph and replayed."""

import copy
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from torch_geometric_erwin.utils.checks import check_instance, check_int


class CapturedStep:
    r"""Records a step over padded batches in a CUDA graph, as
    :class:`torch.cuda.CUDAGraph` describes it, and replays it.

    A replay launches all kernels of a step at once. This saves the time that Python
    takes for every kernel, which is most of the time of a small model on a fast GPU.
    Every call is one step: the first :obj:`warmup` calls run without a graph, on a
    stream of their own; the next call is recorded and replayed; later calls are
    replayed.

    The step must not wait for the GPU, and the tensors that it reads must stay at the
    same place in memory: weights, running statistics, the state of an optimizer with
    :obj:`capturable=True` and, if a schedule changes it, a learning rate that is a
    tensor on the GPU. Gradients are created in the step: call
    :obj:`optimizer.zero_grad()` in it, and nowhere else. Every batch is copied into the
    memory of the first one, so all of them must have its sizes
    (:func:`torch_geometric_erwin.pad_batch`). Attributes that are not tensors keep the
    values of the first batch.

    If the batches are on the CPU, nothing is recorded and every call runs the step.

    Args:
        step: A function of a batch that returns a tensor, such as the loss.
        warmup: The number of calls before the one that is recorded; at least one,
            because the first step creates the state of the optimizer.

    Raises:
        ValueError: If a batch has other sizes than the first one.

    Example:
        >>> import torch_geometric_erwin as erwin
        >>> from torch_geometric.data import Data
        >>> model = erwin.nn.Erwin(0, [8, 8], 1, ball_sizes=4, mp_steps=0)
        >>> optimizer = torch.optim.AdamW(model.parameters())  # capturable on a GPU
        >>> def train(batch):
        ...     optimizer.zero_grad()
        ...     loss = erwin.masked_mean(model(batch).square(), batch.node_mask)
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> step = CapturedStep(train)
        >>> for n in (5, 9, 2):
        ...     data = model.tree_transform()(Data(pos=torch.rand(n, 3)))
        ...     loss = step(erwin.pad_batch(data, num_nodes=10, num_graphs=2))
        >>> loss.shape
        torch.Size([])
    """

    def __init__(self, step: Callable[[Batch], Tensor], warmup: int = 3) -> None:
        if not callable(step):
            raise TypeError(f"'step' must be a function of a batch (got {step!r})")
        self.step = step
        self.warmup = check_int("warmup", warmup, 1)
        self.calls = 0
        self.batch: Optional[Batch] = None
        self.graph: Optional[torch.cuda.CUDAGraph] = None
        self.output: Optional[Tensor] = None
        self._stream: Any = None

    def __call__(self, batch: Batch) -> Tensor:
        r"""Runs a step. On a GPU, the next call overwrites the output."""
        check_instance("batch", batch, Data, "Data, or a batch of it")
        if not isinstance(batch.pos, Tensor):
            raise ValueError("the batch has no node positions: 'batch.pos' is missing")
        self._place(batch)
        assert self.batch is not None
        self.calls += 1
        if self.batch.pos.device.type != "cuda":
            return self.step(self.batch).detach()
        with torch.cuda.device(self.batch.pos.device):
            if self.calls <= self.warmup:
                return self._warm_up()
            if self.graph is None:
                self._record()
            assert self.graph is not None
            assert self.output is not None
            self.graph.replay()
        return self.output

    def _record(self) -> None:
        # The graph is stored after the whole step was recorded without an error.
        # "thread_local" allows another thread to pin memory for the next batch.
        # Autocast caches weights that it has cast. The cache is cleared before, so that
        # the graph casts the weights itself, and after, so that nobody else uses the
        # copies in the graph's memory.
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self.step(self.batch).detach()
        finally:
            torch.clear_autocast_cache()
        self.graph, self.output = graph, output

    def _place(self, batch: Batch) -> None:
        if self.batch is None:
            # A copy, because later batches are written into it.
            self.batch = copy.copy(batch).apply(torch.clone)
            return
        names = {n for n, v in batch.stores[0].items() if isinstance(v, Tensor)}
        own = {n for n, v in self.batch.stores[0].items() if isinstance(v, Tensor)}
        if names != own:
            raise ValueError(
                f"a batch must have the attributes of the first one ({sorted(own)}; "
                f"differing: {sorted(names ^ own)})"
            )
        for name in names:
            place, value = self.batch[name], batch[name]
            if place.shape != value.shape or place.dtype != value.dtype:
                raise ValueError(
                    f"'{name}' must be {place.dtype} of shape {[*place.shape]}, as in "
                    f"the first batch (got {value.dtype}, {[*value.shape]}); "
                    "'pad_batch' makes sizes equal"
                )
            place.copy_(value, non_blocking=True)

    def _warm_up(self) -> Tensor:
        # Calls before the recorded one use another stream than the caller's, as CUDA
        # graphs require: what a first call allocates must not be in the graph's memory.
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            output = self.step(self.batch).detach()
        main.wait_stream(self._stream)
        output.record_stream(main)
        return output

    def __repr__(self) -> str:
        state = "recorded" if self.graph is not None else "not recorded"
        return f"{self.__class__.__name__}({self.calls} calls, {state})"
