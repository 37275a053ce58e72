"""Many findings that share nothing: what is printed is bounded, and what is left out is counted."""

import random
import string

import pytest
import torch
from safetensors.torch import save_file

import ckptool

COUNT = 600


def random_keys(seed: int) -> list[str]:
    chosen = random.Random(seed)
    letters = string.ascii_lowercase
    return [".".join("".join(chosen.choices(letters, k=8)) for _ in range(4)) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds")
    keys = random_keys(1)
    for name, wanted, size in (("a", keys, 1), ("b", random_keys(2), 1), ("longer", keys, 2)):
        state = {key: torch.full((size,), float(index)) for index, key in enumerate(wanted)}
        save_file(state, folder / f"{name}.safetensors")
    nans = {key: torch.full((1,), float("nan")) for key in keys}
    save_file(nans, folder / "nan.safetensors")
    return folder


@pytest.mark.parametrize("name", ["b", "longer"])
@pytest.mark.parametrize("form", ["table", "markdown", "github"])
def test_a_diff_of_random_keys(files, name, form):
    report = ckptool.diff(files / "a.safetensors", files / f"{name}.safetensors")
    assert report.exit_code == 1
    text = ckptool.text(report, form)
    assert len(text) < 60_000
    assert " more" in text
    assert ckptool.text(report, "json").count(random_keys(1)[-1])


def test_a_gate_of_many_values(files):
    report = ckptool.gate(files / "nan.safetensors")
    assert len(ckptool.text(report, "table")) < 20_000
    assert len(report.findings) >= COUNT
