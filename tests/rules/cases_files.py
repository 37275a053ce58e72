"""Cases of containers: damaged files, and checkpoints in several files."""

import json
from pathlib import Path

import torch
from rules.cases import fires, inspect, near
from safetensors.torch import save_file

from ckptool import api

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def sharded(tmp: Path, weight_map: dict[str, str], **shards: dict[str, torch.Tensor]):
    """Write shards, by key of their first tensor, and an index that says `weight_map`."""
    for name, tensors in shards.items():
        file = {"one": ONE, "two": TWO, "three": "model-00003-of-00003.safetensors"}[name]
        save_file(tensors, tmp / file, metadata={"format": "pt"})
    content = {"metadata": {"total_size": 16}, "weight_map": weight_map}
    (tmp / INDEX).write_text(json.dumps(content))
    return api.inspect(tmp)


A, B, C = ({key: torch.ones(2)} for key in "abc")


# CK306: P28


@fires("CK306", "CK301")
def a_command_in_a_torn_file(tmp):
    (tmp / "model.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R")
    return api.inspect(tmp / "model.pkl")


@near("CK306", "CK301")
def a_command_in_a_whole_file(tmp):
    torch.save({"w": torch.ones(2), "run": _Command()}, tmp / "model.pth")
    return api.inspect(tmp / "model.pth")


class _Command:
    def __reduce__(self):
        import os

        return os.system, ("true",)


# CK601 to CK603: P27


@fires("CK601")
def a_shard_that_was_not_fetched(tmp):
    return sharded(tmp, {"a": ONE, "b": TWO}, one=A)


@near("CK601")
def all_shards_are_there(tmp):
    return sharded(tmp, {"a": ONE, "b": TWO}, one=A, two=B)


@fires("CK602")
def an_index_of_another_save(tmp):
    return sharded(tmp, {"a": ONE, "b": TWO, "c": TWO}, one=A, two=B)


@near("CK602")
def every_tensor_is_where_the_index_says(tmp):
    return sharded(tmp, {"a": ONE, "b": TWO, "c": TWO}, one=A, two=B | C)


@fires("CK603")
def a_shard_that_nobody_names(tmp):
    return sharded(tmp, {"a": ONE, "b": TWO}, one=A, two=B, three=C)


@near("CK603")
def other_files_beside_the_shards(tmp):
    (tmp / "config.json").write_text("{}")
    (tmp / "README.md").write_text("a model")
    return sharded(tmp, {"a": ONE, "b": TWO}, one=A, two=B)


# CK604: P42


@fires("CK604")
def a_flat_parameter(tmp):
    return inspect(tmp, {"_fsdp_wrapped_module._flat_param": torch.ones(24)})


@near("CK604")
def a_flat_name_of_its_own(tmp):
    return inspect(tmp, {"flatten.weight": torch.ones(2), "flat_parameter": torch.ones(2)})
