"""Modules, changes of their states and containers, drawn at random; truth is load_state_dict."""

import copy
import random
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptool

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Casting complex values"),
]


class Renaming(nn.Module):
    """It reads its layer also under an old name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self._register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(state_dict, prefix, *_):
        for key in list(state_dict):
            if key.startswith(f"{prefix}old."):
                new_key = key.replace(f"{prefix}old.", f"{prefix}layer.", 1)
                state_dict[new_key] = state_dict.pop(key)


class Upgrading(nn.Module):
    """Its code fills in a key of files without versions."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *lists):
        if local_metadata.get("version") is None:
            state_dict.setdefault(f"{prefix}layer.bias", torch.zeros(2))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *lists)


class Lenient(nn.Module):
    """It hides missing keys from a strict load."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_load_state_dict_post_hook(self._forgive)

    @staticmethod
    def _forgive(module, keys):
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith("weight")]


class Resizing(nn.Module):
    """It makes room for a buffer of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, *lists):
        if isinstance(state_dict.get(f"{prefix}bank"), torch.Tensor):
            self.bank = torch.empty_like(state_dict[f"{prefix}bank"])
        super()._load_from_state_dict(state_dict, prefix, *lists)


class Mixed(nn.Module):
    """A plain attribute, an unsaved buffer, one that is None, and dtypes of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.triu(torch.ones(3, 3))
        self.register_buffer("steps", torch.arange(3.0), persistent=False)
        self.register_buffer("bias", None)
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("empty", torch.zeros(0))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.coarse = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


LEAVES = {
    "linear": lambda: nn.Linear(3, 4),
    "convolution": lambda: nn.Conv2d(1, 2, 3, bias=False),
    "norm": lambda: nn.BatchNorm1d(3),
    "norm without statistics": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "norm without parameters": lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    "recurrent": lambda: nn.LSTM(3, 4, bidirectional=True),
    "attention": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "list": lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(11)),
    "parameters": lambda: nn.ParameterDict({"x": torch.ones(2), "0": torch.zeros(1)}),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(3, 4)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    "renaming": Renaming,
    "upgrading": Upgrading,
    "lenient": Lenient,
    "resizing": Resizing,
    "mixed": Mixed,
}


class Drawn(nn.Module):
    """The modules of the names; with `is_tied`, an embedding and its head as well."""

    def __init__(self, names: list[str], *, is_tied: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(LEAVES[name]() for name in names)
        if is_tied:
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight


def build_drawn(kwargs: dict) -> Drawn:
    torch.manual_seed(0)
    return Drawn(**kwargs)


def drop_key(state, key, draw):
    del state[key]


def add_key(state, key, draw):
    state[f"{key}_x"] = torch.ones(2)


def rename_key(state, key, draw):
    head, _, name = key.rpartition(".")
    state[f"{head}.old.{name}" if head else f"old.{name}"] = state.pop(key)


def add_prefix(state, key, draw):
    prefix = draw.choice(["module.", "model.", "_orig_mod."])
    for name in list(state):
        state[prefix + name] = state.pop(name)


def drop_versions(state, key, draw):
    state._metadata = OrderedDict()


def grow_tensor(state, key, draw):
    state[key] = torch.ones([size + 1 for size in state[key].shape])


def add_dimension(state, key, draw):
    state[key] = state[key][None]


def make_scalar(state, key, draw):
    state[key] = torch.tensor(1.0)


def cast_tensor(state, key, draw):
    dtypes = [torch.float16, torch.float64, torch.int64, torch.complex64, torch.bool]
    state[key] = state[key].to(draw.choice(dtypes))


def expand_tensor(state, key, draw):
    if state[key].numel():
        state[key] = state[key].flatten()[:1].expand(state[key].numel()).reshape(state[key].shape)


def replace_by_number(state, key, draw):
    state[key] = 3


def replace_by_none(state, key, draw):
    state[key] = None


CHANGES = [
    drop_key, add_key, rename_key, add_prefix, drop_versions, grow_tensor, add_dimension,
    make_scalar, cast_tensor, expand_tensor, replace_by_number, replace_by_none,
]  # fmt: skip
CONTAINERS = ["zip", "dict", "legacy", "nested", "safetensors"]
ACCEPTED = ("CK208", "CK216", "CK502")
"""What `load` asks about before it does what torch does."""


def draw_state(module: nn.Module, draw: random.Random) -> OrderedDict:
    state = module.state_dict()
    changed = OrderedDict(
        (key, value.detach() + 0.25 if value.is_floating_point() else value.detach())
        for key, value in state.items()
    )
    changed._metadata = copy.deepcopy(state._metadata)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        tensor_keys = [key for key, value in changed.items() if isinstance(value, torch.Tensor)]
        if tensor_keys:
            draw.choice(CHANGES)(changed, draw.choice(tensor_keys), draw)
    return changed


def save_state(state: OrderedDict, container: str, folder: Path) -> Path:
    path = folder / "file.pth"
    if container == "safetensors" and all(isinstance(v, torch.Tensor) for v in state.values()):
        path = folder / "file.safetensors"
        save_file({k: v.contiguous().clone() for k, v in state.items()}, path, {"format": "pt"})
    elif container == "nested":
        torch.save({"epoch": 1, "state_dict": state}, path)
    elif container == "dict":
        torch.save(dict(state), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container != "legacy")
    return path


def load_with_torch(module: nn.Module, path: Path) -> bool:
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path)
        state = state.get("state_dict", state)
    try:
        module.load_state_dict(state)
    except (RuntimeError, AttributeError, KeyError, TypeError):
        return False
    return True


def load_with_ckptool(module: nn.Module, path: Path, kwargs: dict) -> tuple[bool, str]:
    try:
        ckptool.load(module, path, kwargs=kwargs, accept=ACCEPTED)
    except ckptool.CkptoolError as error:
        return False, str(error)
    return True, ""


def have_equal_states(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(), other[key].nan_to_num()) for key in one
    )


@pytest.mark.parametrize("seed", range(120))
def test_a_drawn_file_loads_as_torch_loads_it(tmp_path, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    names = draw.choices(list(LEAVES), k=draw.randint(1, 4))
    kwargs = {"names": names, "is_tied": draw.random() < 0.2}
    state = draw_state(Drawn(**kwargs), draw)
    path = save_state(state, draw.choice(CONTAINERS), tmp_path)
    expected, module, unchanged = (build_drawn(kwargs) for _ in range(3))
    loads = load_with_torch(expected, path)
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        with pytest.raises(ckptool.CkptoolError, match="contains no tensors"):
            ckptool.diff(path, module=Drawn, kwargs=kwargs)
        return
    report = ckptool.diff(path, module=Drawn, kwargs=kwargs)
    assert report.verdict.startswith("loads") == loads, report.verdict
    is_loaded, error = load_with_ckptool(module, path, kwargs)
    if not is_loaded:
        assert not loads, error
        assert have_equal_states(module, unchanged)
    elif loads:  # of a file that torch refuses, what was proved: a prefix, a shape of one element
        assert have_equal_states(module, expected)
