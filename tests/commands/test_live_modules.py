"""A live module, its class and a function that makes it are judged as the name of the class is."""

import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands.live_modules import (
    Block,
    Drawn,
    NeedsSize,
    Outer,
    Replaces,
    Restates,
    StoresConfig,
    StoresSize,
    causal_mask,
    make_local,
)
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool.model import CONSTANCY_CHECK

LOCAL = "a class without a name that can be imported"


REBUILT: dict[str, tuple[Callable[[], object], Mapping[str, object]]] = {
    "no argument": (Block, {}),
    "another default": (lambda: NeedsSize(6), {"kwargs": {"size": 6}}),
    "fresh": (lambda: NeedsSize(6), {"fresh": lambda: NeedsSize(6)}),
    "stored": (lambda: StoresSize(6), {}),
    "stored config": (lambda: StoresConfig(SimpleNamespace(size=3)), {}),
    "nested": (Outer, {}),
    "replaced method": (Replaces, {}),
    LOCAL: (make_local, {}),
    "cast": (lambda: Block().half(), {}),
    "in eval": (lambda: Block().eval(), {}),
    "class": (lambda: Block, {}),
    "class with arguments": (lambda: NeedsSize, {"kwargs": {"size": 6}}),
    "lambda": (lambda: lambda: NeedsSize(6), {}),
    "partial": (lambda: functools.partial(NeedsSize, size=6), {}),
    "factory with arguments": (lambda: lambda size: NeedsSize(size), {"kwargs": {"size": 6}}),
    "bound method": (lambda: SimpleNamespace(make=lambda: Outer(3)).make, {}),
}
"""Each builds a module whose buffers its constructor makes again, and says how."""

UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "argument not stored": lambda: NeedsSize(6),
    "another default": lambda: Block(6),
    "a wrapper": lambda: nn.Sequential(Block(), NeedsSize(6)),
}
"""Modules of which nobody knows how to build another one."""


def instance_of(given: object, options: Mapping[str, object]) -> nn.Module:
    return given if isinstance(given, nn.Module) else given(**options.get("kwargs", {}))


def save_without_buffers(path: Path, module: nn.Module) -> Path:
    state = {key: value.detach().clone() for key, value in module.named_parameters()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def missing_keys(module: nn.Module, path: Path) -> set[str]:
    """Return what plain torch says is missing."""
    state = dict(module.named_parameters())
    return {*module.load_state_dict(state, strict=False).missing_keys}


def levels(report: object, code: str) -> set[str]:
    return {finding.level for finding in report.findings if finding.code == code}


def reasons(report: object) -> dict[str, str]:
    return {entry.what: entry.reason for entry in report.skipped}


SUFFIXES = [".pth", ".safetensors"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", REBUILT)
def test_constants_are_told_where_it_can_be_built_again(case: str, suffix: str, tmp_path: Path):
    make, options = REBUILT[case]
    given = make()
    module = instance_of(given, options)
    path = save_without_buffers(tmp_path / f"old{suffix}", module)
    report = ckptool.diff(path, module=given, **options)
    missing = {finding.key for finding in report.findings if finding.code == "CK203"}
    assert missing == missing_keys(module, path)
    assert levels(report, "CK203") == {"warning"}
    assert not levels(report, "CK202") | levels(report, "CK605")
    assert CONSTANCY_CHECK not in reasons(report)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_said_and_no_error(case: str, suffix: str, tmp_path: Path):
    module = UNKNOWN[case]()
    path = save_without_buffers(tmp_path / f"old{suffix}", module)
    report = ckptool.diff(path, module=module)
    unknown = {finding.key for finding in report.findings if finding.code == "CK202"}
    assert unknown == missing_keys(module, path)
    assert levels(report, "CK202") == {"warning"}
    assert all("not known" in f.message for f in report.findings if f.code == "CK202")
    assert not levels(report, "CK605")
    assert "kwargs={...} or fresh=" in reasons(report)[CONSTANCY_CHECK]
    assert report.exit_code == 1  # strict loading fails all the same


def test_how_it_is_built_makes_it_known(tmp_path: Path):
    for make in UNKNOWN.values():
        module = make()
        path = save_without_buffers(tmp_path / "old.pth", module)
        assert levels(ckptool.diff(path, module=module, fresh=make), "CK203") == {"warning"}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), lambda _: None),
        (Drawn, lambda _: None),
        (Block, lambda module: module.mask.zero_()),
        (Restates, lambda _: None),
    ],
    ids=["statistics", "random", "changed since", "written by the base's method"],
)
def test_what_the_constructor_does_not_make_stays_an_error(make, change, tmp_path: Path):
    module = make()
    change(module)
    path = save_without_buffers(tmp_path / "old.pth", module)
    report = ckptool.diff(path, module=module, fresh=make)
    assert "error" in levels(report, "CK202")


