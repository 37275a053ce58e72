"""`ckptool fix`: what it writes is held to plain torch; what it cannot prove it refuses."""

import importlib
import sys

import pytest
import torch
from commands.fixing.faulty_classes import FIXED, REFUSED

import ckptool
from ckptool.config import load_config

pytestmark = pytest.mark.process


def write_project(folder, sources):
    """Write a package of files with a class Net each, and a configuration that names them."""
    package = folder / "zoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    entries = []
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
        entries.append(
            f'[[models]]\npath = "{name}.pth"\nmodule = "zoo.{name}:Net"\ninputs = ["float32[2,4]"]\n'
        )
    (folder / "ckptool.toml").write_text("\n".join(entries))


@pytest.fixture(scope="module")
def fixed_zoo(tmp_path_factory):
    """Folder with all of FIXED after `fix --write --keep-old-files`, the report, old outputs."""
    folder = tmp_path_factory.mktemp("fixed")
    write_project(folder, FIXED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        before = {name: run_class(name) for name in FIXED}
        report = ckptool.fix(write=True, keep_old_files=True, config=load_config(folder))
        forget_zoo()
        yield folder, report, before
        forget_zoo()


def forget_zoo():
    for name in [name for name in sys.modules if name.partition(".")[0] == "zoo"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def run_class(name):
    """Return the state_dict of a class, built under a seed, and its output."""
    torch.manual_seed(0)
    module = importlib.import_module(f"zoo.{name}").Net().eval()
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    torch.manual_seed(1)
    return module, state, module(torch.randn(2, 4))


def leaves(output):
    return list(output.values()) if isinstance(output, dict) else [output]


def test_all_are_written(fixed_zoo):
    _, report, _ = fixed_zoo
    assert report.is_written, report.verdict
    assert not report.refused
    assert {proof.result for proof in report.proofs} == {"passed"}
    assert len(FIXED) >= 40


@pytest.mark.parametrize("name", FIXED)
def test_it_computes_the_same_and_loads_its_old_file(fixed_zoo, name):
    _, _, before = fixed_zoo
    _, old_state, old_output = before[name]
    module, state, output = run_class(name)
    for new, old in zip(leaves(output), leaves(old_output), strict=True):
        assert torch.equal(new, old)
    assert all(torch.equal(state[key], old_state[key]) for key in old_state)
    module.load_state_dict(old_state)
    # And what is saved now is loaded again, in a module around it too.
    torch.nn.Sequential(importlib.import_module(f"zoo.{name}").Net()).load_state_dict(
        {f"0.{key}": value for key, value in old_state.items()}
    )
    other = importlib.import_module(f"zoo.{name}").Net()
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(other.state_dict()[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize("name", FIXED)
def test_audit_is_silent(fixed_zoo, name):
    report = ckptool.audit(f"zoo.{name}:Net", inputs=("float32[2,4]",))
    assert [f.code for f in report.findings if f.level != "note"] == []


def test_only_lines_of_edits_change(fixed_zoo):
    folder, report, _ = fixed_zoo
    for name, source in FIXED.items():
        new_lines = (folder / "zoo" / f"{name}.py").read_text().splitlines()
        edits = [e for e in report.edits if e.where.partition(":")[0] == f"zoo/{name}.py"]
        assert edits
        numbers = {int(edit.where.rpartition(":")[2]) for edit in edits}
        kept = [line for n, line in enumerate(source.splitlines(), 1) if n not in numbers]
        spans = {line for edit in edits for line in edit.before.splitlines()}
        remaining = iter(new_lines)
        missing = [line for line in kept if line not in remaining]
        assert [m for m in missing if m.strip() not in {s.strip() for s in spans}] == []


@pytest.fixture(scope="module")
def refused_zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    write_project(folder, {name: source for name, (source, _) in REFUSED.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder, ckptool.fix(write=True, allow_unproved=True, config=load_config(folder))
        forget_zoo()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(refused_zoo, name):
    folder, report = refused_zoo
    source, reason = REFUSED[name]
    assert (folder / "zoo" / f"{name}.py").read_text() == source
    refusals = [r for r in report.refused if r.where.startswith(f"zoo/{name}.py")]
    assert all(reason in r.reason for r in refusals), refusals
    assert refusals


def test_nothing_is_written_where_all_is_refused(refused_zoo):
    _, report = refused_zoo
    assert not report.is_written
    assert not report.edits
    assert len(REFUSED) >= 20
