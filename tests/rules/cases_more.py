"""Cases of what has another form in the file: styles, fusions, quantisation, ties, optimizers."""

import collections
import warnings
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import nn

from ckptool import api
from ckptool.errors import CkptoolError
from ckptool.policy import Policy, judge
from ckptool.report import FindingReport
from ckptool.reporting.parts import findings
from ckptool.rules import run
from rules import forms
from rules.cases import diff, fires, inspect, near

FORMS = "rules.forms:"


def styled(tmp, have: str, want: str, **kwargs):
    state = forms.Wrapped(have, **kwargs).state_dict()
    return diff(tmp, state, f"{FORMS}Wrapped", style=want, **kwargs)


# CK217: P24 and P39 of the field notes


@fires("CK217")
def old_weight_norm_into_new(tmp):
    report = styled(tmp, "old weight norm", "new weight norm")
    assert [f.level for f in report.findings] == ["note"]
    assert report.missing_keys == ()  # torch's own hook takes it
    return report


@fires("CK217", "CK210")
def new_weight_norm_into_old(tmp):
    return styled(tmp, "new weight norm", "old weight norm")


@fires("CK217", "CK210")
def plain_into_weight_norm(tmp):
    return styled(tmp, "plain", "new weight norm")


@fires("CK217", "CK210")
def weight_norm_into_plain(tmp):
    report = styled(tmp, "old weight norm", "plain")
    wanted = 'weight = torch._weight_norm(state_dict["c.weight_v"], state_dict["c.weight_g"], 0)'
    assert wanted in next(f.fix for f in report.findings if f.code == "CK217")
    return report


@fires("CK217", "CK210")
def old_spectral_norm_into_new(tmp):
    return styled(tmp, "old spectral norm", "new spectral norm")


@fires("CK217", "CK210")
def new_spectral_norm_into_old(tmp):
    return styled(tmp, "new spectral norm", "old spectral norm")


@fires("CK217", "CK210")
def pruned_into_plain(tmp):
    return styled(tmp, "pruned", "plain")


@fires("CK217", "CK210")
def plain_into_orthogonal(tmp):
    return styled(tmp, "plain", "orthogonal")


@near("CK217")
def the_same_style(tmp):
    return styled(tmp, "old spectral norm", "old spectral norm")


@near("CK217", "CK201", "CK204", "CK210")
def a_style_of_another_layer(tmp):
    state = forms.Wrapped("old weight norm").state_dict()
    state = {key.replace("c.", "d."): tensor for key, tensor in state.items()}
    return diff(tmp, {**state, "c.bias": torch.ones(4)}, f"{FORMS}Wrapped")


# CK218: P40


def attention(tmp, fused: bool, **changes):
    state = forms.Attention(fused=fused).state_dict()
    return diff(tmp, {**state, **changes}, f"{FORMS}Attention", fused=not fused)


@fires("CK218", "CK210")
def fused_into_three(tmp):
    report = attention(tmp, fused=True)
    found = [f for f in report.findings if f.code == "CK218"]
    assert [f.key for f in found] == [
        f"layers.{n}.qkv.{name}" for n in (0, 1) for name in ("bias", "weight")
    ]
    assert (
        'ops = [{op = "split", key = "layers.0.qkv.bias", into = ["layers.0.q_proj.bias", '
        '"layers.0.k_proj.bias", "layers.0.v_proj.bias"]}]'
    ) in found[0].fix
    return report


@fires("CK218", "CK210")
def three_into_fused(tmp):
    report = attention(tmp, fused=False)
    found = [f for f in report.findings if f.code == "CK218"]
    assert (
        'ops = [{op = "concat", keys = ["layers.1.q_proj.weight", "layers.1.k_proj.weight", '
        '"layers.1.v_proj.weight"], into = "layers.1.qkv.weight"}]'
    ) in found[-1].fix
    return report


@fires("CK218", "CK210")
def pieces_of_several_sizes(tmp):
    state = forms.Grouped(fused=True).state_dict()
    report = diff(tmp, state, f"{FORMS}Grouped")
    assert "sizes = [8, 2, 2]" in next(f.fix for f in report.findings if f.code == "CK218")
    return report


@near("CK218", "CK201", "CK204", "CK210")
def three_of_one_shape_that_are_no_projections(tmp):
    return diff(tmp, forms.Experts(one=True).state_dict(), f"{FORMS}Experts")


@near("CK218", "CK201", "CK204", "CK210")
def of_another_width(tmp):
    return diff(tmp, forms.Attention(5, fused=True).state_dict(), f"{FORMS}Attention")


