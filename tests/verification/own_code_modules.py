"""Modules whose loading code looks at more than keys: at itself, at devices, at values.

`CASES` name -> (class, state). Each class can be built without arguments, by its name too.
"""

import functools
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    module: Callable[[], nn.Module]
    state: Callable[[], Mapping[str, Any]]


class _Queue(nn.Module):
    """Takes a queue of any length, by a hook that makes its own buffer as long."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("queue", torch.zeros(2, 4))

    def resize(self, state_dict, prefix, *_):
        if prefix + "queue" in state_dict:
            self.queue = torch.zeros(state_dict[prefix + "queue"].shape)

    def forward(self, x):
        return self.fc(x) + self.queue.sum(0)


class HookOfAClosure(_Queue):
    def __init__(self):
        super().__init__()

        def resize(state_dict, prefix, *_):
            self.queue.resize_(state_dict[prefix + "queue"].shape)

        self._register_load_state_dict_pre_hook(resize)


class HookOfAMethod(_Queue):
    def __init__(self):
        super().__init__()
        self._register_load_state_dict_pre_hook(self.resize)


class HookOfAPartial(_Queue):
    def __init__(self):
        super().__init__()
        self._register_load_state_dict_pre_hook(functools.partial(_Queue.resize, self))


class HookOfADefault(_Queue):
    def __init__(self):
        super().__init__()

        def resize(state_dict, prefix, *_, module=self):
            module.resize(state_dict, prefix)

        self._register_load_state_dict_pre_hook(resize)


class HookOfAWeakReference(_Queue):
    def __init__(self):
        super().__init__()
        reference = weakref.ref(self)
        self._register_load_state_dict_pre_hook(lambda *args: reference().resize(*args))


class HookOfAList(_Queue):
    def __init__(self):
        super().__init__()
        owners = [self]
        self._register_load_state_dict_pre_hook(lambda *args: owners[0].resize(*args))


class MethodOfTheInstance(_Queue):
    def __init__(self):
        super().__init__()
        load = self._load_from_state_dict

        def resize_and_load(state_dict, prefix, *args):
            self.resize(state_dict, prefix)
            return load(state_dict, prefix, *args)

        self._load_from_state_dict = resize_and_load


class LoadOfTheInstance(nn.Module):
    """As a script replaces `model.load_state_dict`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

        def load(module, state_dict, strict=True):
            renamed = {key.replace("old.", "fc."): value for key, value in state_dict.items()}
            return nn.Module.load_state_dict(module, renamed, strict=strict)

        self.load_state_dict = types.MethodType(load, self)

    def forward(self, x):
        return self.fc(x)


class KeepsALock(nn.Module):
    """Cannot be copied, and renames."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.lock = threading.Lock()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("weight", "bias"):
            if f"{prefix}old.{name}" in state_dict:
                state_dict[f"{prefix}fc.{name}"] = state_dict.pop(f"{prefix}old.{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x):
        return self.fc(x)


class _ChangesWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 4))
        self.fc = nn.Linear(4, 4)

    def change(self, state_dict, key):
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "w" in state_dict:
            self.change(state_dict, prefix + "w")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x):
        return self.fc(x @ self.w)


class RequiresTheCpu(_ChangesWeight):
    def change(self, state_dict, key):
        assert state_dict[key].device.type == "cpu", "load the file with map_location='cpu'"


class SkipsWhatIsOnMeta(_ChangesWeight):
    def change(self, state_dict, key):
        if self.w.is_meta or state_dict[key].is_meta:
            del state_dict[key]


class RenamesOnOtherDevices(_ChangesWeight):
    def change(self, state_dict, key):
        if self.w.device.type != "cpu":
            state_dict[key + "_sharded"] = state_dict.pop(key)


class TransposesWithNumpy(_ChangesWeight):
    def change(self, state_dict, key):
        array = np.ascontiguousarray(state_dict[key].numpy().T)
        state_dict[key] = torch.from_numpy(array)


class DoublesPositiveValues(_ChangesWeight):
    """Hides that values are missing."""

    def change(self, state_dict, key):
        try:
            if float(state_dict[key].sum()) > 0:
                state_dict[key] = state_dict[key] * 2
        except RuntimeError:
            del state_dict[key]


class CopiesByHand(nn.Module):
    """Takes the state alone, and returns nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def load_state_dict(self, state_dict):
        own = self.state_dict()
        for key, value in state_dict.items():
            own[key].copy_(value)

    def forward(self, x):
        return self.b(self.a(x))


