"""Modules with one buffer in question, each with the code that would write it."""

import math

import torch
from torch import nn
from torch.nn import functional

N = 4
INPUT = torch.linspace(0.5, 2.0, N).repeat(3, 1)


def ema_inplace(average, value, decay):
    average.data.mul_(decay).add_(value, alpha=1 - decay)


class Shift(nn.Module):
    """Adds the buffer to its input."""

    def forward(self, x):
        return x + self.shift


class RouterBias(Shift):
    """As DeepSeek's e_score_correction_bias: a zero buffer that the training loop writes."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("shift", torch.zeros(n))


class PackedWeight(nn.Module):
    """As GPTQ's qweight: zeros until a loader fills them."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("qweight", torch.zeros((n, n), dtype=torch.int32))

    def forward(self, x):
        return x @ self.qweight.float()


class Codebook(nn.Module):
    """As lucidrains' vector quantiser: a helper of the file writes the buffers in place."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("initted", torch.Tensor([False]))
        self.register_buffer("cluster_size", torch.full((n,), 0.5))
        self.register_buffer("embed_avg", torch.eye(n))

    def forward(self, x):
        if self.training:
            self.initted.data.copy_(torch.Tensor([True]))
            ema_inplace(self.cluster_size, x.sum(0), 0.9)
            ema_inplace(average=self.embed_avg, value=x.sum(0), decay=0.9)
        return x @ self.embed_avg / self.cluster_size + self.initted


class ObservationMean(nn.Module):
    """As a normaliser of a reinforcement learner; its count starts at an odd number."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("var", torch.ones(n))
        self.register_buffer("count", torch.tensor(1e-4))

    def update(self, x):
        self.count += len(x)
        self.mean = self.mean + (x.mean(0) - self.mean) * len(x) / self.count
        self.var[:] = x.var(0)

    def forward(self, x):
        return (x - self.mean) / self.var.sqrt() + self.count.log()


class RunningMaximum(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("peak", torch.tensor(-math.inf))
        self.register_buffer("floor", torch.full((1,), torch.finfo(torch.float32).max))

    def forward(self, x):
        if self.training:
            torch.maximum(self.peak, x.max(), out=self.peak)
            setattr(self, "floor", torch.minimum(self.floor, x.min()))  # noqa: B010
        return x.clamp(self.floor.item(), max(self.peak.item(), self.floor.item()))


class Uninitialised(Shift):
    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("shift", torch.empty(n))


class Inner(Shift):
    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("shift", torch.arange(float(n)) / n)
        self.register_buffer("other", torch.arange(float(n)) / n)

    def forward(self, x):
        return x + self.shift * self.other


class ParentCopies(nn.Module):
    """The parent writes the child's buffer, which has structure."""

    def __init__(self):
        super().__init__()
        self.child = Inner()

    def forward(self, x):
        if self.training:
            self.child.shift.copy_(x[0])
        return self.child(x)


class ParentAssigns(ParentCopies):
    def forward(self, x):
        if self.training:
            self.child.shift = x[0].clone()
        return self.child(x)


class OwnLoops(nn.Module):
    """As Lightning's `trainer`: loops over its modules write other attributes of them."""

    def __init__(self, n=N):
        super().__init__()
        self.child = Shift()
        self.child.register_buffer("shift", torch.zeros(n))
        self.register_buffer("scale", torch.arange(float(n)))
        self.register_buffer("level", torch.ones(n))

    def attach(self, owner):
        for child in self.children():
            child.owner = owner

    def forward(self, x):
        if self.training:
            for module in self.modules():
                if hasattr(module, "level"):
                    module.level += 1
        return self.child(x) * self.scale * self.level


class ParentLoops(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Inner(), Inner()])

    def forward(self, x):
        for layer in self.layers:
            if self.training:
                layer.shift.data[:] = x[0]
            x = layer(x)
        return x


class ByRegistry(nn.Module):
    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("shift", torch.arange(float(n)))
        self.register_buffer("scale", torch.arange(float(n)) + 1)
        self.register_buffer("power", torch.arange(float(n)) + 2)
        self.register_buffer("offset", torch.arange(float(n)) + 3)

    def forward(self, x):
        if self.training:
            self._buffers["shift"] = x[0].clone()
            getattr(self, "scale").copy_(x[0])  # noqa: B009
            power = self.power
            power += 1
            for name in ("offset",):
                getattr(self, f"off{name[3:]}").add_(1)
        return x * self.scale + self.shift + self.power + self.offset


