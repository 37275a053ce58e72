"""`ckptool fix`: what it writes is held to plain torch; what it cannot prove it refuses."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from commands.fixing.awkward_classes import HELPER_FILES
from commands.fixing.faulty_classes import FIXED, NOT_SWITCHED_BY_EVAL, REFUSED
from commands.fixing.source_parts import make_class
from paths import ROOT

import ckptool
from ckptool.config import load_config

pytestmark = pytest.mark.process


def write_project(folder, sources):
    """Write a package of files with a class Net each, and a configuration that names them."""
    package = folder / "zoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, source in HELPER_FILES.items():
        (package / f"{name}.py").write_text(source)
    entries = []
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
        entries.append(f'[[models]]\npath = "{name}.pth"\nmodule = "zoo.{name}:Net"\n')
        entries.append('inputs = ["float32[2,4]"]')
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


@pytest.mark.parametrize(
    ("name", "attribute"), [("doubled_from_outside", "mask"), ("counted_in_forward", "calls")]
)
@pytest.mark.usefixtures("fixed_zoo")
def test_what_is_changed_in_place_is_saved(name, attribute):
    assert attribute in importlib.import_module(f"zoo.{name}").Net().state_dict()


def test_only_lines_of_edits_change(fixed_zoo):
    """The statement, and the lines that use the attribute."""
    folder, report, _ = fixed_zoo
    for name, source in {**FIXED, **HELPER_FILES}.items():
        new_lines = (folder / "zoo" / f"{name}.py").read_text().splitlines()
        edits = [e for e in report.edits if e.where.partition(":")[0] == f"zoo/{name}.py"]
        assert edits or "_base import" in source or name not in FIXED
        numbers = {
            int(edit.where.rpartition(":")[2]) + n
            for edit in edits
            for n in range(len(edit.before.splitlines()))
        }
        old_lines = source.splitlines()
        uses = (
            "numpy",
            "tensor(",
            "masks.append",
            "masks.extend",
            "shifts.append",
            "masks[name]",
            "masks +=",
        )
        numbers |= {n for n, line in enumerate(old_lines, 1) if any(use in line for use in uses)}
        remaining = iter(new_lines)
        kept = [line for n, line in enumerate(old_lines, 1) if n not in numbers]
        assert [line for line in kept if line not in remaining] == []


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


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a function that writes net.py and stands in its folder."""

    def write(source, encoding="utf-8", newline="\n"):
        content = source.replace("\n", newline).encode(encoding)
        (tmp_path / "net.py").write_bytes(content)
        return content

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.modules.pop("net", None)


def run_fix(**options):
    return ckptool.fix("net:Net", inputs=("float32[2,4]",), **options)


def test_modules_that_eval_reaches_from_now_on_are_named(project):
    """Before and after are compared with all modules in eval mode, which eval() did not set."""
    project(NOT_SWITCHED_BY_EVAL)
    x = torch.randn(8, 4)

    def build():
        sys.modules.pop("net", None)
        torch.manual_seed(0)
        return importlib.import_module("net").Net().eval()

    before = build()
    with torch.no_grad():
        expected = before.norms[0].eval()(before.linear(x))
        in_training_mode = before.norms[0].train()(before.linear(x))
    report = run_fix(write=True)
    assert report.is_written, report.verdict
    reached, changed = report.notes[:2]
    assert reached.endswith("parameters() and state_dict() reach `norms` (net.py:10)")
    assert changed.startswith("after eval() the outputs of net:Net differ from before: ")
    with torch.no_grad():
        found = build()(x)
    assert torch.equal(found, expected)
    assert not torch.equal(found, in_training_mode)


def test_edits_that_are_proved_stay_when_others_fail(project, tmp_path):
    source = make_class(
        "self.convs = [nn.Linear(4, 4)]\nself.mask = torch.ones(4)",
        "n = len([*self.buffers()])\nreturn self.convs[0](x) * self.mask + n",
    )
    project(source)
    report = run_fix(write=True, allow_unproved=True)
    assert report.is_written
    (refusal,) = report.refused
    assert (refusal.keys, refusal.reason) == (
        ("mask",),
        "with this edit, same outputs: in eval mode the outputs differ",
    )
    convs = "self.convs = [nn.Linear(4, 4)]"
    expected = source.replace(convs, "self.convs = nn.ModuleList([nn.Linear(4, 4)])")
    assert (tmp_path / "net.py").read_text() == expected


