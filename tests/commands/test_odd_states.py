"""Odd entries of a state_dict, and the verdict that plain torch gives of each."""

import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool.errors import PlanError


def load_strictly(module, state):
    """Return what torch raises, or None."""
    try:
        module.load_state_dict(state)
    except Exception as error:  # noqa: BLE001 (torch raises what it likes)
        return error
    return None


class Conjugated(nn.Module):
    """Views of one storage, of which two have other values than its bytes."""

    def __init__(self):
        super().__init__()
        wave = torch.tensor([1 + 2j, 3 - 1j])
        self.register_buffer("wave", wave)
        self.register_buffer("mirrored", wave.conj())


class Negated(Conjugated):
    def __init__(self):
        super().__init__()
        self.register_buffer("negated", self.mirrored.imag)


@pytest.mark.parametrize(
    ("build", "is_cloned"), [(Conjugated, False), (Conjugated, True), (Negated, True)]
)
def test_a_conjugated_view_is_no_tie(build, is_cloned, tmp_path):
    state = build().state_dict()
    if is_cloned:
        state = {key: value.clone() for key, value in state.items()}
    torch.save(state, tmp_path / "old.pth")
    assert load_strictly(build(), state) is None
    report = ckptool.diff(tmp_path / "old.pth", module=build)
    assert report.verdict == "loads strictly"
    assert "CK502" not in {finding.code for finding in report.findings}
    for name in ("new.pth", "new.safetensors") if is_cloned else ("new.pth",):
        ckptool.migrate(tmp_path / "old.pth", tmp_path / name, module=build)
        assert ckptool.diff(tmp_path / name, module=build).verdict == "loads strictly"
    written = torch.load(tmp_path / "new.pth")
    assert all(torch.equal(written[key], value) for key, value in state.items())


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("adjacency", torch.eye(3).to_sparse())


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):
            q = torch.quantize_per_tensor(torch.ones(4), 0.1, 3, torch.quint8)
        self.register_buffer("q", q)


@pytest.mark.parametrize(("build", "key"), [(Sparse, "adjacency"), (Quantized, "q")])
@pytest.mark.parametrize("source", [None, "constructor", "seed:1", "zeros"])
def test_a_tensor_that_is_not_dense_is_not_made_up(build, key, source, tmp_path):
    state = {k: v for k, v in build().state_dict().items() if k != key} or {"x": torch.ones(1)}
    torch.save(state, tmp_path / "old.pth")
    inject = {} if source is None else {key: source}
    with pytest.raises(PlanError, match=rf"inject `{key}`: the module has a .* only dense tensors"):
        ckptool.migrate(tmp_path / "old.pth", tmp_path / "new.pth", module=build, inject=inject)
    assert not (tmp_path / "new.pth").exists()
    # What the message says instead.
    module = build()
    module.load_state_dict(torch.load(tmp_path / "old.pth"), strict=False)
    torch.save(module.state_dict(), tmp_path / "new.pth")
    assert ckptool.diff(tmp_path / "new.pth", module=build).verdict == "loads strictly"


@pytest.mark.parametrize("key", [1.5, 3, ("a", 1), None, b"x", "zz"], ids=repr)
@pytest.mark.parametrize(
    "value", [torch.ones(2), "s", None, {"x": torch.ones(1)}, np.ones(2)], ids=lambda v: type(v)
)
def test_a_key_that_is_no_string_does_not_load(key, value, tmp_path):
    state = {**nn.Linear(2, 2).state_dict(), key: value}
    torch.save({"state_dict": state}, tmp_path / "odd.pth")
    assert load_strictly(nn.Linear(2, 2), state) is not None
    options = {"module": nn.Linear(2, 2), "at": "state_dict"}
    assert ckptool.diff(tmp_path / "odd.pth", **options).verdict.startswith("does not load")
    level = ckptool.verify(tmp_path / "odd.pth", **options).levels[0]
    assert (level.level, level.status) != ("load", "passed")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight


def test_a_wrapper_around_transposed_weights_is_no_rewrite(tmp_path):
    """Every key is explained by a swap, and none by the prefix alone."""
    state = {f"_orig_mod.{key}": value.t() for key, value in Tied().state_dict().items()}
    torch.save(state, tmp_path / "old.pth")
    report = ckptool.diff(tmp_path / "old.pth", module=Tied)
    assert {"CK211"} <= {finding.code for finding in report.findings}
    assert "CK209" not in {finding.code for finding in report.findings}
    renames = {f"_orig_mod.{key}": key for key in Tied().state_dict()}
    ckptool.migrate(tmp_path / "old.pth", tmp_path / "new.pth", module=Tied, renames=renames)
    written = torch.load(tmp_path / "new.pth")
    assert load_strictly(Tied(), written) is None
    assert torch.equal(written["head.weight"], state["_orig_mod.head.weight"].t())


class Upgraded(nn.Module):
    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def upgrade(self, state, prefix):
        if f"{prefix}w" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}w")

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            self.upgrade(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Doubled(Upgraded):
    def upgrade(self, state, prefix):
        state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2


@pytest.mark.parametrize("build", [Upgraded, Doubled])
def test_an_upgrade_that_changes_nothing_is_no_error(build, tmp_path):
    """The versions are lost; whether that matters is what torch makes of the values."""
    module, loaded = build(), build()
    state = {"weight": torch.arange(3.0)}
    torch.save(state, tmp_path / "bare.pth")
    assert load_strictly(loaded, dict(state)) is None
    is_changed = not torch.equal(loaded.weight, state["weight"])
    report = ckptool.diff(tmp_path / "bare.pth", module=module)
    (level,) = {finding.level for finding in report.findings if finding.code == "CK216"}
    assert level == ("error" if is_changed else "warning")
    assert ckptool.gate(tmp_path / "bare.pth", module=module, values=False).exit_code == is_changed


def test_the_same_finding_of_several_files_is_told_once(tmp_path, run_command):
    """Each file has it; what differs by file is still told of each."""
    for number in range(3):
        path = tmp_path / f"{number}.safetensors"
        save_file({"weight": torch.full((2,), float(number))}, path)
        assert "format" not in (safe_open(path, "pt").metadata() or {})
    save_file({"weight": torch.tensor([torch.nan])}, tmp_path / "nan.safetensors", {"format": "pt"})
    result = run_command("gate", str(tmp_path), "--no-config")
    assert result.out.count("CK310  the safetensors header") == 1
    assert (
        f"Problems: 3 checkpoints ({tmp_path / '0.safetensors'} and 2 more): 3 warn" in result.out
    )
    assert "nan.safetensors: 1 error" in result.out
    report = ckptool.gate(tmp_path)
    assert [finding.code for finding in report.findings].count("CK310") == 3
