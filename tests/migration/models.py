"""Small modules whose buffers are constant, random, hidden, or no buffers yet."""

import torch
from torch import nn


class Loose(nn.Module):
    """The old code: `scale` is a plain attribute."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = torch.full((2,), 3.0)


class Scaled(nn.Module):
    """The new code: `scale` is a buffer; `hidden` is one that is not saved."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("scale", torch.full((2,), 3.0))
        self.register_buffer("hidden", torch.ones(2), persistent=False)


class Noisy(nn.Module):
    """`noise` is another one each time."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("noise", torch.randn(2))


class Old(nn.Module):
    """Plain attributes, a plain list of layers, projections apart, a tie."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.ln1 = nn.LayerNorm(4)
        self.ln2 = nn.LayerNorm(4)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.adapters = [nn.Linear(4, 4)]
        self.mean = torch.zeros(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.ln1(self.embed(ids) - self.mean)
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.head(self.adapters[0](self.ln2((q @ k.mT).softmax(-1) @ v)))


class New(nn.Module):
    """The same, refactored: buffers, a ModuleList, other names, one projection."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm1 = nn.LayerNorm(4)
        self.norm2 = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        self.adapters = nn.ModuleList([nn.Linear(4, 4)])
        self.register_buffer("mean", torch.zeros(4))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.norm1(self.embed(ids) - self.mean)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(self.adapters[0](self.norm2((q @ k.mT).softmax(-1) @ v)))
