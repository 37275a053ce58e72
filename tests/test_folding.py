"""Reports of large models: few rows, in natural order, no name twice, no words of another."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool import api
from ckptool.folding import fold_by_pattern, fold_by_subtree
from ckptool.model import natural_sort_key
from ckptool.render import RenderOptions, markdown, table


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(4, 1)
        self.linear1, self.linear2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)


class Deep(nn.Module):
    """300 layers, numbered."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.layers = nn.ModuleList(Layer() for _ in range(300))


class Named(nn.Module):
    """300 layers with numbers inside their names, of several widths."""

    def __init__(self):
        super().__init__()
        for i in range(1, 11):
            block = nn.Module()
            for j in range(1, 31):
                layer = nn.Module()
                layer.norm1, layer.conv1 = nn.BatchNorm2d(1 + j % 7), nn.Conv2d(1 + j % 7, 2, 1)
                layer.norm2, layer.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)
                setattr(block, f"layer{j}", layer)
            setattr(self, f"block{i}", block)


class Flat(nn.Module):
    """300 layers without a common parent."""

    def __init__(self):
        super().__init__()
        for i in range(300):
            setattr(self, f"fc_{i}_{'ab'[i % 2]}", nn.Linear(1 + i % 5, 2))


@pytest.fixture
def report_lines(tmp_path):
    def run(module_class, state, *, form=table, verbosity=0, suffix=".pth"):
        path = tmp_path / f"file{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        report = api.diff(path, module=module_class())
        return form.render(report, RenderOptions(width=100, verbosity=verbosity)).splitlines()

    return run


def table_keys(lines, title):
    start = lines.index(title) + 3
    rows = []
    for line in lines[start:]:
        if not line:
            break
        rows.append(line.split()[0])
    return rows


@pytest.mark.parametrize("module_class", [Deep, Named, Flat])
@pytest.mark.parametrize(
    "state",
    [
        {"other": torch.ones(1)},
        {f"enc.{i}.part{i}.w": torch.ones(7, 7, 7) for i in range(300)},
    ],
    ids=["one", "others"],
)
def test_everything_missing_of_300_layers_fits_one_screen(report_lines, module_class, state):
    expected = module_class().state_dict().keys()
    lines = report_lines(module_class, state)
    assert len(lines) <= 50
    # A command is one line, to be pasted.
    assert max(len(line) for line in lines if "  ckptool " not in line) <= 100
    assert lines[0].startswith("does not load: ")
    missing = int(re.search(r"(\d+) missing", lines[0])[1])
    result = module_class().load_state_dict(state, strict=False)
    assert missing >= len(result.missing_keys) - 600  # torch's own upgrade fills in the counters
    assert missing <= len(expected)
    keys = table_keys(lines, "Keys that do not match")
    assert len(keys) == len(set(keys)) <= 17


