"""Releases of one model, and what each of them did to its checkpoints."""

import torch
from torch import nn


class First(nn.Module):
    """The release that users have files of."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(size, size)
        self.norm = nn.BatchNorm1d(size)
        self.register_buffer("mask", torch.tril(torch.ones(size, size)))
        self.scale = torch.linspace(0.5, 1.5, size)

    def forward(self, x):
        return self.norm(self.body(x)) @ self.mask * self.scale.to(x.device)


class Same(First):
    """Another class, and the same promise."""


class WithHead(First):
    """A parameter more: no old file has it."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.head = nn.Linear(size, 1)


class WithTable(First):
    """A constant buffer more: the constructor makes it again."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.register_buffer("table", torch.arange(float(size)))


class Registered(First):
    """Its scale was a plain attribute, and is a buffer."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        scale = self.scale
        del self.scale
        self.register_buffer("scale", scale)


class Unsaved(First):
    """Its mask is not saved any more."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        mask = self.mask
        del self.mask
        self.register_buffer("mask", mask, persistent=False)


class Retabled(WithTable):
    """Its table starts at 1."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.table += 1


class RandomUnsaved(First):
    """As Unsaved, with a value that no constructor makes again."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        del self.mask
        self.register_buffer("mask", torch.rand(size, size), persistent=False)


class WithoutNorm(First):
    """A layer less."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.norm = nn.Identity()


class Renamed(nn.Module):
    """The body has another name."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Linear(size, size)
        self.norm = nn.BatchNorm1d(size)
        self.register_buffer("mask", torch.tril(torch.ones(size, size)))


class Wider(First):
    """A tensor of another shape."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.body = nn.Linear(size, size + 2)


class Halved(First):
    """A buffer of another dtype."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.mask = self.mask.half()


class Upgrading(WithHead):
    """A parameter more, and a hook that fills it in for old files."""

    def _load_from_state_dict(self, state, prefix, *rest):
        state.setdefault(f"{prefix}head.weight", torch.zeros(1, 4))
        state.setdefault(f"{prefix}head.bias", torch.zeros(1))
        super()._load_from_state_dict(state, prefix, *rest)


class Drifting(First):
    """Every key as before, and another forward."""

    def forward(self, x):
        return super().forward(x) * 1.01


class Rounding(First):
    """Computes the same in another order."""

    def forward(self, x):
        return super().forward(x) * (1 + 1e-6)


_PASSES = iter(range(10**6))


class Unsteady(First):
    """Two passes differ."""

    def forward(self, x):
        return super().forward(x) + next(_PASSES)


class Structured(First):
    """Takes and gives more than one tensor."""

    def forward(self, x, *, options):
        out = super().forward(x) + options["shift"]
        return {"out": out, "parts": (out.sum(), options["name"], None)}


class Extra(First):
    """Saves extra state."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Tied(nn.Module):
    """Two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def batch():
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def structured_batch():
    return (batch(),), {"options": {"shift": torch.ones(4), "name": "a"}}


class Constant(First):
    """Takes anything."""

    def forward(self, x):
        return torch.ones(1)
