"""A damaged file with a dangerous global: nothing is known of its tensors, so it equals nothing."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from command_runs import LINEAR
from files import save

WHY = "storage '0' is missing from the archive"


class Payload:
    def __reduce__(self):
        return os.system, ("echo loaded > loaded",)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    whole = save(tmp_path / "whole.pt", {"weight": torch.ones(3, 2), "x": Payload()})
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name))
    with pytest.raises((RuntimeError, torch.serialization.pickle.UnpicklingError)):
        torch.load(path, weights_only=True)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("diff", "damaged.pt", "damaged.pt"),
        ("diff", "damaged.pt", "model.pt"),
        ("diff", "model.pt", "damaged.pt"),
        ("diff", "damaged.pt", *LINEAR),
        ("verify", "damaged.pt", *LINEAR),
        ("verify", "model.pt", "--old", "damaged.pt", *LINEAR),
        ("lock", "damaged.pt"),
        ("digest", "damaged.pt"),
        ("convert", "damaged.pt", "-o", "new.pt"),
        ("migrate", "damaged.pt", "-o", "new.pt", *LINEAR),
    ],
    ids=" ".join,
)
def test_a_damaged_file_ends_in_one_line(command, damaged, run_command, tmp_path) -> None:
    save(tmp_path / "model.pt", torch.nn.Linear(2, 3).state_dict())
    ran = run_command(*command, cwd=tmp_path)
    lines = (ran.err or ran.out).splitlines()
    assert (ran.code, WHY in ran.err) == (2, True)
    assert command[0] == "digest" or len(lines) == 1
    assert not (tmp_path / "loaded").exists()


def test_gate_names_the_damage_and_does_not_guess_missing_keys(damaged, run_command) -> None:
    ran = run_command("gate", damaged.name, *LINEAR, cwd=damaged.parent)
    assert ran.code == 1
    assert "CK306" in ran.out
    assert "CK301" in ran.out
    assert "CK201" not in ran.out
    assert f"not checked: the module: reading stopped: {WHY}" in ran.out
