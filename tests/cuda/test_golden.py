"""Recorded outputs, computed again on a real device."""

import pytest
import torch
from compare import models

from ckptool import api
from ckptool.commands.target import ModuleTarget
from ckptool.formats import open_checkpoint
from ckptool.verification import golden

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(("name", "drifts"), [("First", []), ("Drifting", ["cpu", "cuda:0"])])
def test_recorded_on_the_cpu_and_replayed_on_both(cuda, tmp_path, name, drifts):
    path, place = tmp_path / "model.pth", tmp_path / "golden.safetensors"
    torch.save(models.First().state_dict(), path)
    api.lock(
        path,
        module="compare.models:First",
        golden=place,
        inputs="compare.models:batch",
        tolerances={"cuda": 1e-4},
    )
    with ModuleTarget(f"compare.models:{name}").open_verification_target(
        open_checkpoint(path)
    ) as side:
        done = golden.replay_golden(side, golden.read_golden(place))
    assert [drift.device for drift in done.output_drifts] == drifts
    assert [words.partition(": ")[0] for words in done.matching_devices] == (
        [] if drifts else ["cpu", "cuda:0"]
    )
    assert done.skipped == ()
