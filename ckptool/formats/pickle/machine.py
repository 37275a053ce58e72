"""Inert pickle machine: stack, memo, and a record of every global that the pickle names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ckptool.formats.files.byte_strings import identify_packed_bytes, may_be_pickle
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.nodes import (
    GETATTR,
    GlobalName,
    PersistentReference,
    PickleError,
    TensorCall,
    TruncatedPickleError,
    UnresolvedObject,
    require_hashable_key,
)
from ckptool.formats.pickle.safe_calls import EMPTY_WHEN_NEW, PLAIN_CALLS, SAFE_CALL_BUILDERS
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS

if TYPE_CHECKING:
    from ckptool.formats.pickle.tensor_calls import CallLayout

_MIN_PICKLE_BYTES: Final = 8
"""Bytes up to which a byte string is no pickle that imports a name."""


class PickleStop(Exception):  # noqa: N818 - it ends a stream and is no error
    """Raised by the STOP opcode, with the top of the stack and the position after the opcode."""

    def __init__(self, value: object, end: int) -> None:
        super().__init__()
        self.value = value
        self.end = end


class PickleMemo:
    """Memo of a pickle: slot number -> object.

    Picklers number the slots consecutively: those are in a list, as a dict takes ten times the
    memory. Other slots are in a dict: a list up to a slot number of the file has no size limit.
    """

    __slots__ = ("is_rewritten", "slots", "sparse_slots")

    def __init__(self) -> None:
        self.slots: list[Any] = []
        """The consecutive slots from 0.

        Those of the parts of a tensor that torch.save wrote have the reference of its storage, and
        the next slot has the tensor: the parts, which nothing refers to, are made when they are
        asked for.
        """
        self.sparse_slots: dict[int, Any] = {}
        self.is_rewritten = False
        """Whether one of the consecutive slots was set again, as no pickler does."""

    def __len__(self) -> int:
        return len(self.slots) + len(self.sparse_slots)

    def put(self, slot: int, value: object) -> None:
        if slot < len(self.slots):
            for near_slot in (slot, max(slot - 1, 0)):  # a part of a tensor, or the tensor
                self.get(near_slot)  # so that the other parts are in their slots
            self.slots[slot] = value
            self.is_rewritten = True
        elif slot == len(self.slots) and not self.sparse_slots:
            self.slots.append(value)
        else:
            self.sparse_slots[slot] = value

    def get(self, slot: int) -> object:
        """Return the object in a slot.

        Raises:
            KeyError: the slot is empty.
        """
        if slot >= len(self.slots):
            return self.sparse_slots[slot]
        node = self.slots[slot]
        if type(node) is PersistentReference and node.call is not None:
            self._fill_tensor_slots(slot, node, node.call)
        return self.slots[slot]

    def _fill_tensor_slots(self, slot: int, storage: PersistentReference, call: TensorCall) -> None:
        """Make the parts of a call that rebuilds a tensor; `slot` is one of theirs."""
        start = slot
        while start and self.slots[start - 1] is storage:
            start -= 1
        end = start + call.part_count
        args = self.slots[end].args
        self.slots[start:end] = (
            *call.location_puts,
            storage.persistent_id,
            *call.view_puts,
            args[-1],
            args,
        )


class PickleMachine:
    """State of one run over a pickle: stack, memo, and the globals that it names."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data = data
        self.limits = limits
        self.frame_end = len(data)
        """Position of the end of the open frame, or of the data if no frame is open."""
        self.in_frame = False
        self.protocol = 0
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        """The stacks below the open MARKs, outermost first."""
        self.memo = PickleMemo()
        self.globals: dict[tuple[str, str], GlobalName] = {}
        self.persistent_references: list[PersistentReference] = []
        self.embedded_pickles: dict[int, bytes] = {}
        """id -> byte string that a `_PICKLE_LOADER_NAMES` function gets, or that is a pickle."""
        self.embedded_archives: dict[int, bytes] = {}
        """id -> byte string that is an archive, compressed or a program: nobody looks into it."""
        self.tensor_callee = GlobalName("", "")
        """torch._utils._rebuild_tensor_v2, once the pickle has named it."""
        self.call_layouts: dict[bytes, list[CallLayout]] = {}
        """Some bytes of a tensor's call -> the layouts that calls with these bytes had."""
        self.interned_tuples: dict[tuple[Any, ...], tuple[int, ...]] = {}
        """Tuples of ints that repeat, such as shapes and strides: one object for equal ones."""
        self.blob_offsets: dict[int, int] = {}
        """id of a long byte string -> its offset in the data."""
        self.attribute_calls: list[tuple[Any, ...]] = []
        """Arguments of each call of `getattr`, also if its result is discarded."""
        self.refusal = ""
        """What it does that `torch.load(weights_only=True)` refuses, names apart; "" if nothing."""
        self.is_no_text = False
        """Whether it called something, or named it by an opcode that no text begins with."""
        self._remaining_bytes = limits.pickle_bytes
        self._remaining_key_chars = _FREE_KEY_CHARS + 4 * len(data)
        self._equal_hash_counts: dict[tuple[int, int], int] = {}
        """(id of a mapping, hash) -> number of its tuple keys with this hash."""

    def record_global(self, module: str, name: str) -> GlobalName:
        """Record that the pickle would import `name` from `module`; the same object each time.

        Raises:
            PickleError: the name is longer than any that Python code has.
        """
        global_name = self.globals.get((module, name))
        if global_name is None:
            if len(module) + len(name) > _MAX_GLOBAL_CHARS:
                raise PickleError(f"a global of {len(module) + len(name)} characters")
            if self.protocol < 3 and not module.startswith("torch"):
                module, name = convert_python2_name(module, name)
            global_name = self.globals.get((module, name)) or GlobalName(module, name)
            global_name.builder = SAFE_CALL_BUILDERS.get((module, name))
            self.globals[module, name] = global_name
            if (module, name) == _TENSOR_CALLEE:
                self.tensor_callee = global_name
        return global_name

    def record_computed_global(self, module: object, name: object) -> GlobalName:
        """Record a name that is determined at load time; parts that are no str are "<computed>"."""
        parts = [part if isinstance(part, str) else "<computed>" for part in (module, name)]
        global_name = self.globals.setdefault((parts[0], parts[1]), GlobalName(parts[0], parts[1]))
        global_name.computed = True
        return global_name

    def record_call(self, func: object, args: object) -> object:
        """Return the node for the result of `func(*args)`, without calling it.

        Raises:
            PickleError: `args` is no tuple, or `func` is nothing callable.
        """
        if type(args) is not tuple:
            raise PickleError(f"a call with {type(args).__name__} for arguments")
        self.is_no_text = True
        if type(func) is GlobalName:
            if func.builder is not None:
                return func.builder(self, args)
            name = (func.module, func.name)
            if name in SAFE_GLOBALS and name not in PLAIN_CALLS:
                raise PickleError(f"{func.qualified_name} is called, which no pickler writes")
            if name == GETATTR:
                self.attribute_calls.append(args)
            if func.name in _PICKLE_LOADER_NAMES and args and isinstance(args[0], bytes):
                self.embedded_pickles[id(args[0])] = args[0]
            return UnresolvedObject(func, args)
        if type(func) is UnresolvedObject:
            self.record_computed_global("<computed>", "<call>")
            return UnresolvedObject(func, args)
        raise PickleError(f"a {type(func).__name__} is called")

    def record_creation(self, cls: object, args: object) -> object:
        """Return the node for `cls.__new__(cls, *args)`, without calling it.

        Raises:
            PickleError: as `record_call`, or `__new__` of the class leaves the arguments unused.
        """
        if type(cls) is GlobalName and args and (cls.module, cls.name) in EMPTY_WHEN_NEW:
            raise PickleError(f"{cls.qualified_name} is created with arguments that it ignores")
        return self.record_call(cls, args)

    def note_refusal(self, reason: str) -> None:
        """Record what `torch.load(weights_only=True)` refuses; the first reason is kept."""
        self.refusal = self.refusal or reason

    def note_item_target(self, target: object) -> None:
        """Record a refusal if items are given to what is neither a list nor a dict."""
        if type(target) is UnresolvedObject and target.callee_name in SAFE_GLOBALS:
            self.note_refusal(f"it puts items into a {target.qualified_name}")

    def note_bytes(self, content: bytes) -> None:
        """Record a byte string that user code could load: extra state is saved so."""
        if len(content) <= _MIN_PICKLE_BYTES:
            return
        if identify_packed_bytes(content):
            self.embedded_archives[id(content)] = content
        elif may_be_pickle(content):
            self.embedded_pickles[id(content)] = content

    def charge_memory(self, nbytes: int) -> None:
        """Subtract `nbytes` from the memory budget: few opcodes could copy a lot of data.

        Raises:
            PickleError: the budget, `Limits.pickle_bytes`, is spent.
        """
        self._remaining_bytes -= nbytes
        if self._remaining_bytes < 0:
            raise PickleError(f"it takes more than {self.limits.pickle_bytes} bytes of memory")

    def check_key(self, mapping: object, key: object) -> None:
        """Check and count a key that is set in `mapping`, other than a text of a usual length.

        Raises:
            PickleError: Python cannot hash it in bounded time, more than 64 tuples of the mapping
                have its hash, or the memo repeats long keys: more than 4 times the pickle's size.
        """
        if type(key) is str:
            if len(key) > MAX_UNCOUNTED_KEY_CHARS:
                self._charge_long_key(len(key))
            return
        require_hashable_key(key)
        if isinstance(key, tuple):
            index = id(mapping), hash(key)
            count = self._equal_hash_counts[index] = self._equal_hash_counts.get(index, 0) + 1
            if count > _MAX_EQUAL_HASHES:
                raise PickleError(
                    f"more than {_MAX_EQUAL_HASHES} keys of a dict have the same hash"
                )

    def _charge_long_key(self, nchars: int) -> None:
        self._remaining_key_chars -= nchars
        if self._remaining_key_chars < 0:
            raise PickleError(
                f"it repeats keys of more than {MAX_UNCOUNTED_KEY_CHARS} characters too often"
            )

    def intern_tuple(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return one object for equal tuples of ints; 1, 1.0 and True stay distinct."""
        for item in items:
            if type(item) is not int:
                return items
        interned_tuple = self.interned_tuples.get(items)
        if interned_tuple is None:
            interned_tuple = items
            if len(self.interned_tuples) < _MAX_INTERNED_TUPLES:
                self.interned_tuples[items] = items
        return interned_tuple

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.metastack.pop()
        return items

    def read_line(self, pos: int) -> tuple[bytes, int]:
        end = self.data.find(b"\n", pos, self.frame_end)
        if end < 0:
            raise TruncatedPickleError("a line has no end")
        return self.data[pos:end], end + 1


OpcodeHandler = Callable[[PickleMachine, int], int]
"""(machine, position after the opcode) -> position of the next opcode."""


def register_handler(
    table: dict[int, OpcodeHandler], opcode: int
) -> Callable[[OpcodeHandler], OpcodeHandler]:
    """Return a decorator that enters a handler of `opcode` in `table`."""

    def add_handler(handler: OpcodeHandler) -> OpcodeHandler:
        table[opcode] = handler
        return handler

    return add_handler


MAX_UNCOUNTED_KEY_CHARS: Final = 256
"""Keys of real files are shorter; only longer ones are counted."""
_FREE_KEY_CHARS: Final = 1 << 20
_MAX_EQUAL_HASHES: Final = 64
_MAX_GLOBAL_CHARS: Final = 4096
_MAX_INTERNED_TUPLES: Final = 256
"""Models have few distinct shapes; more tuples of equal hash would make lookups slow."""
_TENSOR_CALLEE: Final = ("torch._utils", "_rebuild_tensor_v2")
_PICKLE_LOADER_NAMES: Final = frozenset({"loads", "_loads", "_load_from_bytes"})
"""Functions that unpickle their first argument, in any module."""


def convert_python2_name(module: str, name: str) -> tuple[str, str]:
    """Return module and name as today's unpicklers import a name of Python 2."""
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name
