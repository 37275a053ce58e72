"""`ckptool inspect`: is it safe, how many parameters, filters, order, and the values of a key."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from files import save
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool.errors import UsageError
from ckptool.model import Container
from ckptool.reports.details import load_safety

pytestmark = pytest.mark.filterwarnings("ignore")


class Payload:
    def __reduce__(self):
        return os.system, ("false",)


def make_module() -> nn.Module:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    module[3].weight = module[0].weight
    return module


def zip_again(path):
    target = path.with_name("again.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in reversed(old.namelist()):
            new.writestr(f"x/{name}", old.read(name))
    return target


def save_pickle(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


REFUSES = "torch.load(weights_only=True) refuses"
STATE = make_module().state_dict()
OLD = {"_use_new_zipfile_serialization": False}
FILES = {
    "state": lambda path: save(path, STATE),
    "training": lambda path: save(path, {"model": STATE, "epoch": 3, "s": {1}, "d": torch.float16}),
    "before 1.6": lambda path: save(path, STATE, **OLD),
    "protocol 4": lambda path: save(path, STATE, pickle_protocol=4),
    "bytes of protocol 4": lambda path: save(path, {**STATE, "b": b"x"}, pickle_protocol=4),
    "namespace": lambda path: save(path, {"model": STATE, "args": argparse.Namespace(a=1)}),
    "namespace before 1.6": lambda path: save(path, {"m": STATE, "a": argparse.Namespace()}, **OLD),
    "payload": lambda path: save(path, {"model": STATE, "cfg": Payload()}),
    "module": lambda path: save(path, make_module()),
    "array": lambda path: save(path, {"w": np.ones(3), "v": torch.ones(1)}),
    "number": lambda path: save(path, {"w": torch.ones(3), "n": np.float64(1)}),
    "pickle": lambda path: save_pickle(path, dict(STATE)),
    "zipped again": lambda path: zip_again(save(path, STATE)),
    "script": lambda path: torch.jit.save(torch.jit.script(make_module()), path) or path,
}


@pytest.mark.parametrize("name", FILES)
def test_the_answer_is_that_of_torch_load(tmp_path, name):
    path = FILES[name](tmp_path / "a.pt")
    try:
        torch.load(path, weights_only=True)
        loads = True
    except Exception:  # noqa: BLE001 - whatever it raises
        loads = False
    (checkpoint,) = ckptool.inspect(path).checkpoints
    assert checkpoint.safety.startswith("safe: torch.load(weights_only=True) reads it") == loads
    assert ("refuses" in checkpoint.safety or "not safe" in checkpoint.safety) != loads


def test_every_container_has_its_loader():
    tables = (load_safety._SAFE_LOADERS, load_safety._CODE_LOADERS)
    assert {*Container} == {*load_safety._SAFETENSORS, *tables[0], *tables[1]}


def test_what_is_refused_is_named(tmp_path):
    FILES["namespace"](tmp_path / "a.pt")
    FILES["payload"](tmp_path / "b.pt")
    save_file({"w": torch.ones(2)}, tmp_path / "c.safetensors")
    paths = [tmp_path / name for name in ("a.pt", "b.pt", "c.safetensors")]
    assert [checkpoint.safety for checkpoint in ckptool.inspect(paths).checkpoints] == [
        f"{REFUSES} argparse.Namespace at `args`",
        f"dangerous: {REFUSES} posix.system at `cfg`; weights_only=False would run it",
        "safe: a safetensors file contains no code",
    ]


@pytest.mark.parametrize("is_module", [False, True])
def test_parameters_are_those_of_the_module(tmp_path, is_module):
    module = make_module()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module[1:3](torch.ones(2, 4)).sum().backward()
    optimizer.step()
    content = module if is_module else module.state_dict()
    save(tmp_path / "a.pt", {"model": content, "optimizer": optimizer.state_dict()})
    (checkpoint,) = ckptool.inspect(tmp_path / "a.pt").checkpoints
    assert checkpoint.parameters == sum(p.numel() for p in module.parameters())


def test_the_model_is_before_optimizer_and_generator_state(tmp_path):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "rng": torch.get_rng_state(),
        "a_optimizer": optimizer.state_dict(),
        "z_model": module.state_dict(),
    }
    (checkpoint,) = ckptool.inspect(save(tmp_path / "a.pt", content)).checkpoints
    assert [state.at for state in checkpoint.states] == ["z_model", "a_optimizer", ""]


def test_a_filter_a_depth_and_an_order(tmp_path, run_command):
    state = {
        "enc.0.w": torch.ones(2),
        "enc.1.w": torch.ones(100),
        "dec.b": torch.ones(3, dtype=torch.float16),
    }
    path = save(tmp_path / "a.pt", state)

    def list_keys(**how) -> list[str]:
        (checkpoint,) = ckptool.inspect(path, **how).checkpoints
        return [tensor.key for found in checkpoint.states for tensor in found.tensors]

    assert list_keys(filter="enc") == list_keys(filter="enc.*") == ["enc.0.w", "enc.1.w"]
    assert list_keys(filter="*.b") == ["dec.b"]
    with pytest.raises(UsageError, match="--filter nowhere: no key of the file"):
        list_keys(filter="nowhere")
    sizes = run_command("inspect", path, "--sort", "size", "-v").out
    assert sizes.index("enc.1.w") < sizes.index("enc.0.w") < sizes.index("dec.b")
    names = run_command("inspect", path, "--sort", "name", "--depth", "1").out
    assert names.index("dec.b") < names.index("enc ")
    assert "enc.0" not in names
    with pytest.raises(UsageError, match="--sort weight"):
        ckptool.inspect(path, sort="weight")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3),
        torch.randn(60, 60),
        torch.randn(4, 3, 2).transpose(0, 2),
        torch.tensor(3, dtype=torch.int64),
        torch.tensor([True, False]),
        torch.tensor([float("nan"), float("inf"), 1.0]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.empty(0, 3),
    ],
)
def test_values_are_printed_as_torch_prints_them(tmp_path, tensor, run_command):
    path = save(tmp_path / "a.pt", {"model": {"w": tensor}, "epoch": 3})
    (checkpoint,) = ckptool.inspect(path, key="w").checkpoints
    assert checkpoint.values.text == str(tensor)
    assert (checkpoint.values.place, checkpoint.values.shape) == ("model.w", tuple(tensor.shape))
    shown = run_command("inspect", path, "--key", "model.w").out
    assert all(line in shown for line in str(tensor).splitlines())


def test_a_picture_of_a_small_tensor(tmp_path, run_command):
    state = {"row": torch.arange(8.0), "mask": torch.triu(torch.ones(3, 3)), "nan": torch.ones(2)}
    state["nan"][0] = float("nan")
    path = save(tmp_path / "a.pt", state)
    environment = {"PYTHONIOENCODING": "utf-8"}
    assert "|▁▂▃▄▅▆▇█|" in run_command("inspect", path, "--key", "row", **environment).out
    mask = run_command("inspect", path, "--key", "mask", **environment).out
    assert "|███|\n| ██|\n|  █|" in mask
    assert "`!` is not finite" in run_command("inspect", path, "--key", "nan", **environment).out


def test_a_plain_value_and_a_key_that_is_not_there(tmp_path):
    path = save(tmp_path / "a.pt", {"model": {"weight": torch.ones(1)}, "epoch": 3})
    (checkpoint,) = ckptool.inspect(path, key="epoch").checkpoints
    assert checkpoint.values.text == "3"
    with pytest.raises(UsageError, match="did you mean `weight`"):
        ckptool.inspect(path, key="wieght")


def test_two_files_differ_in_plain_data(tmp_path, run_command):
    state = {"w": torch.ones(3)}
    old = {"model": state, "epoch": 3, "hp": {"lr": 0.1, "d": {"a": 1}, "gone": "x"}, "same": 1}
    new = {"model": {"w": torch.zeros(3)}, "epoch": 4, "hp": {"lr": 0.2, "d": {"a": 2}}, "same": 1}
    paths = [save(tmp_path / f"{n}.pt", content) for n, content in (("old", old), ("new", new))]
    out = run_command("diff", *paths).out
    for line in ("epoch: 3 -> 4", "hp.lr: 0.1 -> 0.2", "hp.d.a: 1 -> 2", "hp.gone: 'x' -> -"):
        assert f"  {line}\n" in out
    assert out.index("Values that differ") < out.index("epoch: 3 -> 4")
    assert "same:" not in out
    report = ckptool.diff(*paths)
    assert {c.place for c in report.entry_changes} == {"epoch", "hp.lr", "hp.d.a", "hp.gone"}
