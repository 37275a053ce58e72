"""A folder names a class of the installed framework, and nothing else: hostile folders as well."""

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptool.errors import ModuleError, ReadError
from ckptool.loaders.config_checks import find_refused_fields
from ckptool.loaders.model_folder import find_model_folder, read_config
from ckptool.loaders.registry import get_loader

CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 16,
          "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
          "vocab_size": 32, "max_position_embeddings": 16}  # fmt: skip


def write_folder(folder: Path, config: object, name: str = "config.json") -> Path:
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / name).write_text(text)
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "config", "loader", "class_name"),
    [
        ("config.json", CONFIG, "transformers", "BertModel"),
        ("config.json", {"model_type": "bert"}, "transformers", ""),
        ("config.json", {"_class_name": "UNet2DModel"}, "diffusers", "UNet2DModel"),
        ("model_index.json", {"_class_name": "DDPMPipeline"}, "diffusers", "DDPMPipeline"),
        ("adapter_config.json", {"peft_type": "LORA"}, "peft", "LORA"),
        ("config.json", {"architecture": "vit_tiny", "pretrained_cfg": {}}, "timm", "vit_tiny"),
    ],
)
def test_the_framework_is_known_from_its_configuration(name, config, loader, class_name, tmp_path):
    model_folder = find_model_folder(write_folder(tmp_path / "m", config, name))
    assert model_folder is not None
    assert (model_folder.loader, model_folder.class_name) == (loader, class_name)


@pytest.mark.parametrize("config", [{"hidden": 3}, {"architectures": []}, {"model_type": 7}])
def test_another_config_is_none(config, tmp_path):
    assert find_model_folder(write_folder(tmp_path / "m", config)) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a":' * 200 + "1" + "}" * 200])
def test_a_damaged_configuration_is_refused_in_one_line(text, tmp_path):
    with pytest.raises(ReadError, match=r"config\.json"):
        read_config(write_folder(tmp_path / "m", text) / "config.json")


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"auto_map": {"AutoModel": "evil.Net"}}, ("auto_map",)),
        ({"text_config": {"auto_map": {"AutoConfig": "evil.C"}}}, ("auto_map",)),
        ({"attn_implementation": "someone/kernel"}, ("attn_implementation",)),
        ({"transformers_weights": "../other.safetensors"}, ("transformers_weights",)),
        ({"fusion_config": {"patch_embeddings": True}}, ("fusion_config",)),
        ({"attn_implementation": "sdpa", "auto_map": {}}, ()),
    ],
)
def test_what_names_code_or_files_is_found(fields, refused):
    assert find_refused_fields(fields) == refused


def needs_transformers() -> None:
    pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")


@pytest.mark.parametrize("command", ["diff", "gate", "verify", "audit", "migrate"])
def test_code_in_the_folder_is_refused_by_name_and_never_run(
    command, tmp_path, run_command, monkeypatch
):
    needs_transformers()
    folder = write_folder(
        tmp_path / "m",
        {**CONFIG, "architectures": ["Net"], "auto_map": {"AutoModel": "modeling_evil.Net"}},
    )
    marker = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    options = ("-o", str(tmp_path / "out.safetensors")) if command == "migrate" else ()
    result = run_command(command, str(folder), *options, "--no-config")
    assert result.code == 2
    assert "`auto_map`" in result.err
    assert not marker.exists()


def test_a_class_of_transformers_is_used_whatever_code_the_folder_brings(tmp_path, run_command):
    """Many folders on the Hub keep the code from before transformers had their class."""
    needs_transformers()
    from loaders.transformers_zoo import PLAIN, build_model

    folder, marker = tmp_path / "m", tmp_path / "ran"
    model = build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"])
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.LlamaConfig", "AutoModelForCausalLM": "evil.LlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    _, truth = type(model).from_pretrained(folder, output_loading_info=True)
    assert not truth["missing_keys"]
    result = run_command("diff", str(folder), "--no-config")
    assert result.code == 0
    assert result.out.startswith("loads with from_pretrained()")
    assert "the code that its `auto_map` names is not run" in result.notices
    assert not marker.exists()


@pytest.mark.parametrize(
    "class_name",
    [
        "os",
        "PreTrainedModel.from_pretrained",
        "AutoModel",
        "Trainer",
        "__builtins__",
        "",
        "pipeline",
    ],
)
def test_only_models_of_the_framework_are_built(class_name, tmp_path):
    needs_transformers()
    config = {**CONFIG, "model_type": "nothing", "architectures": [class_name]}
    folder = write_folder(tmp_path / "m", config)
    with pytest.raises(ModuleError):
        get_loader("transformers").build_model(folder, class_name)


def test_a_class_of_somebody_else_with_the_same_name_is_not_taken(tmp_path, monkeypatch):
    needs_transformers()
    import transformers

    class Mine(transformers.BertModel):
        pass

    monkeypatch.setattr(transformers, "Mine", Mine, raising=False)
    with pytest.raises(ModuleError, match="has no such model"):
        get_loader("transformers").build_model(write_folder(tmp_path / "m", CONFIG), "Mine")


def test_no_connection_is_made_while_a_model_is_built(tmp_path, monkeypatch):
    """A backbone with pretrained weights is asked for in the constructor of some classes."""
    needs_transformers()
    from ckptool.loaders.offline import NetworkRefusedError, run_offline

    with run_offline(), pytest.raises(NetworkRefusedError):
        socket.create_connection(("localhost", 9))
    with run_offline(), pytest.raises(NetworkRefusedError):
        socket.socket().connect(("127.0.0.1", 9))
    with pytest.raises(OSError, match=r"refused|Connection"):
        socket.create_connection(("127.0.0.1", 9), timeout=1)


def test_pickles_of_the_folder_are_never_unpickled(tmp_path, run_command):
    needs_transformers()
    import os
    import pickle

    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    folder = write_folder(tmp_path / "m", CONFIG)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    result = run_command("gate", str(folder), "--no-config")
    assert result.code in {1, 2}
    assert not marker.exists()
