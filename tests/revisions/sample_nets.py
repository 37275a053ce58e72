"""One class as it was at each of six revisions; all of them compute the same."""

import torch
from torch import nn

MASK = (1.0, 0.0, 1.0, 0.5)


class _Layers(nn.Module):
    """What no revision changes."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(size, 2)
        self.register_buffer("unused", torch.full((3,), 7.0))
        self.register_buffer("scale", torch.linspace(0.5, 2, size).half())

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor(MASK)
        return self.head(torch.relu(q + k * v) * mask * self.scale.float())


class Net1(_Layers):
    """The first one."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.inp = nn.Linear(size, size)
        self.qkv = nn.Linear(size, 3 * size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(*self.qkv(self.inp(x)).chunk(3, -1))


class Net2(_Layers):
    """`inp` was renamed to `body`."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.body = nn.Linear(size, size)
        self.qkv = nn.Linear(size, 3 * size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(*self.qkv(self.body(x)).chunk(3, -1))


class Net3(Net2):
    """The mask is a buffer."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.register_buffer("mask", torch.tensor(MASK))


class Net4(_Layers):
    """`qkv` is three layers."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.body = nn.Linear(size, size)
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.register_buffer("mask", torch.tensor(MASK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.attend(self.q(x), self.k(x), self.v(x))


class Net5(Net4):
    """The scale is float32."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        self.scale = self.scale.float()


class Net6(Net5):
    """`unused` was dropped."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(size)
        del self.unused


NETS = (Net1, Net2, Net3, Net4, Net5, Net6)


class TiedNet1(nn.Module):
    """An embedding and a head with one weight."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, size)
        self.inp = nn.Linear(size, size)
        self.head = nn.Linear(size, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inp(x))


class TiedNet2(nn.Module):
    """`inp` was renamed to `body`."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, size)
        self.body = nn.Linear(size, size)
        self.head = nn.Linear(size, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class ScriptNet1(nn.Module):
    """A module that torch.jit.script compiles."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.inp = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inp(x))


class ScriptNet2(nn.Module):
    """`inp` was renamed to `body`."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x))
