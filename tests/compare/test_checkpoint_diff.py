"""Two files' values from the outside: the one-change matrix, tolerances, renames, ties, parts."""

import json
import os
from pathlib import Path

import pytest
import torch
from files import save_dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from paths import examples
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool import api
from ckptool.compare import diff_shards
from ckptool.compare.structural_diff import compare_structure
from ckptool.compare.value_checks import merge_value_results, plan_value_checks, run_value_checks
from ckptool.errors import CkptoolError, CorruptCheckpointError, ReadError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.render import RenderOptions, render
from ckptool.values.batches.batch_runner import BatchRunner
from ckptool.values.difference import Tolerances


def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = nn.TransformerEncoderLayer(8, 2, 16).state_dict()
    state["mask"] = torch.ones(6, 6).tril()
    return state


def compared(folder: Path, old, new, **how):
    torch.save(old, folder / "old.pth")
    torch.save(new, folder / "new.pth")
    return api.diff(folder / "old.pth", folder / "new.pth", **how)


def with_(state, **changes):
    return {**{k: v.clone() for k, v in state.items()}, **changes}


def nudged(state, key, index, value):
    new = with_(state)
    new[key].view(-1)[index] = value
    return new


# The matrix of tests against peers: each single change, and what each of them got wrong.


def test_an_added_key(tmp_path):
    report = compared(tmp_path, base(), with_(base(), extra=torch.ones(2)))
    assert (report.verdict, report.added_keys, report.exit_code) == ("breaking", ("extra",), 1)


def test_a_removed_key(tmp_path):
    state = base()
    report = compared(tmp_path, state, {k: v for k, v in state.items() if k != "mask"})
    assert (report.verdict, report.removed_keys, report.exit_code) == ("breaking", ("mask",), 1)


def test_a_shape(tmp_path):
    report = compared(tmp_path, base(), with_(base(), mask=torch.ones(6, 5)))
    assert (report.verdict, report.changed_keys, report.exit_code) == ("breaking", ("mask",), 1)
    assert report.changes == ()


def test_a_value(tmp_path):
    state = base()
    report = compared(tmp_path, state, nudged(state, "norm1.weight", 3, 1.001))
    assert (report.verdict, report.value_keys) == ("values differ", ("norm1.weight",))
    (change,) = report.changes
    assert (change.changed, change.elements, change.close) == (1, 8, False)
    assert change.max_abs == pytest.approx(1e-3, rel=1e-3)
    assert report.exit_code == 1


def test_a_permutation_with_the_same_mean_and_deviation(tmp_path):
    state = base()
    report = compared(
        tmp_path, state, with_(state, **{"linear1.bias": state["linear1.bias"].flip(0)})
    )
    assert report.value_keys == ("linear1.bias",)


def test_the_wrong_mask(tmp_path):
    report = compared(tmp_path, base(), with_(base(), mask=torch.ones(6, 6).triu()))
    assert (report.changes[0].key, report.changes[0].changed) == ("mask", 30)


def test_a_dtype_that_only_rounds(tmp_path):
    state = base()
    report = compared(tmp_path, state, {k: v.bfloat16() for k, v in state.items()})
    assert report.verdict == "compatible"
    assert all(change.rounding for change in report.changes)
    assert len(report.changes) == len(state)


def test_a_dtype_and_a_value(tmp_path):
    state = base()
    new = {k: v.bfloat16() for k, v in state.items()}
    new["mask"][0, 0] = 3
    told = {c.key: c.rounding for c in compared(tmp_path, state, new).changes}
    assert [key for key, rounding in told.items() if not rounding] == ["mask"]


def test_a_number_that_became_nan(tmp_path):
    state = base()
    report = compared(tmp_path, state, nudged(state, "norm1.weight", 0, torch.nan))
    (change,) = report.changes
    assert (report.verdict, change.new_nonfinite, change.old_nonfinite) == ("values differ", 1, 0)
    assert (change.max_abs, change.changed) == (None, 1)


