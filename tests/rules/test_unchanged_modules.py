"""A file against the module that wrote it: nothing to report, whatever the module is."""

import inspect
import warnings

import modules_for_tests
import pytest
import torch
from files import save
from modules import modules_for_tests as described_modules
from modules import torch_modules as stock
from rules import reparametrized_modules
from safetensors.torch import save_file
from torch import nn

import ckptool
from samples.make import ARGUMENTS

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

QUIET = {"CK503", "CK312", "CK112"}
"""True of the file alone (ties, strides), and a buffer that is None on both sides."""


def own(module) -> list[type]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
    ]


REFUSES = {"BadState"}
"""Its state_dict() raises."""


def built(cls: type) -> nn.Module | None:
    """Return an instance without arguments, None where there is no such thing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return cls()
    except (TypeError, KeyError):
        return None


def savers(module) -> list[type]:
    """Return the module's own classes that can be built, and save something."""
    found = (cls for cls in own(module) if cls.__name__ not in REFUSES)
    return [cls for cls in found if (made := built(cls)) is not None and made.state_dict()]


WITH_FAULTS = [
    cls
    for module in (modules_for_tests, described_modules, reparametrized_modules)
    for cls in savers(module)
]


def full(module: nn.Module) -> bool:
    """Whether it saves something, and none of it is made later."""
    state = module.state_dict()
    return bool(state) and not any(map(nn.parameter.is_lazy, state.values()))


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    STOCK = [cls for cls in stock.CLASSES if full(stock.instance(cls))]


def on_loading(report) -> set[tuple[str, str]]:
    """Return what was said of the file and of loading it; CK1xx is about the module alone."""
    return {
        (f.code, f.message)
        for f in report.findings
        if not f.code.startswith("CK1") and f.code not in QUIET
    }


@pytest.mark.parametrize("cls", WITH_FAULTS, ids=lambda cls: cls.__qualname__)
def test_modules_with_faults(tmp_path, cls):
    path = save(tmp_path / "own.pth", built(cls).state_dict())
    report = ckptool.diff(path, module=f"{cls.__module__}:{cls.__qualname__}")
    assert (report.missing_keys, report.unexpected_keys) == ((), ())
    codes = {code for code, _ in on_loading(report)}
    assert codes == (set() if reads_its_own_file(cls, path) else {"CK223"})


def reads_its_own_file(cls, path) -> bool:
    """Ask torch: some modules write what they do not read, or leave out what they ask for."""
    try:
        built(cls).load_state_dict(torch.load(path, weights_only=True))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("cls", STOCK, ids=lambda cls: cls.__name__)
def test_modules_of_torch(tmp_path, cls):
    path = save(tmp_path / "own.pth", stock.instance(cls).state_dict())
    report = ckptool.diff(path, module=stock.instance(cls))
    assert on_loading(report) == set()


@pytest.mark.parametrize("make", stock.FACTORIES, ids=lambda make: make.__name__)
def test_what_torch_builds_around_modules(tmp_path, make):
    path = save(tmp_path / "own.pth", make().state_dict())
    report = ckptool.diff(path, module=f"{make.__module__}:{make.__qualname__}")
    assert (report.missing_keys, report.unexpected_keys) == ((), ())
    assert on_loading(report) == set()


@pytest.mark.parametrize("style", reparametrized_modules.STYLES)
def test_styles(tmp_path, style):
    path = save(tmp_path / "own.pth", reparametrized_modules.Wrapped(style).state_dict())
    report = ckptool.diff(
        path, module="rules.reparametrized_modules:Wrapped", kwargs={"style": style}
    )
    assert on_loading(report) == set()


LAYERED = [
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3),
    lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2),
    lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
    lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
    lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), nn.GroupNorm(2, 8)),
    lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(12))),
    lambda: nn.LSTM(4, 4, 2, bidirectional=True, proj_size=2),
    lambda: nn.Sequential(nn.Embedding(4, 4), nn.RMSNorm(4), nn.PReLU(4), nn.Bilinear(4, 4, 2)),
    lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    lambda: nn.Linear(4, 4).half(),
    lambda: nn.Linear(4, 4, dtype=torch.complex64),
    lambda: reparametrized_modules.Attention(fused=True),
    lambda: reparametrized_modules.Grouped(),
]


@pytest.mark.parametrize("make", LAYERED, ids=range(len(LAYERED)))
def test_models(tmp_path, make):
    report = ckptool.diff(save(tmp_path / "own.pth", make().state_dict()), module=make())
    assert on_loading(report) == set()


@pytest.mark.parametrize("make", LAYERED, ids=range(len(LAYERED)))
def test_training_of_models(tmp_path, make):
    module = make()
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = save(
        tmp_path / "own.pth", {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    )
    found = on_loading(ckptool.diff(path, module=make()))
    assert {code for code, _ in found} == {"CK309"}


@pytest.mark.parametrize("make", LAYERED, ids=range(len(LAYERED)))
def test_models_as_safetensors(tmp_path, make):
    state = {key: tensor.contiguous() for key, tensor in make().state_dict().items()}
    save_file(state, tmp_path / "own.safetensors", metadata={"format": "pt"})
    report = ckptool.diff(tmp_path / "own.safetensors", module=make())
    # Class versions are not in safetensors; that is harmless where nothing is to be filled in.
    notes = {f.code for f in report.findings if f.level == "note"}
    assert {code for code, _ in on_loading(report)} <= notes


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("model.pth", "CausalAttentionWithoutBuffers"),
        ("buffer.pth", "CausalAttentionWithBuffer"),
        ("buffer.safetensors", "CausalAttentionWithBuffer"),
    ],
)
def test_samples(samples, name, cls):
    report = ckptool.diff(samples / name, module=f"samples.attention:{cls}", kwargs=ARGUMENTS)
    assert on_loading(report) == set()
