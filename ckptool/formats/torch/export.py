"""torch.export.save archive -> Checkpoint: its weights, buffers and constants."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.nodes import PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.tensors.rebuild_functions import create_tensor_reader
from ckptool.formats.pickle.tensors.storage import SavedStorage
from ckptool.formats.strict_json import decode_object
from ckptool.formats.torch import zip_reader
from ckptool.formats.torch.archive_integrity import check_integrity
from ckptool.formats.torch.archive_records import ArchiveRecords
from ckptool.formats.torch.exported_graph import find_evaluated_names
from ckptool.formats.torch.hidden_records import iter_hidden_uses, list_unread_records
from ckptool.formats.torch.nested_files import NestedFile, read_nested_record
from ckptool.formats.torch.streams import SourceSlice
from ckptool.formats.torch.zip_reader import GlobalNames, describe_or_report_damage
from ckptool.formats.zip.archive import STORED, ZipMember, is_zip, read_member
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    GlobalUse,
    Kind,
    Skipped,
    Span,
    StateDict,
    StorageInfo,
    TensorInfo,
    join_key,
)


def is_export_archive(records: ArchiveRecords) -> bool:
    """Whether torch.export.save wrote the archive, in the current layout or that before 2.7."""
    return records.get("archive_format") is not None or records.get(_OLD_PROGRAM_RECORD) is not None


def read(records: ArchiveRecords) -> Checkpoint:
    """Describe the tensors of the exported program; its graph is not read.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    describe = _describe_archive if records.get("archive_format") else _describe_old_archive
    return describe_or_report_damage(
        records, Container.TORCH_EXPORT, lambda names: describe(records, names)
    )


_OLD_PROGRAM_RECORD: Final = "serialized_exported_program.json"
_OLD_STATE_RECORDS: Final = {"serialized_state_dict.pt": "", "serialized_constants.pt": "constants"}
_WEIGHTS_FOLDER, _CONSTANTS_FOLDER = "data/weights/", "data/constants/"
_WEIGHTS_CONFIG: Final = "_weights_config.json"
_CONSTANTS_CONFIG: Final = "_constants_config.json"
_LOADED_RECORD: Final = re.compile(
    r"data/sample_inputs/|data/(?:weights|constants)/(?!weight_|tensor_|[^/]*_config\.json$)"
)
"""Records that are pickles or files of torch.save; the other payloads are raw bytes."""
_MAX_JSON_BYTES: Final = 100_000_000
_STRIDED_LAYOUT: Final = 7
_FORMAT_RECORDS: Final = (
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
)

_DTYPES_BY_NUMBER: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float16",
        7: "float32",
        8: "float64",
        9: "complex32",
        10: "complex64",
        11: "complex128",
        12: "bool",
        13: "bfloat16",
        28: "uint16",
        29: "float8_e4m3fn",
        30: "float8_e5m2",
        31: "float8_e4m3fnuz",
        32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu",
        34: "uint32",
        35: "uint64",
    }
)
"""ScalarType number in the torch.export schema -> torch dtype name."""


def _describe_archive(records: ArchiveRecords, names: GlobalNames) -> Checkpoint:
    path = records.source.path
    if fault := records.archive.fault or records.find_load_refusal("archive_format"):
        raise CorruptCheckpointError(path, fault)
    metadata = {
        name: text
        for name in _FORMAT_RECORDS
        if (text := records.read_text_record(name)) is not None
    }
    if metadata["archive_format"] != "pt2":
        archive_format = quote_name(metadata["archive_format"])
        raise CorruptCheckpointError(path, f"its archive_format record is {archive_format}")
    payload_reader = _PayloadReader(records, metadata.get("byteorder", "little"))
    models = [name for name, _ in records.items() if name.endswith(_WEIGHTS_CONFIG)]
    _reject_legacy_weights(records, models)
    states = tuple(
        _build_state(records, payload_reader, model, is_only_model=len(models) == 1)
        for model in models
    )
    nested_files = _read_nested_records(records)
    names_of_nested = tuple(use for nested_file in nested_files for use in nested_file.uses)
    if not any(state.tensors for state in states):
        raise CorruptCheckpointError(path, "contains no tensors")
    return Checkpoint(
        path,
        Container.TORCH_EXPORT,
        records.source.nbytes,
        states,
        globals=(
            *find_global_uses(names),
            *payload_reader.nested_uses,
            *names_of_nested,
            *iter_hidden_uses(records),
        ),
        metadata=metadata,
        skipped=check_integrity(records),
        unread=(
            *payload_reader.unread,
            *(part for nested_file in nested_files for part in nested_file.unread),
            *list_unread_records(records),
        ),
        contents=records.collect_contents(_iter_program_records(records)),
    )


