"""Ways to assign an attribute; a line that a test asks for ends in a marker: `#: name`."""

from dataclasses import dataclass, field

import torch
from torch import nn


class TableMixin:
    def make_table(self):
        self.mixed = torch.ones(2)  #: mixed


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.based = torch.ones(2)  #: based
        self.reset_parameters()

    def reset_parameters(self):
        self.reset = torch.ones(1)  #: reset


class Assigning(TableMixin, Base):
    declared: torch.Tensor = torch.ones(1)  #: declared

    def __init__(self):
        super().__init__()
        self.make_table()
        self.one, self.two = torch.ones(1), torch.ones(2)  #: two
        self.first, (self.rest, _) = torch.ones(1), torch.ones(2)  #: rest
        self.annotated: torch.Tensor = torch.ones(3)  #: annotated
        self.chained = self.again = torch.ones(1)  #: again
        self.walrus = (count := torch.ones(2))  #: walrus
        vars(self).update(updated=count + 1)  #: updated
        self.__dict__.update({"literal": torch.ones(2)})  #: literal
        self.late()
        self.through = torch.ones(2)
        for i in range(2):
            self.register_buffer(f"level_{i}", torch.ones(2), persistent=False)  #: level_1

    def late(self):
        self.later = torch.ones(2)  #: later

    @property
    def through(self):
        return self._through

    @through.setter
    def through(self, value):
        self._through = value  #: _through


@dataclass(eq=False)
class Fields(nn.Module):
    table: torch.Tensor = field(default_factory=lambda: torch.ones(2))  #: table

    def __post_init__(self):
        super().__init__()
        self.post = torch.ones(2)  #: post


class Computed(nn.Module):
    """Only running it tells which names it assigns."""

    def __init__(self):
        super().__init__()
        for name in ("left", "right"):
            setattr(self, name, torch.ones(2))  #: right
        self.grown = torch.ones(1)
        self.grown = self.grown * 2  #: grown


def built():
    module = nn.Linear(2, 2)
    module.outside = torch.ones(2)  #: outside
    return module
