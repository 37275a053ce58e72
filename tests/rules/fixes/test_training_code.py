"""Code in fixes for the script that saves or loads: run on its objects, and the finding goes."""

import re

import pytest
import torch
from rules import cases_objects, cases_quantization, reparametrized_modules
from rules.cases import Case
from rules.fixes.fix_kinds import TRAINING
from rules.fixes.fix_runs import find_own, list_cases
from torch import nn
from verification.loading_modules import RefusesOldVersions

import ckptool
from ckptool import api

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated",
    "ignore:Sparse CSR tensor support",
    "ignore:Please use quant_min",
)
NO_ELEMENTS = {"a": nn.Linear(4, 2, bias=False), "b": nn.Linear(4, 2, bias=False)}
SAVES = (
    r"(?:checkpoint = torch\.load|from safetensors|torch\.save)\(.*?\)(?=$|\. DeepSpeed|\. If no)"
)


def find_code(finding, pattern: str) -> str:
    code = re.search(pattern, finding.fix)
    assert code is not None, finding.fix
    return code[0]


@pytest.mark.parametrize("case", list_cases("CK320", "CK327"), ids=lambda case: case.name)
def test_a_state_with_its_values_is_saved_in_its_place(case: Case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    path = calls.paths[-1]
    if calls.module is not None:
        model = calls.build_module()
    elif case.code == "CK327":
        model = nn.ModuleDict(NO_ELEMENTS)
    else:
        model = nn.TransformerEncoderLayer(8, 2, 8)
    names = {"torch": torch, "model": model}
    if case.code == "CK320":
        exec(find_code(finding, r"from torch\.distributed.*?(?=; then)"), names)
    exec(find_code(finding, SAVES), names)
    saved, own = torch.load(path), model.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[key], own[key]) for key in own)
    assert case.code not in {code for code, _ in calls.ask(path)}


@pytest.mark.parametrize("at", ["", "model"])
def test_the_rest_of_the_file_stays(at, tmp_path):
    path = tmp_path / 'a "b".pth'
    state = nn.Linear(2, 2, device="meta").state_dict()
    torch.save({"model": state, "epoch": 3} if at else state, path)
    (finding,) = (f for f in api.inspect(path).findings if f.code == "CK327")
    model = nn.Linear(2, 2)
    exec(find_code(finding, SAVES), {"torch": torch, "model": model})
    saved = torch.load(path)
    assert saved.get("epoch") == (3 if at else None)
    assert torch.equal((saved["model"] if at else saved)["weight"], model.weight)
    assert "CK327" not in {f.code for f in api.inspect(path).findings}