def _iter_program_records(records: ArchiveRecords) -> Iterator[tuple[str, ZipMember]]:
    """Yield the records besides tensors: graphs, sample inputs, files of the user."""
    for name, member in records.items():
        is_tensor = name.startswith((_WEIGHTS_FOLDER, _CONSTANTS_FOLDER))
        if name not in _FORMAT_RECORDS and not (is_tensor and not name.endswith(".json")):
            yield name, member


def _build_state(
    records: ArchiveRecords, payload_reader: "_PayloadReader", config: str, *, is_only_model: bool
) -> StateDict:
    """Return the state_dict of one exported model, with its constants as `unsaved`."""
    model = config.removeprefix(_WEIGHTS_FOLDER).removesuffix(_WEIGHTS_CONFIG)
    weights = dict(payload_reader.iter_tensors(_WEIGHTS_FOLDER, config))
    constants: dict[str, TensorInfo] = {}
    if records.get(f"{_CONSTANTS_FOLDER}{model}{_CONSTANTS_CONFIG}"):
        tensors = payload_reader.iter_tensors(
            _CONSTANTS_FOLDER, f"{_CONSTANTS_FOLDER}{model}{_CONSTANTS_CONFIG}"
        )
        constants = {key: replace(tensor, kind=Kind.ATTRIBUTE) for key, tensor in tensors}
    return StateDict("" if is_only_model else model, weights, "module", unsaved_tensors=constants)


class _PayloadReader:
    """Reads tensors from raw payload records, described by the JSON config records."""

    def __init__(self, records: ArchiveRecords, byteorder: str) -> None:
        self.nested_uses: list[GlobalUse] = []
        self.unread: list[Skipped] = []
        self._records = records
        self._byteorder = byteorder
        self._tensors = create_tensor_reader(records.limits)
        if byteorder not in {"little", "big"}:
            raise PickleTreeError(f"its byteorder record is {quote_name(byteorder)}")

    def iter_tensors(self, folder: str, config: str) -> Iterator[tuple[str, TensorInfo]]:
        """Yield (key, tensor) for each entry of one config record."""
        data = self._records.read_record(config, _MAX_JSON_BYTES) or b""
        content, _ = decode_object(self._records.source.path, data, self._records.limits, config)
        for key, entry in _require_object(content.get("config"), config).items():
            fields = _require_object(entry, config)
            name = fields.get("path_name")
            member = self._records.get(f"{folder}{name}")
            if member is None:
                raise PickleTreeError(f"{quote_name(key)} has no data in the archive")
            member.is_referenced = True
            tensor = self._build_tensor(key, fields, folder, member)
            if tensor is not None:
                kind = Kind.PARAMETER if fields.get("is_param") is True else Kind.BUFFER
                yield key, replace(tensor, kind=kind)

    def _build_tensor(
        self, key: str, entry: dict[str, Any], folder: str, member: ZipMember
    ) -> TensorInfo | None:
        if entry.get("use_pickle") is True:
            return self._read_pickled_tensor(key, member)
        tensor_meta = _require_object(entry.get("tensor_meta"), key)
        dtype, device = (
            _DTYPES_BY_NUMBER.get(_get_int(tensor_meta, "dtype")),
            _require_object(tensor_meta.get("device"), key),
        )
        if dtype is None or _get_int(tensor_meta, "layout") != _STRIDED_LAYOUT:
            raise PickleTreeError(f"{quote_name(key)} has an unknown dtype or layout")
        if device.get("type") == "meta" and not member.nbytes:
            strides = _unwrap_ints(tensor_meta, "strides")
            meta_tensor = self._tensors.build_meta_tensor(
                key, dtype, _unwrap_ints(tensor_meta, "sizes"), strides
            )
            return replace(meta_tensor, requires_grad=tensor_meta.get("requires_grad") is True)
        numel = member.nbytes * 8 // DTYPE_BITS[dtype]
        index = device.get("index")
        device_name = f"{device.get('type')}" + (f":{index}" if type(index) is int else "")
        span = None
        if member.method == STORED:
            span = Span(self._records.source.path, member.data_offset, member.nbytes)
        name = member.name.rpartition("/")[2] if folder == _WEIGHTS_FOLDER else member.name
        info = StorageInfo(name, member.nbytes, device_name, span, self._byteorder)
        view = (
            _unwrap_int(tensor_meta.get("storage_offset")),
            _unwrap_ints(tensor_meta, "sizes"),
            _unwrap_ints(tensor_meta, "strides"),
        )
        requires_grad = tensor_meta.get("requires_grad") is True
        return self._tensors.build_strided_tensor(
            key, SavedStorage(info, dtype, numel), dtype, view, grad=requires_grad
        )

    def _read_pickled_tensor(self, key: str, member: ZipMember) -> TensorInfo | None:
        """Read a pickled tensor subclass, an embedded file of torch.save; None for others."""
        nested_file = read_nested_record(self._records, member)
        self.nested_uses += nested_file.uses
        self.unread += nested_file.unread
        tensor = self._tensors.read_tensor(nested_file.root, key)
        if tensor is None:
            self.unread.append(Skipped(f"`{key}`", "it is pickled, and not a known tensor type"))
        return tensor


