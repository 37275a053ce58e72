"""Cases of what the values of two files, or of tied names, give away."""

import copy

import modules_for_tests
import torch
from rules.cases import diff, files, fires, near
from safetensors.torch import save_file
from torch import nn

from ckptool import api


def tied_state() -> dict[str, torch.Tensor]:
    weight = torch.arange(12.0).view(4, 3)
    return {"embed.weight": weight, "head.weight": weight}


@fires("CK502")
def tied_names_diverge(tmp):
    state = tied_state()
    return files(tmp, state, {**state, "head.weight": state["head.weight"] + 1})


@near("CK502")
def tied_names_are_equal_copies(tmp):
    state = tied_state()
    return files(tmp, state, copy_apart(state))


def copy_apart(state):
    return {key: tensor.clone() for key, tensor in state.items()}


@near("CK502")
def names_that_were_never_tied(tmp):
    state = copy_apart(tied_state())
    return files(tmp, state, {**state, "head.weight": state["head.weight"] + 1})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


@fires("CK502")
def module_ties_what_the_file_has_apart(tmp):
    state = {"embed.weight": torch.ones(4, 3), "head.weight": torch.zeros(4, 3)}
    return diff(tmp, state, "rules.cases_ties:Tied")


@near("CK502")
def module_ties_what_the_file_has_twice(tmp):
    state = {"embed.weight": torch.ones(4, 3), "head.weight": torch.ones(4, 3)}
    return diff(tmp, state, "rules.cases_ties:Tied")


@fires("CK502", "CK310")
def metadata_ties_what_the_file_has_apart(tmp):
    state = {"embed.weight": torch.ones(4, 3), "head.weight": torch.zeros(4, 3)}
    save_file(state, tmp / "m.safetensors", metadata={"head.weight": "embed.weight"})
    return api.diff(tmp / "m.safetensors", module="rules.cases_ties:Untied")


class Untied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)


@fires("CK211", "CK801", "CK802")  # values of a few elements prove nothing
def renamed_beyond_recognition(tmp):
    state = modules_for_tests.Encoder().state_dict()
    other = {f"part_{n}": tensor for n, tensor in enumerate(state.values())}
    return files(tmp, state, other)


@near("CK211", "CK801", "CK802")
def another_key_with_other_values(tmp):
    state = modules_for_tests.Encoder().state_dict()
    gone = copy.deepcopy(state)
    gone["top.bias"] = gone.pop("head.bias") + 1
    return files(tmp, state, gone)
