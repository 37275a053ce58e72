"""What plain torch and safetensors make of a migrated file; ckptool is not asked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from files import same_bits
from migration.matrix_modules import NEW_CLASSES, example_inputs
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def load_object(path: Path) -> Any:
    """Return what was saved: with `weights_only` where torch can, else the classes are ours."""
    if (path / ".metadata").exists():
        converted = path.with_suffix(".converted.pth")
        dcp_to_torch_save(path, converted)
        return torch.load(converted, weights_only=True)
    return torch.load(path, weights_only=False)


def read_tensors(path: Path, at: Sequence[str] = ()) -> Mapping[str, Tensor]:
    """Return the tensors of a result by key, as its container stores them."""
    if path.is_dir():
        (index,) = path.glob("*.index.json")
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted({*weight_map.values()})
        assert {p.name for p in path.iterdir()} == {index.name, *names}
        shards = {name: load_file(path / name) for name in names}
        assert {(k, n) for n in names for k in shards[n]} == {*weight_map.items()}
        return {key: shards[name][key] for key, name in weight_map.items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    node = torch.load(path, weights_only=True)
    for key in at:
        node = node[key]
    return node


def load_strictly(path: Path, at: Sequence[str], tied: bool) -> nn.Module:
    """Return the new module with the result loaded as the container's users load it, strictly."""
    torch.manual_seed(99)
    module = NEW_CLASSES[tied]()
    tensors = read_tensors(path, at)
    if tensors.keys() >= module.state_dict().keys():
        module.load_state_dict(tensors, strict=True)
    elif path.is_dir():
        # As transformers does: the one name that the shards leave out is tied in the module.
        loaded = module.load_state_dict(tensors, strict=False)
        assert not loaded.unexpected_keys
        assert len(loaded.missing_keys) == 1
    else:
        load_model(module, path, strict=True)
    return module.eval()


def check_result(path: Path, at: Sequence[str], old: nn.Module, tied: bool) -> None:
    """Assert that the result has the old module's tensors, its mask and its outputs, to the bit."""
    tensors = read_tensors(path, at)
    expected = {**old.state_dict(), "mask": old.mask}
    left_out = expected.keys() - tensors.keys()
    assert tensors.keys() <= expected.keys()
    assert left_out <= (
        {"head.weight", "embed.weight"} if tied and path.suffix != ".pth" else set()
    )
    assert all(same_bits(tensors[key], expected[key]) for key in tensors)
    module = load_strictly(path, at, tied)
    with torch.no_grad():
        assert same_bits(module(*example_inputs()), old(*example_inputs()))


def check_same_value(one: object, other: object) -> None:
    """Assert that two values of a checkpoint are equal, tensors to the bit."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert same_bits(one, other)
    elif isinstance(one, Mapping):
        assert [*one] == [*other]
        for key in one:
            check_same_value(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            check_same_value(*pair)
    else:
        assert one == other
