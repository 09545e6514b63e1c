"""Run a real training step without computing it: shapes, memory and work are those of the step, floats have no values.

torch's ``FakeTensorMode`` gives every tensor its shape and dtype, and no memory. What a step looks at to go on (token
ids, labels, masks, lengths) must have values, so `DryRun` computes these for real: whatever follows from the batch's
integers alone. All other numbers are unknown, and count as finite, equal and 0 where code looks at them.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

Part = Literal["weights", "gradients", "optimizer", "logits", "activations"]

_MOST_KNOWN: Final = 2**22
"""Elements of a tensor whose values are computed; what a step looks at is far smaller."""

_INDEXED: Final = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)
_FREE: Final = (aten.detach.default, aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = [tensor.shape for tensor in (gradient, query, key, value)]
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


_ATTENTION: Final[dict[Any, Callable[..., int]]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
"""FLOPs of attention in one kernel, which torch's counter knows on GPUs only."""


@dataclass
class Work:
    """What was done.

    Attributes:
        matmul: FLOPs of matrix products but those of attention; a multiplication and an addition are two.
        attention: FLOPs of attention's products.
        moved: bytes read and written by all other operations.
    """

    matmul: float = 0.0
    attention: float = 0.0
    moved: float = 0.0


@dataclass
class LiveBytes:
    """Bytes of the tensors that are alive, by what they are for.

    Attributes:
        now: at present.
        peak: where their sum was largest since `restart`.
    """

    now: Counter[Part] = field(default_factory=Counter)
    peak: Counter[Part] = field(default_factory=Counter)
    _parts: dict[int, tuple[Part, int, Any]] = field(default_factory=dict)

    def add(self, tensor: Tensor, part: Part) -> None:
        """Count a tensor's memory, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._parts:
            return
        size = storage.nbytes()
        self._parts[key] = part, size, weakref.ref(storage, lambda _: self._drop(key))
        self.now[part] += size
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    def name(self, tensor: Tensor, part: Part) -> None:
        """Say what a tensor is for."""
        self.add(tensor, part)
        key = tensor.untyped_storage()._cdata
        before, size, ref = self._parts[key]
        self.now[before] -= size
        self.now[part] += size
        self._parts[key] = part, size, ref

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now.copy()

    def _drop(self, key: int) -> None:
        part, size, _ = self._parts.pop(key)
        self.now[part] -= size


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, tensors are fakes, `live` counts their memory and `work` what is done."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fakes = FakeTensorMode()
        self.vocabulary, self.hidden = 0, 0
        """Size of the output head: what is as wide counts as logits."""
        self.live = LiveBytes()
        self.work = Work()
        self.values = WeakTensorKeyDictionary()
        self.counts = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not aten.lift_fresh.default:  # Which makes a fake of what Python gives.
            args, kwargs = tree_map(self._as_fake, (args, kwargs))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = all(self.is_known(tensor) for tensor in given)
        if torch.Tag.data_dependent_output in func.tags:
            return self._computed(func, args, kwargs) if known else self._unknown(func, args)
        if func in _INDEXED:
            args = (args[0], self._positions(args[1]), *args[2:])
        elif func is aten.masked_select.default:
            func, args = aten.index.Tensor, (args[0].expand(args[1].shape), self._positions([args[1]]))
        elif torch.Tag.dynamic_output_shape in func.tags:
            return tree_map(self.put, self._computed(func, args, kwargs))
        made = func(*args, **kwargs)
        # What it remembers by weak references would keep a module's ``to`` from working, which peft calls.
        self.fakes.fake_tensor_converter.tensor_memo.clear()
        outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        if known and outputs and all(self._is_kept(tensor, given) for tensor in outputs):
            reals = [leaf for leaf in tree_leaves(self._computed(func, args, kwargs)) if isinstance(leaf, Tensor)]
            for fake, real in zip(outputs, reals, strict=True):
                self.values[fake] = real
        elif func._schema.is_mutable:
            for tensor in outputs:
                self.values.pop(tensor, None)  # type: ignore[no-untyped-call]
        elif func._overloadpacket is aten.sort:  # Of equal numbers, so that they stay where they are.
            self.values[made[1]] = self._unsorted(made[1], kwargs.get("dim", -1))
        if self.counts:
            self._count(func, args, kwargs, given, made, outputs)
        return made

    def is_known(self, tensor: Tensor) -> bool:
        """Whether a tensor has values."""
        return not isinstance(tensor, FakeTensor) or tensor in self.values

    def value(self, tensor: Tensor) -> Tensor:
        """The values of a tensor that has some.

        Raises:
            UnknownValueError: it has none.
        """
        if not self.is_known(tensor):
            raise UnknownValueError("a step that depends on computed numbers cannot be planned without computing it")
        found: Tensor = self.values.get(tensor, tensor)  # type: ignore[no-untyped-call]
        return found

    def put(self, real: Tensor) -> FakeTensor:
        """A fake of a tensor, which keeps its values."""
        fake = self.fakes.from_tensor(real)
        self.values[fake] = real
        return fake

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count memory and work within."""
        self.counts = True
        try:
            yield
        finally:
            self.counts = False

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Count nothing within."""
        before, self.counts = self.counts, False
        try:
            yield
        finally:
            self.counts = before

    @contextmanager
    def on(self) -> Iterator["DryRun"]:
        """Everything within is a dry run."""
        with ExitStack() as stack:
            stack.enter_context(self.fakes)
            stack.enter_context(self)
            stack.enter_context(_Looks(self))
            yield self

    def _is_kept(self, tensor: Tensor, given: list[Tensor]) -> bool:
        """Whether values are computed: not of what is large, nor of new weights, which are made of nothing."""
        return tensor.numel() <= _MOST_KNOWN and (bool(given) or not tensor.is_floating_point())

    def _as_fake(self, leaf: Any) -> Any:
        is_real = isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
        return self.put(leaf) if is_real else leaf

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        def real(leaf: Any) -> Any:
            return self.value(leaf) if isinstance(leaf, Tensor) else leaf

        with _disable_current_modes(), torch.no_grad():
            return func(*tree_map(real, args), **tree_map(real, kwargs))

    def _unknown(self, func: Any, args: Any) -> Any:
        return True if func is not aten._local_scalar_dense.default else 0.0 if args[0].is_floating_point() else 0

    def _positions(self, indices: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Indices with masks as the positions that they choose."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                with _disable_current_modes():
                    positions = self.value(index).nonzero(as_tuple=True)
                found += [self.put(position) for position in positions]
            else:
                found.append(index)
        return found

    def _unsorted(self, order: Tensor, dim: int) -> Tensor:
        """The order of numbers that are sorted already, of the shape of another one."""
        with _disable_current_modes():
            places = torch.arange(order.shape[dim] if order.dim() else 1)
            return places.expand(order.transpose(dim, -1).shape).transpose(dim, -1) if order.dim() else places[0]

    def _part(self, tensor: Tensor) -> Part:
        """What a new tensor is for, before anything else is known of it."""
        if self.vocabulary and tensor.dim() == 2 and tensor.is_floating_point():
            if tensor.shape[1] == self.vocabulary:
                return "logits"
            if tensor.shape == (self.vocabulary, self.hidden):  # Of embedding or head.
                return "gradients"
        return "activations"

    def _count(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: Any, outputs: list[Tensor]) -> None:
        for tensor in outputs:
            self.live.add(tensor, self._part(tensor))
        packet = func._overloadpacket
        if func in _ATTENTION:
            self.work.attention += _ATTENTION[func](*args, **kwargs)
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=made)
            batched = packet in (aten.bmm, aten.baddbmm) or "attention" in str(packet)
            self.work.attention += flops if batched else 0
            self.work.matmul += 0 if batched else flops
        elif not (func.is_view or func in _FREE):
            self.work.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *outputs))


class UnknownValueError(Exception):
    """A step looks at numbers that a dry run does not compute."""


class _Looks(TorchFunctionMode):
    """What looks at values without an operator that a dispatch mode sees."""

    def __init__(self, run: DryRun) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.tolist, torch.Tensor.numpy) and isinstance(args[0], FakeTensor):
            real = self.run.value(args[0])
            with _disable_current_modes():
                return real.tolist() if func is torch.Tensor.tolist else real.numpy()
        if func is torch.Tensor.data_ptr and isinstance(args[0], FakeTensor):
            return 0  # As of every tensor without memory.
        if func in (torch.isfinite, torch.Tensor.isfinite) and not self.run.is_known(args[0]):
            return torch.ones(args[0].shape, dtype=torch.bool, device=args[0].device)
        return func(*args, **(kwargs or {}))
