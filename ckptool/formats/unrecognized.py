"""First bytes of a file -> description of its format, for files that are no checkpoint."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.strict_json import decode_object, quote_text
from ckptool.phrases import join_limited, quote_path

HEAD_BYTES: Final = 1 << 16
"""Bytes read to identify a format; pointer files (git-LFS, DVC ...) are smaller."""

_MAX_LISTED: Final = 3
_CHECKPOINT_SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def identify_other_format(head: bytes) -> str:
    """Return a description of the file if its format is known and no checkpoint; else ""."""
    if not head:
        return "is empty: 0 bytes"
    for magic, text in _DESCRIPTIONS_BY_MAGIC.items():
        if head.startswith(magic):
            return text
    for pattern, text in _DESCRIPTIONS_BY_PATTERN.items():
        if pattern.match(head):
            return text
    if _is_sentencepiece(head):
        return "is a SentencePiece tokenizer: it has a vocabulary and no weights"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next(
        (description for identify in _POINTER_CHECKS if (description := identify(start))), ""
    )


FOREIGN_SUFFIXES: Final = (".gguf", ".ggml", ".h5", ".onnx", ".tflite", ".pte", ".engine", ".keras")
"""Ends of the names of models that are no checkpoints of PyTorch."""


def describe_foreign_folder(names: Sequence[str]) -> str:
    """Return a description of a folder that another library writes, by its file names; else ""."""
    if {"meta.json", "config.cfg"} <= {*names}:
        return (
            "is a pipeline of spaCy, which spacy.load() reads; the file `model` of each part is in "
            "spaCy's own format, not in one of PyTorch"
        )
    return ""


def describe_unknown_file(head: bytes) -> str:
    """Return a description of a file that no reader recognises."""
    if not head.strip(b"\0"):
        return "contains only zeros: an incomplete download or copy"
    if head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        return f"starts as a safetensors file whose header has {length} bytes: it is damaged"
    if _is_text(head):
        first = head.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        return f"is text, not a checkpoint; it begins with {quote_text(first)}"
    return f"is not a known checkpoint format; it begins with the bytes {head[:8].hex(' ')}"


def describe_unknown_archive(names: Iterable[str]) -> str:
    """Return a description of a zip archive not written by torch.save, with a remedy if known."""
    member_names = sorted(names)
    if member_names and all(name.endswith(".npy") for name in member_names):
        return "is a NumPy archive (.npz), not a PyTorch checkpoint: numpy.load reads it"
    if is_package_archive(member_names):
        return (
            "is a torch.package archive: load it with torch.package.PackageImporter, and save "
            "the module's state_dict()"
        )
    if any(name.endswith("model.weights.h5") for name in member_names):
        return "is a Keras model (.keras), not a PyTorch checkpoint"
    checkpoint_names = [
        name for name in member_names if name.lower().endswith(_CHECKPOINT_SUFFIXES)
    ]
    if checkpoint_names:
        names_text = join_limited(checkpoint_names, _MAX_LISTED, quote_text)
        return f"is a zip archive with {names_text} inside: unpack it first"
    if any(name.rpartition("/")[2] == "serialization_id" for name in member_names):
        return (
            "torch.save did not finish it (no data.pkl): it raised, as it does for a module with "
            "parametrizations: save its state_dict() instead"
        )
    return "a zip archive without data.pkl: it was not written by torch.save"


PACKAGE_RECORD: Final = ".data/extern_modules"
"""End of the name of a record that each torch.package archive has, and no other."""


def is_package_archive(names: Iterable[str]) -> bool:
    """Whether these are the members of a torch.package archive."""
    return any(name.endswith(PACKAGE_RECORD) for name in names)


def describe_unpacked_archive(name: str, names: Iterable[str]) -> str:
    """Return a description of the folder `name` if it is a torch archive, unpacked; else ""."""
    if not {"data.pkl", "version"} <= {*names}:
        return ""
    folder = quote_path(name)
    return (
        "is an unpacked torch.save archive: repack it without compression, from its parent "
        f"folder: zip -0 -D -r {quote_path(f'{name}.pth')} {folder}"
    )


def _describe_compressed_file(name: str, command: str) -> str:
    return f"is compressed ({name}); unpack it first: {command}"


_DESCRIPTIONS_BY_MAGIC: Final = {
    b"\x1f\x8b": _describe_compressed_file("gzip", "gzip -d"),
    b"BZh": _describe_compressed_file("bzip2", "bzip2 -d"),
    b"\xfd7zXZ\0": _describe_compressed_file("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": _describe_compressed_file("zstd", "zstd -d"),
    b"\x04\x22\x4d\x18": _describe_compressed_file("lz4", "lz4 -d"),
    b"7z\xbc\xaf\x27\x1c": _describe_compressed_file("7z", "7z x"),
    b"Rar!\x1a\x07": _describe_compressed_file("rar", "unrar x"),
    **dict.fromkeys(
        (b"x\x01", b"x^", b"x\x9c", b"x\xda"),
        "is compressed (zlib), as written by joblib.dump(compress=...), and torch.load cannot "
        "open it: save the result of joblib.load with torch.save",
    ),
    b"GGUF": (
        "is a GGUF file of llama.cpp, not a PyTorch checkpoint: from_pretrained(FOLDER, "
        "gguf_file=NAME) of transformers reads many architectures, and save_pretrained() then "
        "writes a checkpoint"
    ),
    b"lmgg": "is a GGML file, not a PyTorch checkpoint; llama.cpp's tools read it",
    b"tjgg": "is a GGML file, not a PyTorch checkpoint; llama.cpp's tools read it",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file (Keras, h5py), not a PyTorch checkpoint",
    b"\x93NUMPY": "is one NumPy array (.npy), not a PyTorch checkpoint",
    b"%PDF": "is a PDF document, not a checkpoint",
    b"\x7fELF": "is a program, not a checkpoint",
    b"7767517": "is the network of an ncnn model (.param); its weights are in the .bin next to it",
    b"\xdd\x85\x76\0": "is the network of an ncnn model (.param.bin), not a PyTorch checkpoint",
    b"\x47\x6b\x30\x01": "contains the weights of an ncnn model in float16; ncnn reads them",
    b"\x38\x4b\x0d\0": "contains the weights of an ncnn model in int8; ncnn reads them",
    b"\x12\x01\0\0\0\0\0\0": "is an MXNet file of parameters, not a PyTorch checkpoint",
    b"ptrt": "is a TensorRT engine: it is compiled, and its weights cannot be read back",
    b"ftrt": "is a TensorRT engine: it is compiled, and its weights cannot be read back",
    b"RKNN": "is an RKNN model (Rockchip), not a PyTorch checkpoint",
    b"\xba\x16\x4f\x2f": "is a fastText model, not a PyTorch checkpoint",
}
_DESCRIPTIONS_BY_PATTERN: Final = {
    re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][ -~]{2}"): (
        "is an ONNX model, not a PyTorch checkpoint"
    ),
    re.compile(rb".{4}TFL3", re.DOTALL): "is a TensorFlow Lite model, not a PyTorch checkpoint",
    re.compile(rb".{4}ET1\d", re.DOTALL): (
        "is an ExecuTorch program (.pte): it is compiled from a module, and has no state_dict"
    ),
    re.compile(rb"[\x01-\x20]\0{3}[\x05-\x60]\0\w{1,80}Spec\0"): (
        "is a CTranslate2 model, not a PyTorch checkpoint; CTranslate2 converted it from one"
    ),
}
_SENTENCEPIECE_OVERHEAD: Final = 7
"""Bytes of a piece of a SentencePiece vocabulary besides its text: two tags, a length, a score."""
_LFS_HEADER: Final = re.compile(rb"version https://git-lfs\.github\.com/spec/v\d")
_LFS_OID: Final = re.compile(rb"^oid sha256:([0-9a-f]{64})\r?$", re.MULTILINE)
_SIZE_LINE: Final = re.compile(rb"^[ -]*size:? (\d{1,20})\r?$", re.MULTILINE)
_ANNEX_PATH: Final = re.compile(rb"/annex/objects/[^\s/]+\s*$")
_DVC_HASH_LINE: Final = re.compile(rb"^(?:- |  )(?:md5|etag|checksum|hash): ", re.MULTILINE)
_DVC_MD5: Final = re.compile(rb"^[ -]*md5: ([0-9a-f]{32}(?:\.dir)?)\r?$", re.MULTILINE)
_DVC_PATH: Final = re.compile(rb"^[ -]*path: (.+?)\r?$", re.MULTILINE)
_ERROR_CODE: Final = re.compile(rb"<Code>(\w{1,40})</Code>")
_OCI_DIGEST: Final = re.compile(r"sha\d{3}:[0-9a-f]{64,128}")


def _is_sentencepiece(head: bytes) -> bool:
    """Whether `head` begins with the first piece of a SentencePiece vocabulary (a protobuf)."""
    if len(head) < 16 or head[0] != 0x0A or head[2] != 0x0A:
        return False
    message_nbytes, text_nbytes = head[1], head[3]
    has_score = head[4 + text_nbytes : 5 + text_nbytes] == b"\x15"
    # A piece that is no ordinary one ("<unk>", "<s>") has its type as two bytes more.
    return has_score and message_nbytes - text_nbytes - _SENTENCEPIECE_OVERHEAD in {0, 2}


def _identify_lfs_pointer(start: bytes) -> str:
    if not _LFS_HEADER.match(start):
        return ""
    facts = _format_facts(
        size=_search_group(_SIZE_LINE, start), sha256=_search_group(_LFS_OID, start)
    )
    return f"is a git-LFS pointer{facts}, not the file itself: run `git lfs pull`"


def _identify_annex_pointer(start: bytes) -> str:
    if not _ANNEX_PATH.match(start):
        return ""
    return "is a git-annex pointer, not the file itself: run `git annex get` on it"


def _identify_dvc_pointer(start: bytes) -> str:
    if b"outs:" not in start or not _DVC_HASH_LINE.search(start):
        return ""
    facts = _format_facts(size=_search_group(_SIZE_LINE, start), md5=_search_group(_DVC_MD5, start))
    path = _search_group(_DVC_PATH, start)
    target = f" to {quote_text(path)}" if path else ""
    return f"is a DVC pointer{target}{facts}: run `dvc pull`, then give the file it points to"


def _identify_web_page(start: bytes) -> str:
    prefix = start[:64].lower()
    if prefix.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return "is an HTML page: the download returned an error or login page, not the file"
    if prefix.startswith(b"<?xml") or (prefix.startswith(b"<error") and b"<Code>" in start):
        code = _search_group(_ERROR_CODE, start)
        return (
            f"is XML{f' ({code})' if code else ''}: the server's answer to a download, not the file"
        )
    return ""


def _identify_json(start: bytes) -> str:
    if not start.startswith(b"{"):
        return ""
    try:
        value, _ = decode_object(Path(), start, DEFAULT_LIMITS, "it")
    except CorruptCheckpointError:
        return ""
    if "schemaVersion" in value and ("mediaType" in value or "config" in value):
        return _describe_oci_manifest(value)
    if message := _find_error_message(value):
        return f"is a server's answer to a download ({message}), not the file"
    keys = join_limited(value, _MAX_LISTED, quote_text, more="")
    return f"is a JSON file{f' with {keys}' if keys else ''}: give the checkpoint it belongs to"


def _find_error_message(value: dict[str, Any]) -> str:
    """Return the quoted error message of a web service's JSON response, or ""."""
    if len(value) > _MAX_LISTED:
        return ""
    texts = (value.get(key) for key in ("error", "message", "detail", "errors"))
    return next((quote_text(text) for text in texts if isinstance(text, str)), "")


