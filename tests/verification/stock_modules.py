"""Torch's own module classes whose loading is code: how to build each, and old files of each."""

import importlib
import inspect
import pkgutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.nn.quantized.reference as nnqr
import torch.ao.quantization as aoq
from torch import nn
from torch.ao.nn.quantized.modules.embedding_ops import EmbeddingPackedParams
from torch.ao.nn.quantized.modules.linear import LinearPackedParams
from torch.ao.quantization import fake_quantize, observer
from torch.nn.utils import parametrizations, prune

ROOTS = ("torch.nn", "torch.ao.nn", "torch.ao.quantization", "torch.optim.swa_utils")
_METHODS = (
    "_load_from_state_dict", "load_state_dict", "set_extra_state", "_save_to_state_dict",
    "state_dict",
)  # fmt: skip
_HOOKS = ("state_dict_pre_hook", "state_dict_hook", "state_dict_post_hook")


def iter_stock_classes() -> Iterator[type[nn.Module]]:
    """Yield torch's classes with a second version, or with loading or saving code of their own."""
    seen = set()
    for module in _import_all():
        for value in list(vars(module).values()):
            if inspect.isclass(value) and issubclass(value, nn.Module) and value not in seen:
                seen.add(value)
                if value.__module__.startswith(ROOTS) and _has_loading_code(value):
                    yield value


def _import_all():
    for root in ROOTS:
        package = importlib.import_module(root)
        yield package
        for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{root}."):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    yield importlib.import_module(found.name)
            except ImportError:  # what needs a package that is not installed
                continue


def _has_loading_code(cls) -> bool:
    if cls is nn.Module:
        return False
    has_method = any(getattr(cls, name) is not getattr(nn.Module, name) for name in _METHODS)
    if has_method or (getattr(cls, "_version", 1) or 1) > 1:
        return True
    source = inspect.getsource(cls)
    return any(name in source for name in _HOOKS)


def _reference(cls, *args):
    parameters = {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 0.1,
                  "zero_point": 0}  # fmt: skip
    return lambda: cls(*args, weight_qparams=parameters)


def _ready(cls, *args, **kwargs):
    """Return a factory of a fake-quantised layer, with the usual configuration."""
    return lambda: cls(*args, qconfig=aoq.get_default_qat_qconfig("fbgemm"), **kwargs)


def _prepared():
    net = nn.Sequential(aoq.QuantStub(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), aoq.DeQuantStub())
    net.train().qconfig = aoq.get_default_qat_qconfig("fbgemm")
    return aoq.prepare_qat(net)


def _converted():
    torch.manual_seed(0)
    net = _prepared()
    net(torch.randn(2, 3, 8, 8))
    return aoq.convert(net.eval())


