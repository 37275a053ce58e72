"""Values of tensors in files: equal, fingerprints and elements, against torch on the same files."""

import os
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from safetensors.torch import save_file
from values.written_tensors import big_endian, chunked, described, layered, tensor_bytes

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats import open_checkpoint
from ckptool.model import Span, StorageInfo, TensorInfo
from ckptool.values import elements, equality, fingerprint, strides
from ckptool.values.batches import work_batches
from ckptool.values.elements import unreadable_reason
from ckptool.values.fingerprint_many import fingerprint_many, fingerprint_tensor


def read_elements(tensor: TensorInfo) -> bytes:
    assert unreadable_reason(tensor) == ""
    return b"".join(elements.iter_elements(tensor))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Bounds so small that small tensors meet them."""
    monkeypatch.setattr(elements, "CHUNK", 64)
    monkeypatch.setattr(equality, "TASK_NBYTES", 256)
    monkeypatch.setattr(work_batches, "TASK_NBYTES", 256)
    monkeypatch.setattr(fingerprint, "PIECE", 128)
    monkeypatch.setattr(elements, "_MAX_OPEN_FILES", 2)
    monkeypatch.setattr(strides, "REGION", 256)
    monkeypatch.setattr(strides, "_GAP_NBYTES", 128)
    monkeypatch.setattr(strides, "_OUTPUT_NBYTES", 32)


DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64,
    torch.complex128, torch.float8_e4m3fn,
]  # fmt: skip


@st.composite
def views(draw) -> torch.Tensor:
    """Draw any view: sliced, transposed, expanded, overlapping."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.lists(st.integers(0, 5), max_size=3))
    steps = draw(st.lists(st.integers(0, 40), min_size=len(sizes), max_size=len(sizes)))
    start = draw(st.integers(0, 9))
    last = start + sum(max(size - 1, 0) * step for size, step in zip(sizes, steps, strict=True))
    data = torch.arange((last + 1) * dtype.itemsize, dtype=torch.int32).mul(37).to(torch.uint8)
    if dtype is torch.bool:
        data = data & 1
    return data.view(dtype).as_strided(sizes, steps, start)


@given(views(), st.booleans())
def test_elements_are_what_torch_has(tmp_path_factory, tensor, big):
    path = tmp_path_factory.mktemp("views") / "data"
    info = big_endian(path, tensor) if big else described(path, tensor)
    assert read_elements(info) == tensor_bytes(tensor)
    expected = fingerprint.fingerprint_chunks(info.dtype, info.shape, [tensor_bytes(tensor)])
    assert fingerprint_tensor(info) == expected


@given(views(), views(), st.data())
def test_equal_is_what_torch_says(tmp_path_factory, a, b, data):
    if data.draw(st.booleans()):
        b = torch.empty(a.shape, dtype=a.dtype).copy_(a)
        if b.numel() and data.draw(st.booleans()):
            flat = b.view(-1).view(torch.uint8)
            flat[data.draw(st.integers(0, flat.numel() - 1))] ^= 1
    folder = tmp_path_factory.mktemp("pairs")
    one, other = described(folder / "a", a), described(folder / "b", b)
    same = a.dtype == b.dtype and a.shape == b.shape and tensor_bytes(a) == tensor_bytes(b)
    assert equality.are_equal(one, other) is same
    assert equality.are_equal(other, one) is same
    assert (fingerprint_tensor(one) == fingerprint_tensor(other)) is same


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 4))
def test_many_are_what_each_is(tmp_path_factory, changes, jobs):
    """Large tensors are cut among threads; verdicts come in order whatever the threads do."""
    folder = tmp_path_factory.mktemp("many")
    pairs = []
    for n, change in enumerate(changes):
        a = torch.arange(n * 20, dtype=torch.float32)
        b = a.clone()
        if change == 1 and n:
            b[-1] += 1
        if change == 2:
            b = b.double()
        pairs.append(
            (described(folder / f"a{n % 5}", a, n << 12), described(folder / "b", b, n << 12))
        )
        if change == 3 and n:
            pairs[-1] = (pairs[-1][0], replace(pairs[-1][1], storage=StorageInfo("zip", 80 * n)))
    told = equality.equal_many(pairs, jobs)
    assert told == [equality.are_equal(a, b) for a, b in pairs]
    assert told == [_expected(n, change) for n, change in enumerate(changes)]
    prints = fingerprint_many([b for _, b in pairs], jobs)
    assert prints == [fingerprint_tensor(b) for _, b in pairs]


def _expected(n: int, change: int) -> bool | None:
    if change == 2:
        return False
    return {0: True, 1: n == 0, 3: True if n == 0 else None}[change]


def test_no_pairs():
    assert equality.equal_many([]) == []
    assert fingerprint_many([]) == []


