"""Modules that lose state, one way each, and modules that only look as if they did.

A line that a test asks for ends in a marker: `#: name`.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ckptool.model import ModuleInfo
from ckptool.modules import ModuleSpec, examine_module


def examined(target: object, **kwargs: object) -> ModuleInfo:
    """Examine a class or a factory of an importable module."""
    return examine_module(ModuleSpec(f"{target.__module__}:{target.__qualname__}", kwargs))


class AttrMask(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.fc = nn.Linear(n, n)
        self.mask = torch.tril(torch.ones(n, n))  #: AttrMask.mask

    def forward(self, x):
        return self.fc(x) @ self.mask


class BufMask(AttrMask):
    def __init__(self, n=4):
        nn.Module.__init__(self)
        self.fc = nn.Linear(n, n)
        self.register_buffer("mask", torch.tril(torch.ones(n, n)))


class RandomModes(nn.Module):
    def __init__(self, n=8):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n))
        self.perm = torch.randperm(n)
        self.B = torch.randn(n, n)
        self.C = np.random.randn(n)  # noqa: NPY002 - the global generator is the point

    def forward(self, x):
        return (x[:, self.perm] * self.w) @ self.B


class Queue(nn.Module):
    def __init__(self, k=8):
        super().__init__()
        self.register_buffer("queue", torch.zeros(k))
        self.register_buffer("table", torch.zeros(k))
        self.ptr = 0

    def push(self, value):
        self.queue[self.ptr] = value  #: Queue.queue written
        self.ptr = (self.ptr + 1) % len(self.queue)

    def forward(self, value):
        self.push(value)
        return self.queue.sum() + self.table.sum()


class ListLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.convs = [nn.Linear(4, 4) for _ in range(3)]  #: ListLayers.convs
        self.scales = [nn.Parameter(torch.ones(1))]
        self.banks = {"k": torch.randn(4)}

    def forward(self, x):
        for conv in self.convs:  #: ListLayers.convs used
            x = conv(x)
        return self.head(x) * self.scales[0]


class NonPersist(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("drop_mask", (torch.rand(3) > 0.5).float(), persistent=False)
        self.register_buffer("steps", torch.arange(3.0), persistent=False)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.mean = np.zeros(2)
        self.std = np.ones((2, 3), dtype=np.float32)


class CastMiss(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm_factor = torch.ones(4, 4) * 0.5
        self.index = torch.arange(4)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", None)


class StaleAlias(nn.Module):
    def __init__(self):
        super().__init__()
        self.init_value = torch.tensor([0.4])
        self.register_buffer("radius", self.init_value)
        self.all = [self.radius]


class FollowedAlias(nn.Module):
    """Like an LSTM: registered parameters, once more in a list."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        raw = nn.Parameter(torch.ones(3))
        self.raw = raw
        self.flat = [self.w, raw]