class SetsData(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def load_state_dict(self, state_dict, strict=True):
        for key, parameter in self.named_parameters():
            parameter.data = state_dict[key]

    def forward(self, x):
        return self.b(self.a(x))


class GrowsItsVocabulary(nn.Module):
    """Has more rows than an old file: the new ones keep initial values."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Parameter(torch.zeros(6, 4))
        self.fc = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        old = state_dict[prefix + "emb"]
        rows = self.emb.detach().clone()
        rows[: len(old)] = old
        state_dict[prefix + "emb"] = rows
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x):
        return self.fc(x) + self.emb.sum(0)


class CopiesSomeRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Parameter(torch.zeros(6, 4))
        self.fc = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, *args):
        old = state_dict.pop(prefix + "emb")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *args)
        missing.remove(prefix + "emb")
        with torch.no_grad():
            self.emb[: len(old)] = old

    def forward(self, x):
        return self.fc(x) + self.emb.sum(0)


class InitialisesItsHead(nn.Module):
    """As for fine-tuning: the head of the file is not taken."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Parameter(torch.zeros(6, 4))
        self.fc = nn.Linear(4, 4)
        self.register_load_state_dict_post_hook(lambda module, _: module.fc.reset_parameters())

    def forward(self, x):
        return self.fc(x) + self.emb.sum(0)


class InterpolatesPositions(nn.Module):
    """Computes every element from the file."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Parameter(torch.zeros(6, 4))
        self.fc = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        old = state_dict[prefix + "emb"]
        size = {"size": 6, "mode": "linear"}
        state_dict[prefix + "emb"] = nn.functional.interpolate(old.mT[None], **size)[0].mT
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x):
        return self.fc(x) + self.emb.sum(0)


class ReadsItsMetadata(nn.Module):
    """Saves more than a version in `_metadata`, and needs it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        state._metadata[kwargs.get("prefix", "")[:-1]]["layout"] = {"rows": [1, 2]}
        return state

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("layout") != {"rows": [1, 2]}:
            raise RuntimeError("the file has no layout")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def forward(self, x):
        return x * self.w


class ExpectsAVersion(nn.Linear):
    """An entry of `_metadata` without a version is not one whose version is None."""

    _version = 2

    def __init__(self):
        super().__init__(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "bias"] = -state_dict[prefix + "bias"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval())


def traced():
    return torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4))


def _queue():
    return {"fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4), "queue": torch.randn(5, 4)}


def _old_linear():
    return {"old.weight": torch.randn(4, 4), "old.bias": torch.randn(4)}


def _rows(count):
    return {
        "emb": torch.randn(count, 4), "fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4)
    }  # fmt: skip


def _without_version():
    state = OrderedDict(nn.Linear(4, 4).state_dict())
    state._metadata = OrderedDict({"": {}})
    return state


def _random(module):
    state = module().state_dict()
    for value in state.values():
        value.copy_(torch.randn(value.shape))
    return state


CASES = {
    **{
        cls.__name__: Case(cls, _queue)
        for cls in (
            HookOfAClosure, HookOfAMethod, HookOfAPartial, HookOfADefault, HookOfAWeakReference,
            HookOfAList, MethodOfTheInstance,
        )
    },
    **{cls.__name__: Case(cls, _old_linear) for cls in (LoadOfTheInstance, KeepsALock)},
    **{
        cls.__name__: Case(cls, functools.partial(_random, cls))
        for cls in (
            RequiresTheCpu, SkipsWhatIsOnMeta, RenamesOnOtherDevices, TransposesWithNumpy,
            DoublesPositiveValues, CopiesByHand, SetsData, ReadsItsMetadata,
        )
    },
    "ExpectsAVersion": Case(ExpectsAVersion, _without_version),
    "scripted": Case(scripted, lambda: scripted().state_dict()),
    "traced": Case(traced, lambda: traced().state_dict()),
}  # fmt: skip

PARTIAL_CASES = {
    cls.__name__: Case(cls, functools.partial(_rows, count))
    for cls, count in (
        (GrowsItsVocabulary, 4), (CopiesSomeRows, 4), (InitialisesItsHead, 6),
        (InterpolatesPositions, 3),
    )
}  # fmt: skip
"""Name -> a case in which values are computed; some of them not from the file."""
