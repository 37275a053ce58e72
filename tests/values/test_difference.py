"""Figures of tensors that differ, against torch on the whole in float64."""

import math
import sys
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace
from values.written_tensors import big_endian, chunked, described, layered

from ckptool.model import DTYPE_BITS, StorageInfo, TensorInfo
from ckptool.values import difference, elements, number_arrays
from ckptool.values.difference import Tolerances, block_sums, measure_many
from ckptool.values.difference.block_sums import BlockMeasurer
from ckptool.values.difference.sums import DECADE_EDGES, finalize_difference
from ckptool.values.numbers import decode_numbers

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
SMALL = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
COMPLEX = [torch.complex64, torch.complex128, torch.complex32]
EVERY = [*FLOATS, *WHOLE, *UNSIGNED, *SMALL, *COMPLEX]
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-12, 1e3, 0.1]),
    st.floats(-1e4, 1e4, allow_nan=False),
)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def raw(tensor: torch.Tensor) -> bytearray:
    return bytearray(tensor.contiguous().clone().untyped_storage())


def made(numbers: list[float], dtype: torch.dtype) -> torch.Tensor:
    if not (dtype.is_floating_point or dtype.is_complex):
        numbers = [n if math.isfinite(n) else 7.0 for n in numbers]
        whole = torch.tensor([int(abs(n) if n == 7 or n < 0 else n) for n in numbers])
        return (whole % 100).to(torch.int64).to(dtype)
    wide = torch.tensor(numbers, dtype=torch.float64)
    if dtype.is_complex:
        return torch.complex(wide, wide.flip(0)).to(torch.complex128).to(dtype)
    return wide.float().to(dtype) if dtype in SMALL else wide.to(dtype)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return (tensor.float() if tensor.dtype in SMALL else tensor).double()


def measure_blocks(*blocks):
    return BlockMeasurer().measure_blocks(*blocks)


def close(found: float | None, wanted: float | None, slack: float = 1e-7) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return math.isclose(found, wanted, rel_tol=slack, abs_tol=1e-9)


def check(figures: difference.ValueDifference, a: torch.Tensor, b: torch.Tensor) -> None:
    """Hold figures to what torch computes on the whole tensors at once."""
    x, y = wide(a).flatten(), wide(b).flatten()
    if x.is_complex() or y.is_complex():
        x, y = x.to(torch.complex128), y.to(torch.complex128)
    both = x.isfinite() & y.isfinite()
    if a.dtype == b.dtype:
        size = a.dtype.itemsize
        pairs = zip(*(memoryview(raw(t.flatten())).cast("B") for t in (a, b)), strict=True)
        bits = [p != q for p, q in pairs]
        changed = torch.tensor([any(bits[n : n + size]) for n in range(0, len(bits), size)])
    else:
        changed = (x != y) & ~(x.isnan() & y.isnan())
    assert figures.elements == a.numel()
    assert figures.changed == int(changed.sum())
    assert figures.old_nonfinite == int((~x.isfinite()).sum())
    assert figures.new_nonfinite == int((~y.isfinite()).sum())
    p, q, gaps = x[both], y[both], (x[both] - y[both]).abs()
    some = bool(both.any()) and (bool((changed & both).any()) or not changed.any())
    assert close(figures.max_abs, float(gaps.max()) if some else None)
    assert close(figures.mean_abs, float(gaps.mean()) if some else None)
    # By squares, which underflow where a scaled norm does not: so does a sum over blocks.
    norms = [math.sqrt(float((one.abs() ** 2).sum())) for one in (p, q)]
    relative = float(torch.linalg.vector_norm(gaps)) / norms[0] if norms[0] else None
    assert close(figures.relative_l2, relative if some else None)
    units = (
        [t / t.abs().max() for t in (p, q)] if some and all(norms) else []
    )  # squares of 1e-161 are 0
    units = [t / torch.linalg.vector_norm(t) for t in units]
    assert close(figures.cosine, float((units[0].conj() * units[1]).sum().real) if units else None)
    edges = [0.0, *DECADE_EDGES, math.inf]
    seen = (x - y).abs()[changed & both]
    decades = pairwise(edges)
    assert list(figures.histogram) == [int(((seen >= e) & (seen < f)).sum()) for e, f in decades]
    assert sum(figures.histogram) == int((changed & both).sum())


