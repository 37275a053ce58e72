"""Every source container x every target x every kind of conversion, judged by plain torch."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from files import same_bits
from migration.matrix_modules import make_trained_module
from migration.matrix_sources import SOURCES, Source, write_source
from safetensors.torch import load_file

import ckptool

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]

TARGETS = {
    "pt": ("new.pt", {}),
    "safetensors": ("new.safetensors", {}),
    "torch shards": ("new", {"to": "pth", "max_shard_size": 64}),
    "safetensors shards": ("new", {"to": "safetensors", "max_shard_size": 64}),
}
MODES = ("bare", "dtype", "weights-only", "strip", "rename", "at")
CASES = [*product(SOURCES, TARGETS, MODES)]


def get_options(source: Source, mode: str, has_average: bool) -> dict:
    """Return the options of a conversion; of two models one has to be left out or named."""
    options = {
        "bare": {},
        "dtype": {"dtype": "bf16"},
        "weights-only": {"weights_only": True},
        "strip": {"strip": ["optimizer"]},
        "rename": {"renames": {f"{source.prefix}proj.*": "top.*"}},
        "at": {"at": ".".join(source.at) or "."},
    }[mode]
    if has_average and mode != "at":
        options["strip"] = [*options.get("strip", ()), "ema"]
    return options


def get_expected(source: Source, mode: str) -> dict[str, torch.Tensor]:
    """Return what plain torch makes of the module: the state_dict of the result."""
    state = {
        f"{source.prefix}{k}": t for k, t in make_trained_module(tied=True).state_dict().items()
    }
    if mode == "dtype":
        return {k: t.to(torch.bfloat16) if t.is_floating_point() else t for k, t in state.items()}
    if mode == "rename":
        return {k.replace(f"{source.prefix}proj.", "top."): t for k, t in state.items()}
    return state


def read_result(path: Path) -> dict:
    """Return what the result's own library reads of it, without running code."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    (index,) = path.glob("*.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {}
    for name in {*weight_map.values()}:
        file = path / name
        is_safetensors = file.suffix == ".safetensors"
        shards[name] = load_file(file) if is_safetensors else torch.load(file, weights_only=True)
    assert {*path.iterdir()} == {index, *(path / name for name in shards)}
    return {key: shards[name][key] for key, name in weight_map.items()}


@pytest.mark.parametrize(("name", "target_name", "mode"), CASES)
def test_every_source_becomes_every_target(tmp_path, name, target_name, mode):
    source, (file_name, how) = SOURCES[name], TARGETS[target_name]
    path = write_source(name, tied=True)
    before = path.read_bytes() if path.is_file() else None
    options = get_options(source, mode, has_average="ema" in source.others and not source.is_module)
    target = tmp_path / file_name
    report = ckptool.convert(path, target, **how, **options, provenance=False)
    assert report.exit_code == 0
    result = read_result(target)
    is_alone = target_name != "pt" or mode in {"at", "weights-only"}
    if not is_alone:
        assert {*source.others} - {*result} <= {*options.get("strip", ()), "optimizer_states"}
        assert ("optimizer" in result) == ("optimizer" in source.others and mode != "strip")
    state = result
    for key in () if is_alone else source.at:
        state = state[key]
    expected = get_expected(source, mode)
    assert state.keys() <= expected.keys()
    for key, tensor in state.items():
        assert same_bits(tensor, expected[key]), key
        assert tensor.device.type == "cpu"
    ties = {f"{source.prefix}head.weight", f"{source.prefix}embed.weight"}
    missing = expected.keys() - state.keys()
    may_miss = source.stores_one_name or "safetensors" in target_name
    assert missing <= ties
    assert len(missing) <= may_miss
    if missing and not source.stores_one_name:
        assert any(next(iter(missing)) in note for note in report.conversions[0].notes)
    assert [*tmp_path.iterdir()] == [target]
    assert before is None or path.read_bytes() == before
