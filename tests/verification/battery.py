"""Modules of the kinds that users have, and what a GPU would say of each.

Every case says what happens to it as it is, and which of its buffers could as well be plain
attributes: all others must clash once they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

try:
    import numpy as np
except ImportError:
    np = None  # a machine that has a GPU, and no numpy


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    clean: str = "passes"
    """"passes", "clashes" or "inconclusive"."""
    clashing: tuple[str, ...] = ()
    """Attributes that clash in the clean module; "" for one that the module does not hold."""
    harmless: tuple[str, ...] = ()
    """Buffers that may be plain attributes: CUDA accepts them on the CPU, or eval never looks."""


CASES: list[Case] = []


def case(*args: Any, clean: str = "passes", clashing=(), harmless=(), **kwargs: Any):
    """Add a class, a function that returns a module, or a forward function, with its inputs."""

    def add(build):
        CASES.append(Case(build.__name__, build, args, kwargs, clean, clashing, harmless))
        return build

    return add


class Made(nn.Module):
    """A module that is its buffers, its sub-modules and a function."""

    def __init__(self, function, **held):
        super().__init__()
        self.function = function
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def forward(*args: Any, held: dict[str, Callable[[], Any]], **said: Any):
    """Add a case whose forward is the decorated function."""

    def add(function):
        def build() -> nn.Module:
            return Made(function, **{name: make() for name, make in held.items()})

        build.__name__ = function.__name__
        return case(*args, **said)(build)

    return add


def ones(*shape):
    return lambda: torch.ones(*shape)


def number(value):
    return lambda: torch.tensor(value)


def order(*values):
    return lambda: torch.tensor(values)


def linear(a=4, b=4):
    return lambda: nn.Linear(a, b)


X = torch.linspace(-1, 1, 12).reshape(3, 4)
SEQUENCE = torch.linspace(-1, 1, 40).reshape(2, 5, 4)
IMAGE = torch.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
TOKENS = torch.tensor([[1, 2, 3], [3, 2, 1]])

# Plain arithmetic -------------------------------------------------------------------------------


@forward(X, held={"body": linear()})
def only_parameters(m, x):
    return m.body(x).relu()


@forward(X, held={"scale": ones(4)})
def scaled(m, x):
    return x * m.scale


@forward(X, held={"scale": number(2.0)}, harmless=("scale",))
def scaled_by_a_number(m, x):
    return x * m.scale


@forward(IMAGE, held={"mean": ones(3, 1, 1), "std": ones(3, 1, 1)})
def image_normalised(m, x):
    return (x - m.mean) / m.std


@forward(X, held={"weight": ones(4, 4), "bias": ones(4)})
def functional_linear(m, x):
    return F.linear(x, m.weight, m.bias)


@forward(X, held={"basis": ones(4, 2)})
def matmul(m, x):
    return x @ m.basis


@forward(SEQUENCE, held={"basis": ones(4, 3)})
def einsum(m, x):
    return torch.einsum("btd,de->bte", x, m.basis)


@forward(SEQUENCE, held={"left": ones(2, 5, 5), "bias": ones(2, 5, 4)})
def baddbmm(m, x):
    return torch.baddbmm(m.bias, m.left, x)


@forward(X, held={"low": ones(4), "high": ones(4)})
def clamped(m, x):
    return torch.clamp(x, min=m.low, max=m.high)


@forward(X, held={"limit": number(0.5)})
def clamped_to_a_number(m, x):
    return torch.clamp(x, max=m.limit)


@forward(X, held={"end": ones(3, 4), "share": number(0.5)}, harmless=("share",))
def lerp(m, x):
    return torch.lerp(x, m.end, m.share)


@forward(X, held={"other": ones(3, 4)})
def where(m, x):
    return torch.where(x > 0, x, m.other)


@forward(X, held={"floor": number(0.0)}, harmless=("floor",))
def where_a_number(m, x):
    return torch.where(x > 0, x, m.floor)


@forward(X, held={"seen": lambda: torch.zeros(4, dtype=torch.bool)})
def masked_fill(m, x):
    return x.masked_fill(m.seen, 0.0)


@forward(X, held={"total": ones(4)})
def in_place_on_a_result(m, x):
    y = x.clone()
    y.add_(m.total).mul_(2)
    return y


@forward(X, held={"average": ones(4)})
def running_average_in_place(m, x):
    m.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x


@forward(X, held={"rows": ones(3, 4)}, harmless=("rows",))
def copied_into_a_result(m, x):
    y = torch.empty_like(x)
    y.copy_(m.rows)
    return y * x


@forward(X, held={"row": ones(4)}, harmless=("row",))
def assigned_into_a_slice(m, x):
    y = torch.zeros_like(x)
    y[1] = m.row
    return y + x


@forward(X, held={"wave": lambda: torch.ones(4, dtype=torch.complex64)})
def complex_numbers(m, x):
    return torch.view_as_real(x.to(torch.complex64) * m.wave)


@forward(X, held={"table": ones(5, 4)})
def views(m, x):
    return x + m.table[1:4].view(3, 4).expand(3, 4)[:, :4].t().t()


@forward(X, held={"codes": ones(6, 4)})
def nearest_code(m, x):
    found = torch.cdist(x, m.codes).argmin(-1)
    return F.embedding(found, m.codes)


@forward(X, held={"edges": lambda: torch.linspace(-1, 1, 5)})
def bucketized(m, x):
    return torch.bucketize(x, m.edges)


@forward(X, held={"zero": number(0.0)})
def stacked_with_a_number(m, x):
    return torch.stack([x.mean(), m.zero])


@forward(X, held={"token": ones(1, 4)})
def concatenated(m, x):
    return torch.cat([m.token, x])


@forward(X, held={"power": lambda: torch.arange(4.0)})
def cumulative(m, x):
    return torch.cumsum(x, 0).sort(0).values ** m.power


# Indexing ---------------------------------------------------------------------------------------


@forward(X, held={"order": order(3, 2, 1, 0)}, harmless=("order",))
def indexed_by_a_buffer(m, x):
    return x[:, m.order]


@forward(X, held={"keep": lambda: torch.tensor([True, False, True])}, harmless=("keep",))
def indexed_by_a_mask(m, x):
    return x[m.keep]


@forward(X, held={"order": order(3, 2, 1, 0)})
def index_select(m, x):
    return x.index_select(1, m.order)


@forward(X, held={"places": lambda: torch.zeros(3, 2, dtype=torch.int64)})
def gathered(m, x):
    return x.gather(1, m.places)


@forward(X, held={"places": lambda: torch.zeros(3, 4, dtype=torch.int64)})
def scattered(m, x):
    return torch.zeros_like(x).scatter_add(1, m.places, x)


@forward(TOKENS, held={"table": ones(5, 4)})
def looked_up_by_tokens(m, tokens):
    return m.table[tokens] * 2 + F.one_hot(tokens, 4)


@forward(X, held={"rows": order(0, 1), "values": ones(2, 4)}, harmless=("rows",))
def index_put(m, x):
    y = x.clone()
    y[m.rows] = m.values
    return y


@forward(X, held={"first": number(1)}, harmless=("first",))
def selected_by_a_number(m, x):
    return x[m.first] + x.narrow(0, int(m.first), 1)


@forward(X, held={"times": order(1, 2, 3)})
def repeated(m, x):
    return x.repeat_interleave(m.times, dim=0, output_size=6)


# Devices asked for ------------------------------------------------------------------------------


@forward(X, held={"scale": ones(4)}, harmless=("scale",))
def moved_to_the_device(m, x):
    return x * m.scale.to(x.device)


@forward(X, held={"scale": ones(4)}, harmless=("scale",))
def moved_like_another(m, x):
    return x * m.scale.type_as(x) + m.scale.to(x)


@forward(X, held={"scale": ones(4)}, harmless=("scale",))
def moved_without_blocking(m, x):
    return x * m.scale.to(device=x.device, dtype=x.dtype, non_blocking=True)


@forward(X, held={"scale": ones(4)}, harmless=("scale",))
def moved_by_cuda(m, x):
    return x * (m.scale.cuda() if x.is_cuda else m.scale)


@forward(X, held={"scale": ones(4)}, harmless=("scale",))
def moved_by_index(m, x):
    return x * m.scale.to(x.get_device() if x.is_cuda else "cpu")


@forward(X, held={})
def branches_on_is_cuda(m, x):
    bias = torch.ones(4, device="cuda") if x.is_cuda else torch.ones(4)
    return x + bias


@forward(X, held={})
def branches_on_the_device_type(m, x):
    return x + torch.arange(4, device="cuda" if x.device.type == "cuda" else "cpu")


@forward(X, held={})
def branches_on_availability(m, x):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return x + torch.full((4,), 2.0, device=device)


@forward(X, held={"like": ones(4)}, harmless=("like",))
def made_like_the_input(m, x):
    y = x.new_zeros(4) + torch.zeros_like(x) + torch.rand_like(x) + torch.empty_like(x).fill_(1)
    return y + x.new_tensor([1.0, 2.0, 3.0, 4.0]) + x.new_ones(m.like.shape)


@forward(X, held={})
def made_in_a_device_context(m, x):
    with x.device:
        return x + torch.ones(4) + torch.tensor([1.0, 2.0, 3.0, 4.0])


@forward(X, held={}, clean="clashes", clashing=("",))
def made_without_a_device(m, x):
    return x + torch.arange(4)


@forward(X, held={}, clean="clashes", clashing=("",))
def made_from_a_list(m, x):
    return x + torch.tensor([x.sum(), 1.0, 2.0, 3.0])


@forward(X, held={})
def made_from_numbers(m, x):
    return x + torch.tensor(3.0) + torch.as_tensor([1.0, 2.0, 3.0, 4.0], device=x.device)


@forward(X, held={"mask": ones(4)})
def legacy_type_names(m, x):
    kind = torch.cuda.FloatTensor if x.is_cuda else torch.FloatTensor
    return m.mask.double().type(x.type()) * x.type(kind) * m.mask


@forward(X, held={}, clean="clashes", clashing=("",))
def brought_back_to_the_cpu(m, x):
    return x + x.cpu()


@forward(X, held={"limit": number(0.0), "scale": ones(4)}, harmless=("limit",))
def branches_on_an_item(m, x):
    return x * m.scale if m.limit.item() < 1 and bool((x > -2).all()) else x


@forward(X, held={"sizes": order(1, 3)}, harmless=("sizes",))
def python_numbers_of_a_buffer(m, x):
    return torch.cat(torch.split(x, m.sizes.tolist(), dim=1)[::-1], 1)


# numpy ------------------------------------------------------------------------------------------

if np is not None:

    @forward(X, held={})
    def numpy_by_way_of_the_cpu(m, x):
        return x + torch.from_numpy(np.sqrt(np.abs(x.detach().cpu().numpy()))).to(x.device)

    @forward(X, held={}, clean="clashes", clashing=("",))
    def numpy_of_a_tensor_on_the_device(m, x):
        return x + torch.as_tensor(np.asarray(x)).to(x.device) * float(x.numpy().sum())

    @forward(
        X, held={"mean": lambda: np.ones(4, dtype=np.float32)}, clean="clashes", clashing=("mean",)
    )
    def numpy_statistics(m, x):
        return x - torch.from_numpy(m.mean)

    @forward(X, held={"mean": lambda: np.ones(4, dtype=np.float32)})
    def numpy_statistics_moved(m, x):
        return x - torch.as_tensor(m.mean, device=x.device)


# Layers of torch --------------------------------------------------------------------------------


@case(X, harmless=("num_batches_tracked",))
def batch_norm_1d():
    return nn.BatchNorm1d(4)


@case(IMAGE, harmless=("1.num_batches_tracked",))
def conv_batch_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))


@case(IMAGE, harmless=("num_batches_tracked",))
def instance_norm_with_statistics():
    return nn.InstanceNorm2d(3, track_running_stats=True)


@case(SEQUENCE)
def other_norms():
    return nn.Sequential(
        nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(1, 5), nn.LocalResponseNorm(2)
    )


@forward(IMAGE, held={"kernel": ones(3, 1, 3, 3)})
def fixed_kernel(m, x):
    return F.conv2d(x, m.kernel, groups=3, padding=1)


@forward(
    IMAGE, held={"grid": lambda: torch.zeros(2, 4, 4, 2), "up": lambda: nn.Upsample(scale_factor=2)}
)
def grid_sample(m, x):
    return F.grid_sample(m.up(x), m.grid, align_corners=False)


@case(IMAGE)
def transposed_and_dilated():
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 2, 3, dilation=2, padding="same")
    )


@case(SEQUENCE)
def conv_1d_and_pooling():
    return nn.Sequential(nn.Conv1d(5, 6, 2), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Dropout(0.5))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(4, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.register_buffer("start", torch.zeros(4, 1, 6))

    def forward(self, x):
        h = self.start.expand(-1, x.shape[0], -1).contiguous()
        out, _ = self.rnn(x, (h, h) if isinstance(self.rnn, nn.LSTM) else h)
        return out


@case(SEQUENCE)
def lstm():
    return Recurrent(nn.LSTM)


@case(SEQUENCE)
def gru():
    return Recurrent(nn.GRU)


@case(SEQUENCE)
def plain_rnn():
    return Recurrent(nn.RNN)


@forward(X, held={"cell": lambda: nn.LSTMCell(4, 4), "h": ones(3, 4), "c": ones(3, 4)})
def lstm_cell(m, x):
    h, c = m.cell(x, (m.h, m.c))
    return m.cell(x, (h, c))


def _packed(m, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, sizes = pad_packed_sequence(m.rnn(packed)[0], batch_first=True)
    return out * m.scale, sizes + lengths


@forward(SEQUENCE, held={"rnn": lambda: nn.LSTM(4, 4, batch_first=True), "scale": ones(4)})
def packed_sequence(m, x):
    return _packed(m, x, torch.tensor([3, 5]))


@forward(
    SEQUENCE,
    torch.tensor([3, 5]),
    held={"rnn": lambda: nn.GRU(4, 4, batch_first=True), "scale": ones(4)},
    clean="clashes",
    clashing=("", ""),
)
def packed_with_lengths_on_the_device(m, x, lengths):
    return _packed(m, x, lengths)


@forward(
    TOKENS, held={"words": lambda: nn.Embedding(5, 4, padding_idx=0), "places": order(0, 1, 2)}
)
def token_and_position(m, tokens):
    return m.words(tokens) + m.words(m.places[: tokens.shape[1]])


@case(TOKENS)
def embedding_bag():
    return nn.EmbeddingBag(5, 4, mode="mean")


@case(TOKENS)
def parameters_in_lists():
    made = Made(lambda m, t: m.w[0][t] @ m.d["a"] + m.l[0](m.w[0][t]))
    made.w = nn.ParameterList([torch.ones(5, 4)])
    made.d = nn.ParameterDict({"a": torch.ones(4, 4)})
    made.l = nn.ModuleList([nn.Linear(4, 4)])
    return made


# Attention --------------------------------------------------------------------------------------


@forward(
    SEQUENCE,
    held={
        "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        "mask": lambda: torch.triu(torch.ones(5, 5, dtype=torch.bool), 1),
    },
)
def multihead_attention(m, x):
    return m.attention(x, x, x, attn_mask=m.mask)[0]


@forward(SEQUENCE, held={"mask": lambda: torch.ones(5, 5, dtype=torch.bool).tril()})
def scaled_dot_product(m, x):
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=m.mask)


@forward(SEQUENCE, held={"mask": lambda: torch.triu(torch.full((5, 5), -1e9), 1)})
def additive_mask(m, x):
    return torch.softmax(x @ x.mT + m.mask, -1) @ x


@forward(
    SEQUENCE,
    held={
        "body": lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1, enable_nested_tensor=False
        ),
        "mask": lambda: nn.Transformer.generate_square_subsequent_mask(5),
    },
)
def transformer_encoder(m, x):
    return m.body(x, mask=m.mask)


@forward(
    SEQUENCE,
    held={
        "body": lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        "mask": lambda: torch.triu(torch.ones(5, 5, dtype=torch.bool), 1),
    },
)
def transformer_decoder(m, x):
    return m.body(x, x, tgt_mask=m.mask)


@case(SEQUENCE, SEQUENCE)
def whole_transformer():
    return nn.Transformer(4, 2, 1, 1, 8, batch_first=True)


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10 ** torch.arange(0, 4, 2), persistent=False)

    def forward(self, x):
        places = torch.arange(x.shape[1], device=x.device, dtype=self.inv_freq.dtype)
        angles = torch.outer(places, self.inv_freq)
        both = torch.cat([angles, angles], -1)
        return x * both.cos() + x.roll(2, -1) * both.sin()


@case(SEQUENCE)
def rotary():
    return Rotary()


class CachedRotary(Rotary):
    """Makes its table at the first call and keeps it: a cache that lives on the input's device."""

    cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.outer(torch.arange(5, device=x.device), self.inv_freq)
        return x[..., :2] * self.cache


