"""Operations on a CUDA tensor and a CPU tensor without dimensions: which of them CUDA accepts.

The answers were asked of an H100 (torch 2.11.0+cu130); tests/cuda asks again.
"""

import torch
import torch.nn.functional as F

ACCEPTED = {
    "maximum": lambda x, y, s: torch.maximum(x, s),
    "where": lambda x, y, s: torch.where(x > 0, x, s),
    "lerp": lambda x, y, s: torch.lerp(x, y, s),
    "addcmul": lambda x, y, s: torch.addcmul(x, y, s),
    "pow": lambda x, y, s: torch.pow(x, s),
    "power of a number": lambda x, y, s: torch.pow(s, x),
    "fmod": lambda x, y, s: torch.fmod(x, s),
    "masked_fill": lambda x, y, s: x.masked_fill(x > 0, s),
    "atan2": lambda x, y, s: torch.atan2(x, s),
    "isclose": lambda x, y, s: torch.isclose(x, s),
    "floor division": lambda x, y, s: torch.div(x, s, rounding_mode="floor"),
    "hypot": lambda x, y, s: torch.hypot(x, s),
    "xlogy": lambda x, y, s: torch.xlogy(x, s),
    "greater": lambda x, y, s: x > s,
    "fill_": lambda x, y, s: x.clone().fill_(s),
    "mul_": lambda x, y, s: x.clone().mul_(s),
    "add with alpha": lambda x, y, s: torch.add(x, s, alpha=2),
    "number minus": lambda x, y, s: s - x,
    "fmax": lambda x, y, s: torch.fmax(x, s),
}
REFUSED = {
    "clamp max": lambda x, y, s: torch.clamp(x, max=s),
    "clamp min": lambda x, y, s: torch.clamp(x, min=s),
    "clamp_min": lambda x, y, s: x.clamp_min(s),
    "clamp_": lambda x, y, s: x.clone().clamp_(max=s),
    "addcdiv": lambda x, y, s: torch.addcdiv(x, y, s),
    "isin": lambda x, y, s: torch.isin(x, s),
    "logaddexp": lambda x, y, s: torch.logaddexp(x, s),
    "prelu": lambda x, y, s: F.prelu(x, s),
    "stack": lambda x, y, s: torch.stack([x[0, 0], s]),
    "take": lambda x, y, s: torch.take(x, s.long()),
    "index_select": lambda x, y, s: torch.index_select(x, 0, s.long()),
    "addmm": lambda x, y, s: torch.addmm(s, x, y.t()),
    "addmv": lambda x, y, s: torch.addmv(s, x, y[0]),
    "baddbmm": lambda x, y, s: torch.baddbmm(s, x[None], y.t()[None]),
    "linear bias": lambda x, y, s: F.linear(x, y, s),
    "nextafter": lambda x, y, s: torch.nextafter(x, s),
    "embedding": lambda x, y, s: F.embedding(s.long(), x),
    "searchsorted": lambda x, y, s: torch.searchsorted(x[0], s),
    "polar": lambda x, y, s: torch.polar(x, s),
    "complex": lambda x, y, s: torch.complex(x, s),
    "masked_select": lambda x, y, s: torch.masked_select(x, s > 0),
}
ALL = [(name, function, True) for name, function in ACCEPTED.items()] + [
    (name, function, False) for name, function in REFUSED.items()
]


class Number(torch.nn.Module):
    """Holds a number as a plain tensor attribute, and a matrix as a buffer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("other", torch.rand(3, 4))
        self.number = torch.tensor(0.5)

    def forward(self, x):
        return self.function(x, self.other, self.number)
