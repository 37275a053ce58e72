"""torch.export.save archive -> Checkpoint: its weights, buffers and constants."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError
from ckptool.formats import torch_zip
from ckptool.formats.pickles import unpickle_all
from ckptool.formats.plain import quoted
from ckptool.formats.streams import Slice
from ckptool.formats.strict_json import decode
from ckptool.formats.tensors import Stored, Tensors, TreeError
from ckptool.formats.torch_zip import Names, Records, guarded, hidden_uses, looked_over
from ckptool.formats.uses import uses
from ckptool.formats.zips import STORED, Member, is_zip, read_member
from ckptool.model import (
    BITS,
    Checkpoint,
    Container,
    GlobalUse,
    Kind,
    Span,
    State,
    StorageInfo,
    TensorInfo,
)


def claims(records: Records) -> bool:
    """Whether torch.export.save wrote the archive, in the current layout or that before 2.7."""
    return records.get("archive_format") is not None or records.get(_OLD) is not None


def read(records: Records) -> Checkpoint:
    """Describe the tensors of the exported program; its graph is not read.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    describe = _described if records.get("archive_format") else _described_old
    return guarded(records, Container.TORCH_EXPORT, lambda names: describe(records, names))


_OLD: Final = "serialized_exported_program.json"
_OLD_PARTS: Final = {"serialized_state_dict.pt": "", "serialized_constants.pt": "constants"}
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_WEIGHTS_CONFIG: Final = "_weights_config.json"
_CONSTANTS_CONFIG: Final = "_constants_config.json"
_JSON: Final = 100_000_000
_STRIDED: Final = 7
_FORMAT: Final = (
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
)