@case(SEQUENCE)
def cached_rotary():
    return CachedRotary()


# Ways of running --------------------------------------------------------------------------------


@forward(X, held={"body": linear(), "scale": ones(4)})
def autocast(m, x):
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=True):
        return m.body(x) * m.scale


@forward(X, held={"scale": ones(4), "body": linear()})
def compiled_in_forward(m, x):
    return torch.compile(lambda y: m.body(y) * m.scale, backend="eager")(x)


@case(X)
def compiled_module():
    made = Made(lambda m, x: m.body(x) + m.bias, body=nn.Linear(4, 4), bias=torch.ones(4))
    return torch.compile(made, backend="eager")


@forward(X, held={"body": linear(), "scale": ones(4)})
def checkpointed(m, x):
    def part(y):
        return m.body(y) * m.scale

    return torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)


@forward(X, held={"body": linear(), "scale": ones(4)})
def gradients_in_forward(m, x):
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((m.body(y) * m.scale).sum(), y)
    return slope


@forward(X, held={"scale": ones(4)})
def vmapped(m, x):
    return torch.vmap(lambda row: row * m.scale + torch.arange(4, device=row.device))(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        return x * scale * 2

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@forward(X, held={"scale": ones(4)})
def function_of_its_own(m, x):
    return Doubled.apply(x, m.scale)


@forward(X, held={"rng": number(3)}, harmless=("rng",))
def random_numbers(m, x):
    torch.manual_seed(int(m.rng))
    return x + torch.randn(4, device=x.device) + torch.randn_like(x) + torch.empty_like(x).normal_()


@case(X)
def weight_norm():
    return parametrizations.weight_norm(nn.Linear(4, 4))


@case(X)
def spectral_norm():
    return parametrizations.spectral_norm(nn.Linear(4, 4))


@case(X)
def tied_weights():
    made = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    made[1].weight = made[0].weight
    return made


# What has no shape yet gets one in forward, and only as a registered buffer.
@case(X, harmless=("1.running_mean", "1.running_var", "1.num_batches_tracked"))
def lazy_layers():
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.ReLU())