def _describe_oci_manifest(manifest: dict[str, Any]) -> str:
    blobs = manifest.get("layers", manifest.get("manifests"))
    known_blobs = (
        [blob for blob in blobs if isinstance(blob, dict)] if isinstance(blobs, list) else []
    )
    kind = "index" if "manifests" in manifest else "manifest"
    layers_text = join_limited(known_blobs, _MAX_LISTED, _describe_oci_blob)
    of_listing = f" of {layers_text}" if layers_text else ""
    return f"is an OCI {kind}{of_listing}, not the file itself: download it with `oras pull`"


def _describe_oci_blob(blob: dict[str, Any]) -> str:
    digest, size = blob.get("digest"), blob.get("size")
    is_valid = isinstance(digest, str) and _OCI_DIGEST.fullmatch(digest)
    return f"{digest if is_valid else 'a blob'}" + (f" ({size} bytes)" if type(size) is int else "")


_POINTER_CHECKS: Final = (
    _identify_lfs_pointer,
    _identify_annex_pointer,
    _identify_dvc_pointer,
    _identify_web_page,
    _identify_json,
)


def _search_group(pattern: re.Pattern[bytes], text: bytes) -> str:
    match = pattern.search(text)
    return match[1].decode("utf-8", "replace") if match else ""


def _format_facts(size: str, **digest: str) -> str:
    """Return " (12 bytes, sha256 ...)" from the non-empty values; "" if all are empty."""
    facts = [f"{size} bytes"] if size else []
    facts += [f"{name} {value}" for name, value in digest.items() if value]
    return f" ({', '.join(facts)})" if facts else ""


def _is_text(head: bytes) -> bool:
    """Whether `head` is printable UTF-8; its last character may be truncated."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)
