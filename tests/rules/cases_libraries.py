"""What public libraries do with tensors, each at its smallest: true findings, and near misses.

The level counts as well: a case that names one has no finding above it.
"""

import collections
import functools

import numpy as np
import torch
from rules.cases import fires, near
from torch import nn
from torch.nn import functional

from ckptool import api


def audit(module, at_most: str = "error", **kwargs):
    report = api.audit(f"{__name__}:{module.__name__}", kwargs=kwargs)
    order = ("note", "warning", "error")
    assert all(order.index(f.level) <= order.index(at_most) for f in report.findings), report
    return report


class MovesByHand(nn.Module):
    """A table of positions that forward takes to its input's device and dtype."""

    def __init__(self):
        super().__init__()
        self.positions = torch.arange(8.0).view(4, 2)

    def forward(self, x):
        assert self.positions.shape[0] == x.shape[0]
        return x + self.positions[: len(x)].to(x.device, dtype=x.dtype)


@fires("CK110", "CK101")
def moved_at_each_step(tmp):
    report = audit(MovesByHand, "warning")
    assert {f.code: f.level for f in report.findings} == {"CK101": "warning", "CK110": "note"}
    return report


class MovesWithoutCast(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = torch.arange(8.0)

    def forward(self, x):
        self.positions = self.positions.to(x.device)
        return x + self.positions


@fires("CK111", "CK101", "CK110")
def moved_and_not_cast(tmp):
    return audit(MovesWithoutCast, "warning")


@near("CK111", "CK101", "CK110")
def cast_at_each_step(tmp):
    return audit(MovesByHand, "warning")


class MovesOnce(nn.Module):
    """One use moves, another does not."""

    def __init__(self):
        super().__init__()
        self.positions = torch.arange(8.0)

    def forward(self, x):
        return x + self.positions.to(x) + self.positions


@fires("CK110", "CK101", "CK111")
def moved_at_one_use_of_two(tmp):
    report = audit(MovesOnce)
    assert "error" in {f.level for f in report.findings if f.code == "CK110"}
    return report


class Scalar(nn.Module):
    """The logarithm of a number: without dimensions it works beside tensors on any device."""

    def __init__(self):
        super().__init__()
        self.log_slope = torch.log(torch.tensor(0.01))

    def forward(self, x):
        return functional.leaky_relu(x) + self.log_slope


@near("CK111", "CK101", "CK110")
def number_as_a_tensor(tmp):
    return audit(Scalar, "note")


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = torch.tensor(0)

    def forward(self, x):
        self.steps += 1
        return x


@fires("CK101", "CK110")
def number_that_forward_changes(tmp):
    report = audit(Counting)
    assert [f.level for f in report.findings if f.code == "CK101"] == ["warning"]
    return report


class Uniform(torch.distributions.Uniform):
    """A class of its own, with bounds that are settings."""


class Augmenting(nn.Module):
    def __init__(self):
        super().__init__()
        self.sampler = Uniform(torch.tensor([0.0]), torch.tensor([1.0]))
        self.others = {"normal": torch.distributions.Normal(0.0, 1.0)}

    def forward(self, x):
        return x + self.sampler.sample(x.shape[:1]).to(x)


@near("CK102")
def samplers(tmp):
    return audit(Augmenting)


class OneElement(nn.Module):
    """With a dimension, a single element has to be on the device."""

    def __init__(self):
        super().__init__()
        self.temperature = torch.tensor([1.0])

    def forward(self, x):
        return torch.sigmoid(self.temperature * x)


@fires("CK110", "CK101", "CK111")
def number_as_a_tensor_with_a_dimension(tmp):
    report = audit(OneElement)
    assert [f.level for f in report.findings if f.code == "CK110"] == ["error"]
    return report


class Placeholder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = torch.empty(0)

    def forward(self, x):
        return x if len(self.weights) == 0 else x * self.weights


@near("CK111", "CK101", "CK110")
def tensor_without_elements(tmp):
    return audit(Placeholder, "note")


class Filled(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = torch.empty(0)

    def forward(self, x):
        self.memory = torch.cat([self.memory, x])
        return self.memory


@fires("CK101", "CK110")
def tensor_that_begins_without_elements(tmp):
    report = audit(Filled)
    assert [f.level for f in report.findings if f.code == "CK101"] == ["warning"]
    return report


class Untouched(nn.Module):
    """Keeps a tensor to be looked at: nothing here computes with it."""

    def __init__(self):
        super().__init__()
        self.edges = torch.arange(4)

    def forward(self, x):
        return x * 2


@fires("CK110", "CK101")
def left_behind_and_not_used(tmp):
    return audit(Untouched, "warning")


class Indices(nn.Module):
    """Indices of a triangle: numpy's integers index tensors on any device."""

    def __init__(self):
        super().__init__()
        self.lower = np.tril_indices(4, k=-1)
        self.frequencies = np.linspace(20.0, 40.0, 4)

    def forward(self, x):
        return x[:, self.lower[0]]


@fires("CK108")
def arrays_that_are_no_state(tmp):
    return audit(Indices, "note")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = np.ones(4)

    def forward(self, x):
        return x * torch.as_tensor(self.scale)


@fires("CK108")
def array_that_forward_computes_with(tmp):
    report = audit(Scaled)
    assert [f.level for f in report.findings] == ["warning"]
    return report


class Choice(nn.Module):
    """Two buffers that this configuration does without."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slopes", None, persistent=False)
        self.register_buffer("scale", None)

    def forward(self, x):
        return x if self.scale is None else x * self.scale


@fires("CK112")
def buffer_that_stays_none(tmp):
    report = audit(Choice, "note")
    assert [f.key for f in report.findings] == ["scale"]
    return report


class Cache(nn.Module):
    """A cache that is never saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        self.cache = x
        return x


@near("CK112")
def cache_that_is_never_saved(tmp):
    return audit(Cache)


class FilledLater(Cache):
    def __init__(self):
        nn.Module.__init__(self)
        self.register_buffer("cache", None)


@fires("CK112")
def buffer_that_forward_fills(tmp):
    report = audit(FilledLater)
    (finding,) = report.findings
    assert finding.level == "warning"
    assert "filled at" in finding.message
    return report


class Reshaping(nn.Module):
    """Layers without a tensor, in a closure and in a list."""

    def __init__(self):
        super().__init__()
        flatten = nn.Flatten()
        self.merge = lambda x: flatten(x)
        self.activations = [nn.ReLU(), nn.Dropout()]


@near("CK103")
def layers_without_tensors(tmp):
    return audit(Reshaping)


class Closing(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.Linear(2, 2)
        self.act = lambda x: layer(x)


@fires("CK103")
def layer_in_a_closure(tmp):
    return audit(Closing)


class Bound(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Linear(2, 2).forward


@fires("CK103")
def layer_behind_a_bound_method(tmp):
    return audit(Bound)


class OwnClosure(nn.Module):
    """A closure over registered layers and over the module itself."""

    def __init__(self):
        super().__init__()
        self.layer = layer = nn.Linear(2, 2)
        self.act = lambda x: layer(self.layer(x))


@near("CK103")
def closure_over_registered_layers(tmp):
    return audit(OwnClosure)


class Slots:
    __slots__ = ("never", "table")

    def __init__(self):
        self.table = torch.zeros(2)


class Hidden(nn.Module):
    """Constant tensors where no list or dict holds them."""

    def __init__(self):
        super().__init__()
        table = torch.ones(2)
        self.layer = nn.Linear(2, 2)
        self.closure = lambda x: x * table
        self.default = lambda x, by=torch.ones(3): x * by  # noqa: B008
        self.slots = Slots()
        self.user = collections.UserDict(a=torch.ones(4))
        self.chain = collections.ChainMap({"b": torch.ones(5)})
        self.layer.register_forward_hook(lambda module, args, out: out * table)
        self.layer.register_forward_pre_hook(functools.partial(_scale, torch.ones(6)))


def _scale(by, module, args):
    return (args[0] * by[:2],)


@fires("CK102", "CK110", "CK111")
def tensors_in_functions_hooks_and_slots(tmp):
    report = audit(Hidden, "warning")
    assert {f.key for f in report.findings if f.code == "CK102"} == {
        "chain.maps[0]['b']",
        "closure.__closure__[0].cell_contents",
        "default.__defaults__[0]",
        "layer._forward_hooks[#0].__closure__[0].cell_contents",
        "layer._forward_pre_hooks[#0].args[0]",
        "slots.table",
        "user.data['a']",
    }
    return report


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask = torch.triu(torch.ones(2, 2))

    def forward(self, x):
        return x @ self.mask


def scripted():
    return torch.jit.script(Plain())


@fires("CK101", "CK110", "CK111")
def attribute_of_a_scripted_module(tmp):
    return audit(scripted)


class Degrees(nn.Module):
    """Keeps a second name of a layer's buffer, for the layer that is built next."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Module()
        self.layer.register_buffer("degrees", torch.arange(3.0))
        self.degrees = self.layer.degrees

    def forward(self, x):
        return x * self.layer.degrees


@fires("CK109")
def second_name_that_forward_does_not_use(tmp):
    return audit(Degrees, "note")


class Stale(Degrees):
    def forward(self, x):
        return x * self.degrees


@fires("CK109")
def second_name_that_forward_uses(tmp):
    report = audit(Stale)
    assert [f.level for f in report.findings] == ["warning"]
    return report
