"""`loads with safetensors.torch.load_model` is said exactly where load_model loads."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

import ckptool


class TiedNorm(nn.Module):
    """One BatchNorm at two places: torch fills in `num_batches_tracked`, so it is not missing."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4)
        self.blocks = nn.ModuleList([norm, norm])


class TiedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight


class ThreeNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.c.weight = self.b.weight = self.a.weight


class TiedBesideNorm(TiedLinear):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)


class TiedBesideView(TiedLinear):
    """A parameter that does not cover its storage: load_model looks at those, too."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Parameter(torch.randn(4, 3)[:2])


class TiedBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.ones(3))
        self.register_buffer("y", self.x)
        self.fc = nn.Linear(2, 2)


MODULES = (TiedNorm, TiedLinear, ThreeNames, TiedBesideNorm, TiedBesideView, TiedBuffers)


def group_ties(module: nn.Module) -> list[list[str]]:
    groups: dict[object, list[str]] = {}
    for key, tensor in module.state_dict().items():
        groups.setdefault((tensor.data_ptr(), tensor.shape), []).append(key)
    return [group for group in groups.values() if len(group) > 1]


def iter_states(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the state with every choice of names of one group left out, and with one of each."""
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    groups = group_ties(module)
    for group in groups:
        for count in range(1, len(group)):
            for kept in itertools.combinations(group, count):
                yield {k: t for k, t in state.items() if k not in group or k in kept}
    for position in (0, -1):
        left_out = {name for group in groups for name in group if name != group[position]}
        yield {key: tensor for key, tensor in state.items() if key not in left_out}


def try_load_model(module: nn.Module, path: Path) -> str:
    try:
        load_model(module, path)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("build", MODULES, ids=lambda cls: cls.__name__)
def test_verdict_is_load_models(tmp_path: Path, build: type[nn.Module]) -> None:
    path = tmp_path / "model.safetensors"
    for state in iter_states(build()):
        save_file(state, path, metadata={"format": "pt"})
        error = try_load_model(build(), path)
        report = ckptool.diff(path, module=build())
        assert ("load_model" in report.verdict) == (not error), (sorted(state), error)
        if "load_model" in report.verdict:
            assert report.exit_code == 0


@pytest.mark.parametrize("build", [TiedLinear, ThreeNames, TiedBuffers], ids=lambda c: c.__name__)
def test_what_save_model_writes_loads(tmp_path: Path, build: type[nn.Module]) -> None:
    path = tmp_path / "model.safetensors"
    save_model(build(), path)
    assert "load_model" in ckptool.diff(path, module=build()).verdict


@pytest.mark.parametrize("build", MODULES, ids=lambda cls: cls.__name__)
def test_left_out_names_are_in_every_report(tmp_path: Path, build: type[nn.Module]) -> None:
    source, result = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save(build().state_dict(), source)
    migrated = ckptool.migrate(source, result)
    names = [name for group in group_ties(build()) for name in group[1:]]
    digests = ckptool.digest([source, result]).checkpoints
    assert digests[0].digest == digests[1].digest
    assert {tensor.key for tensor in digests[1].tensors} >= set(names)
    compared = ckptool.diff(source, result)
    assert compared.verdict == "same state, different format"
    assert set(compared.retied_keys) == set(names)
    note = next(note for note in migrated.notes if "stored under one name" in note)
    assert any(name in note for name in names)
    for report in (ckptool.inspect(result), ckptool.gate(result)):
        ties = " ".join(finding.message for finding in report.findings if finding.code == "CK503")
        assert all(f"`{name}`" in ties for name in names)


@pytest.mark.parametrize("left_out", ["a", "b", "c"])
def test_a_diverged_tie_is_found_whichever_name_is_missing(tmp_path: Path, left_out: str) -> None:
    path = tmp_path / "model.pth"
    kept = [name for name in "abc" if name != left_out]
    state = {f"{name}.weight": torch.full((3, 3), float(n)) for n, name in enumerate(kept)}
    torch.save(state, path)
    module = ThreeNames()
    module.load_state_dict(state, strict=False)
    lost = {key for key, tensor in state.items() if not torch.equal(module.a.weight, tensor)}
    assert len(lost) == 1
    report = ckptool.diff(path, module=ThreeNames())
    assert [f.key for f in report.findings if f.code == "CK502"] == [f"{kept[0]}.weight"]
    equal = {key: torch.ones(3, 3) for key in state}
    torch.save(equal, path)
    assert "CK502" not in {f.code for f in ckptool.diff(path, module=ThreeNames()).findings}


@pytest.mark.parametrize("left_out", ["a", "b", "c"])
def test_a_tie_of_the_old_file_that_diverged(tmp_path: Path, left_out: str) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save(ThreeNames().state_dict(), old)
    kept = [name for name in "abc" if name != left_out]
    torch.save({f"{n}.weight": torch.full((3, 3), float(i)) for i, n in enumerate(kept)}, new)
    findings = ckptool.diff(old, new).findings
    assert [f.key for f in findings if f.code == "CK502"] == [f"{kept[0]}.weight"]
