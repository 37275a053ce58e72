"""Cases of tensors that are there in another form: styles, fusions, quantisation, old names."""

import collections
import warnings

import torch
from migration import forms
from rules import reparametrized_modules
from rules.cases import diff, fires, near
from torch import nn

from ckptool import api

FORMS = "rules.reparametrized_modules:"


def styled(tmp, have: str, want: str, **kwargs):
    state = reparametrized_modules.Wrapped(have, **kwargs).state_dict()
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
    fix = next(f.fix for f in report.findings if f.code == "CK217")
    assert "v * (g / ||v||), which is what the layer computed with: ckptool migrate" in fix
    return report


@fires("CK217", "CK210")
def new_spectral_norm_into_pruned(tmp):
    report = styled(tmp, "new spectral norm", "pruned")
    fix = next(f.fix for f in report.findings if f.code == "CK217")
    assert "can be brought to torch.nn.utils.prune from there: ckptool migrate" in fix
    return report


@fires("CK217", "CK210")
def plain_into_spectral_norm(tmp):
    report = styled(tmp, "plain", "old spectral norm")
    fix = next(f.fix for f in report.findings if f.code == "CK217")
    assert "before it is wrapped" in fix
    assert "ckptool migrate" not in fix
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
    state = reparametrized_modules.Wrapped("old weight norm").state_dict()
    state = {key.replace("c.", "d."): tensor for key, tensor in state.items()}
    return diff(tmp, {**state, "c.bias": torch.ones(4)}, f"{FORMS}Wrapped")


# CK218: P40


def attention(tmp, fused: bool, **changes):
    state = reparametrized_modules.Attention(fused=fused).state_dict()
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
    state = reparametrized_modules.Grouped(fused=True).state_dict()
    report = diff(tmp, state, f"{FORMS}Grouped")
    assert "sizes = [8, 2, 2]" in next(f.fix for f in report.findings if f.code == "CK218")
    return report


@fires("CK218", "CK210")
def three_into_torchs_attention(tmp):
    state = forms.Attention(split=True).state_dict()
    report = diff(tmp, state, "migration.forms:Attention")
    assert "whose order is fixed: ckptool migrate" in report.findings[-1].fix
    return report


@fires("CK218", "CK210")
def three_of_other_code_into_torchs_attention(tmp):
    state = forms.OwnAttention().state_dict()
    report = diff(tmp, state, "migration.forms:Attention")
    found = [f for f in report.findings if f.code == "CK218"]
    assert all("look up whether the heads in the code that made the file" in f.fix for f in found)
    return report


@near("CK218", "CK201", "CK204", "CK210")
def three_of_one_shape_that_are_no_projections(tmp):
    return diff(tmp, reparametrized_modules.Experts(one=True).state_dict(), f"{FORMS}Experts")


@near("CK218", "CK201", "CK204", "CK210")
def of_another_width(tmp):
    return diff(
        tmp, reparametrized_modules.Attention(5, fused=True).state_dict(), f"{FORMS}Attention"
    )


@near("CK218", "CK201", "CK204")
def one_of_the_three_is_there(tmp):
    state = reparametrized_modules.Attention(layers=1).state_dict()
    del state["layers.0.q_proj.weight"]
    state["layers.0.qkv.weight"] = torch.ones(12, 4)
    return diff(tmp, state, f"{FORMS}Attention", layers=1)


# CK219: P39


def quantised() -> nn.Module:
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


@fires("CK219", "CK210")
def dynamic_quantisation(tmp):
    return diff(tmp, quantised().state_dict(), f"{FORMS}perceptron")


@fires("CK219")
def float_into_quantised(tmp):
    return diff(
        tmp,
        reparametrized_modules.perceptron().state_dict(),
        "rules.cases_reparametrization:quantised",
    )


@fires("CK219")
def observers(tmp):
    return diff(tmp, observed().state_dict(), f"{FORMS}perceptron")


def with_layer(**tensors):
    state = {
        key: t
        for key, t in reparametrized_modules.perceptron().state_dict().items()
        if key != "0.weight"
    }
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
    return diff(tmp, quantised().state_dict(), "rules.cases_reparametrization:quantised")


@near("CK219", "CK204")
def a_scale_and_a_zero_point_of_its_own(tmp):
    return diff(tmp, reparametrized_modules.Gate().state_dict(), f"{FORMS}Gate", offset=False)


# CK211: P43


@fires("CK211", "CK210")
def old_names_of_a_layer_norm(tmp):
    state = reparametrized_modules.Scaled().state_dict()
    state["norm.gamma"], state["norm.beta"] = state.pop("norm.weight"), state.pop("norm.bias")
    return diff(tmp, state, f"{FORMS}Scaled")


@near("CK211")
def gamma_of_a_layer_scale(tmp):
    return diff(tmp, reparametrized_modules.Scaled().state_dict(), f"{FORMS}Scaled")


class _Anchors(torch.nn.Module):
    """As torchvision's AnchorGenerator does it: forward takes the list to the device itself."""

    def __init__(self):
        super().__init__()
        self.anchors = [torch.ones(2)]

    def forward(self, x):
        self.anchors = [one.to(x) for one in self.anchors]
        return x + self.anchors[0]


@fires("CK102", "CK110")
def forward_moves_it_itself(_tmp):
    report = api.audit(module=_Anchors())
    levels = {f.code: f.level for f in report.findings}
    assert levels["CK110"] == "note"
    return report