_DTYPES: Final[Mapping[int, str]] = MappingProxyType(
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


def _described(records: Records, names: Names) -> Checkpoint:
    path = records.source.path
    if records.archive.fault:
        raise CorruptCheckpointError(path, records.archive.fault)
    metadata = {name: text for name in _FORMAT if (text := records.text(name)) is not None}
    if metadata["archive_format"] != "pt2":
        what = quoted(metadata["archive_format"])
        raise CorruptCheckpointError(path, f"its archive_format record is {what}")
    payloads = _Payloads(records, metadata.get("byteorder", "little"))
    models = [name for name, _ in records.items() if name.endswith(_WEIGHTS_CONFIG)]
    states = tuple(_state(records, payloads, model, alone=len(models) == 1) for model in models)
    for name, member in records.items():
        member.used = member.used or name.startswith("models/")
    found = tuple(_within(records, names))
    if not any(state.tensors for state in states):
        raise CorruptCheckpointError(path, "holds no tensors")
    return Checkpoint(
        path,
        Container.TORCH_EXPORT,
        records.source.nbytes,
        states,
        globals=(*uses(names), *payloads.uses, *found, *hidden_uses(records)),
        metadata=metadata,
        skipped=looked_over(records),
    )


def _state(records: Records, payloads: "_Payloads", config: str, *, alone: bool) -> State:
    """Return the state_dict of one exported model, with its constants as `unsaved`."""
    model = config.removeprefix(_WEIGHTS).removesuffix(_WEIGHTS_CONFIG)
    weights = dict(payloads.tensors(_WEIGHTS, config))
    constants: dict[str, TensorInfo] = {}
    if records.get(f"{_CONSTANTS}{model}{_CONSTANTS_CONFIG}"):
        listed = payloads.tensors(_CONSTANTS, f"{_CONSTANTS}{model}{_CONSTANTS_CONFIG}")
        constants = {key: replace(tensor, kind=Kind.ATTRIBUTE) for key, tensor in listed}
    return State("" if alone else model, weights, "module", unsaved=constants)


class _Payloads:
    """Reads tensors from raw payload records, described by the JSON config records."""

    def __init__(self, records: Records, byteorder: str) -> None:
        self.uses: list[GlobalUse] = []
        self._records = records
        self._byteorder = byteorder
        self._tensors = Tensors(records.limits)
        if byteorder not in {"little", "big"}:
            raise TreeError(f"its byteorder record is {quoted(byteorder)}")

    def tensors(self, folder: str, config: str) -> Iterator[tuple[str, TensorInfo]]:
        """Yield (key, tensor) for each entry of one config record."""
        data = self._records.bytes(config, _JSON) or b""
        content, _ = decode(self._records.source.path, data, self._records.limits, config)
        for key, entry in _mapping(content.get("config"), config).items():
            described = _mapping(entry, config)
            name = described.get("path_name")
            member = self._records.get(f"{folder}{name}")
            if member is None:
                raise TreeError(f"{quoted(key)} has no data in the archive")
            member.used = True
            tensor = self._tensor(key, described, folder, member)
            if tensor is not None:
                kind = Kind.PARAMETER if described.get("is_param") is True else Kind.BUFFER
                yield key, replace(tensor, kind=kind)

    def _tensor(
        self, key: str, entry: dict[str, Any], folder: str, member: Member
    ) -> TensorInfo | None:
        if entry.get("use_pickle") is True:
            return self._pickled(key, member)
        meta = _mapping(entry.get("tensor_meta"), key)
        dtype, device = _DTYPES.get(_number(meta, "dtype")), _mapping(meta.get("device"), key)
        if dtype is None or _number(meta, "layout") != _STRIDED:
            raise TreeError(f"{quoted(key)} has a dtype or a layout that is not known")
        numel = member.nbytes * 8 // BITS[dtype]
        index = device.get("index")
        place = f"{device.get('type')}" + (f":{index}" if type(index) is int else "")
        span = None
        if member.method == STORED:
            span = Span(self._records.source.path, member.start, member.nbytes)
        name = member.name.rpartition("/")[2] if folder == _WEIGHTS else member.name
        info = StorageInfo(name, member.nbytes, place, span, self._byteorder)
        view = (_int(meta.get("storage_offset")), _ints(meta, "sizes"), _ints(meta, "strides"))
        grad = meta.get("requires_grad") is True
        return self._tensors.strided(key, Stored(info, dtype, numel), dtype, view, grad=grad)

    def _pickled(self, key: str, member: Member) -> TensorInfo | None:
        """Read a pickled tensor subclass, an embedded torch.save archive; None for others."""
        part = _part(self._records, member)
        if part is None:
            return None
        inner = torch_zip.read(part, self._records.limits)
        self.uses += [replace(use, at=f"record {member.name}") for use in inner.globals]
        lone = [state.tensors[""] for state in inner.states if "" in state.tensors]
        return replace(lone[0], key=key) if lone else None


def _within(records: Records, names: Names) -> Iterator[GlobalUse]:
    """Yield the globals of embedded torch.save archives and pickles: constants, sample inputs."""
    for name, member in records.items():
        part = _part(records, member)
        if part is not None and name.startswith(("data/sample_inputs/", _CONSTANTS)):
            member.used = True
            inner = torch_zip.read(part, records.limits)
            yield from (replace(use, at=f"record {member.name}") for use in inner.globals)
        elif name.startswith((f"{_CONSTANTS}custom_obj", f"{_CONSTANTS}opaque_obj")):
            member.used = True
            most = records.limits.pickle_bytes
            data = read_member(records.source, member, records.limits, most)
            names += unpickle_all(data, records.limits).globals


def _part(records: Records, member: Member) -> Slice | None:
    """Return the slice of a member that is itself a stored zip archive, else None."""
    if member.method != STORED or member.start < 0 or not member.nbytes:
        return None
    part = Slice(records.source, member.start, member.nbytes)
    return part if is_zip(part) else None


def _described_old(records: Records, names: Names) -> Checkpoint:
    """Describe an archive of torch before 2.7, which embeds whole torch.save archives."""
    if records.archive.fault:
        raise CorruptCheckpointError(records.source.path, records.archive.fault)
    states: list[State] = []
    found: list[GlobalUse] = []
    for name, at in _OLD_PARTS.items():
        member = records.get(name)
        part = _part(records, member) if member is not None else None
        if member is not None and part is not None:
            member.used = True
            inner = torch_zip.read(part, records.limits)
            states += [replace(state, at=state.at or at) for state in inner.states]
            found += [replace(use, at=f"record {name}") for use in inner.globals]
    if not states:
        raise CorruptCheckpointError(records.source.path, "holds no tensors")
    for name in (_OLD, "version"):
        if (member := records.get(name)) is not None:
            member.used = True
    return Checkpoint(
        records.source.path,
        Container.TORCH_EXPORT,
        records.source.nbytes,
        tuple(states),
        globals=(*found, *uses(names), *hidden_uses(records)),
        skipped=looked_over(records),
    )


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TreeError(f"{quoted(what)} is described by something that is no object")
    return value


def _number(meta: dict[str, Any], name: str) -> int:
    value = meta.get(name)
    return value if type(value) is int else -1


def _int(value: object) -> int:
    """Unwrap {"as_int": 3} to 3; -1 for anything else. Weights never have symbolic sizes."""
    number = value.get("as_int") if isinstance(value, dict) else None
    return number if type(number) is int else -1


def _ints(meta: dict[str, Any], name: str) -> tuple[int, ...]:
    values = meta.get(name)
    return tuple(map(_int, values)) if isinstance(values, list) else (-1,)
