"""Small pieces of files, read and written together, are what reading and writing each one gives."""

import os
import random
from pathlib import Path

import pytest

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.read_window import SpanReader
from ckptool.formats.files.source import SourceCache
from ckptool.formats.files.writer import Blob, FileWriter, blob_from_bytes
from ckptool.formats.pickle.nodes import GlobalName, PersistentReference, PickleTreeError
from ckptool.formats.pickle.storage_ids import StorageIdReader
from ckptool.model import Span

SIZES = (0, 1, 16, 1000, 16_383, 16_384, 70_000, 1 << 20)


def make_files(folder: Path, rng: random.Random, count: int) -> dict[Path, bytes]:
    contents = {folder / f"{n}.bin": rng.randbytes(3 << 20) for n in range(count)}
    for path, content in contents.items():
        path.write_bytes(content)
    return contents


def choose_spans(rng: random.Random, contents: dict[Path, bytes], count: int) -> list[Span]:
    spans, offset = [], 0
    for _ in range(count):
        path = rng.choice(list(contents))
        nbytes = rng.choice(SIZES)
        # Mostly forward and near, as in a file of many tensors; else anywhere.
        is_near = rng.random() < 0.7 and offset + nbytes <= len(contents[path])
        offset = offset if is_near else rng.randrange(len(contents[path]) - nbytes + 1)
        spans.append(Span(path, offset, nbytes))
        offset += nbytes + rng.choice((0, 0, 64))
    return spans


@pytest.mark.parametrize(("files", "open_files"), [(1, 16), (2, 16), (7, 16), (3, 1), (6, 2)])
def test_spans_are_read_as_they_are(tmp_path, files, open_files):
    rng = random.Random(files * 100 + open_files)
    contents = make_files(tmp_path, rng, files)
    spans = choose_spans(rng, contents, 400)
    sources = SourceCache(open_files)
    try:
        reader = SpanReader(sources)
        for span in spans:
            expected = contents[span.path][span.offset : span.offset + span.nbytes]
            assert reader.read_span(span) == expected
    finally:
        sources.close()


def test_a_span_behind_the_end_is_refused(tmp_path):
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(100))
    sources = SourceCache(2)
    try:
        reader = SpanReader(sources)
        assert reader.read_span(Span(path, 90, 10)) == bytes(10)
        with pytest.raises(CorruptCheckpointError, match="truncated or damaged"):
            reader.read_span(Span(path, 95, 10))
    finally:
        sources.close()


@pytest.mark.parametrize("seed", range(4))
def test_blobs_are_written_in_their_order(tmp_path, seed):
    rng = random.Random(seed)
    contents = make_files(tmp_path, rng, 2)
    blobs, expected, reported = [], b"head", []
    for span in choose_spans(rng, contents, 200):
        content = contents[span.path][span.offset : span.offset + span.nbytes]
        expected += content
        is_copied = rng.random() < 0.8
        blobs.append(Blob(span.nbytes, span) if is_copied else blob_from_bytes(content))
    target = tmp_path / "target"
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT)
    try:
        with FileWriter(target, descriptor, reported.append) as sink:
            sink.write(b"head")
            sink.append_blobs(blobs)
            assert sink.position == len(expected)
    finally:
        os.close(descriptor)
    assert target.read_bytes() == expected
    assert sum(reported) == len(expected)


FLOATS = GlobalName("torch", "FloatStorage")


@pytest.mark.parametrize(
    "storage_id",
    [
        ("storage", FLOATS, "1", "cpu", True),
        ("storage", FLOATS, "1", "cpu", 1.0),
        ("storage", FLOATS, "", "cpu", 1),
        ("storage", FLOATS, 1, "cpu", 1),
        ("module", FLOATS, "1", "cpu", 1),
        ("storage", FLOATS, "1", ["cpu"], 1),
        ("storage", "FloatStorage", "1", "cpu", 1),
        ("storage", FLOATS, "1", "cpu", 1, None),
        ("storage", FLOATS, "1", "cpu"),
        "storage",
    ],
)
def test_an_id_like_one_that_was_read_is_refused_as_if_it_were_alone(storage_id):
    ids = StorageIdReader()
    first = ids.read_alike(PersistentReference(("storage", FLOATS, "0", "cpu", 1)))
    assert (first.dtype, first.numel, first.location) == ("float32", 1, "cpu")
    for reader in (ids, StorageIdReader()):
        with pytest.raises(PickleTreeError):
            reader.read_alike(PersistentReference(storage_id))
    other = ids.read_alike(PersistentReference(("storage", FLOATS, "0", "cpu", 2)))
    assert other.nbytes == 8