@case(X)
def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


@forward(X, held={"table": lambda: torch.eye(4).to_sparse()})
def sparse(m, x):
    return torch.sparse.mm(m.table, x.t())


@forward(torch.linspace(-1, 1, 64), held={"window": lambda: torch.hann_window(16)})
def spectrogram(m, x):
    return torch.stft(x, 16, window=m.window, return_complex=True).abs()


@forward(held={"scale": ones(4)}, x=X, mask=None)
def keyword_arguments(m, x, mask=None, **more):
    return {"out": x * m.scale, "mask": mask}


@dataclass
class Output:
    last: torch.Tensor
    all: tuple[torch.Tensor, ...]


@forward(X, held={"scale": ones(4)})
def dataclass_output(m, x):
    return Output(x * m.scale, (x, x + 1))


# What the module does not register --------------------------------------------------------------


@case(X, clean="clashes", clashing=("layers[0].bias", "layers[0].weight"))
def layers_in_a_list():
    return Made(lambda m, x: m.layers[0](x), layers=[nn.Linear(4, 4)])


@case(X, clean="clashes", clashing=("banks['a']", "steps[0]"))
def tensors_in_containers():
    held = {"banks": {"a": torch.ones(4)}, "steps": (torch.ones(4),)}
    return Made(lambda m, x: x * m.banks["a"] + m.steps[0], **held)