def test_outputs_of_a_forward_that_raises_are_not_checked(project):
    project(make_class(MASK, "return torch.istft(x * self.mask, 4)"))
    report = run_fix(write=True)
    assert not report.is_written
    (proof,) = [proof for proof in report.proofs if proof.name == "same outputs"]
    assert proof.result == "not checked"
    assert proof.reason.startswith("forward raises before the edit: RuntimeError: istft")


def test_methods_that_no_proof_runs_are_named(project):
    project(
        make_class(MASK, "return x * self.mask", "def inverse(self, y):\n    return y / self.mask")
    )
    assert run_fix().notes == (
        "not checked, because forward does not call it: `mask` in inverse() at net.py:16",
    )


def test_a_class_that_sets_its_version_gets_no_hook(project):
    statements = "self.mask = torch.ones(4)\nself.noise = torch.randn(4)"
    source = make_class(statements, "return self.linear(x) + self.noise + self.mask")
    project(
        source.replace("    def __init__(self):", "    _version = 3\n\n    def __init__(self):")
    )
    report = run_fix(keep_old_files=True)
    (refusal,) = report.refused
    assert refusal.reason == (
        "no hook for old files can be registered: class Net: it sets _version itself"
    )
    assert [edit.keys for edit in report.edits] == [("mask",)]


def test_without_inputs_it_asks_for_consent(project, tmp_path):
    project(FIXED["mask"])
    report = ckptool.fix("net:Net", write=True)
    assert (report.is_written, report.exit_code) == (False, 2)
    assert "not checked: `same outputs`, `loads again`, `device` (no input" in report.verdict
    sys.modules.pop("net")
    assert ckptool.fix("net:Net", write=True, allow_unproved=True).is_written
    assert 'self.register_buffer("mask", ' in (tmp_path / "net.py").read_text()


MASK = "self.mask = torch.ones(4)"
NEW_MASK = 'self.register_buffer("mask", torch.ones(4), persistent=False)'


@pytest.mark.parametrize(
    ("encoding", "newline", "source"),
    [
        ("utf-8", "\r\n", make_class(MASK)),
        ("utf-8-sig", "\n", make_class(MASK)),
        ("latin-1", "\n", "# coding: latin-1\n# \xe9t\xe9\n" + make_class(MASK)),
        ("utf-8", "\n", make_class(MASK).rstrip("\n")),
        ("utf-8", "\n", make_class(MASK).replace("    ", "\t")),
        ("utf-8", "\n", make_class(MASK + "   # a mask  ") + "\n\n\n\x0c\nx = [1,2 ]\n"),
    ],
)
def test_the_rest_stays_byte_for_byte(project, tmp_path, encoding, newline, source):
    content = project(source, encoding, newline)
    assert run_fix(write=True).is_written
    expected = content.replace(MASK.encode(encoding.removesuffix("-sig")), NEW_MASK.encode())
    assert (tmp_path / "net.py").read_bytes() == expected


def test_a_link_and_a_mode_stay(project, tmp_path):
    project(make_class(MASK))
    (tmp_path / "source").mkdir()
    (tmp_path / "net.py").rename(tmp_path / "source" / "real.py")
    (tmp_path / "source" / "real.py").chmod(0o640)
    (tmp_path / "net.py").symlink_to("source/real.py")
    assert run_fix(write=True).is_written
    assert (tmp_path / "net.py").is_symlink()
    assert NEW_MASK in (tmp_path / "source" / "real.py").read_text()
    assert (tmp_path / "source" / "real.py").stat().st_mode & 0o777 == 0o640


def test_it_writes_as_the_project_does(project, tmp_path):
    other = (
        "from torch import nn\n\n\ndef f(m, t):\n    m.a = nn.Buffer(t)\n    m.b = nn.Buffer(t)\n"
    )
    (tmp_path / "other.py").write_text(other)
    project(make_class(MASK))
    (edit,) = run_fix().edits
    assert edit.after == "self.mask = nn.Buffer(torch.ones(4), persistent=False)"