def test_nan_that_was_there(tmp_path):
    state = nudged(base(), "norm1.weight", 0, torch.nan)
    assert compared(tmp_path, state, with_(state)).verdict == "identical"


def test_a_mask_under_another_name_is_a_question(tmp_path):
    state = base()
    new = {("causal" if k == "mask" else k): v for k, v in state.items()}
    report = compared(tmp_path, state, new)
    assert report.renamed_keys == {}, "many modules have such a mask"
    assert [f.code for f in report.findings if f.key == "mask"] == ["CK801"]


def test_a_rename_among_twins(tmp_path):
    """Layers that were copied from one another hold the same: they go by their order."""
    old = {f"a.{n}.w": torch.ones(3) for n in range(12)}
    new = {f"b.{n}.v": torch.ones(3) for n in range(12)}
    report = compared(tmp_path, old, new)
    assert report.renamed_keys == {f"a.{n}.w": f"b.{n}.v" for n in range(12)}


def test_a_rename_with_other_values_is_none(tmp_path):
    old, new = {"a.weight": torch.ones(3)}, {"b.weight": torch.zeros(3)}
    assert compared(tmp_path, old, new).renamed_keys == {}


def test_another_container(tmp_path):
    state = base()
    torch.save(state, tmp_path / "old.pth")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "new.safetensors")
    report = api.diff(tmp_path / "old.pth", tmp_path / "new.safetensors")
    assert (report.verdict, report.exit_code) == ("same state, different format", 0)


# Tolerances.


def test_within_tolerance_passes_only_where_one_is_given(tmp_path):
    old = {"w": torch.ones(4), "b": torch.zeros(4)}
    new = {"w": torch.ones(4) + 1e-4, "b": torch.zeros(4)}
    told = [
        (report.verdict, report.exit_code, report.value_keys)
        for how in ({}, {"rtol": 1e-3}, {"atol": 1e-3}, {"rtol": 1e-5})
        for report in [compared(tmp_path, old, new, **how)]
    ]
    assert told == [
        ("values differ", 1, ("w",)),
        ("values within tolerance", 0, ("w",)),
        ("values within tolerance", 0, ("w",)),
        ("values differ", 1, ("w",)),
    ]


def test_nan_is_never_within_tolerance(tmp_path):
    report = compared(tmp_path, {"w": torch.ones(2)}, {"w": torch.tensor([1, torch.nan])}, atol=1e9)
    assert report.exit_code == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rtol": -1.0}, "--rtol"),
        ({"atol": float("inf")}, "--atol"),
        ({"jobs": 0}, "--jobs"),
        ({"shard": (3, 2)}, "--shard 3/2"),
        ({"shard": (0, 2)}, "--shard 0/2"),
        ({"values": False, "rtol": 1.0}, "--no-values"),
        ({"jobs": 1, "dask": "tcp://x:1"}, "--jobs"),
    ],
)
def test_options_that_make_no_sense(tmp_path, how, said):
    with pytest.raises(UsageError, match=said):
        compared(tmp_path, {"w": torch.ones(1)}, {"w": torch.ones(1)}, **how)


def test_sparse_tensors_are_compared_and_not_measured(tmp_path):
    old, new = ({"w": (torch.eye(3) * n).to_sparse()} for n in (1, 2))
    report = compared(tmp_path, old, new)
    assert report.value_keys == ("w",)
    assert [(s.what, s.reason) for s in report.skipped] == [
        ("statistics of w", "it is laid out as sparse_coo")
    ]


def test_the_largest_relative_change_comes_first(tmp_path):
    old = {f"w{n}": torch.ones(4) for n in range(5)} | {"zero": torch.zeros(4)}
    new = {key: tensor + 0.1 * n for n, (key, tensor) in enumerate(old.items())}
    keys = [change.key for change in compared(tmp_path, old, new).changes]
    assert keys == ["zero", "w4", "w3", "w2", "w1"]


