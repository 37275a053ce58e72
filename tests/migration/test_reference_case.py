"""The reference case, end to end: the new module computes as the old one did."""

import os
import subprocess
import sys

import pytest
import reference_case
import torch
from safetensors.torch import load_file

import ckptool
from samples.attention import (
    CausalAttentionWithBuffer,
    CausalAttentionWithoutBuffers,
    example_inputs,
)

WITH = "samples.attention:CausalAttentionWithBuffer"


def load(path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def forward_of(path) -> torch.Tensor:
    module = CausalAttentionWithBuffer(**reference_case.ARGUMENTS)
    module.load_state_dict(load(path), strict=True)
    return module(example_inputs())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_state_dict_migrates_with_the_mask_from_the_constructor(tmp_path, samples, suffix):
    target = tmp_path / f"new{suffix}"
    before = (samples / "model.pth").read_bytes()
    report = ckptool.migrate(
        samples / "model.pth", target, module=WITH, kwargs=reference_case.ARGUMENTS
    )
    assert report.verdict == "migrated: loads strictly"
    assert [(s.op, s.after, s.source) for s in report.steps] == [
        ("inject", "mask float32[6, 6]", "constructor")
    ]
    assert report.steps[0].assumption.endswith("did not modify `mask` after construction")
    assert [(c.name, c.result) for c in report.checks] == [
        ("strict load", "passed"),
        ("forward", "skipped"),
    ]
    torch.manual_seed(123)
    old = CausalAttentionWithoutBuffers(**reference_case.ARGUMENTS)
    old.load_state_dict(torch.load(samples / "model.pth"))
    assert torch.equal(forward_of(target), old(example_inputs()))
    reference_case.assert_outputs(forward_of(target), reference_case.WITHOUT_BUFFERS)
    assert (samples / "model.pth").read_bytes() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_pickled_module_migrates_with_its_changed_mask(tmp_path, samples, suffix):
    target = tmp_path / f"new{suffix}"
    report = ckptool.migrate(
        samples / "whole.pth", target, module=WITH, kwargs=reference_case.ARGUMENTS
    )
    assert report.verdict == "migrated: loads strictly"
    assert [s.source for s in report.steps] == ["attribute"]
    twos = 2 * torch.triu(torch.ones(6, 6), diagonal=1)
    assert torch.equal(load(target)["mask"], twos)
    old = torch.load(samples / "whole.pth", weights_only=False)
    assert torch.equal(forward_of(target), old(example_inputs()))
    reference_case.assert_outputs(forward_of(target), reference_case.WITHOUT_BUFFERS)


def test_the_pickled_module_migrates_without_its_class(tmp_path, samples, run_command):
    """In a folder from which its class cannot be imported, and without torch."""
    ran = run_command(
        "migrate", samples / "whole.pth", "-o", "new.safetensors", "--inject", "mask=attribute",
        cwd=tmp_path,
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    found = load_file(tmp_path / "new.safetensors")
    assert found["mask"].max() == 2
    assert list(found) == ["W_query.weight", "W_key.weight", "W_value.weight", "mask"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path, samples, run_command):
    before = sorted(tmp_path.iterdir())
    ran = run_command(
        "migrate", samples / "model.pth", "--dry-run", "-m", WITH, "-o", tmp_path / "new.pth",
        "-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6",
    )  # fmt: skip
    assert ran.out.splitlines()[0] == "planned (dry run): would load strictly"
    assert (ran.code, ran.err, sorted(tmp_path.iterdir())) == (0, "", before)


def test_the_result_is_copied_without_changes(tmp_path, samples):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    options = {"module": WITH, "kwargs": reference_case.ARGUMENTS}
    ckptool.migrate(samples / "model.pth", first, **options)
    report = ckptool.migrate(first, second, **options)
    assert report.verdict == "copied without changes: loads strictly"
    assert report.steps == ()
    assert report.source_digest == report.result_digest
    third = tmp_path / "third.safetensors"
    dry_run = ckptool.migrate(first, third, dry_run=True, **options)
    assert dry_run.verdict == "nothing to change (dry run): would load strictly"
    assert not third.exists()


def test_a_written_file_is_not_called_nothing_to_do(tmp_path, samples, monkeypatch):
    """Without a module, "nothing to do" was said of a file that was there afterwards."""
    monkeypatch.chdir(tmp_path)  # a folder without a configuration
    report = ckptool.migrate(samples / "model.pth", tmp_path / "copy.pth")
    assert report.verdict == "copied without changes: no module was given"
    before, after = (torch.load(path) for path in (samples / "model.pth", tmp_path / "copy.pth"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.process
def test_without_a_module_torch_is_not_imported(tmp_path, samples):
    script = (
        "import sys; from ckptool import api; "
        "api.migrate(sys.argv[1], 'a.safetensors', inject={'mask': 'attribute'}); "
        "api.migrate('a.safetensors', 'b.pth'); "
        "print([name for name in ('torch', 'numpy', 'safetensors') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, samples / "whole.pth"], cwd=tmp_path, check=True,
        env={**os.environ, "PYTHONPATH": str(samples.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == "[]\n"
