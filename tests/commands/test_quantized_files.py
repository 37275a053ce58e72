"""Quantised files through the commands: held to what plain torch does with the same file."""

import json

import pytest
import torch
from paths import ROOT
from quantized_layouts import LAYOUTS, quantize_state
from safetensors.torch import load_file, save_file
from torch import nn

import ckptool
from ckptool.errors import PlanError
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.quantization_config import read_declaration

HERE = "commands.test_quantized_files:"


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(128, 128)
        self.o = nn.Linear(128, 64, bias=False)
        self.norm = nn.LayerNorm(64)


def net() -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList(Layer() for _ in range(2))})


def save(path, state):
    save_file(state, path, metadata={"format": "pt"})
    return path


def load_with_torch(state) -> tuple[set[str], set[str], bool]:
    """Return missing and unexpected keys, and whether the strict load succeeds."""
    module = net()
    fitting = {
        key: tensor
        for key, tensor in state.items()
        if key not in module.state_dict() or module.state_dict()[key].shape == tensor.shape
    }
    result = net().load_state_dict(fitting, strict=False)
    mismatched = state.keys() - fitting.keys()
    try:
        net().load_state_dict(state)
    except RuntimeError:
        is_strict = False
    else:
        is_strict = True
    return {*result.missing_keys} - mismatched, {*result.unexpected_keys}, is_strict


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_file_and_a_float_module(tmp_path, layout):
    """The keys are torch's; all of them have one finding, and the fix is not to drop them."""
    state = quantize_state(net().state_dict(), layout)
    path = save(tmp_path / "model.safetensors", state)
    missing, unexpected, is_strict = load_with_torch(state)
    assert not is_strict
    report = ckptool.diff(path, module=f"{HERE}net")
    assert ({*report.missing_keys}, {*report.unexpected_keys}) == (missing, unexpected)
    assert report.exit_code == 1
    (finding,) = report.findings
    assert (finding.code, finding.level) == ("CK219", "error")
    assert LAYOUTS[layout][1] in finding.message
    assert {verdict.code for verdict in report.verdicts} == {"CK219"}
    assert "pop(" not in finding.fix

    gate = ckptool.gate([path], module=f"{HERE}net")
    assert [f.code for f in gate.findings if f.level == "error"] == ["CK219"]
    assert gate.exit_code == 1

    with pytest.raises(PlanError, match="1 open question") as refusal:
        ckptool.migrate(path, tmp_path / "new.safetensors", module=f"{HERE}net")
    assert "--drop" not in str(refusal.value)
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_raw_file_and_its_quantised_form(tmp_path, layout):
    raw = net().state_dict()
    old = save(tmp_path / "old.safetensors", raw)
    new = save(tmp_path / "new.safetensors", quantize_state(raw, layout))
    report = ckptool.diff(old, new)
    (finding,) = report.findings
    assert finding.code == "CK237"
    assert finding.facts["which"] == "new"
    assert [*report.renamed_keys] == []
    assert {*report.quantized_keys} == raw.keys() ^ load_file(new).keys() | {*report.changed_keys}
    (skip,) = [skip for skip in report.skipped if "quantised" in skip.reason]
    assert skip.what == "values of 4 weights"
    assert ckptool.diff(new, new).verdict == "identical"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_conversion_keeps_every_tensor(tmp_path, layout):
    state = quantize_state(net().state_dict(), layout)
    source = tmp_path / "old.pth"
    torch.save(state, source)
    ckptool.migrate(source, tmp_path / "new.safetensors")
    converted = load_file(tmp_path / "new.safetensors")
    assert converted.keys() == state.keys()
    for key, tensor in state.items():
        assert converted[key].dtype == tensor.dtype
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (converted[key], tensor)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_names_scheme_bits_and_scales(tmp_path, layout):
    _, scheme, bits, scaling = LAYOUTS[layout]
    path = save(tmp_path / "model.safetensors", quantize_state(net().state_dict(), layout))
    (state,) = ckptool.inspect(path).checkpoints[0].states
    groups = {group.pattern: group for group in state.quantized}
    assert groups.keys() == {"layers.*.q.weight", "layers.*.o.weight"}
    assert {(group.scheme, group.bits, group.weights) for group in groups.values()} == {
        (scheme, bits, 2)
    }
    if "quanto int4" not in layout:
        assert {group.scaling for group in groups.values()} == {scaling}


def test_a_float_file_is_none(tmp_path):
    path = save(tmp_path / "model.safetensors", net().state_dict())
    report = ckptool.inspect(path)
    assert report.checkpoints[0].states[0].quantized == ()
    assert report.findings == ()