class StaleView(nn.Module):
    """A view of a parameter: .to() gives the parameter another storage."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 3))
        self.row = self.w.data[0]


class OwnApply(nn.Module):
    """Takes its attribute along by hand."""

    def __init__(self):
        super().__init__()
        self.mask = torch.ones(2)
        self.cache = torch.ones(3)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.mask = fn(self.mask)
        self.cache = None
        return self


class Metric(nn.Module):
    """Adds plain attributes to its state_dict, as torchmetrics does."""

    def __init__(self):
        super().__init__()
        self.total = torch.zeros(())
        self.seen = [torch.ones(2), torch.ones(3)]

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        state = super().state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        state[f"{prefix}total"] = self.total
        state[f"{prefix}seen"] = [one.detach() for one in self.seen]
        return state


class Dropping(nn.Module):
    """Leaves a registered parameter out of its state_dict."""

    def __init__(self):
        super().__init__()
        self.kept = nn.Linear(2, 2, bias=False)
        self.frozen = nn.Linear(2, 2, bias=False)

    def state_dict(self):
        return {k: v for k, v in super().state_dict().items() if "frozen" not in k}


class Renaming(nn.Module):
    """A hook takes a prefix away, as activation checkpointing does."""

    def __init__(self):
        super().__init__()
        self._inner = nn.Linear(2, 2, bias=False)
        self._register_state_dict_hook(self._rename)

    @staticmethod
    def _rename(module, state, prefix, metadata):
        state[f"{prefix}weight"] = state.pop(f"{prefix}_inner.weight")


class ExtraState(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def get_extra_state(self):
        return {"scale": 1, "step": 2}

    def set_extra_state(self, state):
        pass


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 2)
        self.head = nn.Linear(2, 4, bias=False)
        self.head.weight = self.embed.weight
        raw = nn.Parameter(torch.ones(3))
        self.one = raw
        self.two = raw
        flat = torch.zeros(6)
        self.low = nn.Parameter(flat[:3])
        self.high = nn.Parameter(flat[3:])


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = AttrMask(2)
        self.b = self.a


@dataclass
class Statistics:
    mean: torch.Tensor
    count: int = 0
    more: list = field(default_factory=list)


class RunningStatistics:
    """A plain class of the user, as reinforcement learning code has them."""

    def __init__(self):
        self.mean = np.zeros(3)
        self.var = torch.ones(3)


def scaled(x, by):
    return x * by


class Containers(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = (torch.ones(1), 2)
        self.bag = {torch.ones(2)}
        self.line = deque([torch.ones(3)])
        self.data = Statistics(torch.ones(4), more=[torch.ones(5)])
        self.space = SimpleNamespace(table=torch.ones(6))
        self.act = partial(scaled, by=torch.ones(7))
        self.stats = RunningStatistics()
        self.layer = partial(nn.Linear(2, 2, bias=False), 1)
        self.deep = [[[[torch.ones(8)]]]]
        self.deeper = [[[[[torch.ones(9)]]]]]
        self.keys = {3: torch.ones(10), ("a", 1): torch.ones(11), Lazy: torch.ones(12)}


class ClassTable(nn.Module):
    table = torch.arange(4.0)  #: ClassTable.table
    shadowed = torch.ones(1)

    def __init__(self):
        super().__init__()
        self.shadowed = torch.zeros(2)


GLOBAL_TABLE = torch.ones(3)
GLOBAL_BACKBONE = nn.Linear(2, 2)
GLOBAL_WEIGHT = nn.Parameter(torch.ones(2))


class FromOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = GLOBAL_BACKBONE
        self.weight = GLOBAL_WEIGHT
        self.table = GLOBAL_TABLE


class FromParameters(nn.Module):
    """The values of a buffer and of an attribute come from a parameter."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("start", self.fc.weight.detach().clone())
        self.norm = self.fc.weight.detach().norm()


class NeedsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = torch.tensor(self.fc.bias.sum().item())