@pytest.mark.parametrize("case", list_cases("CK321"), ids=lambda case: case.name)
def test_files_of_other_keys_are_merged(case: Case, tmp_path, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = re.search(r"state_dict = \{\}.*?(?=\. If each)", finding.fix)
    if not case.name.endswith("with_other_keys"):
        assert code is None
        assert "Megatron's tools/checkpoint/convert.py" in finding.fix
    else:
        exec(code[0], {"torch": torch})
        assert torch.load("stage_rank0-merged.pt").keys() == {"a.weight", "b.weight"}
        assert "CK321" not in {f.code for f in api.inspect("stage_rank0-merged.pt").findings}
    (path,) = {f.path for f in api.inspect(next(tmp_path.rglob("*.pt*"))).findings}
    kept = ckptool.Policy(ignore=("CK321",)) if hasattr(ckptool, "Policy") else None
    assert kept is None or not api.inspect(path, policy=kept).findings


def test_a_refused_file_is_copied_by_its_keys(tmp_path):
    """The check of the module refuses the old file, whose tensors are those of the module."""
    state_dict = dict(nn.Linear(4, 4).state_dict())
    torch.save(state_dict, tmp_path / "old.pth")
    with pytest.raises(RuntimeError, match="too old"):
        RefusesOldVersions().load_state_dict(state_dict)
    report = api.diff(tmp_path / "old.pth", module=RefusesOldVersions)
    (finding,) = (f for f in report.findings if f.code == "CK223")
    module = RefusesOldVersions()
    exec(finding.fix[finding.fix.index("for key") :], {"module": module, "state_dict": state_dict})
    torch.save(module.state_dict(), tmp_path / "new.pth")
    assert not api.diff(tmp_path / "new.pth", module=RefusesOldVersions).findings
    again = RefusesOldVersions()
    again.load_state_dict(torch.load(tmp_path / "new.pth"))
    assert all(torch.equal(tensor, state_dict[key]) for key, tensor in again.state_dict().items())


def test_weights_on_meta_are_saved_from_a_device(tmp_path):
    torch.save(nn.Linear(2, 2, device="meta").state_dict(), tmp_path / "m.pth")
    report = api.diff(tmp_path / "m.pth", module=nn.Linear(2, 2))
    (finding,) = (f for f in report.findings if f.code == "CK223")
    exec(find_code(finding, SAVES), {"torch": torch, "model": nn.Linear(2, 2)})
    assert not api.diff(tmp_path / "m.pth", module=nn.Linear(2, 2)).findings


@pytest.mark.parametrize("method", ["to_sparse", "to_sparse_csr"])
def test_sparse_tensors_are_made_dense(method, tmp_path):
    state_dict = {"weight": getattr(torch.ones(2, 2), method)(), "bias": torch.ones(2)}
    torch.save(state_dict, tmp_path / "s.pth")
    report = api.diff(tmp_path / "s.pth", module=nn.Linear(2, 2))
    (finding,) = (f for f in report.findings if f.code == "CK223")
    exec(finding.fix.partition("layout: ")[2], {"state_dict": state_dict})
    nn.Linear(2, 2).load_state_dict(state_dict)


def test_a_module_is_quantised_as_its_file(tmp_path):
    torch.save(cases_quantization.quantized().state_dict(), tmp_path / "q.pth")
    module = reparametrized_modules.perceptron()
    finding = _find_mismatch(tmp_path / "q.pth", module)
    code = find_code(finding, r"torch\.ao\.quantization\.quantize_dynamic\(.*?\}\)")
    quantized = eval(code, {"torch": torch, "module": module})
    quantized.load_state_dict(torch.load(tmp_path / "q.pth", weights_only=False))
    report = api.diff(tmp_path / "q.pth", module=quantized)
    assert "CK219" not in {f.code for f in report.findings}


def test_a_module_is_prepared_as_its_file(tmp_path):
    torch.save(cases_quantization.observed().state_dict(), tmp_path / "o.pth")
    module = reparametrized_modules.perceptron()
    finding = _find_mismatch(tmp_path / "o.pth", module)
    exec(
        find_code(finding, r"module\.qconfig.*?inplace=True\)"), {"torch": torch, "module": module}
    )
    module.load_state_dict(torch.load(tmp_path / "o.pth"))
    assert "CK219" not in {f.code for f in api.diff(tmp_path / "o.pth", module=module).findings}


def test_a_float_file_is_loaded_before_quantisation(tmp_path):
    module = reparametrized_modules.perceptron()
    state_dict = module.state_dict()
    torch.save(state_dict, tmp_path / "f.pth")
    finding = _find_mismatch(tmp_path / "f.pth", cases_quantization.quantized())
    exec(find_code(finding, r"module\.load_state_dict\(state_dict\)"), locals())
    quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear})
    torch.save(quantized.state_dict(), tmp_path / "q.pth")
    report = api.diff(tmp_path / "q.pth", module=cases_quantization.quantized())
    assert "CK219" not in {f.code for f in report.findings}


def _find_mismatch(path, module):
    (finding,) = (f for f in api.diff(path, module=module).findings if f.code == "CK219")
    return finding


def test_an_object_takes_its_own_state(monkeypatch):
    class Average(cases_objects.Counter):
        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["count"]

    def watch():
        average = Average("steps", "count")
        with ckptool.watch(average) as watched:
            average.steps += 1
        return watched.report.findings

    (finding,) = watch()
    assert finding.code == "CK337"
    names: dict = {}
    exec(find_code(finding, r"def load_state_dict\(.*"), names)
    monkeypatch.setattr(Average, "load_state_dict", names["load_state_dict"])
    assert not watch()


def test_each_rule_of_this_kind_is_tried_here():
    assert {"CK219", "CK223", "CK320", "CK321", "CK327", "CK337"} == {*TRAINING}
