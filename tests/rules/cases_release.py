"""Cases of what a release brings out: refusals, training state, ties, lost buffers, optimizers."""

import collections
from dataclasses import dataclass

import torch
from rules import reparametrized_modules
from rules.cases import diff, fires, inspect, near
from safetensors.torch import save_file
from torch import nn

from ckptool import api
from ckptool.errors import CkptoolError
from ckptool.policy import Policy, judge
from ckptool.reports.common import FindingReport, build_finding_reports
from ckptool.rules import run_rules

FORMS = "rules.reparametrized_modules:"


# CK221 and CK311: what a migration refuses


@dataclass(frozen=True)
class Refused:
    """The findings that an error stands for."""

    findings: tuple[FindingReport, ...]


def refused(tmp, content, plan: str | None = None, to: str = "b.pth", **options) -> Refused:
    torch.save(content, tmp / "a.pth")
    if plan is not None:
        (tmp / "plan.toml").write_text(plan)
        options["plan"] = tmp / "plan.toml"
    try:
        api.migrate(tmp / "a.pth", tmp / to, **options)
    except CkptoolError as error:
        assert not (tmp / to).exists()
        return Refused(build_finding_reports(judge(run_rules([error]), Policy())))
    return Refused(())


@fires("CK221")
def every_gamma_is_renamed(tmp):
    state = reparametrized_modules.Scaled().state_dict()
    plan = '[[ops]]\nop = "rename"\nkey = "gamma$"\nto = "weight"\nhow = "regex"\n'
    return refused(tmp, state, plan, module=f"{FORMS}Scaled")


@near("CK221")
def the_gamma_of_a_layer_norm_is_renamed(tmp):
    state = reparametrized_modules.Scaled().state_dict()
    state["norm.gamma"] = state.pop("norm.weight")
    plan = '[[ops]]\nop = "rename"\nkey = "norm.gamma"\nto = "norm.weight"\n'
    return refused(tmp, state, plan, module=f"{FORMS}Scaled")


@fires("CK311")
def sparse_into_safetensors(tmp):
    return refused(tmp, {"w": torch.eye(2).to_sparse()}, to="b.safetensors")


@fires("CK311")
def complex_128_into_safetensors(tmp):
    return refused(tmp, {"w": torch.ones(2, dtype=torch.complex128)}, to="b.safetensors")


@near("CK311")
def sparse_into_pth(tmp):
    return refused(tmp, {"w": torch.eye(2).to_sparse()})


@near("CK311")
def complex_64_into_safetensors(tmp):
    return refused(tmp, {"w": torch.ones(2, dtype=torch.complex64)}, to="b.safetensors")


# CK305 and CK309: P38 and P35


