"""What holds on a real device and on a simulated one: each test runs on both."""

import reference_case
import torch
from files import save
from verification import models

from ckptool import api

ATTENTION = "samples.attention:CausalAttention"


def saved(folder, module, name="model.pth"):
    return save(folder / name, module.state_dict())


def statuses(report):
    return {one.level: one.status for one in report.levels}


def attribute_version_fails_with_the_line_of_forward(device, tmp_path, samples):
    report = api.verify(
        samples / "model.pth",
        module=f"{ATTENTION}WithoutBuffers",
        kwargs=reference_case.ARGUMENTS,
        device=device,
        inputs="samples.attention:example_inputs",
    )
    found = statuses(report)
    assert (found["load"], found["device"], found["forward"]) == ("passed", "failed", "failed")
    (clash,) = report.clashes
    assert (clash.attribute, clash.devices) == ("mask", ("cpu", "cuda:0"))
    assert clash.where.startswith("samples/attention.py:")
    assert clash.where in report.levels[1].reason
    assert report.lost == ("mask",)
    assert report.exit_code == 1


def buffer_version_passes(device, tmp_path, samples):
    report = api.verify(
        samples / "buffer.pth",
        module=f"{ATTENTION}WithBuffer",
        kwargs=reference_case.ARGUMENTS,
        device=device,
        inputs="samples.attention:example_inputs",
    )
    wanted = {"load", "device", "forward", "round trip", "persistence"}
    assert {level for level, status in statuses(report).items() if status == "passed"} == wanted
    assert report.exit_code == 0


def migrated_file_equals_the_old_one(device, tmp_path, samples):
    old = saved(tmp_path, models.WithoutScale(), "old.pth")
    state = {**torch.load(old), "scale": torch.full((4,), 2.0)}
    new = tmp_path / "new.pth"
    torch.save(state, new)
    report = api.verify(
        new,
        module="verification.models:Plain",
        old=old,
        old_module="verification.models:WithoutScale",
        device=device,
    )
    assert statuses(report)["equality"] == "passed"
    assert any("against cpu" in line for line in report.levels[3].details)


def another_computation_is_not_equal(device, tmp_path, samples):
    path = saved(tmp_path, models.Plain())
    report = api.verify(
        path,
        module="verification.models:Other",
        old=path,
        old_module="verification.models:Plain",
        device=device,
    )
    assert statuses(report)["equality"] == "failed"


def every_tensor_left_behind_is_named(device, tmp_path, samples):
    path = saved(tmp_path, models.TwoMasks())
    report = api.verify(path, module="verification.models:TwoMasks", device=device)
    assert [clash.attribute for clash in report.clashes] == ["first", "parts['second']"]
    assert {f.key for f in report.findings if f.code == "CK110"} == {"first", "parts['second']"}


def pass_that_fails_everywhere_fails(device, tmp_path, samples):
    path = saved(tmp_path, models.Raises())
    report = api.verify(path, module="verification.models:Raises", device=device)
    assert statuses(report)["forward"] == "failed"
    assert report.exit_code == 1


CHECKS = (
    attribute_version_fails_with_the_line_of_forward,
    buffer_version_passes,
    migrated_file_equals_the_old_one,
    another_computation_is_not_equal,
    every_tensor_left_behind_is_named,
    pass_that_fails_everywhere_fails,
)