@st.composite
def pairs(draw, dtypes=EVERY) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw two tensors of one shape: many elements alike, some NaN, some of other dtypes."""
    old = draw(st.lists(NUMBERS, min_size=1, max_size=60))
    new = [draw(NUMBERS) if draw(st.booleans()) else n for n in old]
    one = draw(st.sampled_from(dtypes))
    other = one if draw(st.booleans()) else draw(st.sampled_from(dtypes))
    return made(old, one), made(new, other)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(BlockMeasurer, "block_elements", 8)
    monkeypatch.setattr(block_sums, "_MAX_COPIED_SHARE", 1 / 2)
    monkeypatch.setattr(number_arrays, "_DOT_ELEMENTS", 3)
    monkeypatch.setattr(difference, "_TASK_ELEMENTS", 24)


@given(pairs())
def test_figures_of_files_are_what_torch_says_of_the_whole(tmp_path_factory, pair):
    folder = tmp_path_factory.mktemp("pair")
    old, new = (described(folder / n, t) for n, t in zip("ab", pair, strict=True))
    assert difference.unmeasurable_reason(old, new) == ""
    (figures,) = measure_many([(old, new)], Tolerances())
    check(figures, *pair)


@given(pairs(), st.sampled_from([0.0, 1e-3, 1e-1]), st.sampled_from([0.0, 1e-2, 1.0]))
def test_close_is_what_torch_says(tmp_path_factory, pair, rtol, atol):
    folder = tmp_path_factory.mktemp("close")
    infos = [described(folder / n, t) for n, t in zip("ab", pair, strict=True)]
    (figures,) = measure_many([tuple(infos)], Tolerances(rtol, atol))
    new, old = wide(pair[1]), wide(pair[0])
    if new.is_complex() or old.is_complex():
        new, old = new.to(torch.complex128), old.to(torch.complex128)
    if pair[0].dtype == pair[1].dtype and bool((old.isnan() & new.isnan()).any()):
        return  # whether their bits are the same is another test's
    assert figures.close == torch.allclose(new, old, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, *UNSIGNED], ids=name)
def test_numbers_decoded_without_torch_are_the_same(dtype):
    numbers = made([0.0, 1.0, -1.0, 0.1, 1e3, 7.0], dtype)
    decoded = decode_numbers(raw(numbers), name(dtype))
    assert decoded is not None
    assert list(decoded) == numbers.tolist()


@pytest.mark.parametrize("dtype", [*SMALL, *COMPLEX], ids=name)
def test_what_the_struct_module_lacks_is_not_decoded(dtype):
    assert decode_numbers(bytes(DTYPE_BITS[name(dtype)] // 8), name(dtype)) is None


NAN = math.nan


@pytest.mark.parametrize(
    ("old", "new", "changed", "nonfinite"),
    [
        ([1.0, NAN], [1.0, NAN], 0, (1, 1)),
        ([1.0, 2.0], [1.0, NAN], 1, (0, 1)),
        ([1.0, NAN], [1.0, 2.0], 1, (1, 0)),
        ([NAN, NAN], [NAN, 0.0], 1, (2, 1)),
        ([math.inf, 1.0], [-math.inf, 1.0], 1, (1, 1)),
        ([math.inf, 1.0], [math.inf, 2.0], 1, (1, 1)),
    ],
)
def test_nan_counts_and_never_spreads(old, new, changed, nonfinite):
    one, other = (raw(torch.tensor(numbers)) for numbers in (old, new))
    figures = finalize_difference(
        [measure_blocks(one, other, "float32", "float32", Tolerances())], dtypes_differ=False
    )
    assert (figures.changed, (figures.old_nonfinite, figures.new_nonfinite)) == (changed, nonfinite)
    for figure in (figures.max_abs, figures.mean_abs, figures.relative_l2, figures.cosine):
        assert figure is None or math.isfinite(figure)


def test_what_float64_cannot_hold_has_no_figure():
    one, other = (raw(torch.tensor([n], dtype=torch.float64)) for n in (1.7e308, -1.7e308))
    figures = finalize_difference(
        [measure_blocks(one, other, "float64", "float64", Tolerances())], dtypes_differ=False
    )
    assert (figures.changed, figures.max_abs, figures.relative_l2) == (1, None, None)
    assert figures.histogram[-1] == 1


@pytest.mark.parametrize(("coarse", "same"), list(product([*FLOATS[1:], *SMALL], [True, False])))
def test_rounding_is_told_from_change(tmp_path, coarse, same):
    old = torch.linspace(-2, 2, 50)
    new = old.to(coarse)
    if not same:
        new = torch.cat([new[:-1].float(), torch.tensor([0.5])]).to(coarse)
    for way, pair in enumerate([(old.double(), new), (new, old.double())]):
        infos = tuple(described(tmp_path / f"{way}{n}", t) for n, t in zip("ab", pair, strict=True))
        (figures,) = measure_many([infos], Tolerances())
        assert figures.rounding is same
        check(figures, *pair)


def test_whole_numbers_are_not_rounded(tmp_path):
    old, new = (
        described(tmp_path / "a", torch.ones(3)),
        described(tmp_path / "b", torch.ones(3).int()),
    )
    (figures,) = measure_many([(old, new)], Tolerances())
    assert (figures.changed, figures.rounding, figures.close) == (0, False, True)


def test_however_it_lies(tmp_path):
    """Big-endian, transposed, chunked: the elements count, not where they are."""
    old = torch.arange(12.0).view(4, 3)
    new = old + torch.eye(4, 3)
    forms = {
        "plain": described(tmp_path / "plain", new),
        "big": big_endian(tmp_path / "big", new),
        "transposed": described(tmp_path / "turned", new.T.contiguous().T),
        "chunks": chunked(tmp_path, new, [[0, 3], [0, 2]]),
        "slice": described(tmp_path / "slice", torch.cat([new, new], 1)[:, :3]),
    }
    before = described(tmp_path / "old", old)
    found = measure_many([(before, form) for form in forms.values()], Tolerances())
    for figures in found:
        check(figures, old, new)
    assert len(set(found)) == 1
    turned = [described(tmp_path / f"t{n}", t.T.contiguous().T) for n, t in enumerate((old, new))]
    assert measure_many([tuple(turned)], Tolerances()) == found[:1]


def test_what_cannot_be_measured_says_why(tmp_path):
    plain_ = described(tmp_path / "a", torch.ones(4))
    packed = replace(plain_, dtype="quint4x2")
    gone = replace(plain_, storage=StorageInfo("0", 16))
    sparse = layered(tmp_path / "s", indices=torch.tensor([[0]]), values=torch.ones(1))
    assert "packed or quantised" in difference.unmeasurable_reason(plain_, packed)
    assert "compressed" in difference.unmeasurable_reason(gone, plain_)
    assert "sparse_coo" in difference.unmeasurable_reason(plain_, sparse)
    assert "shapes" in difference.unmeasurable_reason(plain_, replace(plain_, shape=(2, 2)))


def test_an_empty_tensor(tmp_path):
    infos = (
        described(tmp_path / "a", torch.ones(0)),
        described(tmp_path / "b", torch.ones(0).half()),
    )
    (figures,) = measure_many([infos], Tolerances())
    assert (figures.elements, figures.changed, figures.max_abs, figures.close) == (0, 0, None, True)


def test_large_integers_are_compared_exactly(tmp_path):
    """float64, in which distances are computed, has no room for them."""
    old = torch.tensor([2**60, 2**60, 5])
    new = torch.tensor([2**60 + 1, 2**60, 5])
    infos = described(tmp_path / "a", old), described(tmp_path / "b", new)
    (figures,) = measure_many([infos], Tolerances())
    assert (figures.changed, figures.max_abs, figures.histogram[0]) == (1, 0.0, 1)


class ReadsAndLines(Struct):
    """What a measurement reads, and how many lines of Python it runs for blocks."""

    nbytes: int = 0
    lines: int = 0


def count_work(monkeypatch, pair: tuple[TensorInfo, TensorInfo]) -> ReadsAndLines:
    work = ReadsAndLines()
    fill_buffer = elements.OpenFiles._fill_buffer

    def count_bytes(files, span, buffer_index):
        work.nbytes += span.nbytes
        return fill_buffer(files, span, buffer_index)

    def count_lines(frame, event, arg):
        if frame.f_code.co_filename not in {block_sums.__file__, number_arrays.__file__}:
            return None
        work.lines += event == "line"
        return count_lines

    monkeypatch.setattr(elements.OpenFiles, "_fill_buffer", count_bytes)
    tracer = sys.gettrace()
    sys.settrace(count_lines)
    try:
        measure_many([pair], Tolerances())
    finally:
        sys.settrace(tracer)
    return work


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=name)
def test_each_byte_is_read_once_and_blocks_take_few_lines(tmp_path, monkeypatch, dtype):
    """A pass over blocks, whatever their size: what grows with the elements is inside numpy."""
    old = (torch.arange(64) * 3).to(dtype)
    pair = described(tmp_path / "a", old), described(tmp_path / "b", old + 1)
    monkeypatch.setattr(difference, "_TASK_ELEMENTS", 64)
    monkeypatch.setattr(number_arrays, "_DOT_ELEMENTS", 64)
    lines_by_block = {}
    for block_elements in (8, 32):
        monkeypatch.setattr(BlockMeasurer, "block_elements", block_elements)
        work = count_work(monkeypatch, pair)
        assert work.nbytes == 2 * old.nbytes
        lines_by_block[block_elements] = work.lines * block_elements / 64
    assert 0 < max(lines_by_block.values()) < 250
    assert lines_by_block[8] == pytest.approx(lines_by_block[32], rel=0.2)