@case(X, clean="clashes", clashing=("rows",))
def view_of_a_buffer():
    made = Made(lambda m, x: x * m.rows, table=torch.ones(3, 4))
    made.rows = made.table[1]
    return made


@case(X, clean="clashes", clashing=("bank",))
def class_attribute():
    kind = type("WithBank", (Made,), {"bank": torch.ones(4)})
    return kind(lambda m, x: x * m.bank)


OUTSIDE = torch.ones(4)


@forward(X, held={}, clean="clashes", clashing=("",))
def global_constant(m, x):
    return x * OUTSIDE


@forward(X, held={"body": linear(), "a": ones(4), "b": ones(4)}, clean="passes")
def several_at_once(m, x):
    y = m.body(x) * m.a
    return y + m.b


# What only CUDA has a kernel for -----------------------------------------------------------------


def counted(x, dtype):
    """Count as mixtures of experts do: in whole numbers on CUDA, which the CPU cannot."""
    chosen = x.argmax(-1)
    return torch.histc(chosen.to(dtype) if x.is_cuda else chosen.float(), bins=4, min=0, max=3)


@forward(X, held={"offset": ones(4)})
def counted_in_bytes(m, x):
    return m.offset * counted(x, torch.uint8)


@forward(X, held={"offset": ones(4)})
def counted_in_int32(m, x):
    return m.offset * counted(x, torch.int32)


@forward(X, held={"offset": ones(4)})
def counted_in_int64(m, x):
    return m.offset * counted(x, torch.int64)


# What cannot be proved --------------------------------------------------------------------------


@torch.library.custom_op("ckptool_battery::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@forward(X, held={}, clean="inconclusive")
def custom_operator(m, x):
    return torch.ops.ckptool_battery.twice(x)


@forward(X, held={}, clean="inconclusive")
def only_on_cuda(m, x):
    if x.is_cuda:
        raise NotImplementedError("this kernel is not built")
    return x


@forward(X, held={}, clean="inconclusive")
def a_stream_of_its_own(m, x):
    if x.is_cuda:
        with torch.cuda.stream(torch.cuda.Stream()):
            return x * 2
    return x


def turned(module: torch.nn.Module, path: str) -> None:
    """Make the buffer at `path` a plain attribute, as if it had never been registered."""
    owner, _, name = path.rpartition(".")
    holder = module.get_submodule(owner)
    setattr(holder, name, holder._buffers.pop(name))


BUFFERS = [
    pytest.param(case, path, id=f"{case.name}-{path}")
    for case in CASES
    if case.clean == "passes" or case.harmless
    for path, _ in case.build().named_buffers()
]
