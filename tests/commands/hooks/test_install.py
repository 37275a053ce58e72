"""install(): errors of loading get a note, silent losses a warning, and calls stay as they are."""

import io
import re
import sys
import threading
import warnings

import pytest
import safetensors.torch
import torch
from rules.known_errors.error_texts import Model, net, old_names
from torch import nn

import ckptool as package
from ckptool.commands.hooks import install as install_module

FUNCTIONS = [
    (nn.Module, "load_state_dict"),
    (torch, "load"),
    (safetensors.torch, "load_file"),
    (safetensors.torch, "load_model"),
]


@pytest.fixture
def installed():
    package.install()
    yield
    package.uninstall()


def notes(function) -> str:
    with pytest.raises(Exception) as caught:
        function()
    return "\n".join(getattr(caught.value, "__notes__", []))


def state_with(prefix: str, module: nn.Module) -> dict:
    return {prefix + key: value for key, value in module.state_dict().items()}


def test_undone_exactly():
    before = [getattr(owner, name) for owner, name in FUNCTIONS]
    package.install()
    package.install()
    wrapped = [getattr(owner, name) for owner, name in FUNCTIONS]
    assert all(new is not old for new, old in zip(wrapped, before, strict=True))
    package.uninstall()
    package.uninstall()
    assert [getattr(owner, name) for owner, name in FUNCTIONS] == before


def test_a_function_of_another_tool_stays(monkeypatch):
    original = nn.Module.load_state_dict
    package.install()
    ours = nn.Module.load_state_dict

    def other(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "load_state_dict", other)
    package.uninstall()
    assert nn.Module.load_state_dict is other
    assert notes(lambda: net().load_state_dict(state_with("module.", net()))) == ""
    monkeypatch.undo()
    nn.Module.load_state_dict = original