@near("CK218", "CK201", "CK204")
def one_of_the_three_is_there(tmp):
    state = forms.Attention(layers=1).state_dict()
    del state["layers.0.q_proj.weight"]
    state["layers.0.qkv.weight"] = torch.ones(12, 4)
    return diff(tmp, state, f"{FORMS}Attention", layers=1)


# CK219: P39


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(forms.perceptron(), {nn.Linear}, torch.qint8)


def observed() -> nn.Module:
    module = forms.perceptron()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        return torch.ao.quantization.prepare_qat(module.train())


@fires("CK219", "CK210")
def dynamic_quantisation(tmp):
    return diff(tmp, quantised().state_dict(), f"{FORMS}perceptron")


@fires("CK219")
def float_into_quantised(tmp):
    return diff(tmp, forms.perceptron().state_dict(), "rules.cases_more:quantised")


@fires("CK219")
def observers(tmp):
    return diff(tmp, observed().state_dict(), f"{FORMS}perceptron")


def with_layer(**tensors):
    state = {key: t for key, t in forms.perceptron().state_dict().items() if key != "0.weight"}
    return collections.OrderedDict({**state, **{f"0.{k}": t for k, t in tensors.items()}})


GPTQ = {
    "qweight": torch.ones(1, 3, dtype=torch.int32),
    "qzeros": torch.ones(1, 1, dtype=torch.int32),
    "scales": torch.ones(1, 3, dtype=torch.float16),
}


@fires("CK219")
def gptq(tmp):
    state = with_layer(**GPTQ, g_idx=torch.zeros(2, dtype=torch.int32))
    report = diff(tmp, state, f"{FORMS}perceptron")
    assert any("the file is GPTQ" in f.message for f in report.findings)
    return report


@fires("CK219")
def awq(tmp):
    report = diff(tmp, with_layer(**GPTQ), f"{FORMS}perceptron")
    assert any("the file is AWQ" in f.message for f in report.findings)
    return report


