"""Pains of users that are about whole reports; single rules are in tests/rules/cases.py."""

import re

import modules_for_tests
import torch
from rules.cases import diff, files, renamed
from torch import nn

import ckptool


def findings(report) -> dict[tuple[str, str], str]:
    return {(f.code, f.key): f.level for f in report.findings}


def test_random_state_drawn_in_the_constructor_is_an_error(tmp_path):
    report = diff(tmp_path, modules_for_tests.RandomModes().state_dict(), "RandomModes")
    assert report.matched == ("w",)
    assert not report.missing_keys + report.unexpected_keys
    assert {u.key: u.constancy for u in report.unsaved} == {
        "perm": "random",
        "projection": "random",
    }
    assert findings(report)["CK101", "perm"] == "error"
    assert (
        report.verdict
        == "loads, but `perm`, `projection` are not in the state_dict and will not be saved"
    )


def test_constant_state_of_the_constructor_is_a_warning(tmp_path):
    report = diff(tmp_path, modules_for_tests.AttributeMask().state_dict(), "AttributeMask")
    assert findings(report)["CK101", "mask"] == "warning"


def test_one_dump_of_missing_keys_gets_a_verdict_for_each(tmp_path):
    report = diff(tmp_path, {"other": torch.ones(9)}, "Mixed")
    verdicts = {v.key: v.code for v in report.verdicts if v.problem == "missing"}
    assert verdicts == {
        "fc.weight": "CK201",
        "fc.bias": "CK201",
        "mask": "CK203",
        "projection": "CK202",
        "bn.weight": "CK201",
        "bn.bias": "CK201",
        "bn.running_mean": "CK202",
        "bn.running_var": "CK202",
    }
    # torch sets the count of a BatchNorm to 0 itself, as in every file without versions.
    by_torch = modules_for_tests.Mixed().load_state_dict({"other": torch.ones(9)}, strict=False)
    assert verdicts.keys() == set(by_torch.missing_keys)


def test_a_buffer_filled_by_forward_is_unexpected_in_a_fresh_module(tmp_path):
    used = modules_for_tests.NoneBuffer()
    used(torch.randn(3))
    report = diff(tmp_path, used.state_dict(), "NoneBuffer")
    assert report.unexpected_keys == ("scale",)
    assert findings(report) == {("CK112", "scale"): "warning", ("CK204", "scale"): "warning"}
    (unexpected,) = [f for f in report.findings if f.code == "CK204"]
    assert "a buffer that is still None" in unexpected.message


def test_old_layer_norm_names_do_not_catch_a_layer_scale(tmp_path):
    state = modules_for_tests.LayerScale().state_dict()
    old = {
        {"norm.weight": "norm.gamma", "norm.bias": "norm.beta"}.get(k, k): v
        for k, v in state.items()
    }
    report = diff(tmp_path, old, "LayerScale")
    assert report.matched == ("gamma",)
    assert report.missing_keys == ("norm.weight", "norm.bias")


def test_a_rename_is_proved_by_equal_values(tmp_path):
    old = modules_for_tests.Encoder().state_dict()
    new = {k: v.clone() for k, v in renamed(old, "encoder", "enc").items()}
    new["head.bias"] += 1e-3
    report = files(tmp_path, old, new)
    assert report.renamed_keys == {"encoder.weight": "enc.weight", "encoder.bias": "enc.bias"}
    assert report.value_keys == ("head.bias",)
    assert all(f.facts["proved"] for f in report.findings)
    assert report.verdict == "breaking"


def test_a_like_name_with_other_values_is_no_rename_between_files(tmp_path):
    old = modules_for_tests.Encoder().state_dict()
    new = {
        k: v + 1 if k.startswith("enc.") else v for k, v in renamed(old, "encoder", "enc").items()
    }
    assert files(tmp_path, old, new).renamed_keys == {}


def test_the_files_name_does_not_make_two_files_differ(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "bb.pth")
    assert (tmp_path / "a.pth").read_bytes() != (tmp_path / "bb.pth").read_bytes()
    assert ckptool.diff(tmp_path / "a.pth", tmp_path / "bb.pth").verdict == "identical"


def test_nan_is_a_value_like_any_other(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    bad = {k: v.clone() for k, v in state.items()}
    bad["weight"][0, 0] = float("nan")
    assert files(tmp_path, bad, bad).verdict == "identical"
    report = files(tmp_path, state, bad)
    assert (report.verdict, report.value_keys) == ("values differ", ("weight",))


def test_a_value_that_became_nan_is_no_difference_of_zero(tmp_path):
    """Its row said max abs 0 and relative 0, below the rows of small changes."""
    old = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}
    new = {key: tensor.clone() for key, tensor in old.items()}
    new["a"][0] = 1.5
    new["b"][0] = torch.nan
    new["c"][:2] = torch.tensor([torch.inf, 3.0])
    torch.save(old, tmp_path / "old.pth")
    torch.save(new, tmp_path / "new.pth")
    report = ckptool.diff(tmp_path / "old.pth", tmp_path / "new.pth")
    found = {change.key: change.max_abs for change in report.changes}
    for key, max_abs in found.items():
        distances = (old[key] - new[key]).abs()
        changed = distances[distances.isfinite() & (distances != 0)]
        assert max_abs == (float(changed.max()) if changed.numel() else None)
    assert [*found] == ["b", "c", "a"]  # what became NaN or infinite is first
    text = ckptool.text(report)
    assert re.search(r"(?m)^b +1 +- +- +1 NaN or infinite$", text)
    assert re.search(r"(?m)^c .* 1 NaN or infinite, left out of max abs$", text)


def test_an_epoch_that_differs_is_a_difference(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    report = files(tmp_path, {"epoch": 3, "model": state}, {"epoch": 4, "model": state})
    assert (report.verdict, report.changed_entries) == ("plain data differs", ("epoch",))
    assert report.exit_code == 1


def test_the_optimizers_state_is_compared_as_well(tmp_path):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    old = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(old, tmp_path / "old.pth")
    optimizer.state[module.weight]["exp_avg"] += 1
    report_ = files(tmp_path, torch.load(tmp_path / "old.pth"), old)
    assert report_.verdict == "values differ"
    assert report_.value_keys == ("optimizer.state.0.exp_avg",)


def test_lost_ties_are_a_difference(tmp_path):
    weight = torch.ones(3, 3)
    report = files(tmp_path, {"a": weight, "b": weight}, {"a": weight, "b": weight.clone()})
    assert (report.verdict, report.exit_code) == ("compatible", 1)


def test_two_files_with_a_sparse_tensor_are_compared(tmp_path):
    """Threads were given its bytes as if they lay in one run, and a ValueError came of it."""
    one = {"w": torch.eye(3).to_sparse(), "v": torch.ones(2)}
    other = {"w": (2 * torch.eye(3)).to_sparse(), "v": torch.ones(2)}
    assert files(tmp_path, one, one).verdict == "identical"
    assert files(tmp_path, one, other).value_keys == ("w",)
