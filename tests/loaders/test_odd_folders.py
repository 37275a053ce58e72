"""Folders that are almost a framework's: each ends in the framework's verdict, or in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model
from safetensors.torch import save_file

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

import transformers

LLAMA = "LlamaForCausalLM"
COMMANDS = ("diff", "audit", "verify", "gate", "migrate")


def save_llama(folder: Path) -> Path:
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def run_all(folder: Path, run_command, commands=COMMANDS):
    for command in commands:
        options = ("-o", str(folder.parent / "out")) if command == "migrate" else ()
        yield run_command(command, str(folder), *options, "--no-config")


def expect_one_line(folder: Path, run_command, text: str, commands=COMMANDS) -> None:
    for result in run_all(folder, run_command, commands):
        assert result.code == 2, result.out
        (line,) = result.err.splitlines()
        assert text in line


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json"])
def test_a_folder_without_weights_or_model_says_so(name, tmp_path, run_command):
    """`verify` and `audit` asked for a module of it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text("{}")
    expect_one_line(folder, run_command, "is a directory without a checkpoint")


def test_a_folder_of_folders_says_which_to_choose(tmp_path, run_command):
    """Of sentence-transformers, with the model in 0_Transformer."""
    folder = tmp_path / "sentences"
    save_llama(folder / "0_Transformer")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16}')
    (folder / "modules.json").write_text("[]")
    text = "choose one of '0_Transformer/', '1_Pooling/'"
    expect_one_line(folder, run_command, text, ("diff", "audit", "verify"))
    assert run_command("diff", str(folder / "0_Transformer"), "--no-config").code == 0


def test_a_base_that_is_a_remote_id_is_asked_for_and_never_fetched(tmp_path, run_command):
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 8)},
              folder / "adapter_model.safetensors")  # fmt: skip
    pytest.importorskip("peft", reason="the extra `frameworks` is not installed")
    text = "'meta-llama/Llama-2-7b-hf' in adapter_config.json, is not a local folder"
    expect_one_line(folder, run_command, text)


@pytest.mark.parametrize(
    ("architectures", "cls"),
    [([LLAMA, "LlamaModel"], LLAMA), (["LlamaModel", LLAMA], "LlamaModel"), (None, "LlamaModel"),
     ([], "LlamaModel")],
)  # fmt: skip
def test_the_first_architecture_is_taken_or_the_base_of_the_type(
    architectures, cls, tmp_path, run_command
):
    folder = save_llama(tmp_path / "model")
    edit_config(folder, architectures=architectures)
    _, info = getattr(transformers, cls).from_pretrained(folder, output_loading_info=True)
    result = run_command("diff", str(folder), "--no-config", "--format", "json")
    report = json.loads(result.out)
    assert set(report["unexpected_keys"]) == set(info["unexpected_keys"])
    assert set(report["missing_keys"]) == set(info["missing_keys"]) == set()
    assert result.code == bool(info["unexpected_keys"])


def test_another_format_in_the_folder_is_not_read(tmp_path, run_command):
    folder = save_llama(tmp_path / "model")
    (folder / "model-q4.gguf").write_bytes(b"GGUF" + bytes(60))
    _, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    for result in run_all(folder, run_command):
        assert result.code == 0, result.out + result.err


def test_a_trainers_checkpoint_is_its_model(tmp_path, run_command):
    """Next to optimizer.pt, scheduler.pt and trainer_state.json."""
    folder = save_llama(tmp_path / "run" / "checkpoint-50")
    model = build_model(LLAMA, PLAIN[LLAMA])
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text('{"global_step": 50}')
    for result in run_all(folder, run_command):
        assert result.code == 0, result.out + result.err
    shutil.rmtree(folder.parent / "out")
    shutil.copytree(folder, folder.parent / "checkpoint-100")
    text = "choose one of 'checkpoint-100/', 'checkpoint-50/'"
    expect_one_line(folder.parent, run_command, text, ("diff", "audit", "verify"))
    result = run_command("gate", str(folder.parent), "--no-config")
    assert result.code == 0
    assert result.out.startswith("gate passed: 2 checkpoints")


def test_a_state_of_accelerate_is_judged_by_its_weights(tmp_path, run_command):
    """`gate` could not check its optimizer.bin, which has no tensors after no step."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    folder = tmp_path / "state"
    accelerator.save_state(str(folder))
    (folder / "random_states_0.pkl").unlink()  # NumPy's: an error of its own
    result = run_command("gate", str(folder), "--no-config")
    assert result.code == 0, result.out + result.err
    assert "next to the weights: 'optimizer.bin': give their paths" in result.out
    result = run_command("diff", str(folder), "-m", "torch.nn:Linear", "-k", "in_features=3",
                         "-k", "out_features=2", "--no-config")  # fmt: skip
    assert result.code == 0, result.err
