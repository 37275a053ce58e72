"""What a path may be: any checkpoint, something else with a way out, or nothing that is read."""

import gzip
import io
import json
import os
import socket
import stat
from pathlib import Path

import pytest
import torch
from containers import entry, index_json, safetensors_bytes, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from ckptool.errors import ReadError, UnknownFormatError
from ckptool.formats import STDIN, open_checkpoint, open_stream
from ckptool.formats.files.source import SourceCache
from ckptool.formats.limits import Limits
from ckptool.formats.unrecognized import HEAD_BYTES, describe_unknown_file, identify_other_format
from ckptool.model import Container
from ckptool.values.elements import iter_elements

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n"
DVC = "outs:\n- md5: a304afb96060aad90176268345e10355\n  size: 37891850\n  path: model.pt\n"
OCI = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"digest": f"sha256:{OID}", "size": 2},
    "layers": [{"digest": f"sha256:{OID}", "size": 1234, "mediaType": "x"}] * 2,
}
OCI_INDEX = {"schemaVersion": 2, "mediaType": "x", "manifests": [{"digest": f"sha256:{OID}"}]}

FOREIGN = {
    "LFS": (LFS, f"git-LFS pointer (12345 bytes, sha256 {OID}), not the file itself: run `git lfs"),
    "LFS, Windows": (LFS.replace("\n", "\r\n"), f"git-LFS pointer (12345 bytes, sha256 {OID})"),
    "LFS, bare": (LFS.splitlines()[0], "is a git-LFS pointer, not the file itself"),
    "annex": ("/annex/objects/SHA256E-s3--ba78.pt\n", "run `git annex get`"),
    "DVC": (DVC, "to 'model.pt' (37891850 bytes, md5 a304afb96060aad90176268345e10355): run `dvc"),
    "DVC, md5 first": (
        f"md5: {'0' * 32}\nouts:\n- etag: x\n  path: a\x1b[31mb\n",
        r"to 'a\x1b[31mb'",
    ),
    "OCI manifest": (json.dumps(OCI), f"OCI manifest of sha256:{OID} (1234 bytes), sha256:{OID} ("),
    "OCI index": (json.dumps(OCI_INDEX), f"OCI index of sha256:{OID}, not the file itself"),
    "OCI, hostile": (
        json.dumps({**OCI, "layers": [{"digest": "\x1b"}, 3]}),
        "OCI manifest of a blob,",
    ),
    "HTML": ("\n<!DOCTYPE html><title>404</title>", "is an HTML page"),
    "HTML, bare": ("<html>", "is an HTML page"),
    "XML": (
        "<?xml?><Error><Code>AccessDenied</Code>",
        "is XML (AccessDenied): the server's answer",
    ),
    "JSON": ('{"architectures": ["Bert"]}', "is a JSON file with 'architectures'"),
    "JSON, cut": ('{"architectures": ["Bert"]', "is text, not a checkpoint; it begins with '{"),
    "text": ("Dear diary\n...", "is text, not a checkpoint; it begins with 'Dear diary'"),
    "text, hostile": ("a\u202eb\n", "it begins with the bytes"),
    "GGUF": (b"GGUF\x03\0\0\0", "is a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\0", "is one NumPy array (.npy)"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "is an ONNX model"),
    "gzip": (gzip.compress(b"x"), "is compressed (gzip); unpack it first: gzip -d"),
    "xz": (b"\xfd7zXZ\0\0\x04", "is compressed (xz)"),
    "zstd": (b"\x28\xb5\x2f\xfd\0", "is compressed (zstd)"),
    "bzip2": (b"BZh91AY", "is compressed (bzip2)"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04", "is compressed (7z)"),
    "empty": (b"", "is empty: 0 bytes"),
    "zeros": (bytes(100), "contains only zeros: an incomplete download or copy"),
    "noise": (b"\xde\xad\xbe\xef" * 9, "it begins with the bytes de ad be ef de ad be ef"),
}


@pytest.mark.parametrize(("content", "reason"), FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_named_for_what_it_is(tmp_path, name, content, reason):
    folder = write(tmp_path, {name: content})
    with pytest.raises(UnknownFormatError) as caught:
        open_checkpoint(folder / name)
    assert reason in caught.value.reason
    assert caught.value.reason.isprintable()


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_anything_can_be_said_something_of(head):
    assert (identify_other_format(head) or describe_unknown_file(head)).isprintable()


def test_cut_through_a_character():
    assert describe_unknown_file(b"a" * (HEAD_BYTES - 1) + "é".encode()[:1]).startswith("is text")


def test_suffixes_say_nothing(tmp_path):
    content = save({"a": torch.ones(2)})
    for name in ("a.pt", "a.bin", "a.gguf", "a", "a.safetensors.index.json"):
        folder = write(tmp_path, {name: content})
        assert open_checkpoint(folder / name).container is Container.SAFETENSORS


def test_torch_files(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "zip.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "legacy.json", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "zip.safetensors").container is Container.TORCH_ZIP
    assert open_checkpoint(tmp_path / "legacy.json").container is Container.TORCH_LEGACY


def test_nothing_there(tmp_path):
    with pytest.raises(ReadError, match="no such file"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("path", ["a\0b", "x" * 300])
def test_impossible_names(tmp_path, path):
    with pytest.raises(ReadError):
        open_checkpoint(tmp_path / path)


def test_special_files(tmp_path):
    """F-SPECIAL: none is waited for, none is read."""
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with socket.socket(socket.AF_UNIX) as listening:
        where = Path.cwd()
        os.chdir(tmp_path)  # a socket's path is short
        listening.bind("socket.pt")
        os.chdir(where)
    reasons = {
        tmp_path / "pipe.pt": "is a named pipe",
        tmp_path / "loop.pt": "symbolic link that leads back to itself",
        tmp_path / "socket.pt": "socket|No such device",
        Path("/dev/zero"): "is a device",
        Path("/dev/full"): "is a device",
    }
    for path, reason in reasons.items():
        with pytest.raises(ReadError, match=reason):
            open_checkpoint(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path / "folder"):
        path.mkdir() if path.name == "folder" else path.touch()
        path.chmod(stat.S_IWUSR)
        with pytest.raises(ReadError, match="Permission denied"):
            open_checkpoint(path)
        path.chmod(stat.S_IRWXU)


TENSOR = safetensors_bytes({"a": entry()})
DIRECTORIES = {
    "empty": ({}, "is an empty directory"),
    "nothing of ours": ({"readme.md": ""}, "is a directory without a checkpoint"),
    "GGUF": (
        {"m-q4.gguf": b"GGUF" + bytes(60), "readme.md": ""},
        r"'m-q4.gguf' is a GGUF file .*: from_pretrained\(FOLDER, gguf_file=NAME\)",
    ),
    "spaCy": ({"meta.json": "{}", "config.cfg": ""}, r"spacy\.load\(\) reads"),
    "files": ({f"{n}.pt": TENSOR for n in range(7)}, "'0.pt', '1.pt', .*'4.pt' and 2 more$"),
    "two indexes": (
        {"a.bin.index.json": "", "b.safetensors.index.json": ""},
        "a.bin.index.json and b.safetensors.index.json: choose one",
    ),
    "two kinds": ({".metadata": "", "m.bin.index.json": ""}, r"\.metadata: choose one"),
    "a cut save": ({"__0_0.distcp": "", "__1_0.distcp": ""}, "the save was not completed"),
}


@pytest.mark.parametrize(("files", "reason"), DIRECTORIES.values(), ids=DIRECTORIES.keys())
def test_directories(tmp_path, files, reason):
    with pytest.raises(ReadError, match=reason):
        open_checkpoint(write(tmp_path, files))


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (1, "without an index: choose one of 'mp_rank_00/'"),
        (2, "is a Megatron checkpoint, .*convert.py, or choose one of 'mp_rank_00/', 'mp_rank_01"),
    ],
)
def test_a_folder_of_megatron_says_what_merges_its_ranks(tmp_path, count, reason):
    for rank in range(count):
        write(tmp_path / f"mp_rank_0{rank}", {"model_optim_rng.pt": TENSOR})
    with pytest.raises(ReadError, match=reason):
        open_checkpoint(tmp_path)


def test_directory_of_directories(tmp_path):
    write(tmp_path / "unet", {"a.safetensors": TENSOR})
    with pytest.raises(ReadError, match="choose one of 'unet/'"):
        open_checkpoint(tmp_path)


def test_directory_with_an_index(tmp_path):
    folder = write(
        tmp_path, {"a.safetensors": TENSOR, "m.bin.index.json": index_json(a="a.safetensors")}
    )
    assert open_checkpoint(folder).path == folder


def test_links_are_followed(tmp_path):
    """The Hugging Face cache holds nothing but links."""
    write(tmp_path / "blobs", {"4d7a": TENSOR})
    (tmp_path / "model.safetensors").symlink_to("blobs/4d7a")
    assert list(open_checkpoint(tmp_path / "model.safetensors").states[0].tensors) == ["a"]


def test_of_many_files_the_least_recently_used_is_closed(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    cache = SourceCache(2, tmp_path)
    first, second = cache.get_source(Path("a")), cache.get_source(Path("b"))
    assert cache.get_source(Path("a")) is first
    assert cache.get_source(Path("c")).read(0, 1) == b"c"
    assert cache.get_source(Path("a")) is first
    assert cache.get_source(Path("b")) is not second
    cache.close()
    with pytest.raises(ReadError, match="Bad file descriptor"):
        first.read(0, 1)


def test_stream():
    """Its bytes can still be read afterwards: a checkpoint from a pipe can be compared."""
    checkpoint = open_stream(io.BytesIO(TENSOR))
    assert checkpoint.path == STDIN
    tensor = checkpoint.states[0].tensors["a"]
    assert b"".join(iter_elements(tensor)) == TENSOR[-16:]


@pytest.mark.parametrize(
    ("content", "limit", "reason"),
    [
        (b"", 100, "^<stdin>: is empty"),
        (LFS.encode(), 1000, "^<stdin>: is a git-LFS pointer"),
        (TENSOR[:-1], 1000, "^<stdin>: its tensors end at byte"),
        (TENSOR, 20, "^<stdin>: is longer than 20 bytes"),
    ],
)
def test_stream_refused(content, limit, reason):
    with pytest.raises(ReadError, match=reason):
        open_stream(io.BytesIO(content), Limits(stream_bytes=limit))