COMMANDS = {
    "diff": lambda path, target, folder, **o: ckptool.diff(path, module=target, **o),
    "verify": lambda path, target, folder, **o: ckptool.verify(
        path, module=target, inputs="float32[2,4]", device="cpu", **o
    ),
    "gate": lambda path, target, folder, **o: ckptool.gate([path], module=target, **o),
    "lock": lambda path, target, folder, **o: ckptool.lock(
        module=target, output=folder / "m.lock.json", **o
    ),
    "audit": lambda path, target, folder, **o: ckptool.audit(target, **o),
    "migrate": lambda path, target, folder, **o: ckptool.migrate(
        path, folder / f"new{path.suffix}", module=target, force=True, **o
    ),
}
TARGETS: dict[str, tuple[object, Mapping[str, object]]] = {
    "live": (Outer(), {}),
    "live with kwargs": (Outer(2), {"kwargs": {"depth": 2}}),
    "live with fresh": (Outer(2), {"fresh": Outer}),
    "class": (Outer, {}),
    "function": (lambda: Outer(), {}),
    "partial": (functools.partial(Outer, depth=2), {}),
}
NAME = "commands.live_modules:Outer"


def outcome(report: object) -> tuple[object, ...]:
    codes = sorted((finding.code, finding.level, finding.key) for finding in report.findings)
    return report.exit_code, codes


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("command", "suffix", "as_text", "target"),
    list(itertools.product(COMMANDS, SUFFIXES, [True, False], TARGETS)),
)
def test_every_command_takes_it_as_it_takes_the_name(
    command: str, suffix: str, as_text: bool, target: str, tmp_path: Path
):
    path = save_without_buffers(tmp_path / f"old{suffix}", Outer())
    given, options = TARGETS[target]
    run = COMMANDS[command]
    by_name = run(path, NAME, tmp_path)
    report = run(
        str(path) if as_text and command != "migrate" else path, given, tmp_path, **options
    )
    assert outcome(report) == outcome(by_name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_migration_for_a_live_module_loads(suffix: str, tmp_path: Path):
    path = save_without_buffers(tmp_path / f"old{suffix}", StoresSize(5))
    target = tmp_path / f"new{suffix}"
    ckptool.migrate(path, target, module=StoresSize(5))
    module = StoresSize(5)
    if suffix == ".pth":
        state = torch.load(target, weights_only=True)
        module.load_state_dict(state.get("state_dict", state))
    else:
        from safetensors.torch import load_file

        module.load_state_dict(load_file(target))
    assert torch.equal(module.mask, causal_mask(5))


def test_the_live_module_is_left_as_it_is(tmp_path: Path):
    module = StoresSize(5).double()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    path = save_without_buffers(tmp_path / "old.pth", module)
    ckptool.diff(path, module=module)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_open_checkpoint_takes_text_and_path(tmp_path: Path):
    path = save_without_buffers(tmp_path / "old.pth", Block())
    by_text, by_path = ckptool.open_checkpoint(str(path)), ckptool.open_checkpoint(path)
    assert by_text == by_path
    assert {*by_text.states[0].tensors} == {"l.weight", "l.bias"}


@pytest.mark.parametrize("given", [3, {"a": torch.zeros(2)}, [nn.Linear(2, 2)]])
def test_what_is_no_module_is_refused_by_its_kind(given, tmp_path: Path):
    path = save_without_buffers(tmp_path / "old.pth", Block())
    with pytest.raises(ckptool.CkptoolError, match=rf"module= is a {type(given).__name__}"):
        ckptool.diff(path, module=given)


@pytest.mark.parametrize("given", [NAME, Outer, lambda: Outer()])
def test_fresh_is_for_live_modules(given, tmp_path: Path):
    path = save_without_buffers(tmp_path / "old.pth", Outer())
    with pytest.raises(ckptool.CkptoolError, match="fresh= builds a module like a live one"):
        ckptool.diff(path, module=given, fresh=Outer)