def test_all_keys_are_in_json_and_with_v(report_lines, tmp_path):
    state = {"other": torch.ones(1)}
    expected = Deep().state_dict().keys()
    lines = report_lines(Deep, state, verbosity=1)
    assert expected <= {line.split()[0] for line in lines if line}
    report = api.diff(tmp_path / "file.pth", module=Deep())
    assert {verdict.key for verdict in report.verdicts} == {*expected, "other"}
    assert {f.key for f in report.findings if f.code == "CK201"} == set(expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", [table, markdown])
def test_unexpected_keys_are_in_natural_order(report_lines, form, suffix):
    state = {f"extra.{i}.w{i}": torch.ones(1) for i in (10, 2, 1, 0, 11)}
    lines = report_lines(Flat, state, form=form, verbosity=1, suffix=suffix)
    found = [m[0] for line in lines if (m := re.search(r"extra\.\d+\.w\d+", line))]
    half = found[: len(state)]
    assert half == sorted(half, key=natural_sort_key)
    assert half == [f"extra.{i}.w{i}" for i in (0, 1, 2, 10, 11)]


def test_a_folded_line_has_no_words_of_another_finding(tmp_path):
    module = nn.Sequential(*(nn.Linear(2, width) for width in (3, 3, 5, 5)))
    torch.save({"x": torch.ones(1)}, tmp_path / "file.pth")
    report = api.diff(tmp_path / "file.pth", module=module)
    text = ckptool.text(report)
    assert (
        "`0-1.weight`, float32 [3, 2], is a parameter of the module and not in the file (x2)"
        in text
    )
    assert (
        "`2-3.weight`, float32 [5, 2], is a parameter of the module and not in the file (x2)"
        in text
    )
    assert "(x4)" not in text


def test_a_subtree_is_described_in_words_that_hold_for_all(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "file.pth")
    text = ckptool.text(api.diff(tmp_path / "file.pth", module=Flat()))
    lines = [line[15:] for line in text.splitlines() if "(x150)" in line]
    words = "is a parameter of the module and not in the file"
    # The weights have 150 shapes, the biases one.
    assert lines == [
        line
        for side in "ab"
        for line in (
            f"`fc_*_{side}.bias`, float32 [2], {words} (x150)",
            f"missing parameter: `fc_*_{side}.weight` (x150)",
        )
    ]


def test_inspect_of_safetensors_counts_layers_in_order(run_command, tmp_path):
    save_file({f"layers.{i}.w": torch.ones(i + 1) for i in range(12)}, tmp_path / "m.safetensors")
    ran = run_command("inspect", str(tmp_path / "m.safetensors"))
    numbers = [int(m[1]) for m in re.finditer(r"(\d+)\.w", ran.out)]
    assert numbers == list(range(12))


def test_groups_of_one_pattern_are_told_apart_by_their_numbers():
    items = [(f"l.{i}.w", i in (3, 4, 7), i) for i in range(9)]
    names = [group.key for group in fold_by_pattern(items)]
    assert names == ["l.0-2,5-6,8.w", "l.3-4,7.w"]


def test_groups_that_interleave_are_told_apart_by_a_key():
    items = [(f"l.{i}.{j}", (i + j) % 2, None) for i in range(4) for j in range(4)]
    assert [group.key for group in fold_by_pattern(items)] == [
        "l.0.0 and 7 more",
        "l.0.1 and 7 more",
    ]


_KEYS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c1", "c2", "0", "1", "12"]), min_size=1, max_size=5).map(
        ".".join
    ),
    unique=True,
    max_size=40,
)


@given(_KEYS, st.integers(1, 10))
def test_folding_loses_no_item_and_gives_no_name_twice(keys, max_count):
    groups = fold_by_pattern((key, len(key) % 2, key) for key in keys)
    folded = [group for group, _ in fold_by_subtree(groups, max_count)]
    for result in (groups, folded):
        assert sorted(item for group in result for item in group.items) == sorted(keys)
        names = [group.key for group in result]
        assert len(names) == len(set(names))


@given(
    st.lists(
        st.lists(st.sampled_from(["*", "1", "2", "a*", "a"]), min_size=1, max_size=4).map(".".join),
        unique=True,
        max_size=12,
    )
)
def test_a_literal_star_is_no_layer_number(keys):
    groups = fold_by_pattern((key, len(key) % 2, key) for key in keys)
    assert sorted(key for group in groups for key in group.items) == sorted(keys)
    for group in groups:
        assert len(group.items) == 1 or not any("*" in key for key in group.items)


def test_numbers_that_all_keys_of_a_group_have_stay_in_its_name():
    keys = [f"blocks.{block}.mlp.{layer}.bias" for block in range(3) for layer in (0, 2)]
    groups = fold_by_pattern((key, key.split(".")[3], key) for key in keys)
    assert [group.key for group in groups] == ["blocks.*.mlp.0.bias", "blocks.*.mlp.2.bias"]
