"""Modules that keep one thing in several forms: for the cases of rules, and for migrations."""

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune


class Wrapped(nn.Module):
    """One layer with what `style` puts around its weight."""

    def __init__(self, style: str = "plain", layer: str = "linear") -> None:
        super().__init__()
        self.c = nn.Linear(3, 4) if layer == "linear" else nn.ConvTranspose1d(3, 4, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            STYLES[style](self.c)

    def forward(self, x):
        return self.c(x)


STYLES = {
    "plain": lambda layer: layer,
    "old weight norm": nn.utils.weight_norm,
    "new weight norm": parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "new spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


class Attention(nn.Module):
    """Its projections are one tensor or three."""

    def __init__(self, n: int = 4, *, fused: bool = False, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Projections(n, fused=fused) for _ in range(layers))


class _Projections(nn.Module):
    def __init__(self, n: int, *, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(n, 3 * n)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(n, n) for _ in range(3))


class Grouped(nn.Module):
    """Keys and values have fewer heads than queries."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        if fused:
            self.qkv_proj = nn.Linear(8, 12, bias=False)
        else:
            self.q_proj = nn.Linear(8, 8, bias=False)
            self.k_proj, self.v_proj = (nn.Linear(8, 2, bias=False) for _ in range(2))


class Experts(nn.Module):
    """Three layers of one shape that are no query, key and value, or one as large as they are."""

    def __init__(self, *, one: bool = False) -> None:
        super().__init__()
        if one:
            self.all = nn.Linear(4, 12, bias=False)
        else:
            self.gate, self.up, self.down = (nn.Linear(4, 4, bias=False) for _ in range(3))


class Tied(nn.Module):
    """Its head is its embedding."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.emb = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 6, bias=False)
        if tied:
            self.head.weight = self.emb.weight

    def forward(self, x):
        return self.head(self.emb(x))


class Net(nn.Module):
    """Two layers with normalisation between them."""

    def __init__(self, *, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, momentum=momentum)
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


class Scaled(nn.Module):
    """A LayerNorm, and a gamma of its own as ConvNeXt and LayerScale have it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.gamma = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.norm(x) * self.gamma


class Halved(nn.Module):
    """Its second layer does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)
        self.b.requires_grad_(False)


class Masks(nn.Module):
    """Buffers that the constructor makes again, layer by layer, as a refactor brings them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        for number in range(3):
            self.register_buffer(f"mask{number}", torch.tril(torch.ones(2, 2)))


class Gate(nn.Module):
    """A scale and a zero point that have nothing to do with quantisation."""

    def __init__(self, *, offset: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))
        if offset:
            self.zero_point = nn.Parameter(torch.zeros(2))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