@fires("CK305")
def stream_of_torch_1_5(tmp):
    return inspect(tmp, {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)


@near("CK305")
def a_zip(tmp):
    return inspect(tmp, {"w": torch.ones(2)})


def trained(module: nn.Module, parameters=None) -> torch.optim.Optimizer:
    """Return an optimizer that has seen one step of `parameters`, all by default."""
    optimizer = torch.optim.Adam(list(module.parameters()) if parameters is None else parameters)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@fires("CK309")
def adam_beside_the_model(tmp):
    module = reparametrized_modules.perceptron()
    content = {"model": module.state_dict(), "optimizer": trained(module).state_dict(), "epoch": 3}
    report = inspect(tmp, content)
    (found,) = report.findings
    assert found.level == "note"
    assert "optimizer, 120 B of tensor data" in found.message
    assert "--at model" in found.fix
    return report


@fires("CK309")
def lightning_states(tmp):
    module = reparametrized_modules.perceptron()
    content = {
        "state_dict": module.state_dict(),
        "optimizer_states": [trained(module).state_dict()],
        "lr_schedulers": [{"last_epoch": 3}],
        "callbacks": {"ModelCheckpoint": {"dirpath": "runs"}},
        "loops": {"fit_loop": {"state_dict": {}}},
    }
    report = inspect(tmp, content)
    assert "optimizer, scheduler, callbacks, loops" in report.findings[0].message
    return report


@fires("CK309")
def adam_and_the_model_below_one_name(tmp):
    module = reparametrized_modules.perceptron()
    state = {"model": module.state_dict(), "optimizer": trained(module).state_dict()}
    report = inspect(tmp, {"state": state, "epoch": 3})
    (found,) = report.findings
    assert found.key == "state.optimizer"
    assert "--at state.model" in found.fix
    return report


@near("CK309")
def an_epoch_and_a_setting(tmp):
    return inspect(
        tmp,
        {"model": reparametrized_modules.perceptron().state_dict(), "epoch": 3, "args": {"lr": 1}},
    )


@near("CK309")
def a_model_with_a_scaler(tmp):
    module = nn.ModuleDict({"scaler": nn.Linear(2, 2), "callbacks": nn.Linear(2, 2)})
    return inspect(tmp, module.state_dict())


@near("CK309")
def the_optimizer_alone(tmp):
    return inspect(tmp, trained(reparametrized_modules.perceptron()).state_dict())


# CK501: P15 and P16


@fires("CK501")
def a_name_that_safetensors_left_out(tmp):
    save_file({"emb.weight": torch.ones(6, 3)}, tmp / "m.safetensors", metadata={"format": "pt"})
    report = api.diff(tmp / "m.safetensors", module=f"{FORMS}Tied")
    assert [f.level for f in report.findings] == ["note"]
    assert report.coverage == 1.0
    return report


@fires("CK501", "CK503")
def tied_file_and_a_module_without_the_tie(tmp):
    report = diff(tmp, reparametrized_modules.Tied().state_dict(), f"{FORMS}Tied", tied=False)
    assert {f.level for f in report.findings} == {"note"}
    return report


@near("CK501", "CK503")
def tied_on_both_sides(tmp):
    return diff(tmp, reparametrized_modules.Tied().state_dict(), f"{FORMS}Tied")


@near("CK501")
def equal_copies(tmp):
    state = {
        key: tensor.clone() for key, tensor in reparametrized_modules.Tied().state_dict().items()
    }
    return diff(tmp, state, f"{FORMS}Tied")


@near("CK501", "CK201", "CK204", "CK210")
def neither_name_is_there(tmp):
    return diff(tmp, {"other.bias": torch.ones(1)}, f"{FORMS}Tied")


# CK605: P26


@fires("CK605", "CK202")
def named_parameters_only(tmp):
    return diff(tmp, versioned(nn.BatchNorm1d(2), parameters=True), "torch.nn:BatchNorm1d",
                num_features=2)  # fmt: skip


def versioned(module: nn.Module, *, parameters: bool) -> collections.OrderedDict:
    """Return the state with its class versions, of all or of the parameters only."""
    state = module.state_dict()
    kept = {key for key, _ in module.named_parameters()} if parameters else {*state}
    for key in [key for key in state if key not in kept]:
        del state[key]
    return state


@near("CK605", "CK202")
def one_statistic_is_missing(tmp):
    state = versioned(nn.BatchNorm1d(2), parameters=False)
    del state["running_var"]
    return diff(tmp, state, "torch.nn:BatchNorm1d", num_features=2)


@near("CK605", "CK203")
def masks_that_became_buffers(tmp):
    return diff(tmp, nn.ModuleDict({"fc": nn.Linear(2, 2)}).state_dict(), f"{FORMS}Masks")


@near("CK605", "CK201", "CK202")
def a_parameter_is_missing_too(tmp):
    state = versioned(reparametrized_modules.Net(), parameters=True)
    del state["norm.bias"]
    return diff(tmp, state, f"{FORMS}Net")


# CK901 and CK902: P41


def resumed(tmp, module: str, state, optimizer):
    content = {"model": state, "optimizer": optimizer.state_dict()}
    return diff(tmp, content, f"{FORMS}{module}")


@fires("CK901", "CK309")
def a_parameter_more(tmp):
    module = reparametrized_modules.perceptron()
    extra = nn.Parameter(torch.ones(7))
    return resumed(
        tmp, "perceptron", module.state_dict(), trained(module, [*module.parameters(), extra])
    )


@fires("CK901", "CK309")
def frozen_by_the_script(tmp):
    module = reparametrized_modules.perceptron()
    optimizer = trained(module, list(module[1].parameters()))
    report = resumed(tmp, "perceptron", module.state_dict(), optimizer)
    assert {f.level for f in report.findings} == {"note"}
    return report


@near("CK901", "CK309")
def frozen_by_the_module(tmp):
    module = reparametrized_modules.Halved()
    return resumed(tmp, "Halved", module.state_dict(), trained(module, module.a.parameters()))


@near("CK901", "CK309", "CK503")
def tied_parameters_count_once(tmp):
    module = reparametrized_modules.Tied()
    return resumed(tmp, "Tied", module.state_dict(), trained(module))


@near("CK901", "CK309")
def two_optimizers(tmp):
    module = reparametrized_modules.perceptron()
    halves = [trained(module, list(half.parameters())).state_dict() for half in module]
    content = {"model": module.state_dict(), "opt_a": halves[0], "opt_b": halves[1]}
    return diff(tmp, content, f"{FORMS}perceptron")


@fires("CK902", "CK309")
def parameters_the_other_way_round(tmp):
    module = reparametrized_modules.perceptron()
    backwards = list(module.parameters())[::-1]
    return resumed(tmp, "perceptron", module.state_dict(), trained(module, backwards))


@near("CK902", "CK309")
def sorted_into_groups(tmp):
    module = reparametrized_modules.perceptron()
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() < 2]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return resumed(tmp, "perceptron", module.state_dict(), trained(module, groups))


@near("CK902", "CK309")
def the_same_order(tmp):
    module = reparametrized_modules.perceptron()
    return resumed(tmp, "perceptron", module.state_dict(), trained(module))
