"""A gate of a folder judges what `from_pretrained` loads; truth is `from_pretrained` itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptool

transformers = pytest.importorskip("transformers")

METADATA = {"format": "pt"}
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    path = tmp_path / "release"
    transformers.BertModel(config).save_pretrained(path)
    return path


def loads_whole(folder: Path) -> bool:
    try:
        _, info = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, RuntimeError):
        return False
    return not (info["missing_keys"] or info["unexpected_keys"])


def rename(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


def save_pickle(folder: Path, name: str, *, is_nested: bool) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": state} if is_nested else state, folder / name)


def write_shards(folder: Path, *, indexed: bool, repeated: bool = False) -> str:
    """Replace the whole file by two shards; return the key that both have, if `repeated`."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(state)
    middle = len(keys) // 2
    second = {key: state[key] + 1 if key == keys[middle] else state[key] for key in keys[middle:]}
    first = {key: state[key] for key in keys[: middle + 1 if repeated else middle]}
    save_file(first, folder / SHARDS[0], METADATA)
    save_file(second, folder / SHARDS[1], METADATA)
    if indexed:
        weight_map = {key: SHARDS[key not in first] for key in keys}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return keys[middle]


CHANGES = {
    "as saved": lambda folder: None,
    "another name": lambda folder: rename(folder, "weights.safetensors"),
    "another case": lambda folder: rename(folder, "Model.safetensors"),
    "model.pth": lambda folder: save_pickle(folder, "model.pth", is_nested=False),
    "pytorch_model.bin": lambda folder: save_pickle(folder, "pytorch_model.bin", is_nested=False),
    "a nested state": lambda folder: save_pickle(folder, "pytorch_model.bin", is_nested=True),
    "shards": lambda folder: write_shards(folder, indexed=True),
    "shards without an index": lambda folder: write_shards(folder, indexed=False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_gate_passes_what_from_pretrained_loads(folder, change):
    change(folder)
    assert (ckptool.gate(folder).exit_code == 0) == loads_whole(folder)


def test_diff_says_by_which_names_the_weights_are_looked_for(folder):
    rename(folder, "weights.safetensors")
    (finding,) = [f for f in ckptool.diff(folder).findings if f.code == "CK223"]
    assert "from_pretrained() raises" in finding.summary
    assert "`model.safetensors`" in finding.message
    assert "`weights.safetensors`" in finding.message
    assert "save_pretrained" in finding.fix


def test_a_file_that_is_given_itself_need_not_have_such_a_name(folder):
    rename(folder, "weights.safetensors")
    report = ckptool.diff(folder / "weights.safetensors", loader="transformers")
    assert "CK223" not in {finding.code for finding in report.findings}


def test_a_tensor_of_two_shards_is_that_of_the_last(folder):
    original = load_file(folder / "model.safetensors")
    key = write_shards(folder, indexed=True, repeated=True)
    loaded = transformers.BertModel.from_pretrained(folder).state_dict()
    assert torch.equal(loaded[key], original[key] + 1)
    report = ckptool.gate(folder)
    assert report.exit_code == 1
    (finding,) = [f for f in report.findings if f.code == "CK317"]
    assert finding.key == key
    assert SHARDS[1] in finding.summary
