"""What stands in the place of a tensor: torch says what the load raises, and we say the same."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ckptool

VALUES = {
    "a float": 2.5,
    "an int": 3,
    "a bool": True,
    "None": None,
    "a list": [1.0, 2.0],
    "an empty list": [],
    "text": "x",
    "bytes": b"ab",
    "an empty dict": {},
    "a dict of tensors": {"a": torch.ones(2)},
    "a list of tensors": [torch.ones(2)],
    "a tuple of tensors": (torch.ones(2), None),
    "a dict of a dict": {"a": {"b": torch.ones(2)}},
    "an array": np.ones(2, np.float32),
    "an array of another shape": np.ones((3, 4), np.float32),
    "a big-endian array": np.ones(2, ">f4"),
    "an array of text": np.array(["a", "b"]),
    "a list of arrays": [np.ones(2)],
    "a NumPy number": np.float32(2),
    "a lazy parameter": nn.parameter.UninitializedParameter(),
    "a lazy buffer": nn.parameter.UninitializedBuffer(),
    "a class": dict,
    "a size": torch.Size([2]),
    "a dtype": torch.float32,
    "a tensor": torch.ones(2),
}
LOADED = {"a tensor"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.register_buffer("scale", torch.ones(2))


class Normed(Net):
    """One layer has loading code of torch's own, so that the loader is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)


@pytest.mark.parametrize("key", ["scale", "fc.bias", "extra"])
@pytest.mark.parametrize(
    ("name", "value"), VALUES.items(), ids=[name.replace(" ", "-") for name in VALUES]
)
@pytest.mark.parametrize("module", [Net, Normed], ids=lambda cls: cls.__name__)
def test_verdict_is_torchs(tmp_path: Path, module, key: str, name: str, value: object) -> None:
    path = tmp_path / "state.pth"
    torch.save({**module().state_dict(), key: value}, path)
    error = load_with_torch(module(), path)
    report = ckptool.diff(path, module=module())
    assert report.verdict.startswith("loads") == (not error), (report.verdict, error)
    assert not (set(report.missing_keys) & set(report.unexpected_keys))
    assert report.missing_keys == ()
    is_mistyped = bool(error) and key != "extra"
    assert tuple(report.mistyped_keys) == ((key,) if is_mistyped else ())
    assert report.unexpected_keys == (("extra",) if key == "extra" else ())
    if is_mistyped:
        besides = {"CK301", "CK327"}  # an unsafe class, a parameter without values
        assert [f.code for f in report.findings if f.key == key and f.code not in besides] == [
            "CK316"
        ]


def load_with_torch(module: nn.Module, path: Path) -> str:
    try:
        module.load_state_dict(torch.load(path, weights_only=False))
    except Exception as error:  # noqa: BLE001 - whatever it raises, it does not load
        return str(error) or type(error).__name__
    return ""


def make_arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    return arrays | {"fc.weight": np.asfortranarray(arrays["fc.weight"])}


def write_source(path: Path, form: str, state: dict[str, torch.Tensor]) -> Path:
    """Write a state whose values are arrays, all or some, in one of the ways the world has them."""
    arrays = make_arrays(state)
    content = {
        "flat": arrays,
        "nested": {"model": arrays, "epoch": 2},
        "mixed": {**state, "fc.weight": arrays["fc.weight"]},
        "protocol 5": arrays,
        "pickle": {"model": arrays, "__author__": "x", "matching_heuristics": True},
        "legacy": arrays,
    }[form]
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
        return path
    how = {
        "legacy": {"_use_new_zipfile_serialization": False},
        "protocol 5": {"pickle_protocol": 5},
    }
    torch.save(content, path, **how.get(form, {}))
    return path


FORMS = ("flat", "nested", "mixed", "protocol 5", "pickle", "legacy")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_arrays_are_shown_and_converted(tmp_path: Path, form: str, suffix: str) -> None:
    torch.manual_seed(0)
    state = Normed().state_dict()
    source = write_source(tmp_path / "source.pkl", form, state)
    inspected = ckptool.inspect(source).checkpoints[0].states[0]
    shapes = {tensor.key: tuple(tensor.shape) for tensor in inspected.tensors}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in state.items()}
    result = tmp_path / f"result.{suffix}"
    ckptool.migrate(source, result, module=Normed(), drop_extra=True)
    assert ckptool.diff(result, module=Normed()).verdict == "loads strictly"
    loaded = Normed()
    loaded.load_state_dict(read_result(result))
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    digests = ckptool.digest([source, result]).checkpoints
    assert digests[0].digest == digests[1].digest


def read_result(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, weights_only=True)
    return content.get("model", content)


def test_containers_under_a_key_are_kept_by_a_rename(tmp_path: Path) -> None:
    source, result = tmp_path / "old.pth", tmp_path / "new.pth"
    others = {"teacher": {"w": torch.ones(3)}, "names": {"x": np.array(["a"])}, "epoch": 3}
    torch.save({"a.weight": torch.ones(2), **others}, source)
    ckptool.migrate(source, result, renames={"a.weight": "b.weight"}, at=".")
    loaded = torch.load(result, weights_only=False)
    assert loaded.keys() == {"b.weight", *others}
    assert torch.equal(loaded["teacher"]["w"], torch.ones(3))
    assert loaded["names"]["x"] == np.array(["a"])
