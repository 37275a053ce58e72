"""Small modules for the levels of a verification, each with one thing about it."""

import torch
from torch import nn


class Plain(nn.Module):
    """Nothing is wrong with it, and it says itself what it takes."""

    def __init__(self, size=4):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.register_buffer("scale", torch.full((size,), 2.0))

    def forward(self, x):
        return self.body(x) * self.scale

    def example_inputs(self):
        return torch.linspace(-1, 1, 8).reshape(2, 4)


class Silent(Plain):
    """Says nothing about its inputs."""

    example_inputs = None


class WithoutScale(nn.Module):
    """Plain as it was before: the scale is a plain attribute."""

    def __init__(self, size=4):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.scale = torch.full((size,), 2.0)

    def forward(self, x):
        return self.body(x) * self.scale


class Other(Plain):
    """Computes something else from the same state."""

    def forward(self, x):
        return super().forward(x) + 1e-3


class TwoMasks(Plain):
    """Leaves two tensors behind, and uses both."""

    def __init__(self):
        super().__init__()
        self.first = torch.ones(4)
        self.parts = {"second": torch.ones(4)}

    def forward(self, x):
        y = super().forward(x) * self.first
        return y + self.parts["second"]


class RandomTable(Plain):
    """Draws a table that it does not save: every instance is another model."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(4)

    def forward(self, x):
        return super().forward(x) + self.table.to(x.device)


class Tables(Plain):
    """Holds state in every way that a state_dict misses, and one that is meant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", torch.arange(4.0), persistent=False)
        self.register_buffer("order", torch.arange(4))
        self.register_buffer("on", torch.tensor([True, False]))
        self.register_buffer("halves", torch.ones(4, dtype=torch.float8_e4m3fn))
        self.register_buffer("huge", torch.tensor([1e30, float("inf"), float("nan")]))
        self.plain = torch.ones(2)
        self.listed = [torch.ones(2)]
        import numpy as np

        self.mean = np.ones(3, dtype=np.float32)
        self.view = self.scale[1:]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x))


class OnlyOnCuda(Plain):
    def forward(self, x):
        if x.is_cuda:
            raise NotImplementedError("the fast kernel is not built here")
        return super().forward(x)


class Raises(Plain):
    def forward(self, x):
        raise ValueError("there is no such thing")


class Unsteady(Plain):
    """Counts its instances, so that no two of them compute the same."""

    made = 0

    def __init__(self):
        super().__init__()
        Unsteady.made += 1
        self.number = Unsteady.made

    def forward(self, x):
        return super().forward(x) + self.number


class WithExtra(Plain):
    """Saves more than tensors."""

    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        assert state == {"steps": 3}


class Renaming(Plain):
    """Takes files of its first version, where the scale had another name."""

    def _load_from_state_dict(self, state, prefix, *rest):
        if prefix + "gain" in state:
            state[prefix + "scale"] = state.pop(prefix + "gain")
        super()._load_from_state_dict(state, prefix, *rest)


class Lightning(Silent):
    example_input_array = torch.zeros(1, 4)


class Transformers(Silent):
    @property
    def dummy_inputs(self):
        return {"x": torch.zeros(1, 4)}


class Counting(Plain):
    """Keeps a flag and a counter in Python, and a mean in a buffer."""

    def __init__(self):
        super().__init__()
        self.ready = False
        self.calls = 0
        self.cache = None
        self.recent = torch.zeros(4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.ready = True
        self.calls += 1
        self.recent = self.recent + x.mean(0).cpu()
        self.mean.add_(x.mean(0))
        return super().forward(x)


def batch():
    return {"x": torch.ones(3, 4)}


def failing():
    raise RuntimeError("no data here")


INSTANCE = Plain()
