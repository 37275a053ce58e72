"""The calls that rebuild tensors are run in one step: what comes of it is what the opcodes make."""

import io
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.pickle import opcodes, reader, tensor_calls
from ckptool.formats.pickle.machine import PickleMachine
from ckptool.formats.pickle.nodes import (
    GlobalName,
    MappingNode,
    PersistentReference,
    SetNode,
    UnresolvedObject,
)

SHARED = torch.arange(24.0)
STATES = {
    "shapes": {f"t{rank}": torch.zeros([2] * rank) for rank in range(7)},
    "large numbers": {"a": torch.zeros(300, 400), "b": torch.zeros(70_000), "c": torch.zeros(2, 0)},
    "shared": {"a": SHARED[:12].view(3, 4), "b": SHARED[12:].view(4, 3).t(), "c": SHARED},
    "dtypes": {
        str(dtype): torch.zeros(3, dtype=dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
    },
    "one size in two shapes": {
        f"{n}": torch.zeros([(2, 3), (3, 2), (6,)][n % 3]) for n in range(9)
    },
    "gradients": {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(2)},
    "parameters": torch.nn.Linear(3, 2).state_dict(),
    "a module": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)),
    "an optimizer": {
        "state": {n: {"exp_avg": torch.ones(4), "step": torch.tensor(1.0)} for n in range(300)},
        "param_groups": [{"lr": 0.1, "params": list(range(300))}],
    },
    "many": {f"layers.{n}.weight": torch.zeros(1 + n % 3) for n in range(700)},
    "no text of ours": {"Ünïcode": torch.zeros(2), "x" * 300: torch.zeros(2)},
}


def read_pickle(state, protocol=2, **options):
    file = io.BytesIO()
    torch.save(state, file, pickle_protocol=protocol, **options)
    if not options:
        with zipfile.ZipFile(file) as archive:
            return archive.read("archive/data.pkl")
    return file.getvalue()


def run_machine(data, start=0):
    """Return the machine after it ran, and how it ended."""
    machine = PickleMachine(data, DEFAULT_LIMITS)
    try:
        reader._run_machine(machine, start)
    except reader.PickleStop as stop:
        return machine, (stop.end, describe(stop.value))
    except (*reader._STREAM_ERRORS, reader.PickleError) as error:
        return machine, (type(error), str(error))


def describe(node, seen=None):  # noqa: PLR0911 - one for each kind of node
    """Return what a tree is, as data: an object that was met before is its number."""
    seen = {} if seen is None else seen
    if isinstance(node, list | dict | UnresolvedObject | PersistentReference):
        if id(node) in seen:
            return ("again", seen[id(node)])
        seen[id(node)] = len(seen)
    if isinstance(node, tuple | list):
        return (type(node), [describe(item, seen) for item in node])
    if isinstance(node, dict):
        items = [(describe(key, seen), describe(value, seen)) for key, value in node.items()]
        attributes = describe(node.state, seen) if type(node) is MappingNode else None
        return (type(node), items, attributes)
    if isinstance(node, SetNode):
        return ("set", describe(node.items, seen))
    if isinstance(node, GlobalName):
        return node.qualified_name
    if isinstance(node, PersistentReference):
        return ("reference", describe(node.persistent_id, seen))
    if isinstance(node, UnresolvedObject):
        parts = (node.func, node.args, node.kwargs, node.state, node.items, node.pairs)
        return [describe(part, seen) for part in parts]
    return (type(node), repr(node))


def describe_run(data, start=0):
    machine, result = run_machine(data, start)
    return (
        result,
        describe([machine.memo.get(slot) for slot in range(len(machine.memo.slots))]),
        describe(machine.memo.sparse_slots),
        describe(machine.persistent_references),
        describe(machine.stack) if isinstance(result[0], int) else None,
        sorted(machine.globals),
        machine.is_no_text,
        machine.refusal,
    )


@pytest.fixture
def opcode_by_opcode(monkeypatch):
    """A context in which the machine runs every opcode by itself."""

    def describe_slowly(data, start=0):
        with monkeypatch.context() as context:
            for module in (reader, opcodes):
                context.setattr(module, "run_tensor_calls", lambda _machine, pos: pos)
            return describe_run(data, start)

    return describe_slowly


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", STATES)
def test_what_comes_of_it_is_the_same(name, protocol, opcode_by_opcode):
    data = read_pickle(STATES[name], protocol)
    assert describe_run(data) == opcode_by_opcode(data)


@pytest.mark.parametrize("name", ["shapes", "shared", "many"])
def test_files_from_before_torch_1_6(name, opcode_by_opcode):
    data = read_pickle(STATES[name], _use_new_zipfile_serialization=False)
    start = 0
    for _ in range(3):  # the magic number, the version, the system
        start = reader.parse_pickle(data, DEFAULT_LIMITS, start).end
    assert describe_run(data, start) == opcode_by_opcode(data, start)