@fires("CK219", "CK207")
def bitsandbytes_4_bit(tmp):
    state = with_layer(
        weight=torch.ones(3, 1, dtype=torch.uint8),
        **{"weight.absmax": torch.ones(1), "weight.quant_map": torch.ones(16)},
        **{"weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)},
    )
    return diff(tmp, state, f"{FORMS}perceptron")


@fires("CK219")
def bitsandbytes_8_bit(tmp):
    state = with_layer(weight=torch.ones(3, 2, dtype=torch.int8), SCB=torch.ones(3))
    return diff(tmp, state, f"{FORMS}perceptron")


@fires("CK219")
def compressed_tensors(tmp):
    state = with_layer(
        weight_packed=torch.ones(3, 1, dtype=torch.int32), weight_scale=torch.ones(3, 1),
        weight_shape=torch.tensor([3, 2]),
    )  # fmt: skip
    return diff(tmp, state, f"{FORMS}perceptron")


@fires("CK219")
def scaled_float8(tmp):
    state = with_layer(
        weight=torch.ones(3, 2).to(torch.float8_e4m3fn), weight_scale_inv=torch.ones(1, 1)
    )
    return diff(tmp, state, f"{FORMS}perceptron")


@near("CK219")
def quantised_into_quantised(tmp):
    return diff(tmp, quantised().state_dict(), "rules.cases_more:quantised")


@near("CK219", "CK204")
def a_scale_and_a_zero_point_of_its_own(tmp):
    return diff(tmp, forms.Gate().state_dict(), f"{FORMS}Gate", offset=False)


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
        return Refused(findings(judge(run([error]), Policy())))
    return Refused(())


@fires("CK221")
def every_gamma_is_renamed(tmp):
    state = forms.Scaled().state_dict()
    plan = '[[ops]]\nop = "rename"\nkey = "gamma$"\nto = "weight"\nhow = "regex"\n'
    return refused(tmp, state, plan, module=f"{FORMS}Scaled")


@near("CK221")
def the_gamma_of_a_layer_norm_is_renamed(tmp):
    state = forms.Scaled().state_dict()
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
    module = forms.perceptron()
    content = {"model": module.state_dict(), "optimizer": trained(module).state_dict(), "epoch": 3}
    report = inspect(tmp, content)
    (found,) = report.findings
    assert found.level == "note"
    assert "optimizer, 120 bytes of tensors" in found.message
    assert "--at model" in found.fix
    return report


@fires("CK309")
def lightning_states(tmp):
    module = forms.perceptron()
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


@near("CK309")
def an_epoch_and_a_setting(tmp):
    return inspect(tmp, {"model": forms.perceptron().state_dict(), "epoch": 3, "args": {"lr": 1}})


@near("CK309")
def a_model_with_a_scaler(tmp):
    module = nn.ModuleDict({"scaler": nn.Linear(2, 2), "callbacks": nn.Linear(2, 2)})
    return inspect(tmp, module.state_dict())


@near("CK309")
def the_optimizer_alone(tmp):
    return inspect(tmp, trained(forms.perceptron()).state_dict())


# CK501: P15 and P16


@fires("CK501")
def tied_names_that_differ(tmp):
    state = {"emb.weight": torch.zeros(6, 3), "head.weight": torch.ones(6, 3)}
    report = diff(tmp, state, f"{FORMS}Tied")
    assert [f.level for f in report.findings] == ["error"]
    assert "`head.weight` wins" in report.findings[0].message
    return report


@fires("CK501")
def a_name_that_safetensors_left_out(tmp):
    save_file({"emb.weight": torch.ones(6, 3)}, tmp / "m.safetensors", metadata={"format": "pt"})
    report = api.diff(tmp / "m.safetensors", module=f"{FORMS}Tied")
    assert [f.level for f in report.findings] == ["warning"]
    assert report.coverage == 1.0
    return report


@fires("CK501", "CK503")
def tied_file_and_a_module_without_the_tie(tmp):
    report = diff(tmp, forms.Tied().state_dict(), f"{FORMS}Tied", tied=False)
    assert {f.level for f in report.findings} == {"note"}
    return report


@near("CK501", "CK503")
def tied_on_both_sides(tmp):
    return diff(tmp, forms.Tied().state_dict(), f"{FORMS}Tied")


@near("CK501")
def equal_copies(tmp):
    state = {key: tensor.clone() for key, tensor in forms.Tied().state_dict().items()}
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
    state = versioned(forms.Net(), parameters=True)
    del state["norm.bias"]
    return diff(tmp, state, f"{FORMS}Net")


# CK901 and CK902: P41


def resumed(tmp, module: str, state, optimizer):
    content = {"model": state, "optimizer": optimizer.state_dict()}
    return diff(tmp, content, f"{FORMS}{module}")


@fires("CK901", "CK309")
def a_parameter_more(tmp):
    module = forms.perceptron()
    extra = nn.Parameter(torch.ones(7))
    return resumed(
        tmp, "perceptron", module.state_dict(), trained(module, [*module.parameters(), extra])
    )


@fires("CK901", "CK309")
def frozen_by_the_script(tmp):
    module = forms.perceptron()
    optimizer = trained(module, list(module[1].parameters()))
    report = resumed(tmp, "perceptron", module.state_dict(), optimizer)
    assert {f.level for f in report.findings} == {"note"}
    return report


@near("CK901", "CK309")
def frozen_by_the_module(tmp):
    module = forms.Halved()
    return resumed(tmp, "Halved", module.state_dict(), trained(module, module.a.parameters()))


@near("CK901", "CK309", "CK503")
def tied_parameters_count_once(tmp):
    module = forms.Tied()
    return resumed(tmp, "Tied", module.state_dict(), trained(module))


@near("CK901", "CK309")
def two_optimizers(tmp):
    module = forms.perceptron()
    halves = [trained(module, list(half.parameters())).state_dict() for half in module]
    content = {"model": module.state_dict(), "opt_a": halves[0], "opt_b": halves[1]}
    return diff(tmp, content, f"{FORMS}perceptron")


@fires("CK902", "CK309")
def parameters_the_other_way_round(tmp):
    module = forms.perceptron()
    backwards = list(module.parameters())[::-1]
    return resumed(tmp, "perceptron", module.state_dict(), trained(module, backwards))


@near("CK902", "CK309")
def sorted_into_groups(tmp):
    module = forms.perceptron()
    weights = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() < 2]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return resumed(tmp, "perceptron", module.state_dict(), trained(module, groups))


@near("CK902", "CK309")
def the_same_order(tmp):
    module = forms.perceptron()
    return resumed(tmp, "perceptron", module.state_dict(), trained(module))


# CK211: P43


@fires("CK211", "CK210")
def old_names_of_a_layer_norm(tmp):
    state = forms.Scaled().state_dict()
    state["norm.gamma"], state["norm.beta"] = state.pop("norm.weight"), state.pop("norm.bias")
    return diff(tmp, state, f"{FORMS}Scaled")


@near("CK211")
def gamma_of_a_layer_scale(tmp):
    return diff(tmp, forms.Scaled().state_dict(), f"{FORMS}Scaled")
