"""Code in fixes is executed, and the finding goes."""

import operator
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import run_in_process
from rules import cases_loading, cases_quantization, cases_release, cases_values
from rules.cases import Case
from rules.fixes.fix_kinds import STATEMENTS
from rules.fixes.fix_runs import execute, find_command, find_own, list_cases
from safetensors.torch import load_file
from torch import nn
from verification.loading_modules import WritesWhatItDoesNotRead

from ckptool import api


def list_statement_cases() -> list[Case]:
    skipped = {
        "CK213-fires-constant_changed",  # a value in the module's source
        "CK301-fires-state_dict_without_the_call",
        "CK301-fires-tensors_of_pickle_dump",
        "CK316-fires-an_array_under_the_key_of_a_parameter",
    }
    return [case for case in list_cases(*STATEMENTS) if case.name not in skipped]


def originals_of_quantized_files() -> dict[str, torch.Tensor]:
    """Return the tensors of the files from which those of CK235 were converted."""
    packed = cases_quantization.state_in("gptq")
    renamed = {key.replace("0.", "fc."): tensor for key, tensor in packed.items()}
    return {**cases_quantization.scaled_state(), **packed, **renamed}


@pytest.mark.parametrize("case", list_statement_cases(), ids=lambda case: case.name)
def test_code_is_executed_and_the_finding_goes(case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    calls.original = originals_of_quantized_files()
    code = re.search(STATEMENTS[case.code], finding.fix)
    assert code is not None, finding.fix
    new_path = execute(code[1] if code.re.groups else code[0], tmp_path, calls)
    assert (case.code, finding.key) not in calls.ask(new_path)


def test_unexpected_keys_of_one_subtree_are_dropped_by_one_line(tmp_path):
    """It said state_dict.pop("layers.*.k.bias")."""
    module = nn.ModuleDict({"layers": nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))})
    bare = nn.ModuleDict(
        {"layers": nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))}
    )
    for extra in ({}, {f"head.{i}.w": torch.ones(1) for i in range(3)}):
        state_dict = {**module.state_dict(), **extra}
        torch.save(state_dict, tmp_path / "m.pth")
        fixes = {f.fix for f in api.diff(tmp_path / "m.pth", module=bare).findings}
        names: dict[str, Any] = {"state_dict": dict(state_dict), "module": bare}
        for fix in fixes:
            if code := re.search(r"state_dict(\.pop\(| = ).*", fix):
                assert "*" not in code[0]
                exec(code[0], names)
        bare.load_state_dict(names["state_dict"])