def test_a_table_fits_into_80_columns_and_folds_modules(tmp_path):
    old = {
        f"blocks.{n}.attention.{k}": torch.ones(40) for n in range(12) for k in ("weight", "bias")
    }
    report = compared(tmp_path, old, {k: v + 1e-3 for k, v in old.items()})
    text = render("table", replace(report, old="old.pth", new="new.pth"), RenderOptions(width=80))
    assert max(map(len, text.splitlines())) <= 80
    assert "blocks.*.attention" in text
    assert "... and 4 more tensors (-v shows all)" in text
    assert "| `blocks.*.attention` | 24 | all |" in render("markdown", report, RenderOptions())


def test_explain_has_the_figures(tmp_path):
    state = base()
    new = nudged(state, "norm1.weight", 3, 1.005)
    facts = {
        f.name: f.value for f in compared(tmp_path, state, new, explain="norm1.weight").explanation
    }
    assert facts["values"] == "different"
    assert facts["elements changed"] == "1 of 8"
    assert facts["differences 1e-3 to 1e-2"] == "1"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_against_a_file(tmp_path):
    """How a container cuts a tensor is nothing about the tensor."""
    state = base()
    save_dcp(state, tmp_path / "dcp")
    torch.save(state, tmp_path / "old.pth")
    report = api.diff(tmp_path / "old.pth", tmp_path / "dcp")
    assert (report.verdict, report.changed_keys) == ("same state, different format", ())
    torch.save(nudged(state, "mask", 0, 5.0), tmp_path / "new.pth")
    assert [c.changed for c in api.diff(tmp_path / "dcp", tmp_path / "new.pth").changes] == [1]


def test_ties_that_came_apart_name_both(tmp_path):
    weight = torch.ones(3, 2)
    old = {"a": {"emb": weight, "head": weight}, "b": {"x": torch.ones(1)}}
    new = {"a": {"emb": weight, "head": weight + 1}, "b": {"x": torch.ones(1)}}
    report = compared(tmp_path, old, new)
    (finding,) = [f for f in report.findings if f.code == "CK502"]
    assert finding.message.startswith("`a.emb` and `a.head` are tied in the old file")


# Parts.


@st.composite
def two_files(draw):
    keys = draw(
        st.lists(st.text("abc.", min_size=1, max_size=5), min_size=1, max_size=9, unique=True)
    )
    old = {key: torch.full((draw(st.integers(1, 5)),), float(n % 3)) for n, key in enumerate(keys)}
    new = {}
    for key, tensor in old.items():
        fate = draw(st.sampled_from(["same", "same", "other", "cast", "gone", "moved", "nan"]))
        held = {"other": tensor + 0.5, "cast": tensor.half(), "nan": tensor * torch.nan}
        if fate != "gone":
            new[f"{key}.x" if fate == "moved" else key] = held.get(fate, tensor)
    return old, new or {"new": torch.ones(1)}


@settings(max_examples=examples(25))
@given(two_files(), st.integers(1, 4), st.sampled_from([None, 0.7]))
def test_the_parts_together_are_the_whole(tmp_path_factory, files, of, atol):
    folder = tmp_path_factory.mktemp("parts")
    whole = compared(folder, *files, atol=atol)
    paths = [folder / f"part-{n}.json" for n in range(1, of + 1)]
    for n, path in enumerate(paths, 1):
        part = api.diff(folder / "old.pth", folder / "new.pth", atol=atol, shard=(n, of))
        path.write_text(render("json", part, RenderOptions()))
    assert api.merge(paths[::-1]) == whole


