"""The verdict on a load is what plain torch does with the same file and module."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from verification.loading_modules import CASES

import ckptool
from ckptool.config import ReleaseRequirements
from ckptool.policy import Policy
from ckptool.verification.loading.loading_code import find_loading_code


def load_with_torch(module, state):
    """Load strictly as a user would; return what torch raises, None if it loads."""
    try:
        module.load_state_dict(state)
    except Exception as error:  # noqa: BLE001 (a hook may raise anything)
        return error
    return None


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    return CASES[request.param]


def test_diff_and_verify_say_what_torch_does(case, tmp_path):
    path, module = tmp_path / "model.pth", case.module()
    state = case.state()
    torch.save(state, path)
    error = load_with_torch(case.module(), torch.load(path, weights_only=True))
    report = ckptool.diff(path, module=module)
    assert report.verdict.startswith("loads") == (error is None), (report.verdict, error)
    lost = {f.key for f in report.findings if f.code == "CK222"}
    assert lost == case.lost
    level = next(v for v in ckptool.verify(path, module=module).levels if v.level == "load")
    assert (level.status == "passed") == (error is None), level


SAME_ELEMENTS = {"renamed", "reshaped"}
OTHER_ELEMENTS = {"permuted", "sliced"}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_key_without_a_step_has_the_files_elements(case, suffix, tmp_path):
    """Asks torch for the values: what no step names is a copy, and what a step names is not."""
    path, module, state = tmp_path / f"model.{suffix}", case.module(), case.state()
    if suffix == "pth":
        torch.save(state, path)
        state = torch.load(path, weights_only=True)
    else:
        try:
            save_file(state, path)
        except (ValueError, NotImplementedError):
            pytest.skip("safetensors holds dense tensors with data only")
        state = load_file(path)
    if load_with_torch(module, state) is not None:
        return
    report = ckptool.diff(path, module=case.module())
    steps = {step.key: step for step in report.load_steps}
    loaded = module.state_dict()
    for key, value in loaded.items():
        step = steps.get(key)
        if not isinstance(value, torch.Tensor) or key in case.lost:
            continue
        if step is None or step.does in SAME_ELEMENTS:
            source = state[step.file_key if step is not None and step.file_key else key]
            assert torch.equal(value.flatten(), source.to(value.dtype).flatten()), (key, step)
        elif step.does in OTHER_ELEMENTS:
            source = state[step.file_key or key].to(value.dtype).flatten()
            assert not torch.equal(value.flatten(), source), (key, step)


def test_views_that_loading_code_makes_are_named(tmp_path):
    def name_steps(name):
        torch.save(CASES[name].state(), tmp_path / "model.pth")
        report = ckptool.diff(tmp_path / "model.pth", module=CASES[name].module())
        return {(step.key, step.does, step.file_key) for step in report.load_steps}

    weight = "proj.weight"
    assert name_steps("transposed") == {(weight, "permuted", "")}
    assert name_steps("a view, transposed within its shape") == {(weight, "permuted", "")}
    assert name_steps("a copy, permuted and flattened") == {(weight, "computed", "")}
    assert name_steps("the first rows") == {(weight, "sliced", "")}
    assert name_steps("every second column") == {(weight, "sliced", "")}
    assert name_steps("one row for all") == {(weight, "computed", "")}
    assert name_steps("cut from a joined weight") == {(weight, "sliced", "qkv.weight")}
    assert name_steps("one more dimension") == {(weight, "reshaped", "")}


def test_what_is_lost_has_a_fresh_modules_value(case, tmp_path):
    """Asks torch: a key that is not lost and not added by code changes when the file is loaded."""
    path, module = tmp_path / "model.pth", case.module()
    torch.save(case.state(), path)
    fresh = copy.deepcopy(module.state_dict())
    if load_with_torch(module, torch.load(path, weights_only=True)) is not None:
        return
    for key in case.lost:
        assert torch.equal(module.state_dict()[key], fresh[key])


def test_the_gate_fails_what_torch_does_not_load(case, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(case.state(), path)
    error = load_with_torch(case.module(), torch.load(path, weights_only=True))
    report = ckptool.gate(path, module=case.module(), values=False)
    if error is not None or case.lost:
        assert report.exit_code == 1, (report.verdict, error)


def test_safetensors_are_judged_as_torch_loads_them(case, tmp_path):
    """The versions are gone: upgrade code takes the file for an old one."""
    path = tmp_path / "model.safetensors"
    state = case.state()
    if not all(isinstance(v, torch.Tensor) and v.device.type == "cpu" and v.layout == torch.strided
               for v in state.values()):  # fmt: skip
        pytest.skip("safetensors holds plain tensors only")
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(state, path)
    error = load_with_torch(case.module(), state)
    report = ckptool.diff(path, module=case.module())
    assert report.verdict.startswith("loads") == (error is None), (report.verdict, error)


def test_the_module_is_not_changed(case, tmp_path):
    path, module = tmp_path / "model.pth", case.module()
    torch.save(case.state(), path)
    before = copy.deepcopy(module.state_dict())
    ckptool.diff(path, module=module)
    after = module.state_dict()
    assert before.keys() == after.keys()
    plain = [
        key
        for key, value in before.items()
        if isinstance(value, torch.Tensor) and not torch.nn.parameter.is_lazy(value)
    ]
    assert all(torch.equal(before[key], after[key]) for key in plain)


def test_steps_say_what_the_code_did(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(CASES["a pre-hook renames"].state(), path)
    report = ckptool.diff(path, module=CASES["a pre-hook renames"].module())
    assert report.verdict == "loads strictly, by the module's own upgrade of 2 keys"
    steps = {(s.key, s.does, s.file_key) for s in report.load_steps}
    assert steps == {
        ("new.weight", "renamed", "old.weight"),
        ("new.bias", "renamed", "old.bias"),
    }


def test_what_cannot_be_asked_is_not_checked(tmp_path, monkeypatch):
    from ckptool.verification.loading import load_probe

    monkeypatch.setattr(load_probe, "MAX_SMALL_NBYTES", 0)
    monkeypatch.setattr(load_probe, "count_loadable_bytes", lambda: 0)
    path = tmp_path / "model.pth"
    torch.save(CASES["a value is asked for"].state(), path)
    report = ckptool.diff(path, module=CASES["a value is asked for"].module())
    assert "the module's own loading code" in {s.what for s in report.skipped}


class Uncopyable(torch.nn.BatchNorm1d):
    def __init__(self):
        super().__init__(3)

    def __deepcopy__(self, memo):
        raise TypeError("it holds a socket")


def test_a_module_that_cannot_be_copied_is_judged_by_its_keys_and_it_is_said(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(Uncopyable().state_dict(), path)
    report = ckptool.diff(path, module=Uncopyable())
    assert report.verdict == "keys and shapes match; not checked: the module's own loading code"
    assert "CK226" in {f.code for f in report.findings}
    reasons = {s.what: s.reason for s in report.skipped}
    assert "it holds a socket" in reasons["the module's own loading code"]
    assert "it holds a socket" in reasons["loading the module's own state_dict()"]


def test_a_gate_that_requires_a_strict_load_fails_where_it_cannot_be_asked(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(Uncopyable().state_dict(), path)
    required = Policy(require=ReleaseRequirements(strict=True))
    report = ckptool.gate(path, module=Uncopyable(), values=False, policy=required)
    assert [f.code for f in report.findings if f.fails] == ["CK851"]
    assert "it holds a socket" in report.findings[0].message
    torch.save(torch.nn.BatchNorm1d(3).state_dict(), path)
    asked = ckptool.gate(path, module=torch.nn.BatchNorm1d(3), values=False, policy=required)
    assert asked.exit_code == 0


def test_a_module_without_loading_code_is_not_asked():
    assert find_loading_code(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())) == ()
    assert find_loading_code(torch.nn.Sequential(torch.nn.BatchNorm1d(2))) == ("0",)