@pytest.mark.usefixtures("installed")
def test_from_threads():
    threads = [threading.Thread(target=package.install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(install_module._wrapped) == len(FUNCTIONS)


@pytest.mark.usefixtures("installed")
def test_import_auto_is_install():
    package.uninstall()
    sys.modules.pop("ckptool.auto", None)
    import ckptool.auto  # noqa: F401

    assert install_module._wrapped


def half(state: dict) -> dict:
    return {key: value for key, value in state.items() if "bias" in key}


CURED = {
    "wrapped": (net, lambda: state_with("module.", net())),
    "compiled": (net, lambda: state_with("_orig_mod.", net())),
    "inner wrapper": (
        lambda: nn.ModuleDict({"a": net()}),
        lambda: {f"a._orig_mod.{k}": v for k, v in net().state_dict().items()},
    ),
    "prefix": (net, lambda: state_with("model.", net())),
    "nested": (net, lambda: {"epoch": 3, "model_state_dict": net().state_dict()}),
    "renamed": (Model, lambda: Model(encoder="layers").state_dict()),
    "gamma": (Model, lambda: old_names(Model().state_dict())),
    "part": (lambda: nn.ModuleDict({"backbone": net()}), lambda: net().state_dict()),
}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("case", CURED)
def test_the_code_cures_it(case):
    make, make_state = CURED[case]
    model, state_dict = make(), make_state()
    text = notes(lambda: model.load_state_dict(dict(state_dict)))
    assert text.startswith("ckptool: ")
    code = re.search(r"next: [^:]*: (.*)", text)[1]
    assert "PACKAGE" not in text
    assert "CHECKPOINT" not in text
    exec(code, {"model": model, "state_dict": state_dict, "torch": torch})
    given = [v for v in _tensors(state_dict) if v.is_floating_point()]
    loaded = [v for v in model.state_dict().values() if v.is_floating_point()]
    assert all(any(torch.equal(a, b) for b in loaded) for a in given)


def _tensors(state: dict):
    for value in state.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


@pytest.mark.usefixtures("installed")
def test_shapes_are_said():
    text = notes(lambda: Model().load_state_dict(Model(classes=7).state_dict()))
    assert "7 outputs in the checkpoint and 3 in the model" in text


@pytest.mark.usefixtures("installed")
def test_the_command_names_the_file(tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    torch.save(state_with("module.", nn.Linear(2, 3)), tmp_path / "old.pth")
    (tmp_path / "netcode.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(2, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from netcode import Net

    torch.save(state_with("module.", Net()), "old.pth")
    text = notes(lambda: Net().load_state_dict(torch.load("old.pth")))
    command = re.search(r"ckptool (migrate .*)", text)[1]
    ran = run_command(*command.split(), cwd=tmp_path)
    assert ran.code == 0, ran.err + ran.out
    Net().load_state_dict(torch.load("old-migrated.pth"))


@pytest.mark.usefixtures("installed")
def test_a_changed_mapping_names_no_file(tmp_path):
    torch.save(net().state_dict(), tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth")
    text = notes(lambda: net().load_state_dict({f"module.{k}": v for k, v in state.items()}))
    assert "a.pth" not in text


@pytest.mark.usefixtures("installed")
def test_strict_false_warns():
    with pytest.warns(package.LoadWarning, match="9 unexpected") as caught:
        keys = net().load_state_dict(state_with("module.", net()), strict=False)
    assert len(keys.unexpected_keys) == 9
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net().load_state_dict(net().state_dict(), strict=False)
        net().load_state_dict(net().state_dict())


@pytest.mark.usefixtures("installed")
def test_an_error_filter_of_its_own_category_raises_and_a_general_one_does_not():
    state = state_with("module.", net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert net().load_state_dict(state, strict=False).missing_keys
    with warnings.catch_warnings():
        warnings.simplefilter("error", package.LoadWarning)
        with pytest.raises(package.LoadWarning):
            net().load_state_dict(state, strict=False)


@pytest.mark.usefixtures("installed")
def test_torch_load_and_safetensors(tmp_path):
    import argparse

    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    text = notes(lambda: torch.load(tmp_path / "a.pth"))
    assert f"ckptool inspect {tmp_path / 'a.pth'}" in text
    (tmp_path / "b.safetensors").write_bytes(b"<html>" * 20)
    text = notes(lambda: safetensors.torch.load_file(tmp_path / "b.safetensors"))
    assert "is not a safetensors file" in text
    safetensors.torch.save_file(state_with("module.", net()), tmp_path / "c.safetensors")
    text = notes(lambda: safetensors.torch.load_model(net(), tmp_path / "c.safetensors"))
    assert "DataParallel" in text


@pytest.mark.usefixtures("installed")
def test_load_model_of_a_tied_module_does_not_warn(tmp_path):
    module = nn.Module()
    module.a = nn.Linear(2, 2, bias=False)
    module.b = nn.Linear(2, 2, bias=False)
    module.b.weight = module.a.weight
    safetensors.torch.save_model(module, tmp_path / "tied.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        safetensors.torch.load_model(module, tmp_path / "tied.safetensors")


@pytest.mark.usefixtures("installed")
def test_own_error_is_swallowed(monkeypatch):
    from ckptool.commands.hooks import load_notes

    def fail(*_args):
        raise ZeroDivisionError

    monkeypatch.setattr(load_notes, "format_load_note", fail)
    with pytest.raises(RuntimeError, match="Error\\(s\\) in loading state_dict"):
        net().load_state_dict({})
    assert net().load_state_dict({}, strict=False).missing_keys


@pytest.mark.usefixtures("installed")
def test_random_state_and_module_stay():
    module, state = net(), state_with("module.", net())
    values = {key: value.clone() for key, value in module.state_dict().items()}
    random_state = torch.get_rng_state()
    notes(lambda: module.load_state_dict(state))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(values[k], v) for k, v in module.state_dict().items())


@pytest.mark.usefixtures("installed")
def test_other_errors_are_left_alone():
    class Broken(nn.Module):
        def load_state_dict(self, *args, **kwargs):
            raise RuntimeError("broken on purpose")

    assert notes(lambda: Broken().load_state_dict({})) == ""
    assert notes(lambda: torch.load(io.BytesIO(), no_such_option=1)) == ""


@pytest.mark.usefixtures("installed")
def test_a_quiet_library(tmp_path):
    """What ckptool itself loads, in this process, gives no warning."""
    torch.save(state_with("module.", net()), tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error", package.LoadWarning)
        package.diff(tmp_path / "a.pth", module=net())
