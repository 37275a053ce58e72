"""Which weights a folder means: every command against `from_pretrained` on the same folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptool

transformers = pytest.importorskip("transformers")

METADATA = {"format": "pt"}
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder as save_pretrained() writes it."""
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("saved") / "release"
    transformers.BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A folder with the configuration alone."""
    path = tmp_path / "release"
    path.mkdir()
    shutil.copy(saved / "config.json", path)
    return path


def add(value: float, saved: Path) -> Tensors:
    """Return the tensors with `value` added, so that each file of a folder has its own."""
    return {key: tensor + value for key, tensor in load_file(saved / NAMES[0]).items()}


def write(path: Path, tensors: Tensors, shard_prefix: str = "") -> None:
    """Write a whole file, or an index and its two shards."""
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, METADATA)
    elif path.suffix in {".bin", ".pth"}:
        torch.save(tensors, path)
    else:
        stem, suffix = path.name.partition(".index")[0].rsplit(".", 1)
        keys, weight_map = sorted(tensors), {}
        for number, part in enumerate((keys[:5], keys[5:]), 1):
            name = f"{shard_prefix}{stem}-{number:05}-of-00002.{suffix}"
            write(path.parent / name, {key: tensors[key] for key in part})
            weight_map |= dict.fromkeys(part, name)
        path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load_as_transformers(folder: Path) -> Tensors | None:
    """Return the state that from_pretrained() loads; None where it raises."""
    try:
        return transformers.BertModel.from_pretrained(folder).state_dict()
    except OSError:
        return None


def is_converted(folder: Path, state: Tensors | None) -> bool:
    """Whether a conversion of the folder has the values that were loaded."""
    target = folder.parent / "converted.safetensors"
    ckptool.convert(folder, target)
    converted = load_file(target)
    return state is not None and all(torch.equal(state[key], converted[key]) for key in converted)


PAIRS = [(first, second) for first in NAMES for second in NAMES if first < second]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_every_command_means_what_is_loaded(folder, saved, pair, run_command):
    for value, name in enumerate(pair):
        write(folder / name, add(value, saved))
    state = load_as_transformers(folder)
    assert is_converted(folder, state)
    for command in ("inspect", "digest", "lock", "diff"):
        words = ("-o", folder.parent / "x.lock") if command == "lock" else ()
        ran = run_command(command, folder, *words)
        assert ran.code == 0 or "CK317" in ran.out, ran
        assert "CK317" in ran.out or "from_pretrained() loads `" in ran.out
    target = folder.parent / "migrated.safetensors"
    ran = run_command("migrate", folder, "-o", target)
    assert ran.code == 0, ran
    migrated = load_file(target)
    assert state is not None
    assert all(torch.equal(state[key], migrated[key]) for key in migrated)


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_without_a_configuration_the_order_is_the_same(folder, saved, pair):
    for value, name in enumerate(pair):
        write(folder / name, add(value, saved))
    state = load_as_transformers(folder)
    (folder / "config.json").unlink()
    assert is_converted(folder, state)


OTHER_PAIRS = {
    "peft": ("adapter_model.safetensors", "adapter_model.bin"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "a variant": ("model.safetensors", "model.fp16.safetensors"),
    "a variant of diffusers": (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    ),
}
"""The first is what the framework loads."""


@pytest.mark.parametrize("pair", OTHER_PAIRS.values(), ids=OTHER_PAIRS.keys())
def test_orders_of_other_frameworks(tmp_path, saved, pair):
    for value, name in enumerate(pair):
        write(tmp_path / "release" / name, add(value, saved))
    assert is_converted(tmp_path / "release", add(0, saved))


@pytest.mark.parametrize("is_configured", [True, False])
@pytest.mark.parametrize("has_index", [True, False])
def test_the_order_of_diffusers(tmp_path, has_index, is_configured):
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path / "release"
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4,), decoder_block_out_channels=(4,),
        num_encoder_blocks=(1,), num_decoder_blocks=(1,), latent_channels=2,
        upsampling_scaling_factor=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    name = "diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / name)
    write(folder / "diffusion_pytorch_model.bin", {k: v + 1 for k, v in tensors.items()})
    if has_index:
        write(folder / f"{name}.index.json", {k: v + 2 for k, v in tensors.items()})
    state = diffusers.AutoencoderTiny.from_pretrained(folder).state_dict()
    if not is_configured:
        (folder / "config.json").unlink()
    assert is_converted(folder, state)


@pytest.mark.parametrize(
    "pair",
    [
        ("model.safetensors", "adapter_model.safetensors"),
        ("model.fp16.safetensors", "model.bf16.safetensors"),
        ("model.safetensors", ".metadata"),
        ("a.pth", "b.pth"),
    ],
    ids=" ".join,
)
def test_where_nothing_decides_one_line_asks(tmp_path, saved, pair, run_command):
    for name in pair:
        (tmp_path / name).write_bytes((saved / NAMES[0]).read_bytes())
    for command in ("inspect", "digest", "lock", "diff"):
        words = ("-m", "torch.nn:ReLU") if command == "diff" else ()
        ran = run_command(command, tmp_path, *words)
        assert ran.code == 2
        (line,) = ran.err.splitlines()
        assert "choose one of" in line
        assert all(name in line for name in pair)


BELOW: dict[str, Callable[[Path, Tensors], object]] = {
    "a checkpoint of training": lambda folder, state: write(
        folder / "checkpoint-50" / "model.safetensors", state
    ),
    "a pickle": lambda folder, state: write(folder / "sub" / "pytorch_model.bin", state),
    "two": lambda folder, state: [
        write(folder / name / "model.safetensors", state) for name in ("a", "b")
    ],
    "with its own configuration": lambda folder, state: [
        write(folder / "a" / "model.safetensors", state),
        shutil.copy(folder / "config.json", folder / "a"),
    ],
    "of another name": lambda folder, state: write(folder / "a" / "weights.bin", state),
    "nothing": lambda folder, state: None,
}


@pytest.mark.parametrize("place_weights", BELOW.values(), ids=BELOW.keys())
def test_weights_below_the_configuration_are_not_loaded(folder, saved, place_weights, run_command):
    place_weights(folder, add(0, saved))
    assert load_as_transformers(folder) is None
    target = folder.parent / "new.pth"
    for words in (
        ("gate", folder), ("diff", folder), ("verify", folder), ("inspect", folder),
        ("digest", folder), ("lock", folder, "-o", target), ("migrate", folder, "-o", target),
        ("convert", folder, "-o", target), ("gate", folder.parent),
    ):  # fmt: skip
        ran = run_command(*words)
        assert ran.code == 2, ran
        text = " ".join((ran.out + ran.err).split())
        assert "names `BertModel` of transformers, which finds no weights here" in text
        assert not target.exists()


def test_weights_below_a_folder_with_weights_are_judged_as_well(folder, saved, run_command):
    write(folder / "model.safetensors", add(0, saved))
    write(folder / "original" / "consolidated.00.pth", {"w": torch.ones(2)})
    ran = run_command("gate", folder)
    assert ran.code == 0, ran
    assert "not checked: the module" in ran.out


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_name_that_is_no_file_is_passed_over_and_said(folder, saved, make, name, run_command):
    make(folder / name)
    write(folder / "pytorch_model.bin", add(1, saved))
    assert is_converted(folder, load_as_transformers(folder))
    for command in ("gate", "diff", "inspect"):
        ran = run_command(command, folder)
        assert ran.code == 0, ran
        assert f"not checked: `{name}`: it is a" in ran.out
        assert "from_pretrained() loads `pytorch_model.bin` in its place" in ran.out


def test_a_dangling_link_alone_is_named(folder, run_command):
    (folder / "model.safetensors").symlink_to("nowhere")
    assert load_as_transformers(folder) is None
    ran = run_command("gate", folder)
    assert ran.code == 2
    assert "a link to a file that does not exist" in ran.out


@pytest.mark.parametrize("prefix", ["sh/", "./", "a/b/", "sh/../"])
def test_shards_in_folders_below(folder, saved, prefix, run_command):
    (folder / "sh").mkdir()
    write(folder / "model.safetensors.index.json", add(1, saved), prefix)
    state = load_as_transformers(folder)
    assert state is not None
    ran = run_command("gate", folder)
    if ".." in prefix:  # transformers reads files outside of the folder as well
        assert ran.code == 2
        assert "transformers would read it" in ran.out
        return
    assert is_converted(folder, state)
    assert ran.code == 0, ran
    assert "1 checkpoint" in ran.out.splitlines()[0]


@pytest.mark.parametrize("max_shard_size", [300, 1 << 30])
def test_shards_of_one_name_in_two_folders_stay_two(folder, saved, max_shard_size):
    tensors = add(1, saved)
    keys = sorted(tensors)
    parts = {"a/x.safetensors": keys[:5], "b/x.safetensors": keys[5:]}
    for name, part in parts.items():
        write(folder / name, {key: tensors[key] for key in part})
    weight_map = {key: name for name, part in parts.items() for key in part}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    target = folder.parent / "new"
    ckptool.migrate(folder, target, max_shard_size=max_shard_size)
    loaded = load_as_transformers(target)
    assert loaded is not None
    assert all(torch.equal(loaded[key], tensors[key]) for key in keys)