def test_a_parameter_is_made_only_where_asked(project):
    project(make_class("self.scale = torch.ones(4)", "return self.linear(x) * self.scale"))
    (edit,) = run_fix(parameters=("scale",)).edits
    assert edit.after == "self.scale = nn.Parameter(torch.ones(4))"


def test_the_advice_on_a_setter_makes_a_buffer(project, tmp_path):
    """Pasted where it says, it registers what the setter assigns."""
    source = make_class(
        "self.mask = torch.ones(4)",
        "return self.linear(x) * self.mask",
        """
        @property
        def mask(self):
            return self._mask

        @mask.setter
        def mask(self, value):
            self._mask = value
        """,
    )
    project(source)
    (refusal,) = run_fix().refused
    line = refusal.reason.partition("; write ")[2].partition(" after super().__init__()")[0]
    (tmp_path / "advised.py").write_text(
        source.replace("super().__init__()", f"super().__init__()\n        {line}", 1)
    )
    module = importlib.import_module("advised").Net()
    assert dict(module.named_buffers()).keys() == {"_mask"}
    assert torch.equal(module.state_dict()["_mask"], torch.ones(4))
    assert module.to("meta", torch.float64).mask.dtype is torch.float64
    assert module.mask.is_meta
    sys.modules.pop("advised")


def test_a_checkpoint_that_did_not_load_before_does_not_count(project, tmp_path):
    project(make_class("self.mask = torch.ones(4)", "return self.linear(x) * self.mask"))
    state = torch.nn.Linear(4, 4).state_dict()
    torch.save({"linear.weight": state["weight"], "other": torch.ones(3)}, tmp_path / "old.pth")
    (tmp_path / "ckptool.toml").write_text(
        '[[models]]\npath = "old.pth"\nmodule = "net:Net"\ninputs = ["float32[2,4]"]\n'
    )
    report = ckptool.fix()
    assert [edit.keys for edit in report.edits] == [("mask",)]
    (proof,) = [proof for proof in report.proofs if proof.name == "loads old.pth"]
    assert proof.result == "not checked"
    before = torch.nn.Sequential()
    before.linear = torch.nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="Missing key"):
        before.load_state_dict(torch.load(tmp_path / "old.pth"))
    assert proof.reason == (
        "it does not load before the edit either: 1 missing (linear.bias); 1 unexpected (other)"
    )


def test_a_configured_checkpoint_has_to_load(project, tmp_path):
    project(make_class("self.noise = torch.randn(4)", "return self.linear(x) + self.noise"))
    linear = torch.nn.Linear(4, 4)
    state = {f"linear.{key}": value for key, value in linear.state_dict().items()}
    torch.save(state, tmp_path / "old.pth")
    (tmp_path / "ckptool.toml").write_text(
        '[[models]]\npath = "old.pth"\nmodule = "net:Net"\ninputs = ["float32[2,4]"]\n'
    )
    report = ckptool.fix(write=True)
    assert not report.is_written
    (refusal,) = report.refused
    reason = "with this edit, loads old.pth: 1 missing (noise), and it cannot be migrated"
    assert refusal.reason.startswith(reason)
    assert refusal.reason.endswith("--keep-old-files loads a file that lacks keys")
    sys.modules.pop("net")
    report = ckptool.fix(write=True, keep_old_files=True)
    assert report.is_written, report.verdict
    sys.modules.pop("net")
    importlib.import_module("net").Net().load_state_dict(torch.load(tmp_path / "old.pth"))


def test_a_module_that_saves_nothing_is_fixed(project):
    source = make_class(MASK, "return x * self.mask")
    source = source.replace("        self.linear = nn.Linear(4, 4)\n", "")
    project(source)
    assert run_fix(write=True, keep_old_files=True).is_written


def test_without_libcst_a_line_says_what_to_install(tmp_path):
    """The command ended in a traceback: libcst is an extra, and a module imported it early."""
    (tmp_path / "net.py").write_text(make_class(MASK, "return x * self.mask"))
    start = "import sys; sys.modules['libcst'] = None; from ckptool.__main__ import start; start()"
    done = subprocess.run(
        [sys.executable, "-c", start, "fix", "-m", "net:Net"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "ckptool: fix edits source with libcst, which is not installed: "
        "pip install 'ckptool[fix]'\n"
    )
