# ruff: noqa: E501 - sources in strings
"""Classes as popular repositories write them: tensors that move with no module until they are fixed."""

_HEAD = (
    "import numpy as np\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
)

POPULAR_FIXED = {
    "sinusoidal": _HEAD
    + '''class Net(nn.Module):
    """Sinusoidal positions, as in many transformers."""
    def __init__(self, dim=4, max_len=16):
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        inv_freq = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
        pos = torch.arange(max_len)[:, None] * inv_freq
        self.pe = torch.cat((pos.sin(), pos.cos()), dim=-1)

    def forward(self, x):
        return self.proj(x) + self.pe[: x.size(0)].to(x.device)
''',
    "rotary": _HEAD
    + """class Rotary(nn.Module):
    def __init__(self, dim, base=10000):
        super().__init__()
        self.inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.cos_cached = None
        self.sin_cached = None
        self.seq_len_cached = None

    def forward(self, x):
        if x.shape[0] != self.seq_len_cached:
            self.seq_len_cached = x.shape[0]
            t = torch.arange(x.shape[0], device=x.device).type_as(self.inv_freq)
            freqs = torch.einsum("i,j->ij", t, self.inv_freq)
            emb = torch.cat((freqs, freqs), dim=-1)
            self.cos_cached, self.sin_cached = emb.cos(), emb.sin()
        return self.cos_cached, self.sin_cached


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rotary = Rotary(4)
        self.q = nn.Linear(4, 4)

    def forward(self, x):
        cos, sin = self.rotary(x)
        return self.q(x) * cos + x.flip(-1) * sin
""",
    "batchnorm_sub": _HEAD
    + '''class Net(nn.BatchNorm1d):
    """BatchNorm with fixed thresholds."""
    def __init__(self, n=4):
        super().__init__(n)
        self.rmax = torch.tensor(1.0)
        self.steps = torch.zeros(1)

    def forward(self, x):
        return super().forward(x).clamp(max=self.rmax)
''',
    "getattr_numpy": _HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mask_0 = torch.ones(4)
        self.mask_1 = torch.arange(4.0)

    def forward(self, x):
        total = 0.0
        for n in range(2):
            total += float(getattr(self, f"mask_{n}").numpy().sum())
        return self.linear(x) * total
""",
    "property": _HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self._mean = torch.zeros(4)
        self._std = torch.ones(4)

    @property
    def mean(self):
        return self._mean.view(1, -1)

    @property
    def std(self):
        return self._std.view(1, -1)

    def forward(self, x):
        return self.linear((x - self.mean) / self.std)
""",
    "dataclass_config": _HEAD
    + '''from dataclasses import dataclass


@dataclass
class Config:
    dim: int = 4
    betas: int = 3


class Net(nn.Module):
    """A noise schedule, as in diffusion code."""
    def __init__(self, config=None):
        super().__init__()
        self.config = config or Config()
        self.linear = nn.Linear(self.config.dim, self.config.dim)
        self.betas = torch.linspace(1e-4, 0.02, self.config.betas)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.sqrt_one_minus = torch.sqrt(1.0 - self.alphas_cumprod)

    def forward(self, x):
        return self.linear(x) * self.alphas_cumprod[-1].sqrt() + self.sqrt_one_minus[0]
''',
    "list_of_tensors": _HEAD
    + '''class Net(nn.Module):
    """Anchors of each level, as in detectors."""
    def __init__(self, sizes=(1, 2)):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.anchors = [torch.ones(4) * s for s in sizes]

    def forward(self, x):
        out = self.head(x)
        for anchor in self.anchors:
            out = out + anchor.to(x)
        return out
''',
    "dict_of_tensors": _HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.stats = {"mean": torch.zeros(4), "std": torch.ones(4)}

    def forward(self, x):
        return self.head((x - self.stats["mean"]) / self.stats["std"])
""",
    "helper_method": _HEAD
    + '''class Net(nn.Module):
    """A causal mask made in a helper."""
    def __init__(self, n=4):
        super().__init__()
        self.n = n
        self.proj = nn.Linear(n, n)
        self._init_buffers()
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.xavier_uniform_(self.proj.weight)

    def _init_buffers(self):
        self.bias = torch.tril(torch.ones(self.n, self.n)).view(1, self.n, self.n)
        self.masked_bias = torch.tensor(-1e4)

    def forward(self, x):
        w = self.proj(x)[:, None, :].expand(-1, self.n, -1)
        return torch.where(self.bias.bool(), w, self.masked_bias).softmax(-1).sum(1)
''',
    "cuda_ctor": _HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weight = torch.ones(4)
        if torch.cuda.is_available():
            self.weight = self.weight.cuda()

    def forward(self, x):
        return self.linear(x) * self.weight
""",
    "vq_ema": _HEAD
    + '''class Net(nn.Module):
    """A codebook with moving averages, as in VQ-VAE."""
    def __init__(self, n=5, dim=4, decay=0.99):
        super().__init__()
        self.decay = decay
        self.embed = torch.randn(dim, n)
        self.cluster_size = torch.zeros(n)
        self.embed_avg = self.embed.clone()
        self.proj = nn.Linear(4, 4)

    def forward(self, x):
        z = self.proj(x)
        dist = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.embed + self.embed.pow(2).sum(0, keepdim=True)
        ind = (-dist).max(1)[1]
        onehot = F.one_hot(ind, self.embed.shape[1]).type(z.dtype)
        if self.training:
            with torch.no_grad():
                self.cluster_size.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
                self.embed_avg.mul_(self.decay).add_(z.t() @ onehot, alpha=1 - self.decay)
        return F.embedding(ind, self.embed.t()) + z
''',
    "moco_queue": _HEAD
    + '''class Net(nn.Module):
    """A queue of keys, as in MoCo."""
    def __init__(self, dim=4, K=6):
        super().__init__()
        self.K = K
        self.encoder = nn.Linear(dim, dim)
        self.queue = F.normalize(torch.randn(dim, K), dim=0)
        self.queue_ptr = torch.zeros(1, dtype=torch.long)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys):
        ptr = int(self.queue_ptr)
        self.queue[:, ptr : ptr + keys.shape[0]] = keys.T
        self.queue_ptr[0] = (ptr + keys.shape[0]) % self.K

    def forward(self, x):
        q = self.encoder(x)
        logits = q @ self.queue.clone().detach()
        if self.training:
            self._dequeue_and_enqueue(q)
        return logits
''',
    "mel": _HEAD
    + '''class Net(nn.Module):
    """A filter bank computed with numpy."""
    def __init__(self, n=4):
        super().__init__()
        self.linear = nn.Linear(n, n)
        window = np.hanning(n).astype(np.float32)
        self.window = torch.from_numpy(window)
        fb = np.eye(n, dtype=np.float32)
        self.fb = torch.tensor(fb, dtype=torch.float32)

    def forward(self, x):
        return self.linear(x * self.window) @ self.fb
''',
    "normalizer": _HEAD
    + '''class Net(nn.Module):
    """ImageNet-like statistics given as arguments."""
    def __init__(self, mean=(0.485, 0.456, 0.406, 0.5), std=(0.229, 0.224, 0.225, 0.5)):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mean = torch.tensor(mean).view(1, -1)
        self.std = torch.tensor(std).view(1, -1)

    def forward(self, x):
        return self.linear((x - self.mean.to(x.device)) / self.std.to(x.device))
''',
    "relative_index": _HEAD
    + '''class WindowAttention(nn.Module):
    """Relative position index, as in Swin."""
    def __init__(self, size=2, heads=1):
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        coords = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        flat = torch.flatten(coords, 1)
        rel = flat[:, :, None] - flat[:, None, :]
        rel = rel.permute(1, 2, 0).contiguous()
        rel[:, :, 0] += size - 1
        rel[:, :, 1] += size - 1
        rel[:, :, 0] *= 2 * size - 1
        self.relative_position_index = rel.sum(-1)

    def forward(self, x):
        bias = self.table[self.relative_position_index.view(-1)].view(4, 4)
        return x @ bias


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = WindowAttention()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.attn(self.fc(x))
''',
    "blur_kernel": _HEAD
    + '''class Blur(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        k = torch.tensor(kernel, dtype=torch.float32)
        k = k / k.sum()
        self.kernel = k[None, None, :]

    def forward(self, x):
        return F.conv1d(x[:, None], self.kernel, padding=1)[:, 0]


class Net(nn.Module):
    """A fixed blur, as in StyleGAN."""
    def __init__(self):
        super().__init__()
        self.blur = Blur([1, 2, 1])
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.blur(self.fc(x))
''',
    "conv_sub": _HEAD
    + '''class Net(nn.Linear):
    """A masked layer, as in MADE."""
    def __init__(self, n=4):
        super().__init__(n, n)
        self.mask = torch.tril(torch.ones(n, n))

    def set_mask(self, mask):
        self.mask.data.copy_(torch.from_numpy(mask.astype(np.uint8).T))

    def forward(self, x):
        return F.linear(x, self.mask * self.weight, self.bias)
''',
    "loss_weights": _HEAD
    + '''class Net(nn.Module):
    """Weights of classes for a loss."""
    def __init__(self, weight=None, device="cpu"):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weight = torch.ones(4, device=device) if weight is None else torch.as_tensor(weight)

    def forward(self, x):
        return F.softmax(self.linear(x) * self.weight, dim=-1)
''',
    "ewc": _HEAD
    + '''class Net(nn.Module):
    """Keeps old parameters by name, as in EWC."""
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        for n, p in self.linear.named_parameters():
            setattr(self, f"{n}_mean", p.data.clone())

    def forward(self, x):
        penalty = sum((getattr(self, f"{n}_mean") - p).pow(2).sum() for n, p in self.linear.named_parameters())
        return self.linear(x) + penalty
''',
    "grid_lambda": _HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.grid, self.scale = torch.linspace(-1, 1, 4), torch.tensor(2.0)

    def forward(self, x):
        return self.linear(x) * self.grid + self.scale
""",
    "half_reg": _HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.var = torch.ones(4)
        self.count = torch.tensor(1e-4)

    @torch.no_grad()
    def update(self, x):
        delta = x.mean(0) - self.mean
        tot = self.count + x.shape[0]
        self.mean = self.mean + delta * x.shape[0] / tot
        self.var = self.var * 0.9 + x.var(0) * 0.1
        self.count = tot

    def forward(self, x):
        if self.training:
            self.update(x)
        return self.linear((x - self.mean) / (self.var + 1e-5).sqrt())
""",
    "dataclass_module": _HEAD
    + """from dataclasses import dataclass


@dataclass(eq=False)
class Net(nn.Module):
    size: int = 4
    decay: float = 0.9

    def __post_init__(self):
        super().__init__()
        self.linear = nn.Linear(self.size, self.size)
        self.ema = torch.zeros(self.size)

    def forward(self, x):
        if self.training:
            self.ema = self.decay * self.ema + (1 - self.decay) * x.detach().mean(0)
        return self.linear(x) - self.ema
""",
}  # fmt: skip
"""Name of a file -> its source, which has a class Net."""

POPULAR_REFUSED = {
    "module_setattr": (
        _HEAD
        + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        nn.Module.__setattr__(self, "mask", torch.ones(4))

    def forward(self, x):
        return self.linear(x) * self.mask
""",
        "bound by __setattr__(): write self.register_buffer",
    ),
    "object_setattr": (
        _HEAD
        + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        object.__setattr__(self, "mask", torch.ones(4))

    def forward(self, x):
        return self.linear(x) * self.mask
""",
        "bound by __setattr__(): write self.register_buffer",
    ),
    "forward_cache": (
        _HEAD
        + '''class Net(nn.Module):
    """A key cache that forward keeps."""
    def __init__(self):
        super().__init__()
        self.k = nn.Linear(4, 4)
        self.cache = torch.zeros(2, 4)

    def forward(self, x):
        self.cache = self.k(x).detach()
        return self.cache + x
''',
        "it is assigned twice",
    ),
}  # fmt: skip
"""Name of a file -> its source, and a part of the reason."""
