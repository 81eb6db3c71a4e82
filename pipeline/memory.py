"""How many vectors a network pass may carry within a budget of bytes, found without running one.

The very passes that products are made of run on tensors without numbers (torch's fake tensors), while every storage
is counted from its first appearance to its release. What a pass takes at its peak is the largest of several sums that
are linear in the number of vectors, hence convex in it: the line through the peaks at 1 and at the most vectors lies
on or above it in between. Convolutions also count a copy of all they read and write, as CPU kernels reorder both.

The budget holds the weights, what the function keeps (skip connections), the graph kept for transposed products, and
one pass. The interpreter and its libraries (0.4 GB) and the vectors that the caller holds come on top.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.errors import InputError
from pipeline.models.contract import Denoiser
from pipeline.models.forward_mode import pull, push, record

# What is held in the end over the bytes counted, measured by tests/benchmarks/products.py. glibc returns tensors from
# 32 MiB up as soon as they are freed, and then 1.0 to 1.15 times the count is held; of smaller ones, 1.7 to 3.3 times.
_SLACK, _HEAP_SLACK, _HEAP_LIMIT = 1.2, 3.5, 32 * 2**20
PIXELS = 64 * 64 * 64  # that go through a network together where no budget is given: 64 pictures of 64 a side
_REORDERING = ("aten.convolution", "aten.convolution_backward", "aten.mkldnn_convolution")


@dataclass(frozen=True)
class Blocks:
    """Vectors per pass forwards and transposed; `checkpoint`: the graph keeps block inputs and recomputes the rest."""

    jvp: int = 16
    vjp: int = 16
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if min(self.jvp, self.vjp) < 1:
            raise InputError("block", min(self.jvp, self.vjp), "at least 1")


@dataclass(frozen=True)
class Footprint:
    """Bytes that products at one point take, besides the weights.

    `captured`: tensors the function holds; `kept`: the graph for transposed products; `jvp` and `vjp`: what passes of
    1 and of `most` vectors need on top.
    """

    captured: int
    kept: int
    jvp: tuple[int, int]
    vjp: tuple[int, int]
    most: int

    @property
    def least(self) -> int:
        """Bytes for passes of one vector."""
        return self.captured + self.kept + max(self.jvp[0], self.vjp[0])

    def vectors(self, ends: tuple[int, int], room: int) -> int:
        """How many vectors, 1 to `most`, a pass with these peaks carries in `room` bytes beside what is kept."""
        spare = room - self.captured - self.kept - ends[0]
        each = (ends[1] - ends[0]) / max(1, self.most - 1)
        return min(self.most, 1 + int(spare / each)) if each > 0 else self.most


class _Meter(TorchDispatchMode):
    """Counts the bytes of live fake storages, their peak, and real tensors that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._live: set[int] = set()
        self._captured: dict[int, int] = {}

    @property
    def captured(self) -> int:
        return sum(self._captured.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in read:
            if not isinstance(tensor, FakeTensor | nn.Parameter):
                self._captured[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        result = func(*args, **(kwargs or {}))
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in written:
            self._hold(tensor.untyped_storage())
        if str(func.overloadpacket) in _REORDERING:
            copies = sum(t.numel() * t.element_size() for t in (*read, *written) if not isinstance(t, nn.Parameter))
            self.peak = max(self.peak, self.now + copies)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live.add(key)
        self.now += size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


def footprint(
    function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, most: int, checkpoint: bool = False
) -> Footprint:
    """What products with the Jacobian of `function` at `point` (1, *shape_in) take. No numbers are computed."""
    captured = kept = 0
    jvp, vjp, largest = [], [], []
    empty = partial(torch.empty, dtype=point.dtype, device=point.device)
    for count in (1, most):
        with FakeTensorMode(allow_non_fake_inputs=True), _Meter() as meter:
            push(function, empty(point.shape), empty((count, *point.shape)))
        jvp.append(meter.peak)
        largest.append(meter.largest)
        with FakeTensorMode(allow_non_fake_inputs=True), _Meter() as meter:
            leaf = empty(point.shape).requires_grad_()
            output = record(function, leaf, checkpoint)
            kept, captured = meter.now, meter.captured
            building, meter.peak = meter.peak, meter.now
            pull(output, leaf, empty((count, *output.shape)))
        vjp.append(max(meter.peak, building) - kept)
    in_heap = point.device.type == "cpu" and largest[0] < _HEAP_LIMIT
    slack = _HEAP_SLACK if in_heap else _SLACK
    scaled = [math.ceil(slack * value) for value in (kept, *jvp, *vjp)]
    return Footprint(captured, scaled[0], (scaled[1], scaled[2]), (scaled[3], scaled[4]), most)


def blocks_within(
    budget: int, weights: int, function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor, most: Blocks
) -> Blocks:
    """The largest blocks, no larger than `most`, whose passes fit in `budget` bytes beside `weights` bytes.

    The graph is checkpointed where it leaves no room for one vector otherwise. Cost: no product and no pass.

    Raises:
        InputError: not even one vector fits; the message says what is needed.
    """
    need = 0
    for checkpoint in (most.checkpoint, True):
        found = footprint(function, point, max(most.jvp, most.vjp), checkpoint)
        need = weights + found.least
        if need <= budget:
            room = budget - weights
            jvp, vjp = found.vectors(found.jvp, room), found.vectors(found.vjp, room)
            return Blocks(min(most.jvp, jvp), min(most.vjp, vjp), checkpoint)
    raise InputError(
        "memory", f"{budget:,} bytes", f"at least {need:,} bytes for one product of this model at a time",
        "Raise the budget, or leave it out.",
    )  # fmt: skip


def pictures_at_once(
    denoiser: Denoiser, t: int, most: int, memory: int | None = None, *, backward: bool = False
) -> int:
    """How many pictures, 1 to `most`, may go through a network together; one even where that is too much.

    With a budget, as many as fit in `memory` bytes beside the weights: a pass at timestep `t`, decoding included, and
    with `backward` the way back to x_t. Without one, as many as have `PIXELS` pixels. No numbers are computed.
    """
    info = denoiser.info
    if memory is None or most <= 1:
        return min(most, max(1, PIXELS // math.prod(info.image_shape[1:])))
    key = (info.fingerprint, info.x_shape, denoiser.dtype, denoiser.device, most, backward)
    if key not in _peaks:
        _peaks[key] = _ends(denoiser, t, most, backward)
    one, all_of_them = _peaks[key]
    spare, each = memory - info.parameters * denoiser.dtype.itemsize - one, (all_of_them - one) / (most - 1)
    return max(1, min(most, 1 + math.floor(spare / max(each, 1.0))))


_peaks: dict[tuple[object, ...], tuple[int, int]] = {}  # of one picture and of the most, by what they depend on


def _ends(denoiser: Denoiser, t: int, most: int, backward: bool) -> tuple[int, int]:
    """Bytes that passes of 1 and of `most` pictures take, besides the weights."""
    network, meters = denoiser.differentiable(), []
    for count in (1, most):
        with torch.set_grad_enabled(backward), FakeTensorMode(allow_non_fake_inputs=True), _Meter() as meter:
            x = torch.empty((count, *denoiser.info.x_shape), dtype=denoiser.dtype, device=denoiser.device)
            picture = network.predicted_picture(x.requires_grad_(backward), t)
            if backward:
                torch.autograd.grad(picture.sum(), x)
        meters.append(meter)
    in_heap = denoiser.device.type == "cpu" and meters[0].largest < _HEAP_LIMIT
    slack = _HEAP_SLACK if in_heap else _SLACK
    return math.ceil(slack * meters[0].peak), math.ceil(slack * meters[1].peak)
