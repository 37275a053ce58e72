"""Values that are drawn: which elements, what numbers, what shades, from files and from modules."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckptool import api
from ckptool.formats import open_checkpoint
from ckptool.modules import describe_module
from ckptool.reports.pictures import TensorPreview, build_picture_reports
from ckptool.values import preview_grid
from ckptool.values.previews import find_masks, read_preview

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
VALUES = [[0, 1, 1], [0, 0, 1]]


def seen(path, tensors):
    """Return the tensors of a real file, by key."""
    torch.save(tensors, path)
    (state,) = open_checkpoint(path).states
    return state.tensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_torchs(tmp_path, dtype):
    tensor = torch.tensor(VALUES).to(dtype)
    found = read_preview(seen(tmp_path / "a.pth", {"a": tensor})["a"])
    assert [list(row) for row in found.rows] == tensor.tolist()
    assert found.is_complete


def test_float8_has_no_picture(tmp_path):
    tensor = torch.ones(4, 4).to(torch.float8_e4m3fn)
    assert read_preview(seen(tmp_path / "a.pth", {"a": tensor})["a"]) is None


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ((), None),
        ((1, 1), None),
        ((0, 4), None),
        ((7,), (1,)),
        ((6, 6), (1, 1)),
        ((1, 1, 6, 6), (0, 0, 1, 1)),
        ((3, 6, 6), (0, 1, 1)),
        ((6, 1, 6), (1, 0, 1)),
        ((65, 3), (2, 1)),
        ((1024, 1024), (16, 16)),
    ],
)
def test_the_window_is_of_the_last_two_dimensions(shape, steps):
    assert preview_grid.preview_strides(shape) == steps


@pytest.mark.parametrize(
    "shape", [(7,), (1, 1, 6, 6), (3, 6, 5), (6, 1, 6), (65, 3), (200, 130), (2, 3, 70, 4)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_file_and_a_module_show_the_same_elements(tmp_path, shape, turned):
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    tensor = tensor.transpose(0, -1) if turned else tensor
    from_file = read_preview(seen(tmp_path / "a.pth", {"a": tensor})["a"])
    module = nn.Module()
    module.register_buffer("a", tensor)
    from_module = describe_module(module, "it").tensors["a"].preview
    assert from_file == from_module
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1][-2:]
    place = tuple(
        slice(None, None, -(-size // 64)) if axis in wide else 0
        for axis, size in enumerate(tensor.shape)
    )
    shown = tensor[place].reshape(len(from_file.rows), -1)
    assert [list(row) for row in from_file.rows] == shown.tolist()
    assert from_file.is_complete == (shown.numel() == tensor.numel())


def test_an_array_is_shown_and_parameters_and_statistics_are_not():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    module.table = np.array(VALUES, dtype=np.int32)
    module.sparse = torch.eye(3).to_sparse()
    held = describe_module(module, "it").tensors
    assert held["table"].preview.rows == ((0, 1, 1), (0, 0, 1))
    assert held["sparse"].preview is None
    assert held["0.weight"].preview is None
    assert held["1.running_mean"].preview is None


def test_a_module_keeps_a_few_only():
    module = nn.Module()
    for i in range(60):
        module.register_buffer(f"b{i}", torch.eye(3))
        setattr(module, f"a{i}", torch.eye(3))
    held = describe_module(module, "it").tensors.values()
    kept = [one.is_saved for one in held if one.preview is not None]
    assert (kept.count(True), kept.count(False)) == (48, 48)


def test_of_a_file_what_has_few_values_is_a_mask(tmp_path):
    tensors = {
        "ones": torch.ones(8, 8),
        "weight": torch.randn(8, 8),
        "tiny": torch.tensor([[1.0, 2.0]]),
        "mask": torch.tril(torch.ones(8, 8)),
        "large.mask": torch.tril(torch.ones(100, 100)),
        "large.bool": torch.tril(torch.ones(100, 100)).bool(),
        "large.weight": torch.tril(torch.ones(100, 100)),
    }
    found = find_masks(seen(tmp_path / "a.pth", tensors).values(), 9)
    assert [tensor.key for tensor, _ in found] == ["mask", "large.mask", "large.bool"]
    assert [one.is_complete for _, one in found] == [True, False, False]


def drawn(path, *tensors):
    found = seen(path, {str(i): tensor for i, tensor in enumerate(tensors)})
    return build_picture_reports(
        [TensorPreview(t, "file", read_preview(t)) for t in found.values()]
    )


def test_two_sides_have_one_legend(tmp_path):
    one, two = drawn(tmp_path / "a.pth", torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert one.legend == two.legend == ("0", "1", "2")
    assert (one.rows, two.rows) == (((0, 1),), ((0, 2),))


def test_many_values_become_ranges_that_hold_them_all(tmp_path):
    values = torch.linspace(-3, 4, 29)
    (one,) = drawn(tmp_path / "a.pth", values)
    assert (one.finite, len(one.legend)) == (7, 7)
    assert one.legend[0] == "-3 to -2"
    assert one.legend[-1] == "3 to 4"
    (row,) = one.rows
    assert list(row) == sorted(row)
    assert [row.count(place) for place in range(7)] == [4, 4, 4, 4, 4, 4, 5]


def test_what_is_not_finite_comes_after_the_numbers(tmp_path):
    values = torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf])
    (one,) = drawn(tmp_path / "a.pth", values)
    assert one.legend == ("1", "-inf", "inf", "NaN")
    assert (one.finite, one.rows) == (1, ((3, 0, 2, 1),))


def test_nothing_finite_at_all(tmp_path):
    (one,) = drawn(tmp_path / "a.pth", torch.full((2, 2), -torch.inf))
    assert (one.legend, one.finite) == (("-inf",), 0)


def test_the_largest_numbers_do_not_overflow(tmp_path):
    values = torch.tensor([1.7e307 * i for i in range(-10, 11)], dtype=torch.float64)
    (one,) = drawn(tmp_path / "a.pth", values)
    assert max(one.rows[0]) == 6
    assert min(one.rows[0]) == 0


def test_changed_buffers_of_two_files_are_side_by_side(tmp_path):
    save_file({"mask": torch.eye(6)}, tmp_path / "old.safetensors")
    save_file({"mask": torch.eye(6) * 3}, tmp_path / "new.safetensors")
    said = api.diff(tmp_path / "old.safetensors", tmp_path / "new.safetensors", pictures=True)
    assert [(one.key, one.of) for one in said.drawing.pictures] == [
        ("mask", "old"),
        ("mask", "new"),
    ]
    assert {one.legend for one in said.drawing.pictures} == {("0", "1", "3")}
