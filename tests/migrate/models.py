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
