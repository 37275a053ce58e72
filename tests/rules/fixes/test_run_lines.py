"""Lines in fixes of traced runs and watched objects: written into the script, the finding goes."""

import re
from pathlib import Path

import pytest
import torch
from rules import cases_objects, cases_runs
from rules.fixes.fix_runs import edit_line, find_own, list_cases
from torch import nn

import ckptool

_NEW_LINE = re.compile(r"In (.*?):(\d+): (.*?) instead of ([\w.]+) = \.\.\.")
REGISTRATIONS = ("CK233", "CK330", "CK331")


@pytest.mark.parametrize("case", list_cases(*REGISTRATIONS), ids=lambda case: case.name)
def test_a_registration_is_written_into_the_constructor(case, tmp_path, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    path, number, code, target = _NEW_LINE.match(finding.fix).groups()
    line = Path(path).read_text().splitlines()[int(number) - 1].strip()
    assert line.startswith(target)
    edit_line(path, int(number), code.replace("...", line.partition(" = ")[2]), monkeypatch)
    found = case.make(tmp_path).findings
    assert finding.key not in {other.key for other in found if other.code == case.code}


def load_on_meta(path):
    model = cases_runs.Masked().to("meta")
    model.load_state_dict(torch.load(path), strict=False)


def test_a_registered_tensor_moves_with_the_module(tmp_path, monkeypatch):
    state = {key: tensor.to("meta") for key, tensor in cases_runs.Masked().state_dict().items()}
    path = cases_runs.save(state, tmp_path)
    (finding,) = (
        f for f in cases_runs.report_run(load_on_meta, path).findings if f.code == "CK234"
    )
    file, number, code, _ = _NEW_LINE.match(finding.fix).groups()
    edit_line(file, int(number), code.replace("...", "torch.ones(2)"), monkeypatch)
    assert "CK234" not in list_codes(cases_runs.report_run(load_on_meta, path))


def find_own_of(code: str, tmp_path: Path):
    (case,) = list_cases(code)
    return find_own(case, case.make(tmp_path))


def list_codes(report) -> set[str]:
    return {finding.code for finding in report.findings}


def test_weights_are_tied_after_a_load_with_assign(tmp_path):
    code = find_own_of("CK238", tmp_path).fix.partition("after the load: ")[2]
    model = cases_runs.Tied()
    model.load_state_dict({key: torch.ones(2, 2) for key in model.state_dict()}, assign=True)
    assert model.head.weight is not model.embedding.weight
    exec(code, {"model": model})
    assert model.head.weight is model.embedding.weight


def test_a_scheduler_is_saved_next_to_the_model(tmp_path):
    case = next(case for case in list_cases("CK332") if "scheduler" in case.name)
    found = case.make(tmp_path).findings  # other tests of this process may have left objects behind
    fix = next(f.fix for f in found if (f.code, f.key) == ("CK332", "StepLR"))
    save, load = re.match(r"(.*) before torch\.save.*, and (.*) after torch\.load", fix).groups()

    def train():
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
        checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        names = {"checkpoint": checkpoint, "scheduler": scheduler}
        exec(save, names)
        torch.save(checkpoint, tmp_path / "m")
        again = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        exec(load, {"checkpoint": torch.load(tmp_path / "m"), "scheduler": again})
        assert again.last_epoch == 1

    left = {(f.code, f.key) for f in cases_runs.report_run(train).findings}
    assert ("CK332", "StepLR") not in left


def test_all_of_a_state_dict_is_saved(tmp_path):
    code = re.search(r"torch\.save\(.*\)", find_own_of("CK333", tmp_path).fix)[0]
    names = {"torch": torch, "model": nn.Linear(2, 2), "path": tmp_path / "m"}
    assert "CK333" not in list_codes(cases_runs.report_run(exec, code, names))


def test_a_counter_is_saved_and_set_again(tmp_path):
    fix = find_own_of("CK335", tmp_path).fix
    save, load = re.match(r"(.*) before torch\.save.*, and (.*) when", fix).groups()
    model, resumed, checkpoint = cases_runs.Counting(), cases_runs.Counting(), {}
    model.steps = 8
    exec(save, {"checkpoint": checkpoint, "model": model})
    torch.save(checkpoint, tmp_path / "m")
    exec(load, {"checkpoint": torch.load(tmp_path / "m"), "model": resumed})
    assert resumed.steps == 8


def test_an_optimizer_goes_on_where_it_was_interrupted(tmp_path):
    fix = find_own_of("CK334", tmp_path).fix
    save, load = re.search(r": (checkpoint.*) before torch\.save.*, and (.*) when", fix).groups()
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer, resumed = (torch.optim.Adam([weight]) for weight in weights)
    weights[0].sum().backward()
    optimizer.step()
    checkpoint = {}
    exec(save, {"checkpoint": checkpoint, "optimizer": optimizer})
    torch.save(checkpoint, tmp_path / "m")
    exec(load, {"checkpoint": torch.load(tmp_path / "m"), "optimizer": resumed})
    expected, state = optimizer.state_dict()["state"], resumed.state_dict()["state"]
    assert torch.equal(state[0]["exp_avg"], expected[0]["exp_avg"])
    assert torch.equal(state[0]["step"], expected[0]["step"])


def test_a_value_is_saved_by_the_object_itself(tmp_path):
    fix = find_own_of("CK336", tmp_path).fix
    save, load = re.match(r"In Counter: (.*) in state_dict.*, and (.*) in load_state", fix).groups()

    class Fixed(cases_objects.Counter):
        def state_dict(self):
            state = super().state_dict()
            exec(save, {"state": state, "self": self})
            return state

        def load_state_dict(self, state):
            super().load_state_dict(state)
            exec(load, {"state": state, "self": self})

    counter = Fixed("", "")
    with ckptool.watch(counter) as watched:
        counter.steps += 1
    assert not watched.report.findings
