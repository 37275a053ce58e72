"""The experiment that the tool exists for, number by number. Step 2 to 4 on CUDA: tests/cuda."""

from pathlib import Path

import pytest
import reference_case
import torch
from files import needs_torch

import ckptool
from samples import make
from samples.attention import (
    CausalAttentionWithBuffer,
    CausalAttentionWithoutBuffers,
    example_inputs,
)

WITHOUT = "samples.attention:CausalAttentionWithoutBuffers"
WITH = "samples.attention:CausalAttentionWithBuffer"


@pytest.fixture
def pair():
    torch.manual_seed(123)
    without = CausalAttentionWithoutBuffers(**reference_case.ARGUMENTS)
    return without, CausalAttentionWithBuffer(**reference_case.ARGUMENTS)


def codes(report) -> dict[str, str]:
    return {f.code: f.level for f in report.findings}


def test_step_1_and_4_the_numbers_on_the_cpu(pair):
    without, with_buffer = pair
    reference_case.assert_outputs(without(example_inputs()), reference_case.WITHOUT_BUFFERS)
    reference_case.assert_outputs(with_buffer(example_inputs()), reference_case.WITH_BUFFER)


def test_step_5_the_keys_and_the_weights(pair):
    without, with_buffer = pair
    weights = ["W_query.weight", "W_key.weight", "W_value.weight"]
    assert list(without.state_dict()) == weights
    assert list(with_buffer.state_dict()) == ["mask", *weights]
    close = {"atol": reference_case.TOLERANCE, "rtol": 0}
    query = without.W_query.weight.detach()
    torch.testing.assert_close(query, reference_case.W_QUERY_WITHOUT, **close)
    query = with_buffer.W_query.weight.detach()
    torch.testing.assert_close(query, reference_case.W_QUERY_WITH, **close)


def test_step_6_the_buffers_change_survives(tmp_path, pair):
    _, changed = pair
    changed.mask *= 2
    torch.save(changed.state_dict(), tmp_path / "model.pth")
    fresh = CausalAttentionWithBuffer(**reference_case.ARGUMENTS)
    fresh.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert torch.equal(fresh.mask, changed.mask)
    assert fresh.mask.max() == 2


def test_step_7_the_attributes_change_is_lost(tmp_path, pair):
    changed, _ = pair
    changed.mask = changed.mask * 2
    torch.save(changed.state_dict(), tmp_path / "model.pth")
    fresh = CausalAttentionWithoutBuffers(**reference_case.ARGUMENTS)
    fresh.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert fresh.mask.max() == 1


def test_the_file_against_the_attribute_version(samples):
    report = ckptool.diff(samples / "model.pth", module=WITHOUT, kwargs=reference_case.ARGUMENTS)
    assert report.matched == ("W_query.weight", "W_key.weight", "W_value.weight")
    assert not report.missing_keys + report.unexpected_keys + report.mismatched_keys
    assert report.coverage == 1.0
    assert report.verdict == "loads, but `mask` is not in the state_dict and will not be saved"
    (mask,) = report.unsaved
    assert (mask.key, mask.kind, mask.dtype) == ("mask", "attribute", "float32")
    assert (mask.shape, mask.nbytes) == ((6, 6), 144)
    assert mask.owner == "samples.attention.CausalAttentionWithoutBuffers"
    assert (mask.constancy, mask.follows_to, mask.in_file) == ("constant", False, False)
    assert line(mask.where) == "self.mask = causal_mask(context_length)"
    assert "self.mask.bool()" in line(mask.used)
    assert codes(report) == {"CK110": "error", "CK101": "warning", "CK111": "warning"}
    assert report.exit_code == 1


def line(place: str) -> str:
    """Return the source line that "file:line" names."""
    path, _, number = place.rpartition(":")
    return Path(path).read_text(encoding="utf-8").splitlines()[int(number) - 1].strip()


def test_the_file_against_the_buffer_version(samples):
    report = ckptool.diff(samples / "model.pth", module=WITH, kwargs=reference_case.ARGUMENTS)
    assert report.missing_keys == ("mask",)
    assert report.verdict == "does not load: 1 missing"
    assert codes(report) == {"CK203": "warning"}
    assert "the constructor computes the same value every time" in report.findings[0].message
    assert report.exit_code == 1


def test_the_buffer_versions_file_loads_strictly(samples):
    for name in ("buffer.pth", "buffer.safetensors"):
        report = ckptool.diff(samples / name, module=WITH, kwargs=reference_case.ARGUMENTS)
        assert report.verdict == "loads strictly"
        assert (report.exit_code, report.findings) == (0, ())


def test_a_pickled_module_still_holds_the_changed_mask(samples):
    described = ckptool.open_checkpoint(samples / "whole.pth")
    (state,) = described.states
    mask = state.unsaved_tensors["mask"]
    assert (mask.kind, mask.dtype, mask.shape) == ("attribute", "float32", (6, 6))
    span = mask.span
    assert span is not None
    data = span.path.read_bytes()[span.offset : span.offset + span.nbytes]
    twos = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(6, 6)
    assert torch.equal(twos, 2 * torch.triu(torch.ones(6, 6), diagonal=1))


def test_a_pickled_module_against_the_buffer_version_says_where_the_mask_is(samples):
    report = ckptool.diff(samples / "whole.pth", module=WITH, kwargs=reference_case.ARGUMENTS)
    (finding,) = [f for f in report.findings if f.code == "CK203"]
    assert "among the pickled module's attributes" in finding.message
    assert finding.facts["in_file"] is True


def test_the_lightning_sample_names_its_wrapper_and_its_arguments(samples):
    report = ckptool.diff(samples / "lightning.ckpt", module=WITH)
    assert report.at == "state_dict"
    assert codes(report)["CK209"] == "warning"
    assert any("taken from the file: d_in" in note for note in report.notes)


def test_the_training_sample_is_compared_at_its_model(samples):
    report = ckptool.diff(samples / "training.pth", module=WITH, kwargs=reference_case.ARGUMENTS)
    assert (report.at, report.verdict) == ("model", "loads strictly")
    assert report.notes == ("compared at `model`, the best match; the file also has optimizer",)


def test_the_attribute_versions_loss_is_seen_between_two_buffer_files(tmp_path, samples):
    torch.manual_seed(123)
    CausalAttentionWithoutBuffers(**reference_case.ARGUMENTS)
    unchanged = CausalAttentionWithBuffer(**reference_case.ARGUMENTS)
    torch.save(unchanged.state_dict(), tmp_path / "unchanged.pth")
    report = ckptool.diff(tmp_path / "unchanged.pth", samples / "buffer.pth")
    assert (report.verdict, report.changed_keys) == ("values differ", ("mask",))
    assert report.exit_code == 1


@needs_torch("2.7", "older ones write fewer records")
def test_the_samples_are_made_byte_for_byte(tmp_path, samples):
    make.write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (samples / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == 6
