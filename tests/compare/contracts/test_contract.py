"""Contracts against each other, whatever they were taken from."""

import inspect
from pathlib import Path

import modules_for_tests
import pytest
import torch
from compare import models
from modules import modules_for_tests as described_modules
from paths import SAMPLES
from torch import nn
from verification import models as verify_models

from ckptool.compare.contracts import contract, contract_lock
from ckptool.compare.contracts.contract import Contract
from ckptool.compare.contracts.contract_diff import (
    Compatibility,
    compare_contracts,
    iter_entry_differences,
)
from ckptool.errors import CkptoolError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.modules import ModuleSpec, examine_module
from ckptool.rules import run_rules

SAMPLES = sorted(
    path for path in SAMPLES.iterdir() if path.suffix in {".pth", ".ckpt", ".safetensors"}
)
CLASSES = sorted(
    f"{home.__name__}:{name}"
    for home in (modules_for_tests, described_modules, verify_models, models)
    for name, cls in vars(home).items()
    if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == home.__name__
)


def of_module(name: str) -> Contract:
    return contract.build_module_contract(examine_module(ModuleSpec(name)))


def of_file(path: Path) -> Contract:
    checkpoint = open_checkpoint(path)
    return contract.build_state_contract(checkpoint, contract.choose_state(checkpoint, None, None))


def locked(found: Contract) -> Contract:
    return contract_lock.parse_lock(
        contract_lock.format_lock(found).encode(), Path("ckpt.lock.json")
    )


def assert_nothing(old: Contract, new: Contract) -> None:
    held = compare_contracts(old, new)
    assert run_rules([held]) == ()
    assert held.compatibility is Compatibility.SAME
    assert list(iter_entry_differences(old, new)) == []


@pytest.mark.parametrize("name", CLASSES)
def test_a_module_against_itself_gives_nothing(name):
    try:
        once, again = of_module(name), of_module(name)
    except CkptoolError as error:
        pytest.skip(f"cannot be described: {error}")
    assert_nothing(once, again)
    assert_nothing(locked(once), again)
    assert_nothing(once, locked(again))
    assert contract_lock.format_lock(once) == contract_lock.format_lock(again)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_file_against_itself_gives_nothing(path):
    assert_nothing(of_file(path), of_file(path))
    assert_nothing(locked(of_file(path)), of_file(path))
    assert list(iter_entry_differences(of_file(path), locked(of_file(path)), exact=True)) == []


def test_what_a_module_saves_keeps_its_promise(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(models.First().state_dict(), path)
    module = of_module("compare.models:First")
    for old, new in ((module, of_file(path)), (of_file(path), module), (locked(module), module)):
        held = compare_contracts(old, new)
        assert run_rules([held]) == ()
        assert held.compatibility in {Compatibility.SAME, Compatibility.COMPATIBLE}


@pytest.mark.parametrize(
    ("name", "compatibility", "codes"),
    [
        ("Same", Compatibility.COMPATIBLE, []),
        ("WithTable", Compatibility.ADDITIVE, [("CK802", "table", "warning")]),
        ("Registered", Compatibility.ADDITIVE, [("CK803", "scale", "error")]),
        ("Unsaved", Compatibility.BREAKING, [("CK803", "mask", "error")]),
        (
            "WithHead",
            Compatibility.BREAKING,
            [("CK802", "head.bias", "error"), ("CK802", "head.weight", "error")],
        ),
        (
            "Renamed",
            Compatibility.BREAKING,
            [("CK801", "body.bias", "error"), ("CK801", "body.weight", "error")],
        ),
        (
            "Wider",
            Compatibility.BREAKING,
            [("CK804", "body.bias", "error"), ("CK804", "body.weight", "error")],
        ),
        ("Halved", Compatibility.COMPATIBLE, [("CK804", "mask", "warning")]),
        ("Extra", Compatibility.BREAKING, [("CK802", "_extra_state", "error")]),
    ],
)
def test_releases(name, compatibility, codes):
    held = compare_contracts(
        locked(of_module("compare.models:First")), of_module(f"compare.models:{name}")
    )
    assert held.compatibility is compatibility
    found = [(f.rule.code, f.key, f.level.word) for f in run_rules([held])]
    assert found == codes


def test_a_rename_is_told_with_its_new_name():
    held = compare_contracts(of_module("compare.models:First"), of_module("compare.models:Renamed"))
    assert dict(held.renames) == {
        "body.weight": "trunk.weight",
        "body.bias": "trunk.bias",
    }


def test_a_flip_of_a_random_value_says_that_it_is_lost():
    held = compare_contracts(
        of_module("compare.models:First"), of_module("compare.models:RandomUnsaved")
    )
    (finding,) = run_rules([held])
    assert "its value is random, so loading does not restore it" in finding.message


def test_a_file_that_lacks_a_key_says_nothing_of_how_it_was_held(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(models.First().state_dict(), path)
    held = compare_contracts(of_file(path), of_module("compare.models:Registered"))
    assert [f.rule.code for f in run_rules([held])] == ["CK802"]
    torch.save(models.First(), path)
    held = compare_contracts(of_file(path), of_module("compare.models:Registered"))
    assert [f.rule.code for f in run_rules([held])] == ["CK803"]


def test_of_several_states_one_has_to_be_named(tmp_path):
    path = tmp_path / "model.pth"
    state = models.First().state_dict()
    torch.save({"model": state, "ema": models.First().state_dict()}, path)
    checkpoint = open_checkpoint(path)
    with pytest.raises(
        UsageError, match=r"has several states \(`ema`, `model`\): choose one with --at"
    ):
        contract.choose_state(checkpoint, None, None)
    assert contract.choose_state(checkpoint, "ema", None).at == "ema"
    like = of_module("compare.models:First")
    assert contract.choose_state(checkpoint, None, like).at in {"ema", "model"}
    optimizer = torch.optim.Adam(models.First().parameters())
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), path)
    with pytest.raises(UsageError, match="contains no model state"):
        contract.choose_state(open_checkpoint(path), None, None)