_WITH_STATISTICS = {"affine": True, "track_running_stats": True}
NORMS = {
    **{f"BatchNorm{d}d": partial(getattr(nn, f"BatchNorm{d}d"), 4) for d in (1, 2, 3)},
    **{f"LazyBatchNorm{d}d": getattr(nn, f"LazyBatchNorm{d}d") for d in (1, 2, 3)},
    **{f"InstanceNorm{d}d": partial(getattr(nn, f"InstanceNorm{d}d"), 4, **_WITH_STATISTICS)
       for d in (1, 2, 3)},
    **{f"LazyInstanceNorm{d}d": partial(getattr(nn, f"LazyInstanceNorm{d}d"), **_WITH_STATISTICS)
       for d in (1, 2, 3)},
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
}  # fmt: skip
LAZY = {
    "LazyLinear": lambda: nn.LazyLinear(4),
    **{f"Lazy{kind}{d}d": partial(getattr(nn, f"Lazy{kind}{d}d"), 4, 3)
       for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
}  # fmt: skip
QUANTIZED: dict[str, Callable[[], nn.Module]] = {
    **{f"nnq.{kind}{d}d": partial(getattr(nnq, f"{kind}{d}d"), 4, 4, 3)
       for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"nnqd.{kind}{d}d": partial(getattr(nnqd, f"{kind}{d}d"), 4, 4, 3)
       for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"nnqr.{kind}{d}d": _reference(getattr(nnqr, f"{kind}{d}d"), 4, 4, 3)
       for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"nniq.ConvReLU{d}d": partial(getattr(nniq, f"ConvReLU{d}d"), 4, 4, 3)
       for d in (1, 2, 3)},
    **{f"nnq.InstanceNorm{d}d": partial(
        getattr(nnq, f"InstanceNorm{d}d"), 4, nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.zeros(4)), 1.0, 0)
       for d in (1, 2, 3)},
    **{f"nnq.BatchNorm{d}d": partial(getattr(nnq, f"BatchNorm{d}d"), 4) for d in (2, 3)},
    **{f"nniq.BNReLU{d}d": partial(getattr(nniq, f"BNReLU{d}d"), 4) for d in (2, 3)},
    "nniq.ConvAdd2d": lambda: nniq.ConvAdd2d(4, 4, 3),
    "nniq.ConvAddReLU2d": lambda: nniq.ConvAddReLU2d(4, 4, 3),
    "nniq.LinearReLU": lambda: nniq.LinearReLU(4, 3),
    "nniq.LinearLeakyReLU": lambda: nniq.LinearLeakyReLU(4, 3, 0.1),
    "nniq.LinearTanh": lambda: nniq.LinearTanh(4, 3),
    "nniqd.LinearReLU": lambda: nniqd.LinearReLU(4, 3),
    "nnq.Linear": lambda: nnq.Linear(4, 3),
    "nnqd.Linear": lambda: nnqd.Linear(4, 3),
    "nnqd.Linear of halves": lambda: nnqd.Linear(4, 3, dtype=torch.float16),
    "nnqd.LSTM": lambda: nn.Sequential(nn.Linear(2, 2), nnqd.LSTM(4, 3)),
    "nnqd.GRU": lambda: nn.Sequential(nn.Linear(2, 2), nnqd.GRU(4, 3)),
    "nnqd.RNNCell": lambda: nn.Sequential(nn.Linear(2, 2), nnqd.RNNCell(4, 3)),
    "nnqd.LSTMCell": lambda: nn.Sequential(nn.Linear(2, 2), nnqd.LSTMCell(4, 3)),
    "nnqd.GRUCell": lambda: nn.Sequential(nn.Linear(2, 2), nnqd.GRUCell(4, 3)),
    "nnq.QFunctional": lambda: nnq.QFunctional(),
    "nnq.Embedding": lambda: nnq.Embedding(4, 4),
    "LinearPackedParams": lambda: nn.Sequential(nn.Linear(2, 2), LinearPackedParams()),
    "EmbeddingPackedParams": lambda: EmbeddingPackedParams(4, 4),
    "nnqr.Linear": _reference(nnqr.Linear, 4, 3),
    "nnqr.Embedding": _reference(nnqr.Embedding, 4, 3),
    "nnqr.EmbeddingBag": _reference(nnqr.EmbeddingBag, 4, 3),
    "a converted net": _converted,
}  # fmt: skip
QAT: dict[str, Callable[[], nn.Module]] = {
    **{f"nniqat.{kind}{d}d": _ready(getattr(nniqat, f"{kind}{d}d"), 4, 4, 3)
       for kind in ("ConvBn", "ConvBnReLU") for d in (1, 2, 3)},
    "nniqat.LinearBn1d": _ready(nniqat.LinearBn1d, 4, 3),
    "a prepared net": _prepared,
    **{name: getattr(observer, name) for name in (
        "MinMaxObserver", "MovingAverageMinMaxObserver", "PerChannelMinMaxObserver",
        "MovingAveragePerChannelMinMaxObserver", "HistogramObserver")},
    "FakeQuantize": lambda: fake_quantize.FakeQuantize(),
    "FakeQuantize by channel": lambda: fake_quantize.default_per_channel_weight_fake_quant(),
    "FixedQParamsFakeQuantize": lambda: fake_quantize.default_fixed_qparams_range_0to1_fake_quant(),
    "FusedMovingAvgObsFakeQuantize": lambda: fake_quantize.default_fused_act_fake_quant(),
}  # fmt: skip
PARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(4, 3)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 3)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(nn.BatchNorm1d(4)),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "LSTM": lambda: nn.LSTM(4, 3),
}
MODULES = NORMS | LAZY | QUANTIZED | QAT | PARAMETRIZED

