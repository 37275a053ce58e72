"""Loading code that looks at itself, at devices or at values: each answer is that of plain torch.

Every module is asked live and by its name, and its file is in several containers and places.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from verification.own_code_modules import CASES, PARTIAL_CASES

import ckptool
from ckptool.errors import CkptoolError, LoadError
from ckptool.policy import Policy
from ckptool.verification.loading import load_probe, trial_module

pytestmark = pytest.mark.matrix

PLACES = ("", "net.model")
X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture(params=CASES)
def name(request):
    torch.manual_seed(0)
    return request.param


def load_with_torch(name, state):
    """Return (module, what torch raises, None if it loads)."""
    module = CASES[name].module()
    try:
        module.load_state_dict(state)
    except Exception as error:  # noqa: BLE001 (a hook may raise anything)
        return module, error
    return module, None


SIZES = {"small": None, "large": (0, 1 << 40), "larger than the memory": (0, 0)}
"""Name -> maximum bytes of what is loaded with values at once, and of what is at all."""


def pretend_size(monkeypatch, size):
    """Let files and modules be larger than those that are loaded with values."""
    if SIZES[size] is not None:
        small, loadable = SIZES[size]
        monkeypatch.setattr(trial_module, "MAX_SMALL_NBYTES", small)
        monkeypatch.setattr(load_probe, "MAX_SMALL_NBYTES", small)
        monkeypatch.setattr(load_probe, "count_loadable_bytes", lambda: loadable)


def save(state, path, at):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        return load_file(path)
    content = state
    for step in reversed([step for step in at.split(".") if step]):
        content = {step: content, "epoch": 3}
    torch.save(content, path)
    loaded = torch.load(path, weights_only=False)
    for step in filter(None, at.split(".")):
        loaded = loaded[step]
    return loaded


def assert_same_state(module, expected):
    state, expected_state = module.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    for key, value in state.items():
        assert torch.equal(value, expected_state[key]), key
    assert torch.equal(module(X), expected(X))


@pytest.mark.parametrize("is_live", [False, True], ids=["by name", "live"])
@pytest.mark.parametrize("at", PLACES, ids=["top", "nested"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_diff_verify_and_gate_say_what_torch_does(name, suffix, at, is_live, tmp_path):
    if at and suffix == ".safetensors":
        pytest.skip("safetensors has one state")
    path = tmp_path / f"model{suffix}"
    _, error = load_with_torch(name, save(CASES[name].state(), path, at))
    module = CASES[name].module() if is_live else f"verification.own_code_modules:{name}"
    report = ckptool.diff(path, module=module, at=at or None)
    assert report.verdict.startswith("loads") == (error is None), (report.verdict, error)
    level = next(
        v for v in ckptool.verify(path, module=module, at=at or None).levels if v.level == "load"
    )
    assert (level.status == "passed") == (error is None), level
    gate = ckptool.gate(path, module=module, at=at or None, values=False)
    failures = {f.code for f in gate.findings if f.level == "error"} - {"CK216"}
    assert bool(failures) == (error is not None), gate.findings


@pytest.mark.parametrize("is_live", [False, True], ids=["by name", "live"])
@pytest.mark.parametrize("size", [size for size in SIZES if SIZES[size]])
def test_a_large_module_is_judged_as_torch_does_or_not_at_all(
    name, size, is_live, tmp_path, monkeypatch
):
    path = tmp_path / "model.pth"
    _, error = load_with_torch(name, save(CASES[name].state(), path, ""))
    pretend_size(monkeypatch, size)
    module = CASES[name].module() if is_live else f"verification.own_code_modules:{name}"
    report = ckptool.diff(path, module=module)
    if "not checked" in report.verdict:
        assert size != "large", report.skipped
        assert (
            "CK226" in {f.code for f in report.findings} or "by keys and shapes" in report.verdict
        )
    else:
        assert report.verdict.startswith("loads") == (error is None), (report.verdict, error)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load_gives_the_module_the_values_that_torch_gives_it(name, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    expected, error = load_with_torch(name, save(CASES[name].state(), path, ""))
    module = CASES[name].module()
    if error is not None:
        with pytest.raises(LoadError):
            ckptool.load(module, path)
        return
    ckptool.load(module, path, accept=["CK216"])
    assert_same_state(module, expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_migrated_file_gives_the_same_values(name, suffix, tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / f"new{suffix}"
    expected, error = load_with_torch(name, save(CASES[name].state(), path, ""))
    assert error is None, error
    try:
        ckptool.migrate(
            path,
            target,
            module=f"verification.own_code_modules:{name}",
            policy=Policy(ignore=("CK216",)),
        )
    except CkptoolError:
        # safetensors has no `_metadata`: the module's own code refuses the result, and so it says.
        assert name == "ReadsItsMetadata"
        assert suffix == ".safetensors"
        assert not target.exists()
        return
    state = load_file(target) if suffix == ".safetensors" else torch.load(target)
    module, error = load_with_torch(name, state)
    assert error is None, error
    assert_same_state(module, expected)


def test_a_live_module_is_not_changed_by_a_question(name, tmp_path):
    path, module = tmp_path / "model.pth", CASES[name].module()
    save(CASES[name].state(), path, "")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    random_state = torch.get_rng_state()
    ckptool.diff(path, module=module)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert torch.equal(torch.get_rng_state(), random_state)


def count_kept_elements(case):
    """Return key -> elements that plain torch leaves to the module, or to a random generator."""
    states = []
    for start in (0.25, -0.75):
        module = case.module()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(start)
        torch.manual_seed(7)
        state = case.state()
        torch.manual_seed(int(start < 0))
        module.load_state_dict(state)
        states.append(module.state_dict())
    counts = {key: int((value != states[1][key]).sum()) for key, value in states[0].items()}
    return {key: count for key, count in counts.items() if count}


@pytest.mark.parametrize("is_live", [False, True], ids=["by name", "live"])
@pytest.mark.parametrize("partial_name", PARTIAL_CASES)
def test_elements_that_are_not_of_the_file_are_counted(partial_name, is_live, tmp_path):
    case, path = PARTIAL_CASES[partial_name], tmp_path / "model.pth"
    expected = count_kept_elements(case)
    torch.save(case.state(), path)
    name = f"verification.own_code_modules:{partial_name}"
    report = ckptool.diff(path, module=case.module() if is_live else name)
    sizes = {key: value.numel() for key, value in case.module().state_dict().items()}
    lost = {step.key for step in report.load_steps if step.does == "lost"}
    partial = {step.key for step in report.load_steps if step.does == "partial"}
    assert lost == {key for key, count in expected.items() if count == sizes[key]}
    assert partial == expected.keys() - lost
    findings = {f.key: f for f in report.findings if f.code == "CK222"}
    assert findings.keys() == expected.keys()
    for key in partial:
        assert f" {expected[key]} of {sizes[key]} elements" in findings[key].summary
        assert findings[key].level == "warning"
    assert all(findings[key].level == "error" for key in lost)
