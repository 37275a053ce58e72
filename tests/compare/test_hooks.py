"""Hooks of pickled modules: compared by what they call and in which order, not by their ids."""

from pathlib import Path

import pytest
import torch
from files import save

import ckptool


def first_hook(*_: object) -> None:
    """Do nothing."""


def second_hook(*_: object, **__: object) -> None:
    """Do nothing."""


def _build(*, prepend: bool = False, with_kwargs: bool = False) -> torch.nn.Module:
    module = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(module.weight)
    torch.nn.init.zeros_(module.bias)
    module.register_forward_hook(first_hook)
    module.register_forward_hook(second_hook, prepend=prepend, with_kwargs=with_kwargs)
    return module


@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, lambda module: module]
)
def test_the_same_hooks_registered_later_are_identical(wrap, tmp_path: Path) -> None:
    paths = []
    for name in ("old.pt", "new.pt"):
        torch.manual_seed(0)
        paths.append(save(tmp_path / name, wrap(_build())))
    hooks = [torch.load(path, weights_only=False)._forward_hooks for path in paths]
    assert list(hooks[0].values()) == list(hooks[1].values())
    assert list(hooks[0]) != list(hooks[1])
    assert ckptool.diff(*paths).verdict == "identical"


@pytest.mark.parametrize("change", [{"prepend": True}, {"with_kwargs": True}])
def test_other_calls_of_the_same_hooks_differ(change: dict[str, bool], tmp_path: Path) -> None:
    old, new = save(tmp_path / "old.pt", _build()), save(tmp_path / "new.pt", _build(**change))
    assert ckptool.diff(old, new).verdict == "plain data differs"
    assert ckptool.diff(new, old).verdict == "plain data differs"
