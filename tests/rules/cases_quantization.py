"""Cases of quantised weights: against modules, incomplete, declared otherwise, and of raw files."""

import json
import warnings

import torch
from quantized_layouts import gptq, quantize_state
from rules import reparametrized_modules
from rules.cases import diff, fires, near
from safetensors.torch import save_file
from torch import nn

from ckptool import api

FORMS = "rules.reparametrized_modules:"
HERE = "rules.cases_quantization:"


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(64, 96, bias=False))


class ScaledLinear(nn.Module):
    """As loaders of float8 build it, with or without a place for the scales."""

    def __init__(self, size: int, out: int, *, scaled: bool = True) -> None:
        super().__init__()
        weight = torch.zeros(out, size).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        if scaled:
            scale = torch.ones(-(-out // 16), -(-size // 16))
            self.weight_scale_inv = nn.Parameter(scale, requires_grad=False)


def scaled(*, scaled: bool = True) -> nn.Module:
    return nn.Sequential(ScaledLinear(64, 32, scaled=scaled), ScaledLinear(32, 64))


def scaled_state() -> dict[str, torch.Tensor]:
    state = {"0.weight": torch.ones(32, 64), "1.weight": torch.ones(64, 32)}
    return quantize_state(state, "float8 by block")


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            reparametrized_modules.perceptron(), {nn.Linear}, torch.qint8
        )


def observed() -> nn.Module:
    module = reparametrized_modules.perceptron()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        return torch.ao.quantization.prepare_qat(module.train())


def state_in(layout: str) -> dict[str, torch.Tensor]:
    return quantize_state(wide().state_dict(), layout)


# CK219


@fires("CK219")
def dynamic_quantisation(tmp):
    return diff(tmp, quantized().state_dict(), f"{FORMS}perceptron")


@fires("CK219")
def float_into_quantised(tmp):
    state = reparametrized_modules.perceptron().state_dict()
    return diff(tmp, state, f"{HERE}quantized")


@fires("CK219")
def observers(tmp):
    return diff(tmp, observed().state_dict(), f"{FORMS}perceptron")


@fires("CK219")
def gptq_into_float(tmp):
    report = diff(tmp, state_in("gptq"), f"{HERE}wide")
    (finding,) = report.findings
    assert "the file is GPTQ (4 bits, groups of 32) and the module not quantised" in finding.message
    assert "from_pretrained()" in finding.fix
    return report


@fires("CK219")
def behind_a_prefix(tmp):
    """The module's keys are explained as well, though the file has `model.` in front."""
    state = {f"model.{key}": t for key, t in state_in("gptq").items() if key != "1.weight"}
    state |= {"1.weight": torch.ones(32)}
    report = diff(tmp, state, f"{HERE}wide")
    assert {v.code for v in report.verdicts if not v.key.endswith("bias")} == {"CK219"}
    return only(report, "CK219")


def only(report, code: str):
    """Return the report with the findings of one rule: the others are not what is tried."""
    import msgspec

    findings = tuple(finding for finding in report.findings if finding.code == code)
    return msgspec.structs.replace(report, findings=findings)


@fires("CK219")
def float8_without_a_place_for_scales(tmp):
    """The weights match, and are used without their scales: in torch the scales are unexpected."""
    module, state = scaled(scaled=False), scaled_state()
    assert [*module.load_state_dict(state, strict=False).unexpected_keys] == ["0.weight_scale_inv"]
    report = diff(tmp, state, f"{HERE}scaled", scaled=False)
    (finding,) = report.findings
    assert "has its weights in float8_e4m3fn without their scales" in finding.message
    return report


@fires("CK219", "CK201")
def a_bias_that_quantisation_does_not_explain(tmp):
    state = {key: t for key, t in state_in("awq").items() if key != "0.bias"}
    return diff(tmp, state, f"{HERE}wide")


@fires("CK219", "CK207")
def of_another_size(tmp):
    """What would not fit if it were unpacked either is said, and has its own finding."""
    state = state_in("bitsandbytes nf4")
    other = quantize_state({"0.weight": torch.ones(32, 128)}, "bitsandbytes nf4")
    report = diff(tmp, {**state, **other}, f"{HERE}wide")
    (message,) = [f.message for f in report.findings if f.code == "CK219"]
    assert "`0.weight` has another number of elements than the module" in message
    return report


@fires("CK219")
def a_layer_that_the_module_does_not_have(tmp):
    state = state_in("gptq") | {f"head.{part}": t for part, t in gptq(32, 64).items()}
    report = diff(tmp, state, f"{HERE}wide")
    assert "`head.weight` is not in any form in the module" in report.findings[0].message
    return report


@near("CK219")
def quantised_into_quantised(tmp):
    return diff(tmp, quantized().state_dict(), f"{HERE}quantized")


@near("CK219")
def scaled_into_scaled(tmp):
    scaled().load_state_dict(scaled_state())
    return diff(tmp, scaled_state(), f"{HERE}scaled")


@near("CK219", "CK209", "CK210")
def scaled_into_scaled_behind_a_prefix(tmp):
    state = {f"module.{key}": tensor for key, tensor in scaled_state().items()}
    return diff(tmp, state, f"{HERE}scaled")


@near("CK219", "CK204")
def a_scale_and_a_zero_point_of_its_own(tmp):
    state = reparametrized_modules.Gate().state_dict()
    return diff(tmp, state, f"{FORMS}Gate", offset=False)


# CK235


@fires("CK235")
def a_lost_scale(tmp):
    state = {key: t for key, t in scaled_state().items() if key != "0.weight_scale_inv"}
    report = diff(tmp, state, f"{HERE}scaled")
    assert report.missing_keys == ("0.weight_scale_inv",)
    assert "`0.weight_scale_inv`" in report.findings[0].message
    return report


@fires("CK235", "CK219")
def packed_without_scales(tmp):
    state = {key: t for key, t in state_in("gptq").items() if key != "0.scales"}
    return diff(tmp, state, f"{HERE}wide")


@fires("CK235", "CK219")
def tensors_that_do_not_fit(tmp):
    state = state_in("gptq")
    state["0.scales"] = state["0.scales"][:, :30].contiguous()
    return diff(tmp, state, f"{HERE}wide")


@fires("CK235")
def nothing_but_packed_words(tmp):
    """Incomplete, and told from an unquantised file, where no layer of the file is whole."""
    path = tmp / "model.safetensors"
    save_file({"fc.qweight": gptq(32, 64)["qweight"]}, path, metadata={"format": "pt"})
    return api.inspect(path)


@near("CK235")
def plain_float8(tmp):
    """A cast, and no file with scales: torch loads it."""
    state = {key: t.to(torch.float8_e5m2) for key, t in nn.Linear(8, 8).state_dict().items()}
    path = tmp / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    return api.inspect(path)


# CK236


def declared(tmp, config: dict | None, layout: str | None = "gptq", file: str = "config.json"):
    state = state_in(layout) if layout else wide().state_dict()
    save_file(state, tmp / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (tmp / file).write_text(json.dumps(config))
    return api.inspect(tmp / "model.safetensors")


def config_of(**quantization: object) -> dict:
    return {"model_type": "llama", "quantization_config": quantization}


@fires("CK236")
def another_method(tmp):
    return declared(tmp, config_of(quant_method="awq", bits=4, group_size=32))


@fires("CK236")
def other_bits(tmp):
    return declared(tmp, config_of(quant_method="gptq", bits=8, group_size=32))


@fires("CK236")
def another_group_size(tmp):
    report = declared(tmp, config_of(quant_method="gptq", bits=4, group_size=16))
    assert "gptq, 4 bits, groups of 16" in report.findings[0].message
    return report


@fires("CK236")
def declared_and_not_quantised(tmp):
    return declared(tmp, config_of(quant_method="bitsandbytes", load_in_4bit=True), None)


@fires("CK236")
def quantised_and_not_declared(tmp):
    report = declared(tmp, {"model_type": "llama"})
    assert report.findings[0].level == "warning"
    return report


@near("CK236")
def confirmed(tmp):
    report = declared(tmp, config_of(quant_method="gptq", bits=4, group_size=32))
    (checkpoint,) = report.checkpoints
    expected = "config.json declares gptq, 4 bits, groups of 32: confirmed"
    assert checkpoint.quantization_config == expected
    return report


@near("CK236")
def no_configuration(tmp):
    return declared(tmp, None)


# CK237


def compared(tmp, old, new):
    save_file(old, tmp / "old.safetensors")
    save_file(new, tmp / "new.safetensors")
    return api.diff(tmp / "old.safetensors", tmp / "new.safetensors")


@fires("CK237")
def raw_and_quantised(tmp):
    report = compared(tmp, wide().state_dict(), state_in("gptq"))
    assert "the new file is the quantised form of the other" in report.findings[0].message
    assert report.verdict == "breaking"
    assert any("2 weights" in skip.what for skip in report.skipped)
    return report


@fires("CK237")
def quantised_and_raw(tmp):
    report = compared(tmp, state_in("float8 by row"), wide().state_dict())
    assert "the old file is the quantised form of the other" in report.findings[0].message
    return report


@fires("CK237", "CK802")
def another_tensor_besides(tmp):
    new = {**state_in("gptq"), "extra": torch.ones(3)}
    return compared(tmp, wide().state_dict(), new)


@near("CK237", "CK801", "CK802")
def quantised_in_two_ways(tmp):
    return compared(tmp, state_in("gptq"), state_in("bitsandbytes int8"))


class SavesMore(nn.Linear):
    """As bitsandbytes' Linear4bit: it writes what load_state_dict() does not read again."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        parts = quantize_state({"weight": self.weight}, "bitsandbytes nf4")
        destination.update({f"{prefix}{part}": tensor for part, tensor in parts.items()})


def saves_more() -> nn.Module:
    return nn.Sequential(SavesMore(64, 32))


@fires("CK223", "CK114")
def a_quantised_layer_that_load_state_dict_does_not_fill(tmp):
    report = diff(tmp, saves_more().state_dict(), f"{HERE}saves_more")
    (fix,) = [f.fix for f in report.findings if f.code == "CK223"]
    assert "from_pretrained()" in fix
    return report