def test_the_machine_is_asked_for_few_opcodes(monkeypatch):
    data = read_pickle(STATES["many"])
    handled, matched = [], []
    counted = [
        lambda m, pos, handler=handler: handled.append(pos) or handler(m, pos)
        for handler in opcodes.HANDLERS
    ]
    monkeypatch.setattr(reader, "HANDLERS", counted)
    read_call = tensor_calls._read_call
    monkeypatch.setattr(
        tensor_calls, "_read_call", lambda *args: matched.append(args) or read_call(*args)
    )
    reader.parse_pickle(data, DEFAULT_LIMITS)
    # Those before memo slot 256 take the short opcodes, which the machine runs.
    assert len(handled) < 40 * 30
    assert len(matched) == 3  # one for each shape


HOOKS_OF_ANOTHER_CLASS = read_pickle(STATES["many"]).replace(
    b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n"
)
NO_STORAGE = read_pickle(STATES["many"]).replace(
    b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00another"
)


@pytest.mark.parametrize("data", [HOOKS_OF_ANOTHER_CLASS, NO_STORAGE])
def test_what_torch_does_not_write_is_left_to_the_machine(data, opcode_by_opcode):
    assert describe_run(data) == opcode_by_opcode(data)


def test_a_slot_that_was_set_again_is_not_taken_for_what_it_was(opcode_by_opcode):
    data = read_pickle(STATES["many"])
    at = data.index(b"X\x11\x00\x00\x00layers.400.weight")
    # A text in the place of the class of the storages, and of every global before slot 12.
    rewrite = b"".join(b"X\x01\x00\x00\x00aq" + bytes([slot]) + b"0" for slot in range(12))
    changed = data[:at] + rewrite + data[at:]
    assert describe_run(changed) == opcode_by_opcode(changed)


def insert_opcodes(data, *inserted):
    at = data.index(b"X\x11\x00\x00\x00layers.400.weight")
    return data[:at] + b"".join(inserted) + data[at:]


def find_slots(data, node_type):
    memo = run_machine(data)[0].memo
    slots = (slot for slot in range(300, 900) if type(memo.get(slot)) is node_type)
    return [pickle.LONG_BINGET + slot.to_bytes(4, "little") for slot in slots]


def test_parts_of_a_tensor_that_are_referred_to_are_made(opcode_by_opcode):
    """No pickler refers to them: to the hooks, the arguments, the size or the storage's id."""
    data = read_pickle(STATES["many"])
    slots = [pickle.LONG_BINGET + slot.to_bytes(4, "little") for slot in range(250, 900)]
    changed = insert_opcodes(data, *(get + pickle.POP for get in slots))
    assert describe_run(changed) == opcode_by_opcode(changed)


def test_hooks_that_are_changed_are_those_of_one_tensor(opcode_by_opcode):
    data = read_pickle(STATES["many"])
    hooks = find_slots(data, MappingNode)
    assert len(hooks) > 50
    set_item = b"X\x01\x00\x00\x00aK\x01s0"
    changed = insert_opcodes(data, *(get + set_item for get in hooks[::3]))
    assert describe_run(changed) == opcode_by_opcode(changed)


@pytest.mark.parametrize("slot", range(300, 309))
def test_a_slot_of_a_part_that_is_set_again(slot, opcode_by_opcode):
    data = read_pickle(STATES["many"])
    put = b"X\x01\x00\x00\x00ar" + slot.to_bytes(4, "little") + b"0"
    changed = insert_opcodes(data, put)
    assert describe_run(changed) == opcode_by_opcode(changed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_alike(data, opcode_by_opcode):
    stream = bytearray(
        read_pickle(STATES[data.draw(st.sampled_from(["many", "shared", "shapes"]))])
    )
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stream)))
    stream = bytes(stream[:cut] if data.draw(st.booleans()) else stream)
    assert describe_run(stream) == opcode_by_opcode(stream)


def test_the_plain_unpickler_agrees():
    """What the stub objects of the standard library's unpickler were given is what we were."""

    class Stub:
        def __init__(self, *args):
            self.args = args

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return dict if name == "OrderedDict" else Stub

        def persistent_load(self, pid):
            return pid

    data = read_pickle(STATES["many"])
    theirs = Unpickler(io.BytesIO(data)).load()
    ours = reader.parse_pickle(data, DEFAULT_LIMITS).root
    assert list(ours) == list(theirs)
    for key, node in ours.items():
        storage, *view, hooks = node.args
        their_storage, *their_view, their_hooks = theirs[key].args
        assert view == their_view
        assert hooks == their_hooks == {}
        assert storage.persistent_id[0] == their_storage[0]
        assert storage.persistent_id[2:] == their_storage[2:]