NOT_BUILT = {
    "torch.nn.modules.batchnorm._NormBase": "a base class",
    "torch.nn.modules.batchnorm._BatchNorm": "a base class",
    "torch.nn.modules.batchnorm._LazyNormBase": "a base class",
    "torch.nn.modules.instancenorm._InstanceNorm": "a base class",
    "torch.ao.nn.intrinsic.qat.modules.conv_fused._ConvBnNd": "a base class",
    "torch.ao.nn.quantized.modules.batchnorm._BatchNorm": "a base class",
    "torch.ao.nn.quantized.modules.conv._ConvNd": "a base class",
    "torch.ao.nn.quantized.modules.conv._ConvTransposeNd": "a base class",
    "torch.ao.nn.quantized.reference.modules.conv._ConvNd": "a base class",
    "torch.ao.nn.quantized.reference.modules.conv._ConvTransposeNd": "a base class",
    "torch.ao.nn.quantized.reference.modules.utils.ReferenceQuantizedModule": "a base class",
    "torch.ao.nn.quantized.dynamic.modules.rnn.RNNBase": "a base class",
    "torch.ao.nn.quantized.dynamic.modules.rnn.RNNCellBase": "a base class",
    "torch.ao.quantization.observer.UniformQuantizationObserverBase": "a base class",
    "torch.ao.quantization.fx.graph_module.QuantizedGraphModule": "made of a traced graph only",
    "torch.ao.nn.sparse.quantized.linear.Linear": "needs QNNPACK, which not all builds have",
    "torch.ao.nn.sparse.quantized.linear.LinearPackedParams": "needs QNNPACK",
    "torch.ao.nn.sparse.quantized.dynamic.linear.Linear": "needs QNNPACK",
}
"""Classes that no case builds -> why."""


NOT_ASKED = {
    f"nnqd.{name}": "torch.load(weights_only=True) refuses its packed parameters"
    for name in ("LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
}
"""Modules whose files are `not checked` -> why; never said to load."""


def use(module: nn.Module) -> nn.Module:
    """Run data through what observes it, so that its buffers have the sizes of a trained one."""
    if isinstance(module, observer.ObserverBase | fake_quantize.FakeQuantizeBase):
        module(torch.randn(5, 4))
    return module


def as_version(state, version):
    """Return a copy of the state in which every module has `version`; without versions if None."""
    changed = OrderedDict(state)
    if version is not None:
        old = getattr(state, "_metadata", {})
        changed._metadata = OrderedDict((prefix, {"version": version}) for prefix in old)
    return changed


def rename(state, version, names):
    changed = as_version(state, version)
    for new, old in names.items():
        for key in [key for key in changed if key.split(".")[-len(new.split(".")):] ==
                    new.split(".")]:  # fmt: skip
            changed[key.removesuffix(new) + old] = changed.pop(key)
    return changed


_FUSED_NAMES = {
    f"bn.{new}": old
    for new, old in {"weight": "gamma", "bias": "beta", "running_mean": "running_mean",
                     "running_var": "running_var",
                     "num_batches_tracked": "num_batches_tracked"}.items()
}  # fmt: skip


def _unpack_linear(state, version, weight, bias):
    """Return the state of a quantised linear layer as its version 1 (or 2) wrote it."""
    changed = as_version(state, version)
    for key in [key for key in changed if key.endswith("_packed_params._packed_params")]:
        packed = changed.pop(key)
        prefix = key.removesuffix("_packed_params._packed_params")
        changed[prefix + weight], changed[prefix + bias] = packed
    return changed


OLD_FILES: dict[str, Callable] = {
    "as it writes it": lambda state: state,
    "without versions": lambda state: as_version(state, None),
    "of version 1": lambda state: as_version(state, 1),
    "of version 2": lambda state: as_version(state, 2),
    "of version 3": lambda state: as_version(state, 3),
    "of a later version": lambda state: as_version(state, 9),
    "a norm of before 0.4.1": lambda state: OrderedDict(
        (k, v) for k, v in state.items() if not k.endswith("num_batches_tracked")
    ),
    "fused convolution and norm of version 1": lambda state: rename(state, 1, _FUSED_NAMES),
    "fused without versions": lambda state: rename(state, None, _FUSED_NAMES),
    "quantised linear of version 1": lambda state: _unpack_linear(state, 1, "weight", "bias"),
    "quantised linear of version 2": lambda state: _unpack_linear(
        state, 2, "_packed_params.weight", "_packed_params.bias"
    ),
    "old names of observers": lambda state: rename(
        state, 2, {"min_val": "min_vals", "max_val": "max_vals"}
    ),
    "observers without eps": lambda state: OrderedDict(
        (k, v) for k, v in state.items() if not k.endswith("eps")
    ),
    "old names of weight norm": lambda state: rename(
        state, None,
        {"parametrizations.weight.original0": "weight_g",
         "parametrizations.weight.original1": "weight_v"},
    ),
    "one key more": lambda state: as_version(state, None) | {"not_there": torch.ones(1)},
}  # fmt: skip
"""Name of a change -> function of a state that gives a file of old, or a broken one."""

__all__ = ["MODULES", "NOT_ASKED", "NOT_BUILT", "OLD_FILES", "iter_stock_classes", "use"]
