"""inspect's tree: what it folds, what it draws, and how it fits."""

import re

import pytest
import torch
from safetensors.torch import save_file

from ckptool.folding import fold_by_pattern
from ckptool.render.blocks import COUNT, SIZE, WHY, Column
from ckptool.render.column_widths import fit_columns, measure_column_widths
from ckptool.render.key_tree import build_key_tree

KEYS = [
    "embed.weight",
    *(f"encoder.layers.{n}.{name}" for n in range(3) for name in ("a.weight", "a.bias", "scale")),
    "head.proj.weight",
]


def drawn(keys) -> list[tuple[str, tuple[bool, ...], int]]:
    return [
        (r.name, r.sibling_follows, len(r.items))
        for r in build_key_tree(fold_by_pattern((k, "", k) for k in keys))
    ]


def test_layers_are_folded_and_chains_are_one_row():
    assert drawn(KEYS) == [
        ("embed.weight", (True,), 1),
        ("encoder.layers.*", (True,), 9),
        ("a", (True, True), 6),
        ("weight", (True, True, True), 3),
        ("bias", (True, True, False), 3),
        ("scale", (True, False), 3),
        ("head.proj.weight", (False,), 1),
    ]


def test_a_tensor_may_have_the_name_of_a_module():
    assert drawn(["a", "a.b", "a.c"]) == [
        ("a", (True,), 1),
        ("a", (False,), 2),
        ("b", (False, True), 1),
        ("c", (False, False), 1),
    ]


def test_layers_of_another_shape_have_rows_of_their_own():
    leaves = fold_by_pattern([("l.0.w", 1, "x"), ("l.1.w", 1, "x"), ("l.2.w", 2, "y")])
    rows = [(row.name, len(row.items)) for row in build_key_tree(leaves)]
    assert rows == [("l", 3), ("*.w", 2), ("2.w", 1)]


def test_a_key_of_many_thousand_segments_is_a_row():
    assert [name for name, _, _ in drawn([".".join("a" * 50_000), "b"])][-1] == "b"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rows_fit(width):
    columns = [Column("key"), COUNT, SIZE, WHY]
    rows = [["x" * 90, "12", "1.0 MiB", "word " * 30], ["y", "1", "2 B", "short"]]
    fitted = fit_columns(rows, columns, width)
    lines = [[max(cell.split("\n"), key=len) for cell in row] for row in fitted]
    assert sum(measure_column_widths(lines, columns)) + 6 <= width
    assert fitted[0][3].split() == ["word"] * 30


def test_a_file_without_tensors_has_a_table_all_the_same(run_command, tmp_path):
    save_file({}, tmp_path / "m.safetensors")
    done = run_command("inspect", tmp_path / "m.safetensors", COLUMNS="80")
    assert (done.code, done.err) == (0, "")
    assert "0 tensors, 0 B" in done.out


@pytest.mark.parametrize(("term", "drawing"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_ascii(ckptool, tmp_path, term, drawing):
    torch.save({key: torch.ones(3) for key in KEYS}, tmp_path / "m.pth")
    done = ckptool("inspect", tmp_path / "m.pth", TERM=term, PYTHONIOENCODING="utf-8")
    assert done.code == 0
    assert bool(re.search("[\u2500-\u259f]", done.out)) == drawing
    assert done.out.isascii() != drawing
    assert "encoder.layers.*" in done.out


def test_metadata_of_megabytes_is_cut(run_command, tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors", metadata={"note": "x" * 3_000_000})
    done = run_command("inspect", tmp_path / "m.safetensors")
    assert "xxx... (3,000,000 characters)" in done.out
    assert len(done.out) < 3000
