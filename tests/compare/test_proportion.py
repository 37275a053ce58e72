"""Products of missing and unexpected keys, of states, of slots: bounded or looked up."""

from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import builders
import pytest
import torch
from files import save
from proportion import assert_in_proportion, count_work
from torch import nn

from ckptool import migrate
from ckptool.compare import structural_diff
from ckptool.compare.fused_projections import find_fused_projections
from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.states import find_best_state
from ckptool.compare.structural_diff import compare_structure
from ckptool.folding import fold_by_pattern, fold_by_subtree
from ckptool.formats import open_checkpoint
from ckptool.migration.plan import suggest
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.model import TensorInfo
from ckptool.modules import describe_module
from ckptool.rules.optimizer import find_slot_shape_mismatches
from ckptool.rules.running_statistics import find_stale_ema_buffers
from ckptool.values.checkpoint_statistics import compute_checkpoint_statistics

ONE = torch.ones(1)


def describe_matrix(key: str, rows: int) -> TensorInfo:
    return TensorInfo(key, (rows, 4), "float32", (4, 1), 0, None)


@pytest.mark.parametrize("same_module", [True, False])
def test_projections_are_looked_up(same_module: bool) -> None:
    def find(n: int) -> None:
        folder = "a." if same_module else "a{}."
        pieces = [
            describe_matrix(f"{folder.format('x' * i)}{name}.weight", 4)
            for i, name in product(range(n), "qkv")
        ]
        fused = [describe_matrix(f"other{'x' * i}.weight", 12) for i in range(3 * n)]
        found = find_fused_projections(pieces, fused, {})
        assert found == ()

    assert_in_proportion(find, 100)


def test_projections_of_many_layers_find_the_one_in_their_own_module() -> None:
    pieces = [describe_matrix(f"l{'x' * i}.{n}.weight", 4) for i in range(20) for n in "qkv"]
    fused = [describe_matrix(f"l{'x' * i}.qkv.weight", 12) for i in range(20)]
    found = find_fused_projections(pieces, fused, {})
    assert [p.fused_key for p in found] == [t.key for t in fused]
    assert all(p.dim == 0 and p.needs_split for p in found)


def test_a_module_is_indexed_once_for_all_states(tmp_path: Path) -> None:
    module = builders.module(*(f"layer{i}.weight" for i in range(1000)))

    def find(n: int) -> int:
        path = save(tmp_path / f"{n}.pth", {f"s{i}": {"w": ONE} for i in range(n)})
        checkpoint = open_checkpoint(path)
        return count_work(lambda: find_best_state(checkpoint, module)).calls

    assert find(200) - find(100) < 100 * 50  # and the module has 1,000 keys


def test_pairs_of_states_are_bounded_and_what_is_left_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structural_diff, "MAX_PAIRED_STATES", 10)
    old = {f"a{i}": {"w": ONE, "b": torch.ones(i + 1)} for i in range(30)}
    new = {f"b{i}": {"w": ONE, "c": torch.ones(i + 1)} for i in range(30)}
    old["z"] = new["y"] = {f"k{i}": ONE for i in range(5)}
    files = [
        open_checkpoint(save(tmp_path / f"{name}.pth", content))
        for name, content in (("old", old), ("new", new))
    ]
    structure = compare_structure(*files, None)
    assert structure.places == ("z", "y")
    assert "21 smallest states" in structure.old.skipped[-1].what
    pairs = count_work(lambda: compare_structure(*files, None)).calls
    monkeypatch.setattr(structural_diff, "MAX_PAIRED_STATES", 100)
    assert pairs < count_work(lambda: compare_structure(*files, None)).calls / 3


def test_slots_of_several_groups_are_counted_once(tmp_path: Path) -> None:
    def inspect(n: int) -> None:
        layers = [nn.Linear(1, 1, bias=False) for _ in range(n)]
        module = nn.ModuleList(layers)
        groups = [{"params": [layer.weight]} for layer in layers]
        optimizer = torch.optim.Adam(groups)
        for layer in layers:
            layer.weight.grad = torch.ones(1, 1)
        optimizer.step()
        content = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint = open_checkpoint(save(tmp_path / "a.pth", content))
        info = describe_module(module, "m")
        diff = build_module_diff(checkpoint, info, "model")
        counted.append(count_work(lambda: list(find_slot_shape_mismatches(diff))).calls)

    counted: list[int] = []
    for n in (50, 100):
        inspect(n)
    assert counted[1] < 2.5 * counted[0]


def test_averages_find_their_raw_statistics_by_look_up(tmp_path: Path) -> None:
    def make(n: int) -> list[object]:
        trained, fresh = (
            nn.ModuleDict({f"l{i}": nn.ModuleDict({"bn": nn.BatchNorm1d(1)}) for i in range(n)})
            for _ in range(2)
        )
        for layer in trained.values():
            layer["bn"].running_mean += 3.0
        content = {"model": trained.state_dict(), "ema": fresh.state_dict()}
        statistics = compute_checkpoint_statistics(
            open_checkpoint(save(tmp_path / "a.pth", content))
        )
        hits = list(find_stale_ema_buffers(statistics))
        assert [(h.key, h.facts["stale"], h.facts["total"]) for h in hits] == [("ema", n, n)]
        assert hits[0].facts["raw"] == "model.l0.bn.running_mean"
        return [count_work(lambda: list(find_stale_ema_buffers(statistics))).calls]

    assert make(200)[0] < 2.5 * make(100)[0]


def list_random_keys(seed: int, count: int) -> list[str]:
    """Return keys of four random segments each, of which hardly two are alike."""
    random = Random(seed)
    return [
        ".".join(random.choice("abcdefgh") * 3 + str(i) for _ in range(4)) for i in range(count)
    ]


def test_two_files_of_unlike_keys_are_compared_in_proportion(tmp_path: Path) -> None:
    def compare(n: int) -> None:
        files = [
            open_checkpoint(
                save(tmp_path / f"{n}-{seed}.pth", dict.fromkeys(list_random_keys(seed, n), ONE))
            )
            for seed in (1, 2)
        ]
        compare_structure(*files, None)

    assert_in_proportion(compare, 200)


def test_keys_without_a_common_tree_are_folded_no_deeper_than_they_are() -> None:
    def fold(depth: int) -> int:
        groups = fold_by_pattern((f"k{'x' * i}{'.y' * depth}", "", i) for i in range(300))
        return count_work(lambda: fold_by_subtree(groups, 6)).calls

    assert fold(1) < fold(8) / 2


def test_a_plan_compares_all_keys_once_for_each_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plan asks for the comparison in ten places; it changes only with the draft."""
    compared: list[object] = []

    def count_and_compare(*args: Any) -> Any:
        compared.append(args)
        return compare_keys(*args)

    compare_keys = suggest.compare_keys
    monkeypatch.setattr(suggest, "compare_keys", count_and_compare)
    path = save(tmp_path / "a.pth", dict.fromkeys(list_random_keys(1, 50), ONE))
    with pytest.raises(UndecidedError):
        migrate(path, tmp_path / "b.pth", module=nn.Linear(2, 3))
    assert len(compared) == 1
