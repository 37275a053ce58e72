"""Lines in fixes are written into the module's source, and the finding goes."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from rules.fixes.fix_kinds import SOURCES
from rules.fixes.fix_runs import NET, edit_line, find_own, list_cases, write_net
from torch import nn

from ckptool import api
from ckptool.rules.fixes.source_lines import format_alias_lookup, format_value_registration

_NEW_LINE = re.compile(r"In (.*?):(\d+): (.*?) instead of ([\w.]+) = \.\.\.")


@pytest.mark.parametrize("case", list_cases(*SOURCES), ids=lambda case: case.name)
def test_source_is_changed_and_the_finding_goes(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    new_line = _NEW_LINE.match(finding.fix)
    is_line = new_line is not None and isinstance(calls.module, str)
    assert is_line is (case.name not in NO_LINE), f"{finding.fix} ({calls.module})"
    if not is_line:
        return
    path, number, code, target = new_line.groups()
    line = Path(path).read_text().splitlines()[int(number) - 1]
    assert line.strip().startswith(target), line
    edited_line = code.replace("...", line.partition(" = ")[2])
    edit_line(path, int(number), edited_line, monkeypatch)
    report = api.audit(calls.module, kwargs=calls.kwargs)
    assert finding.key not in {f.key for f in report.findings if f.code == case.code}


NO_LINE = {
    "CK101-fires-attribute_of_a_scripted_module": "a scripted module has no source",
    "CK102-fires-forward_moves_it_itself": "the module is an instance",
    "CK102-fires-tensor_in_dataclass_and_deque": "a dataclass is no container of torch",
    "CK102-fires-tensors_in_functions_hooks_and_slots": "nor is a function",
    "CK103-fires-layer_behind_a_bound_method": "nor is a method",
    "CK103-fires-layer_in_a_closure": "nor is a closure",
}
"""Cases of these rules whose fix is no line that the test can write: name -> why."""


def test_code_is_for_the_object_that_holds_the_tensor(project, monkeypatch):
    """An attribute that a parent sets, and one of a package: no line of the owner's class."""
    write_net(project, "self.fc.mask = torch.ones(n)")
    monkeypatch.syspath_prepend(project / "src")
    finding = next(f for f in api.audit("lib_net:Net").findings if f.code == "CK101")
    assert 'self.fc.register_buffer("mask", ..., persistent=False) instead of self.fc.mask' in (
        finding.fix
    )
    package = project / "site-packages"
    package.mkdir()
    source = NET.format(line="self.mask = torch.ones(n)")
    (package / "packaged_net.py").write_text(source)
    monkeypatch.syspath_prepend(package)
    finding = next(f for f in api.audit("packaged_net:Net").findings if f.code == "CK101")
    assert "belongs to an installed package" in finding.fix
    module = import_module("packaged_net").Net()
    exec(finding.fix.partition("building the module: ")[2], {"module": module, "torch": torch})
    assert "CK101" not in {f.code for f in api.audit(module).findings}
    assert module.state_dict().keys() == nn.ModuleDict({"fc": nn.Linear(2, 2)}).state_dict().keys()


def audit_again(calls):
    """Audit the module of a case again: of an instance, a new one of its class."""
    if isinstance(calls.module, str):
        return api.audit(calls.module, kwargs=calls.kwargs)
    return api.audit(calls.module if isinstance(calls.module, type) else type(calls.module))


def find_line(file: str, text: str, after: str = "") -> int:
    """Return the number of the first line with `text`, after the line that has `after`."""
    lines = Path(file).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if after in line)
    return next(i for i, line in enumerate(lines[start:], start + 1) if text in line)


@pytest.mark.parametrize("case", list_cases("CK105", "CK106"), ids=lambda case: case.name)
def test_a_buffer_is_saved_and_the_finding_goes(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    path, number = re.search(r"in (\S+):(\d+): register_buffer", finding.fix).groups()
    line = Path(path).read_text().splitlines()[int(number) - 1].strip()
    assert "persistent=False" in line
    edit_line(path, int(number), line.replace(", persistent=False", ""), monkeypatch)
    assert finding.key not in {f.key for f in audit_again(calls).findings}
    assert finding.key in calls.build_module().state_dict()


@pytest.mark.parametrize("case", list_cases("CK112"), ids=lambda case: case.name)
def test_a_buffer_of_none_is_not_saved(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    new_line = re.search(r"self\.register_buffer\(.*persistent=False\)", finding.fix)[0]
    cls = type(calls.build_module())
    file = sys.modules[cls.__module__].__file__
    number = find_line(file, f'register_buffer("{finding.key}", None)', f"class {cls.__name__}(")
    edit_line(file, number, new_line, monkeypatch)
    assert finding.code not in {f.code for f in audit_again(calls).findings}


@pytest.mark.parametrize("case", list_cases("CK109"), ids=lambda case: case.name)
def test_the_registered_tensor_is_found(case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    module = calls.build_module()
    expression = re.search(r"self\.get_\w+\(.*?\)", finding.fix)[0]
    found = eval(expression, {"self": module})
    assert found.data_ptr() == eval(f"module.{finding.key}").data_ptr()
    delattr(module, finding.key.partition("[")[0])
    assert finding.code not in {f.code for f in api.audit(module).findings}
    moved = eval(expression, {"self": module.to(torch.float64)})
    assert moved.dtype == torch.float64


def test_an_alias_within_a_submodule_is_found_from_there():
    lookup = format_alias_lookup("net.head.tables[0]", "net.head.table", is_parameter=False)
    assert lookup == 'self.get_buffer("table")'
    lookup = format_alias_lookup("net.head.weight_of", "net.emb.weight", is_parameter=True)
    assert lookup == 'module.get_parameter("net.emb.weight") of the whole module'


def test_a_flag_becomes_a_buffer(monkeypatch):
    inputs = ("float32[2,4]",)
    report = api.audit("verification.models:Counting", inputs=inputs)
    fixes = {f.key: f.fix for f in report.findings if f.code == "CK107"}
    assert fixes.keys() == {"ready", "calls"}
    for name, assignment in (("ready", "self.ready = True"), ("calls", "")):
        new_line, later = re.match(r"(.*) instead of .*assignment is (.*)", fixes[name]).groups()
        file = sys.modules["verification.models"].__file__
        number = find_line(file, f"self.{name} = ", "class Counting(")
        edit_line(file, number, new_line, monkeypatch)
        if assignment:
            number = find_line(file, assignment, "class Counting(")
            edit_line(file, number, later.replace("...", "True"), monkeypatch)
        found = api.audit("verification.models:Counting", inputs=inputs).findings
        assert name not in {f.key for f in found if f.code == "CK107"}


def test_a_value_that_is_no_number_is_extra_state():
    code = format_value_registration("mode", "'train'")
    get, set_ = re.findall(r"def .*?(?=; and def|$)", code)
    names: dict = {}
    exec(f"{get}\n{set_.removeprefix('; and ')}", names)
    methods = {name: names[name] for name in ("get_extra_state", "set_extra_state")}
    cls = type("Net", (nn.Module,), {**methods, "mode": "train"})
    old, new = cls(), cls()
    old.mode = "eval"
    new.load_state_dict(old.state_dict())
    assert new.mode == "eval"
