"""Values that many tensors have prove no rename: two of zeros, or two masks, may be anything."""

from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.reports.diff_files import DiffFilesReport

WEIGHT = torch.arange(12.0).reshape(3, 4)


def diff_states(tmp_path: Path, old: dict, new: dict) -> DiffFilesReport:
    torch.save({"w": WEIGHT, **old}, tmp_path / "old.pth")
    torch.save({"w": WEIGHT, **new}, tmp_path / "new.pth")
    return ckptool.diff(tmp_path / "old.pth", tmp_path / "new.pth")


SIMPLE_VALUES = {
    "zeros": torch.zeros(3),
    "ones": torch.ones(3),
    "zero": torch.zeros(()),
    "strided": torch.zeros(4, 4)[:, 1],
    "counter": torch.tensor(5),
    "scalar": torch.tensor(5.5),
    "one element": torch.tensor([0.7]),
    "half": torch.tensor([0.5, 0.25], dtype=torch.bfloat16),
    "means of colours": torch.tensor([0.485, 0.456, 0.406]),
    "a trained scale": torch.tensor(4.6051702),
    "short integers": torch.tensor([3, 1, 2]),
    "positions": torch.arange(512),
    "indices": torch.randint(0, 100, (7, 7), generator=torch.Generator().manual_seed(0)),
    "mask": torch.tensor([True, False, True, True]),
    "causal mask": torch.ones(32, 32).tril().bool(),
    "float mask": torch.full((8, 8), float("-inf")).triu(1),
    "bytes of flags": torch.tensor([0, 1, 1, 0, 2], dtype=torch.uint8),
}


@pytest.mark.parametrize("value", SIMPLE_VALUES.values(), ids=SIMPLE_VALUES.keys())
@pytest.mark.parametrize("names", [("enc.bias", "norm.shift"), ("n", "m"), ("a.n", "a.m")])
def test_simple_values_are_a_question(tmp_path, value, names):
    old, new = names
    report = diff_states(tmp_path, {old: value}, {new: value})
    assert dict(report.renamed_keys) == {}
    assert {f.code for f in report.findings} == {"CK801", "CK802"}
    (removed,) = [f for f in report.findings if f.code == "CK801"]
    assert f"was it renamed to `{new}`?" in removed.summary


GENERATOR = torch.Generator().manual_seed(0)
TELLING_VALUES = {
    "trained": torch.randn(8, generator=GENERATOR),
    "a trained bias": torch.randn(2, generator=GENERATOR),
    "bfloat16": torch.randn(8, generator=GENERATOR).bfloat16(),
    "half": torch.randn(8, generator=GENERATOR).half(),
    "double": torch.randn(2, 3, generator=GENERATOR).double(),
    "complex": torch.randn(4, dtype=torch.complex64, generator=GENERATOR),
    "quantised": torch.randint(-128, 127, (64,), dtype=torch.int8, generator=GENERATOR),
    "packed": torch.randint(-(2**31), 2**31 - 1, (64,), dtype=torch.int32, generator=GENERATOR),
    "zeros before": torch.cat([torch.zeros(9000), torch.randn(9, generator=GENERATOR)]),
}


@pytest.mark.parametrize("value", TELLING_VALUES.values(), ids=TELLING_VALUES.keys())
def test_values_that_nothing_else_has_are_a_proof(tmp_path, value):
    report = diff_states(tmp_path, {"enc.bias": value}, {"norm.shift": value})
    assert dict(report.renamed_keys) == {"enc.bias": "norm.shift"}
    assert {f.code for f in report.findings} == {"CK801", "CK211"}


def test_a_scalar_follows_what_it_moves_with(tmp_path):
    weight = torch.randn(3, 2)
    old = {"model.fc.weight": weight, "model.scale": torch.tensor(5.5)}
    report = diff_states(tmp_path, old, {"fc.weight": weight, "scale": torch.tensor(5.5)})
    assert dict(report.renamed_keys)["model.scale"] == "scale"


def test_the_work_is_bounded(tmp_path, monkeypatch):
    from ckptool.values import telling_values

    counts = []
    choose = telling_values._are_telling
    monkeypatch.setattr(
        telling_values, "_are_telling", lambda *words: counts.append(1) or choose(*words)
    )
    value = torch.zeros(1 << 20)
    diff_states(tmp_path, {"enc.bias": value}, {"norm.shift": value})
    assert len(counts) <= 16


class Constants(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 3)
        self.register_buffer("m", torch.tensor(5.5))


def test_migrate_says_that_a_scalar_was_assumed_to_be_another(tmp_path):
    state = torch.nn.Linear(2, 3).state_dict(prefix="fc.")
    torch.save({**state, "n": torch.tensor(5.5)}, tmp_path / "old.pth")
    report = ckptool.migrate(tmp_path / "old.pth", tmp_path / "new.pth", module=Constants())
    (step,) = report.steps
    assert "too few or too simple" in step.assumption
    Constants().load_state_dict(torch.load(tmp_path / "new.pth"))


def test_zeros_follow_their_module(tmp_path):
    weight = torch.arange(6.0).reshape(3, 2)
    old = {"enc.weight": weight, "enc.bias": torch.zeros(3)}
    new = {"readout.weight": weight, "readout.bias": torch.zeros(3)}
    report = diff_states(tmp_path, old, new)
    assert dict(report.renamed_keys) == {
        "enc.weight": "readout.weight",
        "enc.bias": "readout.bias",
    }


def test_zeros_of_another_module_than_the_renamed_one_are_a_question(tmp_path):
    weight = torch.arange(6.0).reshape(3, 2)
    old = {"enc.weight": weight, "enc.bias": torch.zeros(3)}
    new = {"readout.weight": weight, "head.shift": torch.zeros(3)}
    report = diff_states(tmp_path, old, new)
    assert dict(report.renamed_keys) == {"enc.weight": "readout.weight"}
