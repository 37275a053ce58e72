"""Modules whose one buffer is no plain dense tensor, built by name: `make_holder(entry="...")`."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Pair(Tensor):
    """A wrapper subclass of two tensors; each operation is done on both, as torchao does it."""

    @staticmethod
    def __new__(cls, first, second):
        return Tensor._make_wrapper_subclass(cls, first.shape, dtype=first.dtype)

    def __init__(self, first, second):
        self.first, self.second = first, second

    def __tensor_flatten__(self):
        return ["first", "second"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, _context, _size, _stride):
        return cls(inner["first"], inner["second"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first, second = (
            func(*tree_map(pick, args), **tree_map(pick, kwargs or {}))
            for pick in (lambda t: _get_part(t, "first"), lambda t: _get_part(t, "second"))
        )
        if func is torch.ops.aten.copy_.default:
            return args[0]
        return cls(first, second) if isinstance(first, Tensor) else first


class Quantized(Pair):
    """Eight-bit integers and a scale, as quanto has them; takes only its own kind."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and not all(isinstance(t, cls) for t in args[:2]):
            raise NotImplementedError("only Quantized is copied into Quantized")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Closed(Tensor):
    """A wrapper subclass that does not say what it wraps."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inner_args = tree_map(lambda t: t.inner if isinstance(t, cls) else t, args)
        result = func(*inner_args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            return args[0]
        return cls(result) if isinstance(result, Tensor) else result


class Refusing(Closed):
    """A wrapper subclass, every operation and every description of which raises."""

    def __tensor_flatten__(self):
        raise RuntimeError("no parts today")

    def __repr__(self):
        raise RuntimeError("no text today")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"no {func} today")


class Marked(Tensor):
    """A subclass with memory of its own."""


SUBCLASSES = (Pair, Quantized, Closed, Refusing, Marked)


def _get_part(value: object, name: str) -> object:
    return getattr(value, name) if isinstance(value, Pair) else value


def _quantize(value: Tensor) -> Tensor:
    return Quantized((value * 10).to(torch.int8), torch.full((1,), 0.1))


ENTRIES: Mapping[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.arange(4.0),
    "pair": lambda: Pair(torch.arange(4.0), torch.ones(4)),
    "pair of pairs": lambda: Pair(
        Pair(torch.arange(4.0), torch.ones(4)), Pair(torch.ones(4), torch.ones(4))
    ),
    "quantized wrapper": lambda: _quantize(torch.arange(4.0)),
    "closed wrapper": lambda: Closed(torch.arange(4.0)),
    "refusing wrapper": lambda: Refusing(torch.arange(4.0)),
    "marked": lambda: torch.arange(4.0).as_subclass(Marked),
    "sparse_coo": lambda: torch.eye(4).to_sparse(),
    "uncoalesced": lambda: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (4,)),
    "sparse_csr": lambda: torch.eye(4).to_sparse_csr(),
    "sparse_bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3)], layout=torch.jagged
    ),
    "qint8": lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.1, 0, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(4, 2), torch.ones(4), torch.zeros(4, dtype=torch.long), 0, torch.quint8
    ),
    "meta": lambda: torch.ones(4, device="meta"),
    "conjugate": lambda: torch.ones(4, dtype=torch.complex64).conj(),
    "float8": lambda: torch.arange(4.0).to(torch.float8_e4m3fn),
    "expanded": lambda: torch.ones(1).expand(4),
    "empty": lambda: torch.empty(0),
}


class Holder(nn.Module):
    """A parameter that forward uses, and a buffer of any kind."""

    def __init__(self, entry: str = "plain") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.register_buffer("held", ENTRIES[entry]())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Lazy(nn.Module):
    """Parameters that get their shape from the first input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(3)
        self.norm = nn.LazyBatchNorm1d()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class Net(nn.Module):
    """Parameters and a buffer, with the keys of `Lazy`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))
