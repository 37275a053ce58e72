"""Attributes that branches assign: each statement is registered, and plain torch agrees."""

import importlib
import sys

import pytest
import torch
from commands.fixing.branched_classes import BRANCHED_FIXED, BRANCHED_REFUSED

import ckptool
from ckptool.config import load_config

pytestmark = pytest.mark.process

CHANGED_CALLS = {"number_by_default": "build"}
"""Name of a file -> what builds its module, if it is not Net."""


def write_zoo(folder, sources):
    """Write a package of files with a class Net each, and a configuration that names them."""
    package = folder / "zoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    entries = []
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
        target = CHANGED_CALLS.get(name, "Net")
        entries.append(f'[[models]]\npath = "{name}.pth"\nmodule = "zoo.{name}:{target}"\n')
        entries.append('inputs = ["float32[2,4]"]')
    (folder / "ckptool.toml").write_text("\n".join(entries))


def forget_zoo():
    for name in [name for name in sys.modules if name.partition(".")[0] == "zoo"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def build(name, flag):
    torch.manual_seed(0)
    return importlib.import_module(f"zoo.{name}").Net(flag=flag).eval()


def run(module):
    torch.manual_seed(1)
    return module(torch.randn(2, 4))


def copy_state(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Return the report of `fix --write --keep-old-files`, old states and old outputs."""
    folder = tmp_path_factory.mktemp("branched")
    write_zoo(folder, BRANCHED_FIXED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        before = {}
        for name in BRANCHED_FIXED:
            for flag in (True, False):
                module = build(name, flag)
                before[name, flag] = (copy_state(module), run(module))
        report = ckptool.fix(write=True, keep_old_files=True, config=load_config(folder))
        forget_zoo()
        yield report, before
        forget_zoo()


def test_all_are_written(fixed):
    report, _ = fixed
    assert report.is_written, report.verdict
    assert not report.refused
    assert {proof.result for proof in report.proofs} == {"passed"}


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", BRANCHED_FIXED)
def test_both_branches_compute_the_same_and_load_their_old_files(fixed, name, flag):
    _, before = fixed
    old_state, old_output = before[name, flag]
    module = build(name, flag)
    assert all(torch.equal(module.state_dict()[key], old_state[key]) for key in old_state)
    assert torch.equal(run(module), old_output)
    build(name, flag).load_state_dict(old_state)
    new_state = copy_state(module)
    other = build(name, flag)
    other.load_state_dict(new_state)
    assert torch.equal(run(other), run(module)) or name == "moving_average"


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", BRANCHED_FIXED)
@pytest.mark.usefixtures("fixed")
def test_no_plain_tensor_is_left_and_all_move(name, flag):
    module = build(name, flag)
    plain = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
    assert plain == []
    module.to("meta", torch.float64)
    held = [*module.parameters(), *module.buffers()]
    assert held
    assert {(tensor.device.type, tensor.dtype) for tensor in held} == {("meta", torch.float64)}


@pytest.mark.parametrize("name", ["random_branch", "moving_average"])
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.usefixtures("fixed")
def test_what_no_constructor_makes_again_is_saved_in_every_branch(name, flag):
    assert {"mask", "mean"} & build(name, flag).state_dict().keys()


def test_branches_that_no_module_runs_are_named(fixed):
    report, _ = fixed
    (unseen,) = [note for note in report.notes if note.startswith("not seen to run")]
    assert "`mask` at zoo/or_none.py:" in unseen
    (left,) = [note for note in report.notes if note.startswith("stays as it is")]
    assert "`mask` at zoo/or_parameter.py:" in left
    (assumed,) = [note for note in report.notes if note.startswith("assumed: ")]
    assert "`mask` at zoo/argument_or_default.py:" in assumed


def test_a_module_for_each_branch_checks_both(tmp_path, monkeypatch):
    """Two entries name two statements of one group: it is edited once, and no branch is left."""
    (tmp_path / "net.py").write_text(BRANCHED_FIXED["two_tensors"])
    entry = '[[models]]\npath = "{0}.pth"\nmodule = "net:Net"\ninputs = ["float32[2,4]"]\n'
    entries = [
        entry.format(name) + f"kwargs = {{flag = {flag}}}\n"
        for name, flag in [("on", "true"), ("off", "false")]
    ]
    (tmp_path / "ckptool.toml").write_text("".join(entries))
    monkeypatch.chdir(tmp_path)
    report = ckptool.fix(config=load_config(tmp_path))
    (edit,) = report.edits
    assert len(edit.also_at) == 2
    assert report.verdict == "would fix 3 lines (--write does it)"
    assert {(p.name, p.result) for p in report.proofs if p.name == "same outputs"} == {
        ("same outputs", "passed")
    }
    (unseen,) = [note for note in report.notes if note.startswith("not seen to run")]
    assert unseen.startswith("not seen to run, and not checked then: `mask` at net.py:13;")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    write_zoo(folder, {name: source for name, (source, _) in BRANCHED_REFUSED.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder, ckptool.fix(write=True, allow_unproved=True, config=load_config(folder))
        forget_zoo()


@pytest.mark.parametrize("name", BRANCHED_REFUSED)
def test_what_is_refused_says_why(refused, name):
    folder, report = refused
    source, reason = BRANCHED_REFUSED[name]
    assert (folder / "zoo" / f"{name}.py").read_text() == source
    (refusal,) = [r for r in report.refused if r.where.startswith(f"zoo/{name}.py")]
    assert reason in refusal.reason