class ByHook(Shift):
    """A hook that the constructor defines runs with each forward pass."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("shift", torch.arange(float(n)))
        self.register_buffer("count", torch.full((), 0.5))
        self.register_forward_hook(lambda module, args, output: self.count.add_(1) and None)

        def observe(module, args, output):
            if module.training:
                module.shift.copy_(args[0][0])

        self.register_forward_hook(observe)

    def forward(self, x):
        return super().forward(x) * self.count


class Calibrated(nn.Module):
    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("center", torch.arange(float(n)) + 1)

    def forward(self, x):
        return x - self.center


def calibrate(model, batch):
    model.center.copy_(batch[0])


class Recalibrated(nn.Module):
    def __init__(self):
        super().__init__()
        self.obs = Tracker()

    def forward(self, x):
        return self.obs(x)


class Tracker(nn.Module):
    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("level", torch.arange(float(n)) + 1)

    def forward(self, x):
        return x * self.level


class Trainer:
    """No module; it holds one."""

    def __init__(self, model):
        self.model = model

    def step(self, x):
        self.model.obs.level = x[0].clone()


class CausalMask(nn.Module):
    """The mission's own: of ones and zeros, computed by the constructor."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.ones(n, n), diagonal=1))

    def forward(self, x):
        scores = x[:, :, None] * x[:, None]
        scores.masked_fill_(self.mask.bool()[: x.shape[1]], -torch.inf)
        return scores.softmax(-1)


class InfiniteMask(nn.Module):
    """Of zeros and -inf."""

    def __init__(self, n=N):
        super().__init__()
        self.register_buffer("mask", torch.full((n, n), -torch.inf).triu(1))

    def forward(self, x):
        return (x[:, :, None] * x[:, None] + self.mask).softmax(-1)


class EmptyTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(0, N))

    def forward(self, x):
        return x + self.table.sum(0)


class FromArguments(nn.Module):
    """Blank values that are computed from the constructor's arguments."""

    def __init__(self, n=N, scale=1.0, eps=0.0, per_class=(0.5, 0.5), use_bias=True, config=None):
        super().__init__()
        config = config or {"gain": 1.0}
        self.step = scale
        floor = float(eps)
        weights = torch.ones(n)
        weights = weights * scale
        flags = torch.zeros(len(per_class))
        for index, probability in enumerate(per_class):
            flags[index] = probability > 0
        self.register_buffer("is_used", torch.tensor([p > 0 for p in per_class]))
        self.register_buffer("use_bias", torch.tensor(use_bias))
        self.register_buffer("scale", torch.full((n,), float(scale)))
        self.register_buffer("offsets", torch.arange(1) * scale)
        self.register_buffer("is_exact", torch.tensor(float(eps == 0)))
        self.register_buffer("weights", weights)
        self.register_buffer("flags", flags)
        self.register_buffer("floor", torch.as_tensor(floor))
        self.register_buffer("gain", torch.ones(n) * config["gain"])
        self.register_buffer("steps", torch.tensor([self.step] * n))
        self.register_buffer("filled", torch.empty(n).fill_(scale))
        self._add_bound(scale)
        if hasattr(nn, "Buffer"):
            self.chosen = nn.Buffer(torch.tensor(1 if use_bias else 0))

    def _add_bound(self, value):
        self.register_buffer("bound", torch.tensor([value]))

    def forward(self, x):
        return x * self.scale * self.weights + self.floor


class FromSizes(nn.Module):
    """Blank values of which the arguments are no more than sizes, dtypes and devices."""

    def __init__(self, n=N, dtype=torch.float32, like=None, device="cpu", affine=True):
        super().__init__()
        like = torch.rand(n) if like is None else like
        rows = [0.0] * n
        counts = torch.zeros(n)
        self.register_buffer("zeros", torch.zeros(n))
        self.register_buffer("ones", torch.ones(n, n, dtype=dtype))
        self.register_buffer("like", torch.zeros_like(like))
        self.register_buffer("full", torch.full((n,), 0.0, device=device))
        self.register_buffer("full_of", torch.full(size=(n,), fill_value=1))
        self.register_buffer("moved", torch.zeros(n).to(device).view(1, n).repeat(n, 1))
        self.register_buffer("listed", torch.tensor(rows))
        self.register_buffer("stacked", torch.stack([torch.zeros(n) for _ in range(n)]))
        self.register_buffer("new", like.new_zeros(n))
        self.register_buffer("local", counts)
        self.register_buffer("product", torch.zeros(n) * n)
        self.register_buffer("constant", torch.tensor(1.0))
        self.register_buffer("branch", torch.ones(n) if affine else torch.zeros(n))
        self.register_buffer("unseen", make_start(n))
        self.register_buffer("minus", -torch.ones(n))
        self.register_buffer("borrowed", nn.BatchNorm1d(n).running_mean.clone())

    def forward(self, x):
        return x + sum(buffer.double().sum() for buffer in self.buffers())


def make_start(n):
    return functional.pad(torch.zeros(n), (0, 0))