class Parent(nn.Module):
    """A child that knows its parent, without registering it."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(1, 1)
        self.child.up = [self]


class Statistic(nn.Module):
    """Buffers, some of which change after construction."""

    def __init__(self):
        super().__init__()
        for name in ("assigned", "indexed", "added", "data", "out", "initialised", "helper"):
            self.register_buffer(name, torch.zeros(2))
        for name in ("running", "frozen", "moved", "read", "later"):
            self.register_buffer(name, torch.zeros(2))
        self._set_up()

    def _set_up(self):
        self.helper[0] = 1.0

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.moved = self.moved.contiguous()
        return self

    def forward(self, x):
        self.assigned = x  #: Statistic.assigned
        self.indexed[0] = 1.0  #: Statistic.indexed
        self.added.mul_(2).add_(1)  #: Statistic.added
        self.data.data[0] += 1.0  #: Statistic.data
        torch.add(x, 1, out=self.out)  #: Statistic.out
        nn.init.zeros_(self.initialised)  #: Statistic.initialised
        x = functional.batch_norm(x, None, self.frozen, training=False)
        self.read.requires_grad_(False)
        x = functional.batch_norm(x, self.running, None, training=True)  #: Statistic.running
        return x * self.read

    def anneal(self):
        self.later += 1  #: Statistic.later


class Using(nn.Module):
    """Uses its attributes in ways that forward reaches, and in ways that it does not."""

    def __init__(self):
        super().__init__()
        self.direct = torch.ones(1)
        self.helped = torch.ones(1)
        self.by_property = torch.ones(1)
        self.by_name = torch.ones(1)
        self.inherited = torch.ones(1)
        self.passed = torch.ones(1)
        self.unused = torch.ones(1)

    def forward(self, x):
        x = x * self.direct + self._help(x)  #: Using.direct
        x = x + getattr(self, "by_name")  # noqa: B009  #: Using.by_name
        return torch.utils.checkpoint.checkpoint(self._late, x) + self.scale

    def _help(self, x):
        return x + self.helped  #: Using.helped

    def _late(self, x):
        return x + self.passed  #: Using.passed

    @property
    def scale(self):
        return self.by_property  #: Using.by_property

    def debug(self):
        return self.unused


class UsingMore(Using):
    def forward(self, x):
        return super().forward(x) + self.inherited  #: UsingMore.inherited


class Passing(nn.Module):
    """Hands assignments on: the place is that of the caller."""

    def __init__(self):
        super().__init__()
        self.mask = torch.ones(2)  #: Passing.mask
        self.register_buffer(  #: Passing.table
            "table",
            torch.ones(2),
        )

    def __setattr__(self, name, value):
        super().__setattr__(name, value)

    def register_buffer(self, name, tensor, persistent=True):
        super().register_buffer(name, tensor, persistent)


class Sneaky(nn.Module):
    def __init__(self):
        super().__init__()
        object.__setattr__(self, "mask", torch.ones(2))  #: Sneaky.mask
        self.__dict__["other"] = torch.ones(3)  #: Sneaky.other


class OwnLoad(nn.Module):
    _version = 3

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)


class HookedLoad(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(upgrade)


def upgrade(module, state, prefix, metadata, strict, missing, unexpected, errors):
    """Change nothing."""


INSTANCE = AttrMask(3)
NOT_A_MODULE = {"a": 1}


def make_nothing():
    return None


def make_same():
    return INSTANCE


class Builder:
    @classmethod
    def build(cls, n=2):
        return AttrMask(n)


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        raise error  #: Raising


class Forwarding(nn.Module):
    """Finds out about a wrong argument only inside."""

    def __init__(self, **kwargs):
        super().__init__()
        self.fc = nn.Linear(**kwargs)


class Printing(nn.Module):
    def __init__(self):
        super().__init__()
        print("building")  # noqa: T201
        self.w = nn.Parameter(torch.ones(1))

    def state_dict(self, *args, **kwargs):
        print("saving")  # noqa: T201
        return super().state_dict(*args, **kwargs)


class Popping(nn.Module):
    """Changes the arguments that it is given."""

    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.pop("width"), 1)


class BadState(nn.Module):
    def __init__(self, result=None):
        super().__init__()
        self.result = result

    def state_dict(self, *args, **kwargs):
        if self.result is None:
            raise RuntimeError("gather first\nand then")
        return self.result


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask = torch.ones(2)
        self.lock = (i for i in ())


class NonLeaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.twice = self.w * 2
        self.parts = [self.w * 3]


class OddDtypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.bf16 = torch.full((2,), 1.5, dtype=torch.bfloat16)
        self.fp8 = torch.ones(3).to(torch.float8_e4m3fn)
        self.fp16 = torch.ones(2, dtype=torch.float16)
        self.nan = torch.tensor([float("nan")])
        self.complex = torch.tensor([1 + 2j]).conj()
        self.view = torch.arange(6.0).reshape(2, 3).t()
        self.nothing = torch.empty(0)
        self.sparse = torch.eye(2).to_sparse()
        self.quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        self.words = np.array(["a", "bc"])
        self.objects = np.array([None, 1], dtype=object)
        self.big = np.array([1.0, 2.0], dtype=">f4")


class Parted(nn.Module):
    """Says where each draw came from."""

    def __init__(self):
        super().__init__()
        self.register_buffer("random", torch.rand(4))
        self.register_buffer("unseeded", torch.from_numpy(np.random.default_rng().random(4)))
        shape = int(torch.randint(2, 2**30, ())) % 1000 + 2
        self.shape = torch.zeros(shape)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask = torch.ones(2)
        self.register_buffer("mask", self.mask)


class Carrying(nn.Module):
    """Takes tensors to the input's device itself, or reads no more than numbers from them."""

    def __init__(self):
        super().__init__()
        self.moved = torch.ones(1)
        self.indexed = torch.ones(2)
        self.kept = [torch.ones(1)]
        self.number = torch.ones(2)
        self.shape = torch.ones(2)
        self.bare = torch.ones(1)
        self.both = torch.ones(1)
        self.added = torch.ones(1)

    def forward(self, x):
        self._take(x)
        x = x + self.moved.to(x.device) + self.indexed[0].type_as(x) + self.kept[0]
        x = x * int(self.number.max()) + self.shape.shape[0] + self.both.to(x.device)
        return x + self.bare + self.both + self.added.add(x)

    def _take(self, x):
        self.kept = [one.to(x.device) for one in self.kept]
