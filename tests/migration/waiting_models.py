"""Modules with a buffer that waits for data, as the field's libraries write them."""

import torch
from torch import nn
from torch.nn import functional


class Router(nn.Module):
    """As DeepSeek's: the training loop writes the bias that balances the experts."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, 3))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))

    def forward(self, x):
        scores = functional.linear(x, self.weight).sigmoid()
        return (scores + self.e_score_correction_bias).topk(2, dim=-1).indices


class Quantizer(nn.Module):
    """A codebook of a VQ-VAE, of zeros until the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 3)
        self.register_buffer("embed", torch.zeros(5, 3))
        self.register_buffer("initted", torch.tensor(0.0))

    def forward(self, x):
        x = self.proj(x)
        return self.embed[torch.cdist(x, self.embed).argmin(-1)]


class Policy(nn.Module):
    """Its inputs are normalised by what the environment showed so far."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.register_buffer("obs_mean", torch.zeros(3))
        self.register_buffer("obs_var", torch.ones(3))

    def forward(self, x):
        return self.head((x - self.obs_mean) / self.obs_var.sqrt())


class Packed(nn.Module):
    """As GPTQ's linear layer: a loader fills it; `g_idx` alone has a structure."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros((1, size), dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros((1, 1), dtype=torch.int32))
        self.register_buffer("scales", torch.zeros((1, size), dtype=torch.float16))
        self.register_buffer("g_idx", torch.tensor([i // 2 for i in range(size)]))
        self.register_buffer("bias", torch.zeros(size))

    def forward(self, x):
        return x @ (self.qweight * self.scales).float().expand(x.shape[-1], -1) + self.bias


class PackedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Packed()

    def forward(self, x):
        return self.layer(x)


class Versioned(nn.Module):
    """Its own loading code takes a file without versions for an old one."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(2.0))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if (local_metadata.get("version") or 1) < 2:
            key = f"{prefix}fc.weight"
            state_dict[key] = state_dict[key].t()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
