"""Which keys are one quantised weight: held to the layouts that the libraries write."""

import pytest
import torch
from paths import ROOT
from quantized_layouts import LAYOUTS, gptq, quantize_state
from safetensors.torch import save_file
from torch import nn

from ckptool.compare.quantization.layers import find_state_quantization
from ckptool.compare.quantization.schemes import EAGER, OBSERVED, SCHEMES, TORCHAO
from ckptool.formats import open_checkpoint


def test_every_scheme_is_in_the_documentation():
    text = (ROOT / "docs/howto/quantised.md").read_text()
    assert [s.name for s in (*SCHEMES, EAGER, OBSERVED, TORCHAO) if s.name not in text] == []


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 128), nn.LayerNorm(128), nn.Linear(128, 64, bias=False))


def read_layers(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    (read_state,) = open_checkpoint(path).states
    return find_state_quantization(read_state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_belongs_to_its_weight(tmp_path, layout):
    _, scheme, bits, scaling = LAYOUTS[layout]
    module = net()
    state = quantize_state(module.state_dict(), layout)
    info = read_layers(tmp_path, state)
    assert [layer.scheme.name for layer in info.layers] == [scheme, scheme]
    assert {layer.weight_key for layer in info.layers} == {"0.weight", "2.weight"}
    keys = [key for layer in info.layers for key in layer.keys.values()]
    assert sorted(keys) == sorted(state.keys() - {"0.bias", "1.weight", "1.bias"})
    assert all(layer.is_complete for layer in info.layers)
    assert {layer.format.bits for layer in info.layers} == {bits}
    assert scaling in {layer.format.scaling for layer in info.layers}
    for layer in info.layers:
        weight = module.get_parameter(layer.weight_key)
        assert layer.format.shape in {None, tuple(weight.shape)}
        assert layer.format.numel in {0, weight.numel()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_tensor_alone_is_never_a_whole_weight(tmp_path, layout):
    """A required tensor is missing: an incomplete weight, or none where the name is no proof."""
    state = quantize_state(net().state_dict(), layout)
    whole = read_layers(tmp_path, state)
    layer = next(layer for layer in whole.layers if layer.prefix == "0")
    for choice in layer.scheme.required:
        for part in choice.split("|"):
            if part in layer.keys:
                key = layer.keys[part]
                info = read_layers(tmp_path, {k: t for k, t in state.items() if k != key})
                (broken,) = [broken for broken in info.layers if broken.prefix == "0"]
                if part == "comfy_quant":  # what is left is float8 with a scale, as others write it
                    assert broken.scheme.name == "float8 with scales"
                    continue
                lacking_key = next(iter(broken.lacking_keys))
                assert not broken.is_complete
                assert lacking_key == key or len(choice.split("|")) > 1
                assert broken.scheme.name == layer.scheme.name


FLOAT_STATES = {
    "a gate with a scale": {"fc.weight": torch.ones(8, 8), "fc.scale": torch.ones(8)},
    "logit_scale": {"logit_scale": torch.ones(()), "logit": torch.ones(8, 8)},
    "a learnt weight_scale": {"fc.weight": torch.ones(8, 8), "fc.weight_scale": torch.ones(8, 1)},
    "scales and biases of float weights": {
        "fc.weight": torch.ones(8, 8), "fc.scales": torch.ones(8), "fc.biases": torch.ones(8),
    },
    "plain float8": {"fc.weight": torch.ones(8, 8).to(torch.float8_e4m3fn)},
    "names of Mamba": {"ssm.B": torch.ones(8, 8), "ssm.s": torch.ones(8)},
    "blocks of a network": {"weight_blocks": torch.ones(8, 2, 16), "weight_scales": torch.ones(8)},
    "a codebook": {"vq.codes": torch.ones(8), "vq.codebooks": torch.ones(8, 8)},
    "an int8 table": {"table.weight": torch.ones(8, 8, dtype=torch.int8)},
    "shape and scale": {"sdf.shape": torch.ones(3), "sdf.scale": torch.ones(3)},
}  # fmt: skip


@pytest.mark.parametrize("name", FLOAT_STATES)
def test_names_that_float_networks_have_are_none(tmp_path, name):
    info = read_layers(tmp_path, FLOAT_STATES[name])
    assert info.layers == ()
    assert info.side_keys == frozenset()


def test_tensors_that_do_not_fit_are_no_weight(tmp_path):
    state = gptq(64, 128)
    state["scales"] = state["scales"][:, :60].contiguous()
    (layer,) = read_layers(tmp_path, {f"fc.{key}": t for key, t in state.items()}).layers
    assert not layer.is_complete


def test_scales_of_a_cache_and_of_whole_files_belong_to_it(tmp_path):
    state = quantize_state(net().state_dict(), "float8 static")
    state |= {"attn.k_scale": torch.ones(()), "attn.v_scale": torch.ones(())}
    assert read_layers(tmp_path, state).side_keys == {"attn.k_scale", "attn.v_scale"}
    state = quantize_state(net().state_dict(), "comfyui scaled")
    state |= {
        "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
        "final.weight": torch.ones(8, 8),
        "final.scale_weight": torch.ones(()),  # of a layer that was kept in float
    }
    assert read_layers(tmp_path, state).side_keys == {"scaled_fp8", "final.scale_weight"}


def test_experts_in_one_tensor(tmp_path):
    """As transformers stores experts: the weight's name is not "weight"."""
    state = {
        "experts.gate_up_proj": torch.ones(4, 64, 32).to(torch.float8_e4m3fn),
        "experts.gate_up_proj_scale_inv": torch.ones(4, 4, 2),
        "experts.down_proj_blocks": torch.ones(4, 32, 2, 16, dtype=torch.uint8),
        "experts.down_proj_scales": torch.ones(4, 32, 2, dtype=torch.uint8),
    }
    layers = {layer.weight_key: layer for layer in read_layers(tmp_path, state).layers}
    assert layers.keys() == {"experts.gate_up_proj", "experts.down_proj"}
    assert layers["experts.gate_up_proj"].format.scaling == "blocks of 16 x 16"
    assert layers["experts.down_proj"].format.numel == 4 * 32 * 64


def test_a_scale_that_others_have(tmp_path):
    state = {
        f"layers.{i}.{name}": tensor
        for i in range(3)
        for name, tensor in quantize_state(
            {"fc.weight": torch.ones(64, 64)}, "float8 by block"
        ).items()
    }
    state["head.weight"] = torch.ones(8, 8).to(torch.float8_e4m3fn)
    del state["layers.1.fc.weight_scale_inv"]
    layers = {layer.weight_key: layer for layer in read_layers(tmp_path, state).layers}
    assert layers["layers.1.fc.weight"].lacking_keys == ("layers.1.fc.weight_scale_inv",)
    assert not layers["layers.1.fc.weight"].is_probable
    assert layers["head.weight"].is_probable
