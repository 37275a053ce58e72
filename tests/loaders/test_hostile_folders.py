"""A configuration that is meant to do harm: no code, no network, work in proportion, one line."""

import json
import time
from pathlib import Path

import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model
from safetensors.torch import save_file

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

from ckptool.errors import ModuleError, ReadError
from ckptool.loaders.config_checks import read_model_config
from ckptool.loaders.model_folder import find_model_folder
from ckptool.loaders.registry import get_loader

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 32, "max_position_embeddings": 16}  # fmt: skip
SECONDS = 60
"""For what takes a second, and the framework's import, on a machine that has other work."""


def write_folder(folder: Path, config: object, name: str = "config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(config))
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hidden_size": 10**9}, "asks for more than"),
        ({"hidden_size": 10**30}, "no model has so many"),
        ({"vocab_size": 10**12}, "asks for more than"),
        ({"vocab_size": -(10**13)}, "no model has so many"),
        ({"num_hidden_layers": 10**7}, "`num_hidden_layers` is 10000000, and no model has so many"),
        ({"num_hidden_layers": 900_000}, "asks for more than"),
        ({"max_position_embeddings": 10**10}, "asks for more than"),
        ({"num_labels": 10**9}, "`num_labels` is 1000000000, and no model has so many"),
        ({"text_config": {"num_experts": [10**9]}}, "`num_experts` is 1000000000"),
        ({"dtype": "load"}, "`dtype` is 'load', which is not a torch dtype"),
        ({"torch_dtype": "os.system"}, "which is not a torch dtype"),
        ({"dtype": 7}, "which is not a torch dtype"),
        ({"dtype": {"": "hub"}}, "which is not a torch dtype"),
        ({"_attn_implementation_internal": "someone/kernel"}, "never used"),
        ({"attn_implementation": "someone/kernel"}, "never used"),
        ({"vision_config": {"auto_map": {"AutoModel": "evil.Net"}}}, "never used"),
    ],
)
def test_numbers_and_names_are_refused_before_anything_is_made(fields, reason, tmp_path):
    folder = write_folder(tmp_path / "m", {**BERT, **fields})
    start = time.monotonic()
    with pytest.raises(ModuleError, match=reason):
        get_loader("transformers").build_model(folder, "BertModel")
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["pipeline"]}, {"architectures": ["../../x.py"]},
        {"architectures": ["AutoModel.from_pretrained"]}, {"architectures": ["A" * 100_000]},
        {"architectures": ["\x1b[31mBert\n"]}, {"architectures": [None], "model_type": {"a": 1}},
        {"hidden_size": "16"}, {"hidden_size": [16]}, {"hidden_size": -16},
        {"num_attention_heads": 0}, {"hidden_act": "os.system"}, {"pruned_heads": [1]},
        {"attn_implementation": "nonsense"}, {"hidden_size": float("nan")},
    ],
)  # fmt: skip
def test_wrong_values_are_one_line(fields, tmp_path, run_command):
    folder = write_folder(tmp_path / "m", {**BERT, **fields})
    result = run_command("audit", str(folder), "--no-config")
    assert result.code in {0, 2}
    if result.code == 2:
        assert len(result.err.splitlines()) == 1
        assert len(result.err) < 1000
        assert "\x1b" not in result.err
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "declaration",
    [
        {"quant_method": "gptq", "bits": 4}, "os.system",
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["os"]},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ],
)  # fmt: skip
def test_a_declared_quantization_runs_nothing(declaration, tmp_path, run_command, monkeypatch):
    model = build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"])
    folder = tmp_path / "m"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": declaration}))
    (tmp_path / "os").mkdir()
    monkeypatch.chdir(tmp_path)
    result = run_command("diff", str(folder), "--no-config")
    assert result.code in {0, 1, 2}
    assert "Traceback" not in result.err + result.out
    # What was not asked of the framework is not called loaded by it.
    assert not result.out.startswith("loads with")


def test_sizes_that_the_weights_can_fill_are_built(tmp_path):
    """The near miss: 64 million parameters, and a file of a million bytes."""
    folder = write_folder(tmp_path / "m", {**BERT, "vocab_size": 4_000_000})
    save_file({"a": torch.ones(1 << 18)}, folder / "model.safetensors")
    module = get_loader("transformers").build_model(folder, "BertModel")
    assert module.embeddings.word_embeddings.weight.shape == (4_000_000, 16)


@pytest.mark.parametrize(
    "base", ["https://example.org/base", "s3://bucket/base", "owner/base", "/dev/null", 7, None]
)
def test_an_adapters_base_is_a_folder_here(base, tmp_path, run_command):
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2}
    folder = write_folder(tmp_path / "m", config, "adapter_config.json")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 2
    assert "--base FOLDER" in result.err
    assert len(result.err.splitlines()) == 1


def test_an_adapter_cannot_name_a_package_to_import(tmp_path):
    """Peft imports what `megatron_core` names, where `megatron_config` is there."""
    config = {"peft_type": "LORA", "megatron_core": "evil", "megatron_config": {"a": 1}}
    folder = write_folder(tmp_path / "m", config, "adapter_config.json")
    with pytest.raises(ModuleError, match="`megatron_config`"):
        read_model_config(folder, "adapter_config.json")


@pytest.mark.parametrize("config", [[], 7, "x", None, {"a": [[[[]]]] * 200_001}])
def test_a_configuration_of_another_kind_is_refused(config, tmp_path):
    folder = write_folder(tmp_path / "m", config)
    with pytest.raises(ReadError, match=r"config\.json"):
        find_model_folder(folder)