def test_nan_is_equal_to_itself_bit_by_bit(tmp_path):
    nan = torch.tensor([float("nan")])
    assert equality.are_equal(
        described(tmp_path / "a", nan), described(tmp_path / "b", nan.clone())
    )
    minus = described(tmp_path / "c", torch.tensor([-0.0]))
    assert equality.are_equal(minus, described(tmp_path / "d", torch.tensor([0.0]))) is False


def test_transposed_on_both_sides_is_one_run(tmp_path, monkeypatch):
    """What has the same order in both files is compared as it lies, whatever its size."""
    monkeypatch.setattr(elements, "_MAX_GATHERED_ELEMENTS", 0)
    tensor = torch.arange(100.0).view(10, 10).T
    one, other = described(tmp_path / "a", tensor), described(tmp_path / "b", tensor.clone().T.T)
    assert not one.is_contiguous
    assert equality.are_equal(one, other) is True
    path = described(tmp_path / "c", tensor.T.contiguous())
    assert equality.are_equal(one, path) is False


OBSTACLES = {
    "compressed": (
        {"storage": StorageInfo("0", 400)},
        "its bytes are compressed, or not in a file",
    ),
    "no storage": ({"storage": None}, "its bytes are compressed, or not in a file"),
    "dtype": ({"dtype": "float128"}, "torch has no dtype float128"),
    "layout": ({"layout": "mkldnn"}, "laid out as mkldnn"),
    "large view": ({"shape": (2**40,), "stride": (0,)}, "that are not contiguous"),
    "packed": (
        {"shape": (4, 2), "stride": (4, 1), "dtype": "float4_e2m1fn"},
        "its elements are bit-packed",
    ),
}