def _read_nested_records(records: ArchiveRecords) -> list[NestedFile]:
    """Read the records that torch.export.load hands to torch.load or pickle.load."""
    nested_files: list[NestedFile] = []
    for name, member in records.items():
        if member.is_referenced or not member.nbytes:
            continue
        if _LOADED_RECORD.match(name):
            nested_files.append(read_nested_record(records, member))
        elif name.startswith("models/") and name.endswith(".json"):
            member.is_referenced = True
            data = read_member(records.source, member, records.limits, _MAX_JSON_BYTES)
            uses = find_evaluated_names(records.source.path, name, data)
            nested_files.append(NestedFile(None, uses))
    return nested_files


def _reject_legacy_weights(records: ArchiveRecords, models: list[str]) -> None:
    """Raise CorruptCheckpointError if torch would load other weights than those described."""
    for config in models:
        model = config.removeprefix(_WEIGHTS_FOLDER).removesuffix(_WEIGHTS_CONFIG)
        for folder in (_WEIGHTS_FOLDER, _CONSTANTS_FOLDER):
            name = f"{folder}{model}.pt"
            if records.get(name) is not None:
                reason = f"torch would load {quote_name(name)} instead of the weights next to it"
                raise CorruptCheckpointError(records.source.path, reason)


def _describe_old_archive(records: ArchiveRecords, names: GlobalNames) -> Checkpoint:
    """Describe an archive of torch before 2.7, which embeds whole torch.save archives."""
    if records.archive.fault:
        raise CorruptCheckpointError(records.source.path, records.archive.fault)
    states: list[StateDict] = []
    contents: dict[str, str] = {}
    nested_uses: list[GlobalUse] = []
    unread: list[Skipped] = []
    for name in ("serialized_example_inputs.pt", *_OLD_STATE_RECORDS):
        member = records.get(name)
        if member is not None and member.nbytes:
            nested_file = read_nested_record(records, member)
            nested_uses += nested_file.uses
            unread += nested_file.unread
    program = records.read_record(_OLD_PROGRAM_RECORD, _MAX_JSON_BYTES) or b""
    nested_uses += find_evaluated_names(records.source.path, _OLD_PROGRAM_RECORD, program)
    for name, at in _OLD_STATE_RECORDS.items():
        member = records.get(name)
        if member is not None and member.nbytes:
            member_slice = SourceSlice(records.source, member.data_offset, member.nbytes)
            if not is_zip(member_slice):
                raise PickleTreeError(f"{quote_name(name)} is not a torch.save zip archive")
            nested_checkpoint = zip_reader.read(member_slice, records.limits)
            states += [replace(state, at=state.at or at) for state in nested_checkpoint.states]
            nested_contents = nested_checkpoint.contents.items()
            contents |= {join_key(at, place): content for place, content in nested_contents}
    if not states:
        raise CorruptCheckpointError(records.source.path, "contains no tensors")
    if (version := records.get("version")) is not None:
        version.is_referenced = True
    return Checkpoint(
        records.source.path,
        Container.TORCH_EXPORT,
        records.source.nbytes,
        tuple(states),
        globals=(*nested_uses, *find_global_uses(names), *iter_hidden_uses(records)),
        skipped=check_integrity(records),
        unread=(*unread, *list_unread_records(records)),
        contents=contents
        | records.collect_contents(
            (name, member)
            for name, member in records.items()
            if name not in _OLD_STATE_RECORDS and not name.startswith(".data/")
        ),
    )


def _require_object(value: object, description: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PickleTreeError(
            f"{quote_name(description)} is described by something that is not an object"
        )
    return value


def _get_int(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if type(value) is int else -1


def _unwrap_int(value: object) -> int:
    """Unwrap {"as_int": 3} to 3; -1 for anything else. Weights never have symbolic sizes."""
    number = value.get("as_int") if isinstance(value, dict) else None
    return number if type(number) is int else -1


def _unwrap_ints(fields: dict[str, Any], name: str) -> tuple[int, ...]:
    values = fields.get(name)
    return tuple(map(_unwrap_int, values)) if isinstance(values, list) else (-1,)
