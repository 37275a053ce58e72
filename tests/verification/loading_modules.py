"""Modules whose loading is code, each with a file for it: `CASES` name -> (module, state)."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrizations


class RenamesInPreHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 4)
        self.register_load_state_dict_pre_hook(RenamesInPreHook.upgrade)

    @staticmethod
    def upgrade(module, state_dict, prefix, *_):
        for name in ("weight", "bias"):
            if f"{prefix}old.{name}" in state_dict:
                state_dict[f"{prefix}new.{name}"] = state_dict.pop(f"{prefix}old.{name}")


class RenamesInLoad(nn.Module):
    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        RenamesInPreHook.upgrade(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class RenamesAtTheTop(nn.Module):
    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 4)

    def load_state_dict(self, state_dict, *args, **kwargs):
        renamed = {key.replace("old.", "new."): value for key, value in state_dict.items()}
        return super().load_state_dict(renamed, *args, **kwargs)


class RenamesWithoutAssign(nn.Module):
    """An override of before torch 2.1, which knows no `assign`."""

    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 4)

    def load_state_dict(self, state_dict, strict=True):
        renamed = {key.replace("old.", "new."): value for key, value in state_dict.items()}
        return super().load_state_dict(renamed, strict)


class InjectsMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("mask", torch.triu(torch.ones(4, 4)))
        self.register_load_state_dict_pre_hook(
            lambda module, state_dict, prefix, *_: state_dict.setdefault(
                prefix + "mask", module.mask
            )
        )


class UpgradesByVersion(nn.Module):
    _version = 2

    def __init__(self):
        super().__init__()
        self.new = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 1) < 2:
            RenamesInPreHook.upgrade(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class RefusesOldVersions(nn.Linear):
    _version = 3

    def __init__(self):
        super().__init__(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 1) < 3:
            raise RuntimeError("this file is too old: convert it with tools/convert.py")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Changes(nn.Module):
    """Applies `change` to the state before it is loaded."""

    def __init__(self, change: Callable):
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.change = change

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.change(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def flat_to_matrix(state_dict, prefix):
    state_dict[prefix + "proj.weight"] = state_dict[prefix + "proj.weight"].view(6, 4)


def transpose(state_dict, prefix):
    state_dict[prefix + "proj.weight"] = state_dict[prefix + "proj.weight"].t()


def change_weight(view):
    """Return a change that replaces the weight by a view of it."""

    def change(state_dict, prefix):
        state_dict[prefix + "proj.weight"] = view(state_dict[prefix + "proj.weight"])

    return change


def cut_joined_weight(state_dict, prefix):
    weight = state_dict.pop(prefix + "qkv.weight")
    state_dict[prefix + "proj.weight"] = weight.chunk(2)[1]


def join_parts(state_dict, prefix):
    for name in ("weight", "bias"):
        parts = [state_dict.pop(f"{prefix}{part}.{name}") for part in ("q", "k", "v")]
        state_dict[f"{prefix}proj.{name}"] = torch.cat(parts)


def drop_old_buffer(state_dict, prefix):
    state_dict.pop(prefix + "attn_mask", None)


def to_float(state_dict, prefix):
    for key in list(state_dict):
        state_dict[key] = state_dict[key].float()


def scale_by_a_value(state_dict, prefix):
    scale = state_dict.pop(prefix + "scale")
    if scale.item() != 1:
        state_dict[prefix + "proj.weight"] = state_dict[prefix + "proj.weight"] * scale


def renames_to_nothing(state_dict, prefix):
    state_dict[prefix + "nowhere"] = state_dict.pop(prefix + "proj.bias")


class SplitsFused(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        fused = state_dict.pop(prefix + "qk.weight", None)
        if fused is not None:
            state_dict[prefix + "q.weight"], state_dict[prefix + "k.weight"] = fused.chunk(2)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ResizesQueue(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("queue", torch.zeros(2, 4))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "queue" in state_dict:
            self.queue = self.queue.new_zeros(state_dict[prefix + "queue"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class FillsNoneBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("cache", None)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "cache" in state_dict:
            self.cache = torch.empty_like(state_dict[prefix + "cache"])
        super()._load_from_state_dict(state_dict, prefix, *args)


class AsksForWhatItLeavesOut(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.scale = float(len(state_dict[prefix + "scale"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class WritesWhatItDoesNotRead(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight_format"] = torch.zeros(1)


class SwallowsEverything(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class FiltersShapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def load_state_dict(self, state_dict, strict=True):
        own = self.state_dict()
        fitting = {k: v for k, v in state_dict.items() if k in own and own[k].shape == v.shape}
        return super().load_state_dict(fitting, strict=False)


class ForgivesInPostHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_load_state_dict_post_hook(lambda _, keys: keys.missing_keys.clear())


class RefusesInPostHook(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.register_load_state_dict_post_hook(RefusesInPostHook.refuse)

    @staticmethod
    def refuse(module, incompatible_keys):
        raise ValueError("this class is loaded with from_file()")


class KeepsExtraState(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.steps = 0

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def linear(name: str, rows: int = 4, columns: int = 4) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(rows, columns), f"{name}.bias": torch.randn(rows)}


def without(state, *names):
    return {key: value for key, value in state.items() if not key.endswith(names)}


def of_version(state, version):
    state = OrderedDict(state)
    state._metadata = OrderedDict({"": {"version": version}, "new": {"version": 1}})
    return state


@dataclass(frozen=True)
class Case:
    module: Callable[[], nn.Module]
    state: Callable[[], dict]
    lost: frozenset[str] = frozenset()
    """Keys that keep a fresh module's value though torch does not raise."""


