"""Persistent id of a storage in torch's pickles -> StorageId, checked."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from ckptool.formats.pickle.nodes import GlobalName, PersistentReference, PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.tensors.storage import SavedStorage
from ckptool.model import BYTE_DTYPES, DTYPE_BITS, StorageInfo


class StorageId(Struct, gc=False):
    """Fields of the persistent id ("storage", class, key, location, numel)."""

    dtype: str
    key: str
    location: str
    numel: int
    legacy_view: object = None
    """Torch before 1.6: (key, offset, numel) of a view of the storage, or None; not checked."""

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPE_BITS[self.dtype] // 8


def parse_storage_id(
    node: PersistentReference, *, fields: int = 5, is_script: bool = False
) -> StorageId:
    """Return the storage that a persistent id names.

    Args:
        node: the persistent id.
        fields: length of the id's tuple.
        is_script: whether TorchScript wrote it, which has a storage class for every dtype.

    Raises:
        PickleTreeError: the id names no storage, or has an invalid field.
    """
    parts = node.id
    if type(parts) is not tuple or len(parts) != fields or parts[0] != "storage":
        raise PickleTreeError("a persistent id that does not refer to a storage")
    cls, key, location, numel = parts[1:5]
    if type(key) is not str or not key:
        raise PickleTreeError(f"a storage's key is a {type(key).__name__}")
    if type(numel) is not int or not 0 <= numel < 1 << 60:
        raise PickleTreeError(
            f"storage {quote_name(key)} claims to have {_format_count(numel)} elements"
        )
    if type(location) is not str or not _is_location_tag(location):
        raise PickleTreeError(f"storage {quote_name(key)} has an unknown location tag")
    script_dtype = SCRIPT_STORAGE_DTYPES.get(cls.name) if type(cls) is GlobalName else None
    dtype = (script_dtype if is_script else None) or get_storage_dtype(cls, key)
    return StorageId(dtype, key, location, numel, parts[5] if fields > 5 else None)


class StorageIdReader:
    """Reads the persistent ids of one file; those that differ in their key alone are checked once.

    Nearly all ids of a model are of few classes, locations and sizes.
    """

    def __init__(self, *, is_script: bool = False) -> None:
        """`is_script`: of TorchScript, whose ids may end in None, for no view, as of torch 1.4."""
        self._is_script = is_script
        self._alike: dict[tuple[GlobalName, str, int], StorageId] = {}

    def read_alike(self, node: PersistentReference) -> StorageId:
        """Return a storage that equals the one of an id in all but its key, `node.id[2]`.

        Raises:
            PickleTreeError: as `parse_storage_id`.
        """
        parts = node.id
        if type(parts) is not tuple or len(parts) != 5 or type(parts[2]) is not str:
            has_view = self._is_script and type(parts) is tuple and parts[5:] == (None,)
            fields = 6 if has_view else 5
            return parse_storage_id(node, fields=fields, is_script=self._is_script)
        kind, cls, key, location, numel = parts
        if type(cls) is not GlobalName or type(location) is not str or type(numel) is not int:
            return parse_storage_id(node, is_script=self._is_script)
        storage = self._alike.get((cls, location, numel))
        if storage is None or kind != "storage" or not key:
            storage = self._alike[cls, location, numel] = parse_storage_id(
                node, is_script=self._is_script
            )
        return storage


def check_repeated_id(storage: SavedStorage, repeated_id: StorageId) -> SavedStorage:
    """Return the storage for another id of the same key.

    Raises:
        PickleTreeError: its dtype or numel differs from that of the first id.
    """
    if (storage.dtype, storage.numel) != (repeated_id.dtype, repeated_id.numel):
        if storage.numel or repeated_id.numel:
            raise PickleTreeError(f"storage {quote_name(repeated_id.key)} is described in two ways")
        return SavedStorage(
            storage.info, repeated_id.dtype, 0
        )  # torch allows an empty storage two dtypes
    return storage


def get_storage_dtype(cls: object, key: str) -> str:
    """Return the dtype of a storage class by its name alone, as torch does.

    Raises:
        PickleTreeError: the class is unknown.
    """
    dtype = STORAGE_DTYPES.get(cls.name) if type(cls) is GlobalName else None
    if dtype is None:
        name = cls.qualified_name if type(cls) is GlobalName else type(cls).__name__
        raise PickleTreeError(f"storage {quote_name(key)} has an unknown class: {quote_name(name)}")
    return dtype


def find_untyped_storage(nodes: Iterable[PersistentReference]) -> str:
    """Return the key of the first storage whose class has no dtype, "" if all have one.

    torch.save writes such a class for dtypes that came after the typed storages (float8, uint16):
    a zip archive can be loaded, an earlier file cannot.
    """
    storages = (node.id for node in nodes if type(node.id) is tuple and len(node.id) > 2)
    for _, cls, key, *_ in storages:
        if type(cls) is GlobalName and cls.name in _UNTYPED_STORAGES:
            return str(key)
    return ""


def select_byte_storages(nodes: Iterable[PersistentReference]) -> dict[str, StorageInfo]:
    """Return place -> storage of the resolved references to storages of bytes, each once."""
    return {
        f"storage {saved.info.key}": saved.info
        for node in nodes
        if type(saved := node.target) is SavedStorage and saved.dtype in BYTE_DTYPES
    }


@lru_cache(maxsize=64)
def _is_location_tag(location: str) -> bool:
    return _LOCATION_TAG.fullmatch(location) is not None


def _format_count(value: object) -> str:
    return str(value) if type(value) is int and value.bit_length() < 256 else "no number of"


_ACCELERATORS: Final = (
    "cuda|mps|xpu|hpu|mtia|xla|lazy|ipu|hip|ve|maia|vulkan|privateuseone|"
    "npu|mlu|musa|gcu|sdaa|supa|dml|rbln|spyre"
)
DEVICE_TYPE: Final = re.compile(f"cpu|meta|{_ACCELERATORS}")
"""Types of torch.device, of torch or one of its device backends."""
_LOCATION_TAG: Final = re.compile(rf"cpu|meta|(?:{_ACCELERATORS})(?::\d{{1,6}})?", re.ASCII)
"""Location tags that torch or one of its device backends registers; torch.load refuses others."""

_UNTYPED_STORAGES: Final = ("UntypedStorage", "_UntypedStorage")
STORAGE_DTYPES: Final[Mapping[str, str]] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    **dict.fromkeys(_UNTYPED_STORAGES, "uint8"),
}
"""Name of a storage class -> dtype of its elements."""
SCRIPT_STORAGE_DTYPES: Final[Mapping[str, str]] = {
    "ComplexHalfStorage": "complex32",
    **{
        f"{name[:1].upper()}{name[1:]}Storage": name
        for name in DTYPE_BITS
        if name.startswith(("float8_", "float4_e2m1fn_x2", "bits"))
    },
    **{
        f"{sign}Int{bits}Storage": f"{sign.lower()}int{bits}"
        for sign, sizes in (("U", (1, 2, 3, 4, 5, 6, 7, 16, 32, 64)), ("", range(1, 8)))
        for bits in sizes
    },
}
"""Further names in TorchScript's pickles: those of C++ scalar types, no classes of Python."""
