"""Cases of what is in the place of plain tensors, or of a shard."""

import json

import numpy as np
import torch
from packed_weights import rename_compiled_class, script_quantized
from rules.cases import diff, fires, near
from safetensors.torch import save_file
from torch import nn

from ckptool import api

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"
LINEAR = "rules.cases_contents:build_linear"


def build_linear() -> nn.Module:
    return nn.Linear(2, 2)


@fires("CK315", "CK301")
def an_object_of_a_library_that_is_not_torch(tmp):
    path = script_quantized(tmp / "model.pt", seed=0)
    rename_compiled_class(path, "quantized", "mylibrary")
    return api.inspect(path)


@near("CK315")
def an_object_that_torch_packs_weights_in(tmp):
    return api.inspect(script_quantized(tmp / "model.pt", seed=0))


@fires("CK316", "CK210", "CK301")
def an_array_under_the_key_of_a_parameter(tmp):
    state = {"weight": np.ones((2, 2), np.float32), "bias": torch.ones(2)}
    return diff(tmp, state, LINEAR)


@fires("CK316")
def a_list_under_the_key_of_a_parameter(tmp):
    return diff(tmp, {"weight": torch.ones(2, 2), "bias": [1.0, 1.0]}, LINEAR)


@near("CK316", "CK204")
def a_number_under_a_key_of_its_own(tmp):
    return diff(tmp, {**build_linear().state_dict(), "epoch": 3}, LINEAR)


def write_folder(folder, *, has_whole_file: bool):
    metadata = {"format": "pt"}
    save_file({"w": torch.ones(2)}, folder / SHARD, metadata=metadata)
    if has_whole_file:
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors", metadata=metadata)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"w": SHARD}}))
    return api.inspect(folder)


@fires("CK317")
def an_index_beside_a_whole_file(tmp):
    return write_folder(tmp, has_whole_file=True)


@near("CK317")
def an_index_alone(tmp):
    return write_folder(tmp, has_whole_file=False)
