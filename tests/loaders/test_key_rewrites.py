"""A prefix that a framework's loader does not take off is named, with a command that works."""

import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
MODELS = {
    "BertModel": transformers.BertConfig,
    "LlamaForCausalLM": transformers.LlamaConfig,
    "MixtralForCausalLM": transformers.MixtralConfig,
}
PREFIXES = {
    "module.": lambda key: f"module.{key}",
    "_orig_mod.": lambda key: f"_orig_mod.{key}",
    "module._orig_mod.": lambda key: f"module._orig_mod.{key}",
    "net.": lambda key: f"net.{key}",
}
ADAPTER_PREFIXES = {
    **PREFIXES,
    "inside": lambda key: key.replace("base_model.model.", "base_model.model.module."),
    "of the base": lambda key: key.removeprefix("base_model.model."),
}


def rename_keys(path, rename) -> None:
    state_dict = load_file(path)
    renamed = {rename(key): tensor for key, tensor in state_dict.items()}
    save_file(renamed, path, metadata={"format": "pt"})


def save_adapter(tmp_path):
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load_adapter(tmp_path, folder):
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    return peft.PeftModel.from_pretrained(base, folder).state_dict()


def follow_fix(diff_report, run_command) -> None:
    """Run the command of the finding on the prefix."""
    finding = next(f for f in diff_report.findings if f.code == "CK209")
    command = finding.fix.removeprefix("Migrate the folder: ")
    result = run_command(*shlex.split(command)[1:], cwd=Path.cwd())
    assert result.code == 0, result.out + result.err


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_command_writes_a_folder_that_from_pretrained_loads(
    name, prefix, tmp_path, run_command, monkeypatch
):
    import ckptool

    monkeypatch.chdir(tmp_path)
    model_class = getattr(transformers, name)
    model = model_class(MODELS[name](**TEXT))
    model.save_pretrained("model")
    rename_keys("model/model.safetensors", PREFIXES[prefix])
    _, info = model_class.from_pretrained("model", output_loading_info=True)
    report = ckptool.diff("model")
    if not info["missing_keys"]:  # this class takes the prefix off itself
        assert report.verdict == "loads with from_pretrained()"
        return
    assert report.verdict.startswith("loads in part with from_pretrained()")
    follow_fix(report, run_command)
    loaded, info = model_class.from_pretrained("model-migrated", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = model.state_dict()
    assert all((tensor == expected[key]).all() for key, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("prefix", ADAPTER_PREFIXES)
def test_the_command_writes_an_adapter_that_peft_loads(prefix, tmp_path, run_command, monkeypatch):
    import ckptool

    monkeypatch.chdir(tmp_path)
    folder = save_adapter(tmp_path)
    expected = load_adapter(tmp_path, folder)
    rename_keys(folder / "adapter_model.safetensors", ADAPTER_PREFIXES[prefix])
    broken = load_adapter(tmp_path, folder)
    assert any((broken[key] != expected[key]).any() for key in expected)
    report = ckptool.diff("model")
    assert report.verdict.startswith("loads in part with load_adapter()")
    assert [f.code for f in report.findings if f.code in {"CK201", "CK204"}] == []
    follow_fix(report, run_command)
    loaded = load_adapter(tmp_path, tmp_path / "model-migrated")
    assert all((loaded[key] == expected[key]).all() for key in expected)


def test_a_prefix_that_does_not_help_is_not_named(tmp_path):
    import ckptool

    model = transformers.BertModel(transformers.BertConfig(**TEXT))
    model.save_pretrained(tmp_path)
    rename_keys(tmp_path / "model.safetensors", lambda key: f"module.other_{key}")
    assert "CK209" not in {finding.code for finding in ckptool.diff(tmp_path).findings}
