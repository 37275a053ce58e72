"""Single files of every kind through every command: one clear answer, and fixes that run."""

import pickle
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

LAYER = nn.Linear(4, 3)


def save_as(name: str, make: Callable[[], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(make(), folder / name)
        return folder / name

    return write


def write_joblib(folder: Path) -> Path:
    joblib = pytest.importorskip("joblib")
    joblib.dump(LAYER.state_dict(), folder / "weights.joblib")
    return folder / "weights.joblib"


def write_pickle(folder: Path) -> Path:
    (folder / "weights.pkl").write_bytes(pickle.dumps(dict(LAYER.state_dict())))
    return folder / "weights.pkl"


def write_unpacked(folder: Path) -> Path:
    path = save_as("orig.pth", LAYER.state_dict)(folder)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unz")
    return folder / "unz" / "orig"


def write_python(folder: Path) -> Path:
    (folder / "mod.py").write_text("from torch import nn\n\ndef net():\n    return nn.ReLU()\n")
    return folder / "mod.py"


def write_fp8(folder: Path) -> Path:
    """Block-scaled float8, one layer without its scale."""
    state = {}
    for layer in ("0", "1", "2"):
        state[f"{layer}.weight"] = torch.ones(16, 16).to(torch.float8_e4m3fn)
        state[f"{layer}.weight_scale_inv"] = torch.rand(2, 2)
    del state["1.weight_scale_inv"]
    save_file(state, folder / "fp8.safetensors", {"format": "pt"})
    return folder / "fp8.safetensors"


def make_wrapper_state() -> dict[str, torch.Tensor]:
    return {"weight": TwoTensor(torch.ones(2, 2), torch.zeros(2, 2))}


def make_placeholders() -> dict[str, torch.Tensor]:
    """A file of ZeRO-3 that was saved without gathering."""
    return {f"layers.{n}.{k}": torch.empty(0) for n in range(3) for k in ("weight", "bias")}


FILES: dict[str, Callable[[Path], Path]] = {
    "a state_dict": save_as("plain.pth", LAYER.state_dict),
    "a prefix": save_as(
        "prefix.pth",
        lambda: {f"module.base_model.model.{k}": v for k, v in LAYER.state_dict().items()},
    ),
    "keys that a load refuses": save_as(
        "extra.pth", lambda: {**LAYER.state_dict(), "weight.absmax_": torch.tensor(2.0)}
    ),
    "a wrapper subclass": save_as("wrapper.pth", make_wrapper_state),
    "placeholders": save_as("zero3.bin", make_placeholders),
    "tensors on meta": save_as("meta.pth", lambda: nn.Linear(4, 3, device="meta").state_dict()),
    "a list": save_as("list.pth", lambda: [*LAYER.parameters()]),
    "a module": save_as("module.pth", lambda: LAYER),
    "bytes of another file": save_as(
        "bytes.pth", lambda: {**LAYER.state_dict(), "raw": b"PK\x03\x04" + bytes(100)}
    ),
    "float8": write_fp8,
    "joblib": write_joblib,
    "pickle.dump": write_pickle,
    "an unpacked archive": write_unpacked,
    "Python code": write_python,
}
MODULE = ("-m", "torch.nn:Linear", "-k", "in_features=4", "-k", "out_features=3")
COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "inspect": lambda path: ["inspect", path],
    "digest": lambda path: ["digest", path],
    "lock": lambda path: ["lock", path, "-o", "x.lock", "--force"],
    "convert": lambda path: ["convert", path, "-o", "converted.pth", "--force"],
    "convert to safetensors": lambda path: ["convert", path, "-o", "c.safetensors", "--force"],
    "migrate": lambda path: ["migrate", path, "-o", "m.pth", "--force"],
    "migrate with a module": lambda path: ["migrate", path, *MODULE, "-o", "n.pth", "--force"],
    "gate": lambda path: ["gate", path],
    "gate with a module": lambda path: ["gate", path, *MODULE],
    "diff": lambda path: ["diff", path, path],
    "diff with a module": lambda path: ["diff", path, *MODULE],
    "verify": lambda path: ["verify", path, *MODULE],
}
_CONVERSION = re.compile(r"ckptool convert .+?(?=;|\. |$)", re.MULTILINE)


def torch_loads(path: Path) -> bool:
    """Whether torch.load reads the file at all."""
    try:
        torch.load(path, weights_only=False)
    except Exception:  # noqa: BLE001 (torch raises what it likes)
        return False
    return True


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FILES)
def test_each_answer_is_a_report_or_one_sentence(kind, command, tmp_path, run_command):
    path = FILES[kind](tmp_path)
    ran = run_command(*COMMANDS[command](path.relative_to(tmp_path)), cwd=tmp_path)
    text = ran.out + ran.err
    assert ran.code in {0, 1, 2}
    assert "Traceback" not in text
    assert " was not examined: 1 are" not in text
    if ran.code == 2 and ran.err:
        first, *others = ran.err.splitlines()
        assert first.startswith("ckptool")
        assert all(line.startswith("  ") for line in others), ran.err
    if command == "gate" and ran.code == 0:
        assert "not checked: the module" in text, "it passes without the module and says so"
        assert torch_loads(path)
    if command == "diff with a module":
        assert (ran.code == 0) <= torch_loads(path)
    for fix in _CONVERSION.findall(text):
        words = shlex.split(fix)
        done = run_command(*words[1:], "--force", cwd=tmp_path)
        assert done.code == 0, (fix, done.err)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("placeholders", "convert"),
        ("placeholders", "convert to safetensors"),
        ("placeholders", "migrate"),
        ("tensors on meta", "convert to safetensors"),
        ("tensors on meta", "migrate"),
    ],
)
def test_what_has_no_values_is_not_converted(kind, command, tmp_path, run_command):
    path = FILES[kind](tmp_path)
    ran = run_command(*COMMANDS[command](path.relative_to(tmp_path)), cwd=tmp_path)
    assert ran.code == 2
    assert "ckptool cannot add what is not in the file" in ran.err


def test_python_code_is_told_from_a_checkpoint(tmp_path, run_command):
    ran = run_command("inspect", write_python(tmp_path))
    assert ran.code == 2
    assert "is Python code: -m FILE.py:NAME gives a module in it" in ran.err
