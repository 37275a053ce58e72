"""The safetensors reader against its rules one by one, and against the safetensors library."""

import json
import re
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from containers import entry, safetensors_bytes
from hypothesis import given
from hypothesis import strategies as st
from migration.states import DTYPES
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.formats.safetensors import reader
from ckptool.formats.safetensors.reader import TORCH_DTYPES
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    Span,
    StateDict,
    StorageInfo,
    TensorInfo,
)

A = entry()
JSON_A = json.dumps({"a": A})
EMPTY = entry(shape=[0], data_offsets=[0, 0])


def overlong(text: str) -> bytes:
    """Return JSON text with its slash written in two bytes, as UTF-8 forbids."""
    return text.encode().replace(b"/", b"\xc0\xaf")


REFUSED = {
    "S-LEN seven bytes": (b"\x08\0\0\0\0\0\0", "not a known checkpoint|only zeros|text"),
    "S-LEN past the file": (safetensors_bytes({"a": A}, b"", length=999), "truncated"),
    "S-LEN 2^63-1": (safetensors_bytes({"a": A}, length=2**63 - 1), "header has 9223372036"),
    "S-LEN zero": (safetensors_bytes({"a": A}, length=0), "does not begin with a brace"),
    "S-JSON text": (
        safetensors_bytes("hello there, this is text", b""),
        "is not a known checkpoint format; it begins with the bytes",
    ),
    "S-JSON array": (
        safetensors_bytes("[]      ", b""),
        "is not a known checkpoint format; it begins with the bytes",
    ),
    "S-JSON truncated": (safetensors_bytes('{"a": {"dtype": "F32"'), "not valid JSON"),
    "S-JSON two objects": (safetensors_bytes(JSON_A + "{}"), "follows the header's JSON"),
    "S-JSON NaN": (safetensors_bytes('{"a": {"dtype": "F32", "shape": [NaN]}}'), "NaN"),
    "S-JSON Infinity": (safetensors_bytes('{"a": {"x": -Infinity}}'), "-Infinity"),
    "S-JSON control character": (safetensors_bytes('{"\x01": 1}'), "control character"),
    "S-JSON entry is a list": (safetensors_bytes({"a": ["F32", [4], [0, 16]]}), "is a list"),
    "S-UTF8 0xFF": (safetensors_bytes(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "S-UTF8 overlong": (safetensors_bytes(overlong('{"a/b": 1}')), "not UTF-8 at byte 3"),
    "S-UTF8 surrogate": (safetensors_bytes(r'{"\ud800": {}}'), "surrogate"),
    "S-UTF8 surrogate value": (safetensors_bytes(r'{"a": {"x": "\uDC00"}}'), "surrogate"),
    "S-LEAD byte-order mark": (safetensors_bytes("\ufeff" + json.dumps({"a": A})), "brace"),
    "S-LEAD space": (safetensors_bytes(" " + json.dumps({"a": A})), "brace"),
    "S-PAD NUL": (safetensors_bytes(json.dumps({"a": A}) + "\0"), "follows the header's JSON"),
    "S-PAD newline": (safetensors_bytes(json.dumps({"a": A}) + "\n"), "follows the header's JSON"),
    "S-DUP name": (safetensors_bytes(f"{JSON_A[:-1]}, {JSON_A[1:]}"), "'a' appears twice"),
    "S-DUP name, escaped": (
        safetensors_bytes(f"{JSON_A[:-1]}, {JSON_A[1:]}".replace('"a"', r'"\u0061"', 1)),
        "'a' appears twice",
    ),
    "S-DUP field": (safetensors_bytes('{"a": {"dtype": 1, "dtype": 2}}'), "'dtype' appears twice"),
    "S-DUP metadata": (safetensors_bytes('{"__metadata__": {"k": "", "k": ""}}'), "'k' appears"),
    "S-OFF overlap": (safetensors_bytes({"a": A, "b": A}), "'a' and 'b' share bytes"),
    "S-OFF overlap in part": (
        safetensors_bytes({"a": A, "b": entry(data_offsets=[8, 24])}, bytes(24)),
        "'a' and 'b' share bytes",
    ),
    "S-OFF hole": (
        safetensors_bytes({"a": A, "b": entry(data_offsets=[20, 36])}, bytes(36)),
        "4 bytes before tensor 'b'",
    ),
    "S-OFF hole at the front": (
        safetensors_bytes({"a": entry(data_offsets=[4, 20])}, bytes(20)),
        "4 bytes before tensor 'a'",
    ),
    "S-OFF bytes after": (safetensors_bytes({"a": A}, bytes(17)), "1 bytes after the last"),
    "S-OFF bytes and no tensor": (safetensors_bytes("{}", b"x"), "1 bytes after the last"),
    "S-OFF one byte short": (safetensors_bytes({"a": A}, bytes(15)), "truncated"),
    "S-OFF end before begin": (safetensors_bytes({"a": entry(data_offsets=[16, 0])}), "16, 0"),
    "S-OFFTYPE strings": (safetensors_bytes({"a": entry(data_offsets=["0", "16"])}), "'0', '16'"),
    "S-OFFTYPE floats": (safetensors_bytes({"a": entry(data_offsets=[0.0, 16.0])}), "0.0, 16.0"),
    "S-OFFTYPE booleans": (
        safetensors_bytes({"a": entry(dtype="U8", shape=[1], data_offsets=[False, True])}, b"x"),
        "true or false",
    ),
    "S-OFFTYPE negative": (safetensors_bytes({"a": entry(data_offsets=[-16, 0])}), "-16, 0"),
    "S-OFFTYPE one": (safetensors_bytes({"a": entry(data_offsets=[0])}), "not a begin and an end"),
    "S-OFFTYPE missing": (safetensors_bytes({"a": {"dtype": "F32", "shape": []}}), "data_offsets"),
    "S-SHAPE mismatch": (safetensors_bytes({"a": entry(shape=[5])}), "takes 20 bytes but has 16"),
    "S-SHAPE overflow": (safetensors_bytes({"a": entry(shape=[2**33, 2**33])}), "takes"),
    "S-SHAPE overflow to fit": (safetensors_bytes({"a": entry(shape=[2**62 + 1, 4])}), "takes"),
    "S-SHAPE overflow to nothing": (
        safetensors_bytes({"a": entry(shape=[2**62, 4, 0], data_offsets=[0, 0])}, b""),
        "overflows",
    ),
    "S-SHAPE negative": (safetensors_bytes({"a": entry(shape=[-4])}), r"its shape is \[-4\]"),
    "S-SHAPE negative pair": (safetensors_bytes({"a": entry(shape=[-2, -2])}), "its shape is"),
    "S-SHAPE string": (safetensors_bytes({"a": entry(shape="4")}), "its shape is '4'"),
    "S-SHAPE null": (safetensors_bytes({"a": entry(shape=None)}), "its shape is null"),
    "S-SHAPE missing": (safetensors_bytes({"a": {"dtype": "F32"}}), "it has no shape"),
    "S-SHAPE rank": (safetensors_bytes({"a": entry(shape=[1] * 65 + [4])}), "66 dimensions"),
    "S-DTYPE unknown": (safetensors_bytes({"a": entry(dtype="F33")}), "its dtype is 'F33'"),
    "S-DTYPE lower case": (safetensors_bytes({"a": entry(dtype="f32")}), "its dtype is 'f32'"),
    "S-DTYPE number": (safetensors_bytes({"a": entry(dtype=7)}), "its dtype is 7"),
    "S-DTYPE list": (safetensors_bytes({"a": entry(dtype=["F32"])}), "its dtype is a list"),
    "S-DTYPE wrong size": (safetensors_bytes({"a": entry(dtype="F64")}), "takes 32 bytes"),
    "S-DTYPE half a byte": (
        safetensors_bytes({"a": entry(dtype="F4", shape=[3], data_offsets=[0, 2])}, b"ab"),
        "takes 12 bits",
    ),
    "S-META number": (safetensors_bytes({"__metadata__": {"k": 1}}, b""), "a number under 'k'"),
    "S-META map": (safetensors_bytes({"__metadata__": {"k": {}}}, b""), "an object under 'k'"),
    "S-META list": (safetensors_bytes({"__metadata__": []}, b""), "__metadata__ is a list"),
    "S-META null": (safetensors_bytes({"__metadata__": None}, b""), "__metadata__ is null"),
    "S-DEPTH arrays": (
        safetensors_bytes('{"a": {"shape": ' + "[" * 100_000 + "]" * 100_000 + "}}"),
        "deeper than 128",
    ),
    "S-DEPTH mixed": (
        safetensors_bytes('{"a": ' + '[{"b": ' * 65 + "1" + "}]" * 65 + "}"),
        "deeper than 128",
    ),
    "S-BIGNUM": (safetensors_bytes({"a": {"shape": [0]}}).replace(b"[0]", b"[9" * 1), "not valid"),
    "S-BIGNUM digits": (
        safetensors_bytes('{"a": {"shape": [' + "9" * 100_000 + "]}}"),
        "a number has 100000 digits",
    ),
    "S-BIGNUM past 2^63": (safetensors_bytes({"a": entry(shape=[2**63, 0])}), "its shape is"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(Exception, match=reason) as caught:
        open_checkpoint(path)
    assert type(caught.value).__name__ in {"CorruptCheckpointError", "UnknownFormatError"}
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 400


def test_header_over_the_limit(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_009)
    with pytest.raises(CorruptCheckpointError, match="claims 100000001 bytes"):
        open_checkpoint(path)


ACCEPTED = {
    "S-PAD spaces": (safetensors_bytes(json.dumps({"a": A}) + " " * 64), ["a"]),
    "S-META empty": (safetensors_bytes({"__metadata__": {}, "a": A}), ["a"]),
    "S-NAME traversal": (safetensors_bytes({"../../../tmp/x": A}), ["../../../tmp/x"]),
    "S-NAME empty": (safetensors_bytes({"": A}), [""]),
    "S-NAME brackets": (safetensors_bytes({'[{"\\[': A}), ['[{"\\[']),
    "S-NAME many brackets": (safetensors_bytes({"[" * 300 + '\\"': A}), ["[" * 300 + '\\"']),
    "S-NAME pair": (
        safetensors_bytes(r'{"\ud83d\ude00": {}}'.replace("{}", json.dumps(A))),
        ["😀"],
    ),
    "S-NAME escape": (safetensors_bytes({"\x1b[31m": A}), ["\x1b[31m"]),
    "S-EXTRA field": (safetensors_bytes({"a": entry(note=[{"x": 1.5}])}), ["a"]),
    "S-OK none": (safetensors_bytes("{}", b""), []),
    "S-OK only metadata": (safetensors_bytes({"__metadata__": {"k": "v"}}, b""), []),
    "S-OK unaligned": (
        safetensors_bytes(
            {
                "b": entry(dtype="U8", shape=[1], data_offsets=[0, 1]),
                "a": entry(data_offsets=[1, 17]),
            },
            bytes(17),
        ),
        ["b", "a"],
    ),
    "S-OK not in the data's order": (
        safetensors_bytes({"b": entry(data_offsets=[16, 32]), "a": A}, bytes(32)),
        ["b", "a"],
    ),
    "S-OK empty tensors": (safetensors_bytes({"b": EMPTY, "a": A, "c": EMPTY}), ["b", "a", "c"]),
    "S-OK no dimension": (
        safetensors_bytes({"a": entry(shape=[], data_offsets=[0, 4])}, b"abcd"),
        ["a"],
    ),
    "S-OK NaN values": (safetensors_bytes({"a": A}, b"\xff" * 16), ["a"]),
}


@pytest.mark.parametrize(("content", "keys"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted(tmp_path, content, keys):
    path = tmp_path / "named.pt"
    path.write_bytes(content)
    checkpoint = open_checkpoint(path)
    assert checkpoint.container is Container.SAFETENSORS
    assert [list(state.tensors) for state in checkpoint.states] == [keys]


@pytest.mark.parametrize("content", [*REFUSED.values(), *ACCEPTED.values()])
def test_usual_entries_are_read_as_any_others(tmp_path, content, monkeypatch):
    """The pattern of the entries that safetensors writes only saves time."""
    path = tmp_path / "named.pt"
    path.write_bytes(content[0] if isinstance(content, tuple) else content)

    def describe() -> object:
        try:
            return open_checkpoint(path)
        except ReadError as error:
            return str(error)

    described = describe()
    monkeypatch.setattr(reader, "_PLAIN_ENTRY_PATTERN", re.compile("(?!)"))
    assert describe() == described


def test_whole_description(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        safetensors_bytes({"__metadata__": {"format": "pt"}, "w": entry(shape=[2, 2])})
    )
    start = path.stat().st_size - 16
    storage = StorageInfo("w", 16, "cpu", Span(path, start, 16))
    assert open_checkpoint(path) == Checkpoint(
        path=path,
        container=Container.SAFETENSORS,
        nbytes=path.stat().st_size,
        states=(StateDict("", {"w": TensorInfo("w", (2, 2), "float32", (2, 1), 0, storage)}),),
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("length", [640, 1152, 67_324_752])
def test_starts_like_a_pickle_or_a_zip(tmp_path, length):
    """FP-MAGIC: as a length, 80 02 and PK 03 04 are as good as any."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(json.dumps({"a": A}).ljust(length)))
    assert path.read_bytes()[:4] in {b"\x80\x02\0\0", b"\x80\x04\0\0", b"PK\x03\x04"}
    assert list(open_checkpoint(path).states[0].tensors) == ["a"]


def test_zip_at_the_end(tmp_path):
    """Z-POLY: torch.load would see the archive that the data ends in."""
    archive = tmp_path / "payload.pt"
    torch.save({"b": torch.ones(2)}, archive)
    data = archive.read_bytes()
    path = tmp_path / "a.pt"
    path.write_bytes(
        safetensors_bytes(
            {"a": entry(dtype="U8", shape=[len(data)], data_offsets=[0, len(data)])}, data
        )
    )
    with pytest.raises(CorruptCheckpointError, match="a zip archive at the same time"):
        open_checkpoint(path)


def test_zip_signature_by_chance(tmp_path):
    path = tmp_path / "a.safetensors"
    data = bytes(40) + b"PK\x05\x06" + bytes(range(20))
    path.write_bytes(safetensors_bytes({"a": entry(shape=[16], data_offsets=[0, 64])}, data))
    assert list(open_checkpoint(path).states[0].tensors) == ["a"]


def test_pickle_in_the_header(tmp_path):
    """A length and a name that are opcodes as well: X swallows the start, the rest is a call."""
    code = "\x8c"  # SHORT_BINUNICODE; its UTF-8 lead byte is the argument of the opcode before it
    module, name = "torch.utils.data.datapipes.utils", "os." + "path.os." * 4 + "system"
    words = "".join(f"K{code}{chr(len(word))}{word}" for word in (module, name))
    text = '{"' + words + "K\x93" + '": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'
    header = text.encode()
    length = int.from_bytes(b"X" + bytes([len('{"') + 3, 0, 0]), "little")
    path = tmp_path / "a.pt"
    path.write_bytes(safetensors_bytes(header.ljust(length), b""))
    with pytest.raises(
        CorruptCheckpointError,
        match="is both a safetensors file and a pickle: loading it as a pickle runs code",
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_length_that_begins_like_a_text_id_is_no_pickle(tmp_path, monkeypatch, weights_only):
    """Random values after the first newline were read as opcodes: some files were refused."""
    monkeypatch.chdir(tmp_path)
    data = b"\ncos\nmkdir\n(S'made'\ntR."
    fields = {"a": entry(dtype="U8", shape=[len(data)], data_offsets=[0, len(data)])}
    path = tmp_path / "a.pt"
    path.write_bytes(safetensors_bytes(json.dumps(fields).ljust(0x150), data))
    assert path.read_bytes()[:1] == b"P"
    with pytest.raises(Exception, match=r"persistent id|Unsupported operand|PERSID"):
        torch.load(path, weights_only=weights_only)
    assert not (tmp_path / "made").exists()
    assert list(open_checkpoint(path).states[0].tensors) == ["a"]


def test_versions_that_ckptool_writes(tmp_path):
    versions = {"": None, "norm": 2}
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path, {"ckptool.versions": json.dumps(versions)})
    assert open_checkpoint(path).states[0].versions == versions


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', '{"a": true}', "{} {}"])
def test_versions_of_a_stranger(tmp_path, text):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path, {"ckptool.versions": text})
    checkpoint = open_checkpoint(path)
    assert checkpoint.states[0].versions is None
    assert [skipped.what for skipped in checkpoint.skipped] == ["module versions"]


def test_limits(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes({"a": A}))
    with pytest.raises(CorruptCheckpointError, match="allows 10"):
        open_checkpoint(path, Limits(header_bytes=10))


@pytest.mark.parametrize("code", TORCH_DTYPES)
def test_dtypes(tmp_path, code):
    """Every name that the library takes is known, and none that it does not take."""
    bits = DTYPE_BITS[TORCH_DTYPES[code]]
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        safetensors_bytes({"a": entry(dtype=code, shape=[8], data_offsets=[0, bits])}, bytes(bits))
    )
    tensor = open_checkpoint(path).states[0].tensors["a"]
    with safe_open(path, "pt") as file:
        assert file.get_slice("a").get_dtype() == code
        try:
            loaded = file.get_tensor("a")
        except (SafetensorError, AttributeError):
            assert code.startswith("F6") or not hasattr(torch, TORCH_DTYPES[code].split("fn")[0])
            return
    assert tensor.dtype == str(loaded.dtype).removeprefix("torch.")
    assert tensor.shape == tuple(loaded.shape)


@st.composite
def tensors(draw) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=nbytes, max_size=nbytes))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)


def written_soundly(saved: tuple[dict, dict | None]) -> bool:
    """Safetensors 0.8.0 writes `{},"__metadata__":{}}` where there is nothing at all."""
    return saved != ({}, {})


@given(
    st.tuples(
        st.dictionaries(names, tensors(), max_size=6),
        st.none() | st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]))),
    ).filter(written_soundly)
)
def test_describes_what_the_library_wrote(tmp_path_factory, saved):
    held, metadata = saved
    path = tmp_path_factory.getbasetemp() / "generated.safetensors"
    save_file(held, path, metadata)
    checkpoint = open_checkpoint(path)
    (state,) = checkpoint.states
    with safe_open(path, "pt") as file:
        assert set(state.tensors) == set(file.keys())
        assert dict(checkpoint.metadata) == (file.metadata() or {})
        for key, tensor in state.tensors.items():
            loaded = file.get_tensor(key)
            assert tensor.dtype == str(loaded.dtype).removeprefix("torch.")
            assert tensor.shape == tuple(loaded.shape)
            assert tensor.stride == loaded.contiguous().stride() or 0 in tensor.shape
            assert _bytes(path, tensor) == loaded.reshape(-1).view(torch.uint8).numpy().tobytes()


def _bytes(path: Path, tensor: TensorInfo) -> bytes:
    content = path.read_bytes()
    return content[tensor.span.offset : tensor.span.offset + tensor.span.nbytes]


@given(st.lists(st.sampled_from([0, 0, 1, 4, 16]), max_size=6), st.randoms())
def test_offsets_cover_the_data(tmp_path_factory, sizes, random):
    """In whatever order the header has them, tensors that tile the data are accepted."""
    cuts = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    entries = [
        (f"t{n}", entry(dtype="U8", shape=[end - begin], data_offsets=[begin, end]))
        for n, (begin, end) in enumerate(pairwise(cuts))
    ]
    random.shuffle(entries)
    path = tmp_path_factory.getbasetemp() / "tiled.safetensors"
    path.write_bytes(safetensors_bytes(dict(entries), bytes(cuts[-1])))
    assert list(open_checkpoint(path).states[0].tensors) == [name for name, _ in entries]
