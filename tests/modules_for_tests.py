"""Small modules with the faults that users have, and their near misses without them."""

import collections
import dataclasses

import numpy as np
import torch
from torch import nn


def lower(n: int = 4) -> torch.Tensor:
    return torch.tril(torch.ones(n, n))


class AttributeMask(nn.Module):
    """Its mask is a plain attribute, the same on every construction."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(n, n)
        self.mask = lower(n)

    def forward(self, x):
        return self.fc(x) @ self.mask


class BufferMask(nn.Module):
    """Its mask is a persistent buffer."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(n, n)
        self.register_buffer("mask", lower(n))

    def forward(self, x):
        return self.fc(x) @ self.mask


class UnsavedBufferMask(nn.Module):
    """Its mask is a buffer with persistent=False."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(n, n)
        self.register_buffer("mask", lower(n), persistent=False)


class DoubledUnsavedMask(UnsavedBufferMask):
    """As its base, with another value."""

    def __init__(self, n: int = 4) -> None:
        super().__init__(n)
        self.mask *= 2


class RandomModes(nn.Module):
    """Draws a permutation and a projection in the constructor, and saves neither."""

    def __init__(self, n: int = 8) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n))
        self.perm = torch.randperm(n)
        self.projection = torch.randn(n, n)

    def forward(self, x):
        return (x[:, self.perm] * self.w) @ self.projection


class RandomUnsavedBuffer(nn.Module):
    """A non-persistent buffer that the constructor cannot make again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("drop_mask", torch.rand(3), persistent=False)


class ListLayers(nn.Module):
    """Layers, parameters and tensors in plain containers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.convs = [nn.Linear(4, 4) for _ in range(3)]
        self.scales = [nn.Parameter(torch.ones(1))]
        self.banks = {"k": torch.zeros(4)}


class RegisteredLayers(nn.Module):
    """As ListLayers, held as torch wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.convs = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1))])
        self.register_buffer("bank", torch.zeros(4))


@dataclasses.dataclass
class Options:
    table: torch.Tensor


class DataclassState(nn.Module):
    """A tensor in a dataclass and one in a deque."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.options = Options(torch.arange(3))
        self.recent = collections.deque([torch.zeros(2)])


class NumpyStatistics(nn.Module):
    """Observation statistics as numpy arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.mean = np.zeros(2)

    def forward(self, x):
        return self.fc(x - torch.as_tensor(self.mean).float())


class StaleAlias(nn.Module):
    """A list that keeps a reference to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("radius", torch.tensor([0.4]))
        self.all = [self.radius]


class NoneBuffer(nn.Module):
    """A buffer that is filled by the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", None)

    def forward(self, x):
        if self.scale is None:
            self.scale = x.abs().max()
        return x / self.scale


class IntegerAttribute(nn.Module):
    """An integer attribute, which .half() leaves alone as it leaves buffers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.steps = torch.arange(3)


class Rope(nn.Module):
    """A frequency table, persistent or not, of a base that may differ."""

    def __init__(self, theta: float = 10000.0, *, persistent: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer(
            "inv_freq", theta ** (-torch.arange(0, 4, 2) / 4), persistent=persistent
        )

    def forward(self, x):
        return self.fc(x) * torch.cos(3 * self.inv_freq).repeat(2)


class Mixed(nn.Module):
    """A missing key of every kind: learned, recomputable, random, statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("mask", lower())
        self.register_buffer("projection", torch.randn(4, 4))
        self.bn = nn.BatchNorm1d(4)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)


class Tower(nn.Module):
    """Real names that look like wrappers: `module` and `module_list`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(1, 1)
        self.module_list = nn.Linear(1, 1)


class WithLoss(nn.Module):
    """A loss with class weights travels with the model."""

    def __init__(self, *, weighted: bool = True) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.criterion = nn.CrossEntropyLoss(torch.ones(2) if weighted else None)


class ExtraState(nn.Module):
    """Saves a scaling factor by get_extra_state()."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.amax = 1.0

    def get_extra_state(self):
        return {"amax": self.amax}

    def set_extra_state(self, state) -> None:
        self.amax = state["amax"]


class Versioned(nn.Module):
    """Version 1 stored the square root; its loading code squares such files."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest) -> None:
        if (local_metadata.get("version") or 1) < 2:
            state_dict[prefix + "scale"] = state_dict[prefix + "scale"] ** 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Counter(nn.Module):
    """A scalar buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.tensor(0))


class Metric(nn.Module):
    """Its state is a plain attribute that its own state_dict() adds, as torchmetrics does."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(())

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        saved = super().state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        saved[prefix + "total"] = self.total
        return saved


class LayerScale(nn.Module):
    """`gamma` here is a parameter of its own, and no LayerNorm weight under an old name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.gamma = nn.Parameter(torch.ones(2))