def test_parts_share_the_bytes(tmp_path):
    old = {f"w{n}": torch.zeros(100 * (n + 1)) for n in range(8)}
    torch.save(old, tmp_path / "a.pth")
    a = open_checkpoint(tmp_path / "a.pth")
    known = compare_structure(a, a, None)
    shares = [diff_shards.assign_shard(known, n, 2) for n in (1, 2)]
    assert {q.key for share in shares for q in share} == set(old)
    sizes = [sum(old[q.key].numel() for q in share) for share in shares]
    assert abs(sizes[0] - sizes[1]) <= 100
    each = [run_value_checks(known, share, Tolerances(), BatchRunner(1)) for share in shares]
    assert (
        merge_value_results(each).equal
        == run_value_checks(known, plan_value_checks(known), Tolerances(), BatchRunner(1)).equal
    )


@pytest.fixture
def three(tmp_path):
    state = base()
    compared(tmp_path, state, nudged(state, "mask", 0, 7.0))
    return [_part(tmp_path, n, 3) for n in (1, 2, 3)]


def _part(folder: Path, number: int, of: int, name: str = "part", **how) -> Path:
    path = folder / f"{name}-{number}.json"
    part = api.diff(folder / "old.pth", folder / "new.pth", shard=(number, of), **how)
    path.write_text(render("json", part, RenderOptions()))
    return path


def test_a_missing_part(three):
    with pytest.raises(UsageError, match=r"2 of 3 parts are missing: 2/3, 3/3\. Make them with"):
        api.merge(three[:1])


def test_a_part_that_is_there_twice(three, tmp_path):
    again = tmp_path / "again.json"
    again.write_bytes(three[0].read_bytes())
    with pytest.raises(UsageError, match=r"again\.json: is part 1, as .*part-1\.json is"):
        api.merge([*three, again])
    with pytest.raises(UsageError, match="a part was given twice"):
        api.merge([*three, three[0]])


def test_parts_of_other_files(three, tmp_path):
    torch.save(with_(base(), mask=torch.zeros(6, 6)), tmp_path / "new.pth")
    other = _part(tmp_path, 3, 3, "other")
    with pytest.raises(UsageError, match=r"other-3\.json: its NEW .* is not that of .*part-1"):
        api.merge([*three[:2], other])


@pytest.mark.parametrize(("of", "how", "said"), [(4, {}, "N of"), (3, {"rtol": 0.1}, "--rtol")])
def test_parts_that_were_asked_otherwise(three, tmp_path, of, how, said):
    with pytest.raises(UsageError, match=f"other-3.json: was made with a different {said}"):
        api.merge([*three[:2], _part(tmp_path, 3, of, "other", **how)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is not a part"),
        ('{"evidence": {}}', "is not a part"),
        ('{"evidence": {"number": "x"}}', "is not a part"),
    ],
)
def test_what_is_no_part(three, tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"x.json: .*{said}"):
        api.merge([*three[:2], path])


def test_a_part_that_leaves_something_out(three):
    data = json.loads(three[0].read_text())
    data["evidence"]["answers"]["equal"] = {}
    three[0].write_text(json.dumps(data))
    with pytest.raises(UsageError, match="no part compared"):
        api.merge(three)


def test_merge_is_offered_by_the_library(three):
    assert ckptool.merge(three).verdict == "values differ"


# Files that change while they are compared.


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda path: os.truncate(path, 100), CorruptCheckpointError, "new.pth"),
        (Path.unlink, ReadError, "new.pth: no such file"),
    ],
)
def test_a_file_that_changes_meanwhile(tmp_path, damage, error, said):
    state = base()
    compared(tmp_path, state, nudged(state, "mask", 0, 7.0))
    old, new = (open_checkpoint(tmp_path / f"{name}.pth") for name in ("old", "new"))
    known = compare_structure(old, new, None)
    damage(tmp_path / "new.pth")
    with pytest.raises(error, match=said) as caught:
        run_value_checks(known, plan_value_checks(known), Tolerances(), BatchRunner(2))
    assert isinstance(caught.value, CkptoolError)
