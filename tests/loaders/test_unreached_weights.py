"""A gate of a folder judges what `from_pretrained` loads; truth is `from_pretrained` itself."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.loaders.folder_weights import open_weights

transformers = pytest.importorskip("transformers")

METADATA = {"format": "pt"}
save_safetensors = partial(save_file, metadata=METADATA)
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


SHARD_FORMATS = {
    "all safetensors": {"a.safetensors": save_safetensors, "b.safetensors": save_safetensors},
    "all torch": {"a.bin": torch.save, "b.bin": torch.save},
    "torch under the suffix of safetensors": {
        "a.safetensors": save_safetensors,
        "b.safetensors": torch.save,
    },
    "safetensors under the suffix of torch": {"a.bin": torch.save, "b.bin": save_safetensors},
    "the first one is safetensors": {"a.safetensors": save_safetensors, "b.bin": torch.save},
    "the first one is torch": {"a.bin": torch.save, "b.safetensors": save_safetensors},
    "all safetensors, one with another suffix": {
        "a.safetensors": save_safetensors,
        "b.bin": save_safetensors,
    },
    "all torch, one with another suffix": {"a.bin": torch.save, "b.safetensors": torch.save},
}
INDEX_NAMES = ["model.safetensors.index.json", "pytorch_model.bin.index.json"]


def divide(folder: Path, whole_name: str, index_name: str, writers) -> None:
    """Replace the whole file by shards that `writers` write, by their names."""
    state = load_file(folder / whole_name)
    (folder / whole_name).unlink()
    weight_map = {key: list(writers)[n % len(writers)] for n, key in enumerate(sorted(state))}
    for name, write in writers.items():
        write({key: state[key] for key in weight_map if weight_map[key] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / index_name).write_text(json.dumps(index))


@pytest.mark.parametrize("index_name", INDEX_NAMES)
@pytest.mark.parametrize("writers", SHARD_FORMATS.values(), ids=SHARD_FORMATS.keys())
def test_shards_are_opened_by_their_own_suffixes(folder, index_name, writers):
    divide(folder, "model.safetensors", index_name, writers)
    assert _is_loaded_by_diff(folder) == _loads(transformers.BertModel, folder)


@pytest.mark.parametrize("writers", SHARD_FORMATS.values(), ids=SHARD_FORMATS.keys())
def test_shards_of_diffusers_are_opened_by_their_own_suffixes(tmp_path, writers):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4,), decoder_block_out_channels=(4,),
        num_encoder_blocks=(1,), num_decoder_blocks=(1,), latent_channels=2,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    name = "diffusion_pytorch_model.safetensors"
    divide(tmp_path, name, f"{name}.index.json", writers)
    assert _is_loaded_by_diff(tmp_path) == _loads(diffusers.AutoencoderTiny, tmp_path)


def _is_loaded_by_diff(folder: Path) -> bool:
    return "CK223" not in {finding.code for finding in ckptool.diff(folder).findings}


def _loads(cls, folder: Path) -> bool:
    try:
        cls.from_pretrained(folder)
    except Exception:  # noqa: BLE001
        return False
    return True


SHARDS_BY_INDEX = {
    INDEX_NAMES[0]: dict.fromkeys(SHARDS, save_safetensors),
    INDEX_NAMES[1]: dict.fromkeys(
        [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)], torch.save
    ),
}


@pytest.mark.parametrize("index_name", INDEX_NAMES)
@pytest.mark.parametrize("change", ["other shard", "no shard"])
def test_an_index_with_the_wrong_shard_for_a_key_loads_if_another_shard_has_it(
    folder, index_name, change
):
    original = load_file(folder / "model.safetensors")
    divide(folder, "model.safetensors", index_name, SHARDS_BY_INDEX[index_name])
    index = json.loads((folder / index_name).read_text())
    key = "embeddings.word_embeddings.weight"
    shard = index["weight_map"][key]
    if change == "other shard":
        (index["weight_map"][key],) = {*index["weight_map"].values()} - {shard}
        (folder / index_name).write_text(json.dumps(index))
    else:
        write = SHARDS_BY_INDEX[index_name][shard]
        keys = [k for k, name in index["weight_map"].items() if name == shard and k != key]
        write({k: original[k] for k in keys}, folder / shard)
    loaded, info = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
    is_loaded = torch.equal(loaded.state_dict()[key], original[key])
    assert is_loaded == (key not in info["missing_keys"]) == (change == "other shard")
    report = ckptool.gate(folder)
    (finding,) = [f for f in report.findings if f.code == "CK602"]
    assert (finding.level == "warning") == is_loaded
    assert (report.exit_code == 0) == loads_whole(folder) == is_loaded
    assert not is_loaded or shard in finding.message


def test_an_index_with_the_wrong_shard_is_an_error_where_no_framework_is_known(folder):
    index_name = INDEX_NAMES[0]
    divide(folder, "model.safetensors", index_name, SHARDS_BY_INDEX[index_name])
    (folder / "config.json").unlink()
    index = json.loads((folder / index_name).read_text())
    key = "embeddings.word_embeddings.weight"
    (index["weight_map"][key],) = {*SHARDS} - {index["weight_map"][key]}
    (folder / index_name).write_text(json.dumps(index))
    with (
        safe_open(folder / index["weight_map"][key], "pt") as shard,
        pytest.raises(SafetensorError, match=key),
    ):
        shard.get_tensor(key)
    (finding,) = [f for f in ckptool.gate(folder).findings if f.code == "CK602"]
    assert (finding.level, finding.key) == ("error", key)


def test_a_tensor_of_two_shards_that_the_index_does_not_name_is_that_of_the_last(folder):
    state = load_file(folder / "model.safetensors")
    key = "pooler.dense.bias"
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    others = {k: tensor for k, tensor in state.items() if k != key}
    save_safetensors({key: state[key] + 1}, folder / names[0])
    save_safetensors({key: state[key] + 2, "pooler.dense.extra": torch.ones(1)}, folder / names[1])
    save_safetensors(others, folder / names[2])
    weight_map = {**dict.fromkeys(state, names[2]), "a": names[0], "pooler.dense.extra": names[1]}
    (folder / INDEX_NAMES[0]).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = transformers.BertModel.from_pretrained(folder).state_dict()
    assert torch.equal(loaded[key], state[key] + 2)
    described = open_weights(folder).states[0].tensors[key]
    assert described.span.path.name == names[1]
