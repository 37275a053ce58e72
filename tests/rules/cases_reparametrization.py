"""Cases of tensors that are there in another form: styles, fusions, quantisation, old names."""

import torch
from migration import forms
from rules import reparametrized_modules
from rules.cases import diff, fires, near

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
    assert "before the parametrization is applied" in fix
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
