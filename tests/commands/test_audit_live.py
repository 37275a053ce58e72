"""A trained module against fresh ones: what a save and a load would not bring back."""

import copy

import pytest
import torch
from commands import trained_modules as models
from torch import nn

import ckptool
from ckptool.model import CONSTANCY_CHECK


def constancy(report):
    return {u.key: u.constancy for u in report.unsaved}


def skipped(report):
    return {s.what: s.reason for s in report.skipped}


WHAT = "changes since the module was built"


def test_what_training_changed_is_told_from_what_is_built_again():
    model = models.Trained()
    models.train(model)
    report = ckptool.audit(model)
    assert constancy(report) == {
        "cache": "unknown",
        "center": "mutated",
        "ema": "mutated",
        "parts[0]": "constant",
        "parts[1]": "mutated",
        "scales": "mutated",
        "statistics.mean": "mutated",
        "table": "constant",
    }
    assert {f.key for f in report.findings if f.code == "CK107"} == {
        "ready",
        "steps",
        "statistics.count",
    }
    assert CONSTANCY_CHECK not in skipped(report)
    assert WHAT not in skipped(report)


def test_a_module_as_it_was_built_has_lost_nothing():
    report = ckptool.audit(models.Trained())
    assert set(constancy(report).values()) == {"constant"}
    assert not [f for f in report.findings if f.code in {"CK105", "CK107"}]


def test_what_is_drawn_in_the_constructor_is_lost():
    assert constancy(ckptool.audit(models.Drawn())) == {"projection": "random"}


def test_what_a_load_brings_back_is_not_lost():
    model = models.Counting()
    model.count = 9
    assert ckptool.audit(model).findings == ()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: models.NeedsSize(3), {"kwargs": {"size": 3}}),
        (lambda: models.NeedsSize(3), {"fresh": lambda: models.NeedsSize(3)}),
        (lambda: models.WithConfig({"size": 3}), {}),
        (lambda: models.WithHparams(3), {}),
    ],
)
def test_how_another_one_is_built(make, options):
    model = make()
    assert constancy(ckptool.audit(model, **options)) == {"mask": "constant"}
    model.mask[0] = 7
    assert constancy(ckptool.audit(model, **options)) == {"mask": "mutated"}


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (lambda: models.NeedsSize(3), {}, "are not known: give kwargs"),
        (
            lambda: models.NeedsSize(3),
            {"kwargs": {"size": 4}},
            "rebuilding it gives a different state_dict:",
        ),
        (lambda: models.NeedsSize(3), {"kwargs": {"sise": 4}}, "building it raised TypeError"),
        (lambda: models.NeedsSize(3), {"fresh": lambda: 1}, "gave a int, not an nn.Module"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {}, "rebuilding it gives a different state_dict:"),
    ],
)
def test_where_no_other_one_can_be_built_that_is_said(make, options, reason):
    report = ckptool.audit(make(), **options)
    assert reason in skipped(report)[WHAT]
    assert set(constancy(report).values()) <= {"unknown"}


def test_other_arguments_are_no_change():
    model = models.WithOptions(decay=0.5, size=3)
    report = ckptool.audit(model)
    assert report.findings == ()
    assert skipped(report)[WHAT].startswith("1 values: the arguments of its constructor are not")
    changed = [f.key for f in ckptool.audit(model, kwargs={}).findings]
    assert changed == ["inner.decay"]


def test_a_change_that_code_makes_is_told_from_other_arguments():
    model = models.WithOptions(decay=0.5)
    model.inner(torch.ones(3))
    assert [f.key for f in ckptool.audit(model).findings] == ["inner.ready"]


def test_a_guess_that_builds_something_else_takes_no_room():
    model = models.LargeByDefault(2)
    models.LargeByDefault.devices.clear()
    assert "rebuilding it gives a different state_dict:" in skipped(ckptool.audit(model))[WHAT]
    assert models.LargeByDefault.devices == ["meta"]


def test_fresh_that_gives_the_module_itself():
    model = models.NeedsSize(3)
    report = ckptool.audit(model, fresh=lambda: model)
    assert "fresh= returned the module itself, not a new one" in skipped(report)[WHAT]


def test_a_name_says_itself_how_it_is_built():
    with pytest.raises(ckptool.CkptoolError, match="fresh= builds a module like a live one"):
        ckptool.audit("commands.trained_modules:Trained", fresh=models.Trained)


def test_a_module_that_was_cast_is_compared_in_its_dtype():
    model = models.Trained().bfloat16()
    assert constancy(ckptool.audit(model))["ema"] == "constant"


def test_the_module_and_the_generators_are_left_as_they_are():
    model = models.Trained()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ckptool.audit(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