def _norms() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))


def _norms_without_a_count() -> dict:
    state = _norms().state_dict()  # with its versions
    del state["1.num_batches_tracked"]
    return state


def _weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(4, 4))


def _spectral() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(4, 4))


CASES = {
    "a pre-hook renames": Case(RenamesInPreHook, lambda: linear("old")),
    "a pre-hook has nothing to do": Case(RenamesInPreHook, lambda: linear("new")),
    "a pre-hook leaves one key missing": Case(
        RenamesInPreHook, lambda: without(linear("old"), "bias")
    ),
    "a pre-hook leaves one unexpected": Case(
        RenamesInPreHook, lambda: linear("old") | {"zzz": torch.ones(1)}
    ),
    "an override renames": Case(RenamesInLoad, lambda: linear("old")),
    "load_state_dict renames": Case(RenamesAtTheTop, lambda: linear("old")),
    "load_state_dict without assign": Case(RenamesWithoutAssign, lambda: linear("old")),
    "load_state_dict without assign, and a key": Case(
        RenamesWithoutAssign, lambda: without(linear("old"), "bias")
    ),
    "a pre-hook injects the mask": Case(InjectsMask, lambda: linear("fc")),
    "a mask is in the file": Case(InjectsMask, lambda: linear("fc") | {"mask": torch.ones(4, 4)}),
    "an upgrade by version": Case(UpgradesByVersion, lambda: of_version(linear("old"), 1)),
    "an upgrade of a file without versions": Case(UpgradesByVersion, lambda: linear("old")),
    "no upgrade of a new file": Case(UpgradesByVersion, lambda: of_version(linear("old"), 2)),
    "an old version is refused": Case(
        RefusesOldVersions, lambda: dict(nn.Linear(4, 4).state_dict())
    ),
    "its own version is not": Case(RefusesOldVersions, lambda: RefusesOldVersions().state_dict()),
    "reshaped": Case(
        lambda: Changes(flat_to_matrix),
        lambda: {"proj.weight": torch.randn(24), "proj.bias": torch.randn(6)},
    ),
    "transposed": Case(
        lambda: Changes(transpose),
        lambda: {"proj.weight": torch.randn(4, 6), "proj.bias": torch.randn(6)},
    ),
    "a view, transposed within its shape": Case(
        lambda: Changes(change_weight(lambda w: w.view(4, 6).t())), lambda: linear("proj", 6)
    ),
    "a copy, permuted and flattened": Case(
        lambda: Changes(change_weight(lambda w: w.permute(2, 0, 1).reshape(6, 4))),
        lambda: linear("proj", 6) | {"proj.weight": torch.randn(2, 4, 3)},
    ),
    "the first rows": Case(
        lambda: Changes(change_weight(lambda w: w[:6])),
        lambda: linear("proj", 8) | {"proj.bias": torch.randn(6)},
    ),
    "every second column": Case(
        lambda: Changes(change_weight(lambda w: w[:, ::2])), lambda: linear("proj", 6, 8)
    ),
    "one row for all": Case(
        lambda: Changes(change_weight(lambda w: w.expand(6, 4))),
        lambda: linear("proj", 6) | {"proj.weight": torch.randn(1, 4)},
    ),
    "the bits as another dtype": Case(
        lambda: Changes(change_weight(lambda w: w.view(torch.int32))), lambda: linear("proj", 6)
    ),
    "cut from a joined weight": Case(
        lambda: Changes(cut_joined_weight),
        lambda: {"qkv.weight": torch.randn(12, 4), "proj.bias": torch.randn(6)},
    ),
    "one more dimension": Case(
        lambda: Changes(change_weight(lambda w: w.squeeze(1))),
        lambda: linear("proj", 6) | {"proj.weight": torch.randn(6, 1, 4)},
    ),
    "joined": Case(
        lambda: Changes(join_parts),
        lambda: linear("q", 2) | linear("k", 2) | linear("v", 2),
    ),
    "discarded": Case(
        lambda: Changes(drop_old_buffer),
        lambda: linear("proj", 6) | {"attn_mask": torch.ones(4, 4)},
    ),
    "cast": Case(
        lambda: Changes(to_float), lambda: {k: v.half() for k, v in linear("proj", 6).items()}
    ),
    "a value is asked for": Case(
        lambda: Changes(scale_by_a_value),
        lambda: linear("proj", 6) | {"scale": torch.tensor(2.0)},
    ),
    "renamed to nothing": Case(lambda: Changes(renames_to_nothing), lambda: linear("proj", 6)),
    "split": Case(SplitsFused, lambda: {"qk.weight": torch.randn(4, 4)}),
    "a queue is resized": Case(
        ResizesQueue, lambda: linear("fc") | {"queue": torch.randn(8, 4)}
    ),
    "a None buffer is filled": Case(
        FillsNoneBuffer, lambda: linear("fc") | {"cache": torch.randn(3)}
    ),
    "it asks for what it leaves out": Case(
        AsksForWhatItLeavesOut, lambda: AsksForWhatItLeavesOut().state_dict()
    ),
    "it writes what it does not read": Case(
        WritesWhatItDoesNotRead, lambda: WritesWhatItDoesNotRead().state_dict()
    ),
    "all is swallowed": Case(
        SwallowsEverything,
        lambda: linear("a") | {"zzz": torch.ones(1)},
        frozenset({"b.weight", "b.bias"}),
    ),
    "shapes are filtered": Case(
        FiltersShapes, lambda: linear("a") | linear("b", 3), frozenset({"b.weight", "b.bias"})
    ),
    "a post hook forgives": Case(
        ForgivesInPostHook, lambda: linear("fc"), frozenset({"head.weight", "head.bias"})
    ),
    "a post hook refuses": Case(RefusesInPostHook, lambda: dict(nn.Linear(4, 4).state_dict())),
    "extra state": Case(KeepsExtraState, lambda: KeepsExtraState().state_dict()),
    "extra state is missing": Case(
        KeepsExtraState, lambda: without(KeepsExtraState().state_dict(), "_extra_state")
    ),
    "an old BatchNorm": Case(
        _norms, lambda: without(dict(_norms().state_dict()), "num_batches_tracked")
    ),
    "a new BatchNorm lacks its count": Case(
        _norms,
        _norms_without_a_count,
    ),
    "old weight norm": Case(
        _weight_normed,
        lambda: {
            "weight_g": torch.randn(4, 1), "weight_v": torch.randn(4, 4), "bias": torch.randn(4),
        },
    ),
    "spectral norm without versions": Case(_spectral, lambda: dict(_spectral().state_dict())),
    "spectral norm": Case(_spectral, lambda: _spectral().state_dict()),
    "in a Sequential": Case(
        lambda: nn.Sequential(RenamesInPreHook(), RenamesInLoad(), nn.BatchNorm1d(4)),
        lambda: linear("0.old") | linear("1.old")
        | {f"2.{k}": v for k, v in nn.BatchNorm1d(4).state_dict().items()},
    ),
    "attention": Case(
        lambda: nn.MultiheadAttention(4, 2), lambda: nn.MultiheadAttention(4, 2).state_dict()
    ),
    "whole numbers for a float layer": Case(
        _norms, lambda: {k: v.round().long() for k, v in _norms().state_dict().items()}
    ),
    "float64 for a float layer": Case(
        _norms, lambda: {k: v.double() for k, v in _norms().state_dict().items()}
    ),
    "a layer that is made at the first call": Case(
        lambda: nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(),
    ),
    "no data": Case(lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 4, device="meta").state_dict()),
    "no data for a BatchNorm": Case(
        lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm1d(4, device="meta").state_dict()
    ),
    "sparse into dense": Case(
        lambda: nn.Linear(4, 4, bias=False), lambda: {"weight": torch.eye(4).to_sparse()}
    ),
    "no code at all": Case(lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 4).state_dict()),
}  # fmt: skip
