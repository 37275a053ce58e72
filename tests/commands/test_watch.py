"""What changed inside a `with` block and is not saved; a step is never looked at."""

import pytest
import torch
from commands import trained_modules as models
from torch import nn

import ckptool
from ckptool.errors import UsageError
from ckptool.modules.live import snapshot


def found(report):
    return {(f.code, f.key, f.level) for f in report.findings}


def test_everything_that_training_changed_and_no_state_dict_has():
    model = models.Trained()
    with ckptool.watch(model) as watched:
        models.train(model)
    report = watched.report
    assert (report.command, report.since) == ("watch", "inside the with block")
    assert found(report) == {
        ("CK101", "center", "error"),
        ("CK101", "cache", "warning"),
        ("CK102", "parts[1]", "error"),
        ("CK102", "statistics.mean", "error"),
        ("CK105", "ema", "error"),
        ("CK107", "ready", "error"),
        ("CK107", "steps", "warning"),
        ("CK107", "statistics.count", "warning"),
        ("CK108", "scales", "error"),
    }
    assert {u.key: u.constancy for u in report.unsaved} == {
        "cache": "unknown",
        "center": "mutated",
        "ema": "mutated",
        "parts[1]": "mutated",
        "scales": "mutated",
        "statistics.mean": "mutated",
    }
    assert report.exit_code == 1
    (steps,) = [f for f in report.findings if f.key == "steps"]
    assert "changed from 0 to 3 inside the with block" in steps.message


def test_what_is_saved_is_not_reported():
    model = models.Registered()
    with ckptool.watch(model) as watched:
        models.train(model)
    assert watched.report.findings == ()
    assert watched.report.unsaved == ()
    assert watched.report.exit_code == 0


def test_what_did_not_change_is_not_reported():
    model = models.Trained()
    with ckptool.watch(model) as watched:
        pass
    assert watched.report.findings == ()
    assert watched.report.unsaved == ()


def test_it_looks_at_the_beginning_and_at_the_end_only(monkeypatch):
    looks = []
    take = snapshot.take_snapshot
    monkeypatch.setattr(snapshot, "take_snapshot", lambda module: looks.append(1) or take(module))
    model = models.Trained()
    with ckptool.watch(model) as watched:
        before = [len(model._forward_hooks), nn.Module.__setattr__, len(looks)]
        models.train(model, 5)
        assert [len(model._forward_hooks), nn.Module.__setattr__, len(looks)] == before
    assert len(looks) == 2
    assert watched.report is not None
    assert len(looks) == 2


def test_the_report_is_of_the_block_and_not_of_what_came_after():
    model = models.Trained()
    with ckptool.watch(model) as watched:
        models.train(model, 1)
    models.train(model, 5)
    (steps,) = [f for f in watched.report.findings if f.key == "steps"]
    assert steps.facts["after"] == "1"


def test_a_block_that_raises_is_not_hidden():
    model = models.Trained()
    watched = ckptool.watch(model)
    with pytest.raises(RuntimeError, match="must match the size"), watched:
        model(torch.ones(2, 9))
    assert ("CK107", "ready", "error") in found(watched.report)


def test_a_look_that_fails_at_the_end_does_not_end_the_training():
    model = models.Trained()
    with ckptool.watch(model) as watched:
        model.named_modules = None
    assert model.steps == 0
    with pytest.raises(ckptool.CkptoolError, match="Trained: walking through it raised TypeError"):
        _ = watched.report


def test_a_report_before_anything_was_watched():
    with pytest.raises(
        UsageError,
        match=r"nothing was watched: use with ckptool\.watch\(model\) as watched: \.\.\.",
    ):
        _ = ckptool.watch(models.Trained()).report


def test_layers_in_a_list_that_were_trained():
    model = models.Hidden()
    with ckptool.watch(model) as watched, torch.no_grad():
        model.layers[0].weight += 1
    assert ("CK103", "layers[0]", "error") in found(watched.report)
    with ckptool.watch(model) as watched, torch.no_grad():
        model.head.weight += 1
    assert found(watched.report) == set()


def test_extra_state_may_hold_what_changed():
    model = models.Counting()
    with ckptool.watch(model) as watched:
        model.count += 1
    assert found(watched.report) == set()
    (left,) = [s for s in watched.report.skipped if s.what == "count"]
    assert left.reason == "its module saves extra state, which may contain it"


def test_a_policy_decides_what_is_reported():
    model = models.Trained()
    policy = ckptool.Policy(select=("CK107",), fail_on=None)
    with ckptool.watch(model, policy=policy) as watched:
        models.train(model, 1)
    assert {f.code for f in watched.report.findings} == {"CK107"}
    assert watched.report.exit_code == 0


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda t: t, False),
        (lambda t: t + 1, True),
        (lambda t: t.double(), True),
        (lambda t: t.reshape(2, 2), True),
        (lambda t: t.clone(), False),
        (lambda t: torch.where(torch.arange(4) == 3, float("nan"), t), True),
    ],
)
def test_a_value_is_its_bits_its_shape_and_its_dtype(change, changed):
    model = models.Trained()
    with ckptool.watch(model) as watched:
        model.table = change(model.table)
    assert ("CK101", "table", "error") in found(watched.report) or not changed
    assert bool(watched.report.unsaved) == changed


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, dtype=torch.float8_e4m3fn),
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: torch.empty(0),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support", "ignore:.*quantized tensor creation"
)
def test_tensors_of_every_layout_have_a_mark(make):
    from ckptool.modules.tensors.elements import content_digest

    assert content_digest(make())
    assert content_digest(make()) == content_digest(make().clone())
