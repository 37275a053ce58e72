"""Sources of classes, from statements."""

from textwrap import dedent, indent

HEAD = """\
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
"""


def make_class(constructor: str, forward: str = "return self.linear(x)", more: str = "") -> str:
    """Return the source of a class Net with these statements."""
    body = indent(dedent(constructor).strip("\n"), " " * 8)
    result = indent(dedent(forward).strip("\n"), " " * 8)
    methods = indent(dedent(more).strip("\n"), " " * 4)
    more_text = f"\n{methods}\n" if methods else ""
    return f"{HEAD}{body}\n\n    def forward(self, x):\n{result}\n{more_text}"
