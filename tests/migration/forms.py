"""Modules whose parameters torch's norms and masks compute, in every style, and plain."""

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

LAYERS = {
    "linear": lambda: nn.Linear(3, 4),
    "square linear": lambda: nn.Linear(4, 4),
    "conv1d": lambda: nn.Conv1d(3, 4, 2),
    "conv2d": lambda: nn.Conv2d(2, 3, 2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "conv1d of one channel": lambda: nn.Conv1d(1, 1, 3),
    "transposed conv1d": lambda: nn.ConvTranspose1d(3, 4, 2),
    "transposed conv2d": lambda: nn.ConvTranspose2d(4, 4, 3),
    "embedding": lambda: nn.Embedding(5, 3),
    "lstm": lambda: nn.LSTM(3, 4),
}
SHAPES = {
    "linear": (5, 3), "square linear": (5, 4), "conv1d": (2, 3, 5), "conv2d": (2, 2, 4, 5),
    "conv3d": (2, 2, 3, 4, 5), "conv1d of one channel": (2, 1, 5), "transposed conv1d": (2, 3, 5),
    "transposed conv2d": (2, 4, 3, 3), "lstm": (6, 2, 3),
}  # fmt: skip
STYLES = {
    "plain": lambda layer, name, **_: layer,
    "old weight norm": nn.utils.weight_norm,
    "new weight norm": parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "new spectral norm": parametrizations.spectral_norm,
    "pruned": lambda layer, name: prune.l1_unstructured(layer, name, 0.5),
    "orthogonal": parametrizations.orthogonal,
}


def wrap(layer: nn.Module, style: str, name: str, **options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        STYLES[style](layer, name, **options)


def make_input(layer: str, dtype: torch.dtype) -> torch.Tensor:
    if layer == "embedding":
        return torch.tensor([[0, 4], [2, 1]])
    torch.manual_seed(7)
    return torch.randn(SHAPES[layer], dtype=dtype)


class Wrapped(nn.Module):
    """One layer with what `style` puts around one of its parameters, beside a plain layer."""

    def __init__(
        self, style: str = "plain", layer: str = "linear", dtype: str = "float32", **options
    ) -> None:
        super().__init__()
        self.layer = LAYERS[layer]()
        wrap(self.layer, style, "weight_hh_l0" if layer == "lstm" else "weight", **options)
        self.scale = nn.Parameter(torch.ones(()))
        self.to(getattr(torch, dtype))

    def forward(self, x):
        found = self.layer(x)
        return self.scale * (found[0] if isinstance(found, tuple) else found)


def weight_normed() -> Wrapped:
    return Wrapped("old weight norm")


class Vocoder(nn.Module):
    """Several normed layers of several kinds, nested, and one that is not."""

    def __init__(self, styles: tuple[str, ...] = ("plain",) * 4) -> None:
        super().__init__()
        self.pre = nn.Conv1d(2, 8, 3, padding=1)
        self.ups = nn.ModuleList([nn.ConvTranspose1d(8, 4, 2), nn.ConvTranspose1d(4, 4, 2)])
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1))])
        self.post = nn.Conv1d(4, 1, 3)
        layers = (self.pre, self.ups[0], self.ups[1], self.blocks[0][1])
        for layer, style in zip(layers, styles, strict=True):
            wrap(layer, style, "weight")

    def forward(self, x):
        x = self.pre(x)
        for up in self.ups:
            x = up(x)
        return self.post(self.blocks[0](x))


class TiedPair(nn.Module):
    """Two names of one layer."""

    def __init__(self, style: str = "plain") -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        wrap(self.a, style, "weight")
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x))


class Doubled(nn.Module):
    """Stateless, and a parametrization all the same."""

    def forward(self, weight):
        return weight * 2

    def right_inverse(self, weight):
        return weight / 2


class Scaled(nn.Module):
    """A user's own parametrization, with the same keys and shapes as a weight norm of torch's."""

    def forward(self, scale, weight):
        return scale * weight

    def right_inverse(self, weight):
        return torch.ones(len(weight), 1), weight


class OwnNorm(nn.Module):
    """A user's own layer, with the names of torch's weight norm and another computation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(4, 1))
        self.weight_v = nn.Parameter(torch.randn(4, 3))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x @ (self.weight_g.exp() * self.weight_v).T + self.bias


class Stacked(nn.Module):
    """A layer with what each of `parts` puts around its weight, in this order."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        for part in parts:
            if part in STYLES:
                wrap(self.layer, part, "weight")
            else:
                own = Doubled() if part == "doubled" else Scaled()
                register_parametrization(self.layer, "weight", own)

    def forward(self, x):
        return self.layer(x)


def stacked(parts: str = ""):
    return Stacked(*parts.split(", ")) if parts else Stacked()


def own_norm():
    module = Stacked()
    module.layer = OwnNorm()
    return module


class Attention(nn.Module):
    """torch's attention with its three projections in one tensor or, as for kdim, in three."""

    def __init__(self, *, split: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)
        if split:
            make_separate(self.attn)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


def make_separate(attention: nn.MultiheadAttention) -> None:
    """Give the attention three weights, as torch does where kdim or vdim differs from the rest."""
    weights = attention.in_proj_weight.detach().chunk(3)
    attention.register_parameter("in_proj_weight", None)
    for name, weight in zip(("q", "k", "v"), weights, strict=True):
        setattr(attention, f"{name}_proj_weight", nn.Parameter(weight.clone()))
    attention._qkv_same_embed_dim = False


class OwnAttention(nn.Module):
    """A user's attention: names that many have, and heads as in torch's, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.attn, name, nn.Linear(8, 8))
