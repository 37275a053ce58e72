"""Recorded outputs: what comes back, what drifts, and what cannot be recorded or read."""

import pytest
import torch
from compare import models
from safetensors.torch import save_file

from ckptool import api
from ckptool.commands.target import ModuleTarget
from ckptool.errors import CkptoolError, ModuleError, ReadError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.verification import golden
from ckptool.verification.result import GoldenReplay


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pth"
    torch.manual_seed(0)
    torch.save(models.First().state_dict(), path)
    return path


def recorded(path, name="First", inputs="compare.models:batch", **options):
    place = path.parent / "golden.safetensors"
    report = api.lock(path, module=f"compare.models:{name}", golden=place, inputs=inputs, **options)
    assert report.verdict == "recorded"
    return place


def replayed(path, name="First", device="auto") -> GoldenReplay:
    found = golden.read_golden(path.parent / "golden.safetensors")
    with ModuleTarget(f"compare.models:{name}").open_verification_target(
        open_checkpoint(path)
    ) as side:
        return golden.replay_golden(side, found, device)


def test_the_same_module_computes_the_same(saved):
    recorded(saved)
    done = replayed(saved, device="cpu")
    assert done.output_drifts == ()
    assert done.matching_devices == ("cpu: largest difference: 0 absolute, 0 relative",)
    assert done.environment_notes[1] == "the same weights"
    assert done.skipped == ()


def test_where_there_is_no_cuda_that_is_said(saved):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    recorded(saved)
    (left,) = replayed(saved).skipped
    assert left.reason == "no CUDA device is available"


def test_a_change_of_forward_is_told_with_its_size(saved):
    recorded(saved)
    (drift,) = replayed(saved, "Drifting", "cpu").output_drifts
    assert drift.device == "cpu"
    assert "differs in 8 of 8 elements" in drift.description
    assert "0.01 relative" in drift.description


def test_a_change_of_weights_is_told_as_such(saved):
    recorded(saved)
    torch.manual_seed(1)
    torch.save(models.First().state_dict(), saved)
    done = replayed(saved, device="cpu")
    assert len(done.output_drifts) == 1
    assert done.environment_notes[1] == "different weights or buffers"


def test_a_file_that_does_not_load_is_not_run(saved):
    recorded(saved)
    done = replayed(saved, "WithHead", "cpu")
    assert (done.output_drifts, done.matching_devices) == ((), ())
    assert "does not load strictly: 2 missing" in done.skipped[0].reason


def test_outputs_and_inputs_of_every_shape(saved):
    recorded(saved, "Structured", "compare.models:structured_batch")
    found = golden.read_golden(saved.parent / "golden.safetensors")
    assert found.inputs.kwargs["options"]["name"] == "a"
    assert torch.equal(found.inputs.kwargs["options"]["shift"], torch.ones(4))
    assert list(found.output) == [
        "['out']",
        "['parts'][0]",
        "['parts'][1]",
        "['parts'][2]",
    ]
    assert replayed(saved, "Structured", "cpu").output_drifts == ()


def test_what_cannot_be_recorded_is_refused(saved):
    with pytest.raises(ModuleError, match=r"does not load strictly into it: 2 missing"):
        recorded(saved, "WithHead")
    with pytest.raises(ModuleError, match="the forward pass raised"):
        recorded(saved, inputs="float32[2,9]")
    with pytest.raises(UsageError, match=r"the input `args\.0` contains a object"):
        recorded(saved, "Constant", inputs=(object(),))
    assert not (saved.parent / "golden.safetensors").exists()


def test_two_passes_that_differ_are_refused(saved):
    with pytest.raises(
        ModuleError,
        match="two passes with the same seed differ: there is nothing stable to compare with",
    ):
        recorded(saved, "Unsteady")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "is not a golden file: write one with"),
        ({"ckptool-golden": "{"}, "its record is invalid:"),
        ({"ckptool-golden": "{}"}, "missing required field `format`"),
        ({"ckptool-golden": '{"format": "1"}'}, r"Expected `int`, got `str`"),
    ],
)
def test_a_golden_file_with_a_fault(tmp_path, metadata, said):
    path = tmp_path / "golden.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(ReadError, match=said):
        golden.read_golden(path)


def test_what_is_no_safetensors_file(tmp_path):
    path = tmp_path / "golden.safetensors"
    with pytest.raises(CkptoolError, match=r"golden\.safetensors: "):
        golden.read_golden(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ReadError, match="is not a golden file:"):
        golden.read_golden(path)


def test_a_record_that_names_a_tensor_that_is_not_there(saved):
    place = recorded(saved)
    from safetensors import safe_open

    with safe_open(place, "pt") as file:
        metadata = file.metadata()
    save_file({"other": torch.ones(1)}, place, metadata=metadata)
    with pytest.raises(ReadError, match=r'\{"tensor": "args.0"\} is not a value'):
        golden.read_golden(place)