class Unknown:
    """An object of training code in a checkpoint."""


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("extra", [Unknown, Dangerous])
def test_a_file_without_the_global_is_written(extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = nn.Linear(2, 3).state_dict()
    torch.save({"model": state, "extra": extra(), "epoch": 3}, "x.pth")
    (finding,) = (f for f in api.inspect("x.pth").findings if f.code == "CK301")
    done = run_in_process(*shlex.split(find_command(finding))[1:], cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    written = torch.load("x-converted.pth", weights_only=True)
    assert written["epoch"] == 3
    assert all(torch.equal(written["model"][key], state[key]) for key in state)
    assert not Path("ran").exists()
    assert "CK301" not in {f.code for f in api.inspect("x-converted.pth").findings}


@pytest.mark.parametrize("case", list_cases("CK311"), ids=lambda case: case.name)
def test_a_tensor_that_safetensors_refuses_is_converted(case, tmp_path):
    finding = find_own(case, case.make(tmp_path))
    state_dict = torch.load(tmp_path / "a.pth")
    code = finding.fix.partition("convert the tensor first: ")[2]
    exec(code, {"state_dict": state_dict, "torch": torch})
    torch.save(state_dict, tmp_path / "fixed.pth")
    api.migrate(tmp_path / "fixed.pth", tmp_path / "fixed.safetensors")
    written = load_file(tmp_path / "fixed.safetensors")
    assert torch.equal(written["w"], state_dict["w"])


@pytest.mark.parametrize("case", list_cases("CK402"), ids=lambda case: case.name)
def test_statistics_are_computed_from_data(case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.load_state_dict(torch.load(calls.paths[0]), strict=False)
    loader = [torch.randn(2, 3, 8, 8)]
    code = finding.fix.partition("from the training data: ")[2]
    exec(code, {"torch": torch, "model": model, "loader": loader})
    torch.save(model.state_dict(), tmp_path / "fixed.pth")
    assert case.code not in {code for code, _ in calls.ask(tmp_path / "fixed.pth")}


class TiedPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight


def test_weights_are_tied_again_after_assign(tmp_path):
    (case,) = list_cases("CK702")
    finding = find_own(case, case.make(tmp_path))
    model = TiedPair()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.decoder.weight is not model.encoder.weight
    exec(finding.fix.partition("after loading: ")[2], {"model": model})
    assert model.decoder.weight is model.encoder.weight


def test_a_key_that_a_loader_drops_is_removed(tmp_path):
    (case,) = list_cases("CK228")
    finding = find_own(case, case.make(tmp_path))
    state_dict = {**nn.Linear(2, 2).state_dict(), "inv_freq": torch.ones(2)}
    exec(re.search(STATEMENT_OF_POP, finding.fix)[0], {"state_dict": state_dict})
    nn.Linear(2, 2).load_state_dict(state_dict)


STATEMENT_OF_POP = r"state_dict\.pop\(.*?\)"


def test_weights_of_a_variant_load_with_the_argument(tmp_path):
    transformers = pytest.importorskip("transformers")
    (case,) = list_cases("CK229")
    finding = find_own(case, case.make(tmp_path))
    arguments = re.search(r"from_pretrained\(variant=\"(\w+)\"\)", finding.fix)
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=8)
    model = transformers.GPT2Model(config)
    model.save_pretrained(tmp_path / "m", variant=arguments[1])
    with pytest.raises(OSError, match="no file named"):
        transformers.AutoModel.from_pretrained(tmp_path / "m")
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "m", variant=arguments[1])
    assert torch.equal(loaded.wte.weight, model.wte.weight)


@pytest.mark.parametrize("case", list_cases("CK801", "CK802", "CK804"), ids=lambda case: case.name)
def test_the_new_file_keeps_what_the_old_one_had(case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    code = re.search(r"(?:del )?new\[.*?(?=; or|, with)", finding.fix)
    if len(calls.paths) < 2 or code is None:
        assert "release" in finding.fix or "migrat" in finding.fix  # a module's code, or a shape
        return
    old, new = map(torch.load, calls.paths)
    exec(code[0], {"old": old, "new": new, "torch": torch})
    torch.save(new, tmp_path / "fixed.pth")
    assert (case.code, finding.key) not in calls.ask(tmp_path / "fixed.pth")


def test_an_initialised_tensor_is_not_reported(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(8, 5))
    with torch.no_grad():
        module[1].weight.copy_(cases_values.garbage().reshape(5, 8))
    path = tmp_path / "m.pth"
    torch.save(module.state_dict(), path)
    (finding,) = (f for f in api.inspect(path, values=True).findings if f.code == "CK405")
    code = re.search(r"module\..*?\(\)", finding.fix)[0]
    exec(code, {"module": module})
    torch.save(module.state_dict(), path)
    assert "CK405" not in {f.code for f in api.inspect(path, values=True).findings}


def test_a_full_state_dict_has_no_flat_parameter(tmp_path):
    path = tmp_path / "m.pth"
    torch.save({"_fsdp_wrapped_module._flat_param": torch.ones(24)}, path)
    (finding,) = (f for f in api.inspect(path).findings if f.code == "CK604")
    names: dict[str, Any] = {"model": nn.Linear(2, 3)}
    exec(finding.fix.partition("ranks: ")[2], names)
    torch.save(names["state_dict"], path)
    assert names["state_dict"].keys() == {"weight", "bias"}
    assert "CK604" not in {f.code for f in api.inspect(path).findings}


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("freq", torch.ones(2), persistent=False)
        self.tables = [torch.zeros(2)]


@pytest.mark.parametrize("build", [Scaled, lambda: nn.Sequential(Scaled(), nn.ReLU())])
def test_what_is_on_meta_after_loading_is_set(build, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(build().state_dict(), path)
    report = api.verify(path, module=build, device="cpu")
    findings = [f for f in report.findings if f.code == "CK701"]
    with torch.device("meta"):
        module = build()
    module.load_state_dict(torch.load(path), assign=True)
    owner = module if isinstance(module, Scaled) else module[0]
    tensors = operator.attrgetter("freq"), lambda owner: owner.tables[0]
    assert all(get(owner).is_meta for get in tensors)
    for finding in findings:
        code = re.search(r"after loading: (.*?) \(cpu_module", finding.fix)[1]
        exec(code, {"module": module, "cpu_module": build()})
    assert not any(get(owner).is_meta for get in tensors)


def test_a_module_ignores_what_it_does_not_read(tmp_path):
    """The line is run at the end of the constructor, and a new instance loads strictly."""
    (case,) = list_cases("CK114")
    finding = find_own(case, case.make(tmp_path))
    code = re.search(r"self\.register_load.*$", finding.fix)[0]
    trained = WritesWhatItDoesNotRead()
    module = WritesWhatItDoesNotRead()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(trained.state_dict())
    exec(code, {"self": module})
    nested = nn.Sequential(module)
    nested.load_state_dict(nn.Sequential(trained).state_dict())
    assert torch.equal(module.weight, trained.weight)


def test_a_plan_renames_only_what_fits(tmp_path):
    """The step of the fix is the plan; gamma of LayerScale keeps its name."""
    state = Scaled3().state_dict()
    state["norm.gamma"], state["norm.beta"] = state.pop("norm.weight"), state.pop("norm.bias")
    plan = '[[ops]]\nop = "rename"\nkey = "gamma$"\nto = "weight"\nhow = "regex"\n'
    report = cases_release.refused(tmp_path, state, plan, module=Scaled3)
    (finding,) = report.findings
    step = re.search(r"ops = \[.*\]$", finding.fix)[0]
    assert finding.key == "gamma"
    (tmp_path / "plan.toml").write_text(
        step.replace("} }]", '} }, { op = "rename", key = "norm.beta", to = "norm.bias" }]')
    )
    api.migrate(tmp_path / "a.pth", tmp_path / "b.pth", module=Scaled3, plan=tmp_path / "plan.toml")
    Scaled3().load_state_dict(torch.load(tmp_path / "b.pth"))


def test_a_step_that_fits_nothing_is_removed(tmp_path):
    (case,) = list_cases("CK221")
    finding = find_own(case, case.make(tmp_path))
    assert finding.fix == "Remove the step from the plan: none of the keys that it matches fits."
    (tmp_path / "plan.toml").write_text("ops = []\n")
    options = {"module": "rules.reparametrized_modules:Scaled", "plan": tmp_path / "plan.toml"}
    assert api.migrate(tmp_path / "a.pth", tmp_path / "b.pth", **options).exit_code == 0


class Scaled3(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.gamma = nn.Parameter(torch.ones(3))


def test_a_saved_buffer_is_filled_by_from_pretrained(tmp_path):
    """Without persistent=False, and saved again, as its fix says."""
    transformers = pytest.importorskip("transformers")
    (case,) = list_cases("CK227")
    finding = find_own(case, case.make(tmp_path))
    assert 'register_buffer("freq", ...) without persistent=False' in finding.fix

    class Net(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.fc = nn.Linear(2, 2)
            self.register_buffer("freq", torch.arange(4) / 4)
            self.post_init()

    Net(transformers.PretrainedConfig()).save_pretrained(tmp_path / "net")
    assert torch.equal(Net.from_pretrained(tmp_path / "net").freq, torch.arange(4) / 4)


def test_a_tensor_subclass_is_loaded_where_its_class_is(tmp_path):
    (case,) = list_cases("CK226")
    finding = find_own(case, case.make(tmp_path))
    module = nn.Linear(4, 4)
    allowed = torch.serialization.get_safe_globals()
    try:
        exec(finding.fix[finding.fix.index("import torch") :], {"module": module})
        saved = torch.load(tmp_path / "model.pth")
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
    assert all(torch.equal(module.state_dict()[key], saved[key]) for key in saved)


def test_no_class_is_allowed_in_a_file_with_a_dangerous_global(tmp_path):
    state = {
        key: tensor.as_subclass(cases_loading.Scaled)
        for key, tensor in nn.Linear(4, 4).state_dict().items()
    }
    torch.save({"model": state, "extra": Dangerous()}, tmp_path / "m.pth")
    report = api.diff(tmp_path / "m.pth", module=nn.Linear(4, 4), at="model")
    (finding,) = (f for f in report.findings if f.code == "CK226")
    assert "add_safe_globals" not in finding.fix