def test_text_folds_the_keys(tmp_path, run_command):
    path = save(tmp_path / "model.safetensors", quantize_state(net().state_dict(), "gptq"))
    result = run_command("diff", path, "-m", f"{HERE}net", "--path", ROOT / "tests")
    assert "Keys that do not match: 20, as CK219 explains (-v shows all)" in result.out
    assert "unexpected-key" not in result.out
    result = run_command("inspect", path)
    assert "layers.*.q.weight" in result.out
    assert "groups of 32" in result.out


CONFIGS = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq", 4, 32),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4, 0),
    "old bitsandbytes": ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes", 8, 0),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {
                    "weights": {"num_bits": 4, "group_size": 128},
                    "input_activations": {"num_bits": 8},
                }
            },
        },
        "compressed-tensors", 4, 128,
    ),
    "mixed bits": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}},
            },
        },
        "compressed-tensors", 0, 0,
    ),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}},
        "hqq", 3, 0,
    ),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_configuration_declares(tmp_path, name):
    section, method, bits, group_size = CONFIGS[name]
    for config in (
        {"model_type": "x", "quantization_config": section},
        {"model_type": "x", "text_config": {"quantization_config": section}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        declaration = read_declaration(tmp_path, DEFAULT_LIMITS)
        assert declaration is not None
        found = (declaration.method, declaration.bits, declaration.group_size)
        assert found == (method, bits, group_size)


HOSTILE_CONFIGS = (
    b"", b"\xff\xfe", b"[]", b"null", b"{" * 10_000, b'{"quantization_config": ' * 5_000,
    b'{"quantization_config": 5}', b'{"a": 1, "a": 2}', b'{"quantization_config": {"bits": 1e999}}',
    b'{"quantization_config": {"quant_method": {"a": ["\\u001b[31m"]}}}',
    b'{"quantization_config": {"quant_method": "' + b"x" * 100_000 + b'"}}',
)  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE_CONFIGS, ids=range(len(HOSTILE_CONFIGS)))
def test_a_hostile_configuration_is_no_reason_to_fail(tmp_path, content, run_command):
    path = save(tmp_path / "model.safetensors", quantize_state(net().state_dict(), "gptq"))
    (tmp_path / "config.json").write_bytes(content)
    result = run_command("inspect", path)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert len(result.out) < 20_000


def test_a_folder_confirms_and_contradicts(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "model.safetensors", quantize_state(net().state_dict(), "gptq"))
    config = {"quantization_config": CONFIGS["gptq"][0]}
    (folder / "config.json").write_text(json.dumps(config))
    report = ckptool.inspect(folder)
    assert report.checkpoints[0].quantization_config.endswith("confirmed")
    assert report.exit_code == 0
    config["quantization_config"] = CONFIGS["bitsandbytes"][0]
    (folder / "config.json").write_text(json.dumps(config))
    gate = ckptool.gate([folder])
    assert [f.code for f in gate.findings if f.level == "error"] == ["CK236"]
    assert gate.exit_code == 1


def test_an_incomplete_layer_fails_the_gate_by_name(tmp_path):
    state = quantize_state(net().state_dict(), "float8 by block")
    del state["layers.1.o.weight_scale_inv"]
    path = save(tmp_path / "model.safetensors", state)
    gate = ckptool.gate([path])
    (finding,) = [f for f in gate.findings if f.level == "error"]
    assert finding.code == "CK235"
    assert "`layers.1.o.weight_scale_inv`" in finding.message


class Router(nn.Module):
    """As DeepSeek-V3's: a bias of zeros that training moves, and that choosing experts needs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 16))
        self.register_buffer("e_score_correction_bias", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x @ self.weight.t()).sigmoid() + self.e_score_correction_bias
        return scores.topk(2).indices


def test_a_routing_bias_that_a_quantiser_dropped(tmp_path):
    """strict=False keeps the zeros, and other experts are chosen."""
    trained = Router()
    trained.e_score_correction_bias += torch.arange(8.0)
    state = {key: t for key, t in trained.state_dict().items() if "bias" not in key}
    fresh = Router()
    fresh.load_state_dict(state, strict=False)
    x = torch.ones(1, 16)
    assert not torch.equal(fresh(x), trained(x))
    report = ckptool.diff(save(tmp_path / "model.safetensors", state), module=f"{HERE}Router")
    (finding,) = report.findings
    assert (finding.code, finding.level) == ("CK202", "error")
