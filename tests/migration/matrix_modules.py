"""One module as it was (its mask a plain attribute) and as it is (its mask a registered buffer)."""

import copy
from functools import cache

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """What both versions have; the mask is theirs."""

    mask: Tensor

    def __init__(self, tied: bool = False):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.proj = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        scores = self.proj(x) @ x.transpose(-2, -1)
        scores = scores.masked_fill(self.mask != 0, -100.0)
        return self.head(self.norm((scores.softmax(-1) @ x).flatten(0, 1)))


class PlainMask(Attention):
    """The old code: `mask` is an attribute, which state_dict() leaves out."""

    def __init__(self, tied: bool = False):
        super().__init__(tied)
        self.mask = torch.triu(torch.ones(3, 3), diagonal=1)


class BufferMask(Attention):
    """The new code: `mask` is a buffer of the state_dict."""

    def __init__(self, tied: bool = False):
        super().__init__(tied)
        self.register_buffer("mask", torch.triu(torch.ones(3, 3), diagonal=1))


class UnsavedMask(Attention):
    """A module whose files need no migration: `mask` is a buffer that is not saved."""

    def __init__(self, tied: bool = False):
        super().__init__(tied)
        self.register_buffer("mask", torch.triu(torch.ones(3, 3), diagonal=1), persistent=False)


class TiedPlainMask(PlainMask):
    def __init__(self) -> None:
        super().__init__(tied=True)


class TiedBufferMask(BufferMask):
    def __init__(self) -> None:
        super().__init__(tied=True)


class TiedUnsavedMask(UnsavedMask):
    def __init__(self) -> None:
        super().__init__(tied=True)


OLD_CLASSES = {False: PlainMask, True: TiedPlainMask}
NEW_CLASSES = {False: BufferMask, True: TiedBufferMask}
UNSAVED_CLASSES = {False: UnsavedMask, True: TiedUnsavedMask}


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.tensor([[0, 1, 2], [3, 4, 6]]),)


def make_trained_module(tied: bool) -> nn.Module:
    """Return the old module in eval mode, with no value as the constructor makes it.

    It is trained once: with another number of threads the last bits of its statistics differ.
    """
    return copy.deepcopy(_train_module(tied))


@cache
def _train_module(tied: bool) -> nn.Module:
    torch.manual_seed(5)
    module = OLD_CLASSES[tied]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        module(*example_inputs())
    return module.eval()
