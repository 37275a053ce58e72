"""A folder with an index and a whole file: what is judged is what `from_pretrained` loads.

The order is that of transformers' `_get_resolved_checkpoint_files` for a local folder: the whole
safetensors file, the index of safetensors, the whole .bin, the index of .bin; with a variant, the
names of the variant.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptool

METADATA = {"format": "pt"}


def name_files(variant: str = "") -> list[str]:
    """Return the four names in the order in which transformers looks for them."""
    infix = f".{variant}" if variant else ""
    return [
        f"model{infix}.safetensors",
        f"model.safetensors.index{infix}.json",
        f"pytorch_model{infix}.bin",
        f"pytorch_model.bin.index{infix}.json",
    ]


def write(path: Path, value: float) -> None:
    tensors = {"w": torch.full((2,), value)}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata=METADATA)
    else:
        torch.save(tensors, path)


def write_folder(folder: Path, names: list[str]) -> None:
    """Write the files; those of names[0] hold 0, of names[1] hold 1, and so on."""
    for value, name in enumerate(names):
        if not name.endswith(".json"):
            write(folder / name, float(value))
            continue
        suffix = "safetensors" if "safetensors" in name else "bin"
        shard = f"{name.removesuffix('.json')}-00001-of-00001.{suffix}"
        write(folder / shard, float(value))
        index = {"metadata": {}, "weight_map": {"w": shard}}
        (folder / name).write_text(json.dumps(index))


def read_value(report) -> float:
    """Return the first element of the file that was judged."""
    path = report.checkpoints[0].path
    digest = ckptool.digest(path).checkpoints[0].tensors[0].digest
    digests = {}
    for value in range(4):
        other = Path(path).parent / "other" if Path(path).is_file() else Path(path) / "other"
        torch.save({"w": torch.full((2,), float(value))}, other)
        digests[ckptool.digest(other).checkpoints[0].tensors[0].digest] = float(value)
        other.unlink()
    return digests[digest]


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (0, 3)], ids=["safetensors", "bin", "both"])
def test_the_file_that_is_loaded_is_judged(tmp_path: Path, pair: tuple, variant: str) -> None:
    names = name_files(variant)
    write_folder(tmp_path, [names[position] for position in pair])
    report = ckptool.inspect(tmp_path)
    assert read_value(report) == 0.0
    is_same_format = pair[1] - pair[0] == 1
    hits = [finding for finding in report.findings if finding.code == "CK317"]
    assert [finding.key for finding in hits] == ([names[pair[1]]] if is_same_format else [])
    assert (ckptool.gate(tmp_path).exit_code == 1) == is_same_format


def test_an_index_of_a_variant_is_not_loaded_unasked(tmp_path: Path) -> None:
    write_folder(tmp_path, ["model.safetensors", "model.safetensors.index.fp16.json"])
    report = ckptool.inspect(tmp_path)
    assert read_value(report) == 0.0
    assert "CK317" not in {finding.code for finding in report.findings}


@pytest.mark.parametrize("name", [name_files()[1], name_files("fp16")[1], name_files()[3]])
def test_an_index_alone_is_loaded(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, [name])
    report = ckptool.inspect(tmp_path)
    assert report.checkpoints[0].path == str(tmp_path)
    assert "CK317" not in {finding.code for finding in report.findings}


def test_an_index_that_is_named_says_that_it_is_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, name_files()[:2])
    report = ckptool.inspect(tmp_path / "model.safetensors.index.json")
    assert [finding.key for finding in report.findings if finding.code == "CK317"] == [
        "model.safetensors.index.json"
    ]


def test_an_index_of_the_whole_file_alone_agrees_with_it(tmp_path: Path) -> None:
    write_folder(tmp_path, ["model.safetensors"])
    index = {"metadata": {}, "weight_map": {"w": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert "CK317" not in {finding.code for finding in ckptool.inspect(path).findings}