@pytest.mark.parametrize(("fields", "reason"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_obstacles(tmp_path, fields, reason):
    whole = described(tmp_path / "a", torch.arange(100.0))
    hard = replace(whole, **fields)
    assert reason in unreadable_reason(hard)
    assert fingerprint_tensor(hard) is None
    assert equality.are_equal(hard, replace(hard, storage_offset=1)) is None


def test_packed_floats(tmp_path):
    """Two to a byte: as a run they can be read, from the middle of a byte they cannot."""
    (tmp_path / "a").write_bytes(bytes(range(8)))
    storage = StorageInfo("a", 8, span=Span(tmp_path / "a", 0, 8))
    packed = TensorInfo("a", (6,), "float4_e2m1fn", (1,), 2, storage)
    assert read_elements(packed) == bytes([1, 2, 3])
    assert unreadable_reason(replace(packed, storage_offset=1)) == "its elements are bit-packed"


def test_big_endian_on_both_sides(tmp_path):
    tensor = torch.arange(100.0)
    one, other = big_endian(tmp_path / "a", tensor), big_endian(tmp_path / "b", tensor)
    assert equality.are_equal(one, other) is True
    assert equality.are_equal(one, described(tmp_path / "c", tensor)) is True
    assert (
        equality.are_equal(one, replace(other, storage=replace(other.storage, byteorder="little")))
        is False
    )


# Chunks, as DCP has them.


@st.composite
def cut_tensors(draw) -> tuple[torch.Tensor, list[list[int]]]:
    shape = draw(st.lists(st.integers(1, 6), max_size=3))
    cuts = [sorted({0, *draw(st.lists(st.integers(0, n - 1), max_size=2))}) for n in shape]
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape), cuts


@given(cut_tensors())
def test_chunks_are_put_together(tmp_path_factory, case):
    tensor, cuts = case
    folder = tmp_path_factory.mktemp("chunks")
    info = chunked(folder, tensor, cuts)
    assert read_elements(info) == tensor_bytes(tensor)
    whole = described(folder / "whole", tensor)
    assert equality.are_equal(info, whole) is True
    assert fingerprint_tensor(info) == fingerprint_tensor(whole)
    if tensor.numel() > 1:
        assert equality.are_equal(info, described(folder / "other", tensor.clone().flip(0))) is (
            tensor.shape[0] == 1
        )


def test_chunks_that_leave_a_hole(tmp_path):
    info = chunked(tmp_path, torch.arange(12.0).view(4, 3), [[0, 2], [0]])
    torn = replace(info, parts=info.parts[:1])
    assert unreadable_reason(torn) == "its chunks do not tile it row by row"
    assert equality.are_equal(info, torn) is None


# Layouts of several tensors: sparse, quantised.


def test_layers(tmp_path):
    indices, ones = torch.tensor([[0, 2]]), torch.ones(2)
    sparse = layered(tmp_path / "a", indices=indices, values=ones)
    assert equality.are_equal(sparse, layered(tmp_path / "b", indices=indices, values=ones)) is True
    assert (
        equality.are_equal(sparse, layered(tmp_path / "c", indices=indices, values=-ones)) is False
    )
    other = layered(tmp_path / "d", "sparse_csr", indices=indices, values=ones)
    assert equality.are_equal(sparse, other) is None
    assert equality.are_equal(sparse, described(tmp_path / "dense", torch.ones(4))) is None
    assert read_elements(sparse) == tensor_bytes(indices) + tensor_bytes(ones)
    assert fingerprint_tensor(sparse) != fingerprint_tensor(
        layered(tmp_path / "e", values=ones, indices=indices)
    )


# Files that change.


def test_file_that_shrank(tmp_path):
    one, other = (described(tmp_path / name, torch.arange(1000.0)) for name in "ab")
    os.truncate(tmp_path / "b", 3999)
    with pytest.raises(CorruptCheckpointError, match=r"b: .*has 3999"):
        equality.equal_many([(one, other)])
    with pytest.raises(CorruptCheckpointError, match=r"b: .*has 3999"):
        fingerprint_tensor(other)


def test_file_that_went_away(tmp_path):
    info = described(tmp_path / "a", torch.ones(4))
    (tmp_path / "a").unlink()
    with pytest.raises(ReadError, match="no such file"):
        fingerprint_tensor(info)


def test_same_place_is_not_read(tmp_path):
    info = described(tmp_path / "a", torch.ones(4))
    (tmp_path / "a").unlink()
    assert equality.are_equal(info, info) is True


def test_many_files_with_few_open(tmp_path):
    """However many shards there are, a thread holds a few files open."""
    held = {f"t{n}": torch.full((3,), float(n)) for n in range(20)}
    for name, tensor in held.items():
        save_file({"t": tensor}, tmp_path / name)
    from ckptool.formats import open_checkpoint

    infos = [open_checkpoint(tmp_path / name).states[0].tensors["t"] for name in held]
    assert [read_elements(info) for info in infos] == list(map(tensor_bytes, held.values()))
    assert equality.equal_many(pairwise(infos), jobs=2) == [False] * 19


PIECE = st.binary(min_size=1, max_size=6)


@given(st.lists(st.tuples(PIECE, PIECE, st.booleans()), min_size=2, max_size=9), st.data())
def test_spans_laid_out_alike_are_equal_as_each_is(tmp_path_factory, pieces, data):
    """(bytes of a tensor, bytes before it, whether they are the same in the other file)."""
    folder = tmp_path_factory.mktemp("stretches")
    contents, tensors = [bytearray(), bytearray(b"ab")], [[], []]
    for value, gap, is_gap_equal in pieces:
        changed = data.draw(st.sampled_from([value, bytes(len(value)), value[:-1] + b"\x07"]))
        shorter = gap if is_gap_equal else gap[: data.draw(st.integers(0, len(gap)))]
        for content, found, before, own in zip(
            contents, tensors, (gap, shorter), (value, changed), strict=True
        ):
            content.extend(before)
            found.append((len(content), own))
            content.extend(own)
    for name, content in zip("ab", contents, strict=True):
        (folder / name).write_bytes(content)
    infos = [
        [
            TensorInfo(
                "x", (len(own),), "uint8", (1,), 0,
                StorageInfo("0", len(own), span=Span(folder / name, offset, len(own))),
            )
            for offset, own in found
        ]
        for name, found in zip("ab", tensors, strict=True)
    ]  # fmt: skip
    pairs = list(zip(*infos, strict=True))
    if data.draw(st.booleans()):
        pairs.reverse()
    expected = {info.storage.span: own for name in (0, 1) for info, (_, own) in zip(
        infos[name], tensors[name], strict=True)}  # fmt: skip
    assert equality.equal_many(pairs) == [
        expected[a.storage.span] == expected[b.storage.span] for a, b in pairs
    ]


def test_stretches_of_small_tensors_are_read_once(tmp_path, monkeypatch):
    """Of small tensors side by side in both files, none is read by itself."""
    monkeypatch.setattr(elements, "CHUNK", 1 << 20)
    state = {f"layers.{n}.weight": torch.full((4,), float(n)) for n in range(50)}
    save_file(state, tmp_path / "old.safetensors")
    state["layers.7.weight"][2] += 1
    torch.save(state, tmp_path / "a long stem in every record.pth")
    old, new = (
        open_checkpoint(path).states[0].tensors for path in sorted(tmp_path.iterdir())[::-1]
    )
    monkeypatch.setattr(work_batches, "TASK_NBYTES", 1 << 20)
    monkeypatch.setattr(equality, "_run_comparison", None)
    equal = equality.equal_many((old[key], new[key]) for key in old)
    assert equal == [key != "layers.7.weight" for key in old]
