"""Files with two readings: torch refuses them or reads other numbers.

The file as it is described has `w` = [0, 1, 2, 3]. Torch is asked about each file in a process of
its own.
"""

import pytest
from hostile.pickles import (
    FALSE,
    HOOKS,
    NONE,
    TRUE,
    archive,
    call,
    group,
    listed,
    mapping,
    name,
    number,
    pickled,
    storage,
    tensor,
    text,
)
from hostile.zip_archives import DATA, PLAIN

pytestmark = pytest.mark.process

VIEW = (storage(), number(2), group(number(2)), group(number(1)))
"""Storage, offset, size and stride of elements 2 and 3."""
LAST = call(name("torch._utils", "_rebuild_tensor_v2"), *VIEW, FALSE, HOOKS)
DATA_OF_LAST = b"}(" + text("data") + LAST + b"u"


def parameter(state: bytes) -> bytes:
    function = name("torch._utils", "_rebuild_parameter_with_state")
    return call(function, tensor(), FALSE, HOOKS, state)


def of_type(state: bytes) -> bytes:
    whole = (storage(), number(0), group(number(4)), group(number(1)), FALSE, HOOKS)
    rebuild, cls = name("torch._utils", "_rebuild_tensor_v2"), name("torch", "Tensor")
    return call(name("torch._tensor", "_rebuild_from_type_v2"), rebuild, cls, group(*whole), state)


PAIR = group(text("w"), tensor())
OTHER_NUMBERS = {
    "data is another tensor": parameter(DATA_OF_LAST),
    "data in the slots is another tensor": parameter(NONE + DATA_OF_LAST + b"\x86"),
    "data of a subclass is another tensor": of_type(DATA_OF_LAST),
    "data in the slots of a subclass": of_type(NONE + DATA_OF_LAST + b"\x86"),
    "an empty state": tensor() + b")b",
    "an empty mapping for a state": tensor() + b"}b",
    "another view for a state": tensor() + group(*VIEW) + b"b",
    "another view for a parameter's state": call(
        name("torch._utils", "_rebuild_parameter"), tensor(), FALSE, HOOKS
    )
    + group(*VIEW)
    + b"b",
}
OTHER_KEYS = {
    "an OrderedDict that is created with items": name("collections", "OrderedDict")
    + group(listed(PAIR))
    + b"\x81",
    "a Counter that is created with items": name("collections", "Counter")
    + group(mapping(w=tensor()))
    + b"\x81",
    "a Counter of pairs": call(name("collections", "Counter"), listed(PAIR)),
}
REFUSED = {
    "INST": b"(icollections\nOrderedDict\n",
    "OBJ": b"(" + name("collections", "OrderedDict") + b"o",
    "DUP": b"K\x012\x86",
    "POP": b"K\x01K\x020",
    "POP_MARK": b"K\x01(K\x021",
    "LIST": b"(K\x01l",
    "DICT": b"(K\x01K\x02d",
    "PUT and GET": b"K\x01p5\n0g5\n",
    "LONG4": b"\x8b\x01\0\0\0\x01",
    "UNICODE": b"Vabc\n",
    "BINBYTES": b"B\x01\0\0\0a",
    "a set of 4": b"(K\x01\x91",
    "MEMOIZE": b"K\x01\x94",
    "a dtype is called": call(name("torch", "float32")),
    "a storage class is called": call(name("torch", "FloatStorage"), number(3)),
    "a terabyte of memory": call(
        name("torch.storage", "UntypedStorage"), b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    ),
    "a size of text": call(name("torch", "Size"), listed(text("a"))),
    "a device of no type": call(name("torch", "device"), text("nowhere")),
    "a complex number of text": call(name("builtins", "complex"), text("one")),
    "a conjugate of real numbers": tensor(b"}(" + text("conj") + TRUE + b"u"),
    "a wrapper that wraps nothing": call(
        name("torch._utils", "_rebuild_wrapper_subclass"),
        name("torch", "Tensor"),
        name("torch", "float32"),
        group(number(4)),
        group(number(1)),
        number(0),
        call(name("torch.serialization", "_get_layout"), text("torch.strided")),
        call(name("torch", "device"), text("cpu")),
        FALSE,
    ),
    "a state for a complex number": call(name("builtins", "complex"), b"K\x01", b"K\x02")
    + b"}K\x01K\x02sb",
    "items for a device": call(name("torch", "device"), text("cpu")) + b"K\x01K\x02s",
    "a bytearray of two arguments": call(name("builtins", "bytearray"), b"C\x01a", text("latin1")),
}


@pytest.mark.parametrize("kind", OTHER_NUMBERS)
def test_a_tensor_that_is_changed_after_it_was_rebuilt(folder, run_gate, ask_torch, kind):
    path = archive(folder / "x.pth", pickled(mapping(w=OTHER_NUMBERS[kind])), DATA)
    answer = ask_torch(path, "weights only")
    assert not answer["loads"] or answer["values"]["w"] != PLAIN
    assert run_gate(path)[0] == 2


@pytest.mark.parametrize("kind", OTHER_KEYS)
def test_a_mapping_that_torch_leaves_empty(folder, run_gate, ask_torch, kind):
    path = archive(folder / "x.pth", pickled(OTHER_KEYS[kind]), DATA)
    answer = ask_torch(path, "weights only")
    assert not answer["loads"] or answer["values"] == {}
    assert run_gate(path)[0] == 2


@pytest.mark.parametrize("kind", REFUSED)
def test_what_torch_refuses_does_not_pass(folder, run_gate, ask_torch, kind):
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), x=REFUSED[kind])), DATA)
    assert not ask_torch(path, "weights only")["loads"]
    assert run_gate(path)[0] in {1, 2}


ACCEPTED = {
    "nothing else": b"N",
    "numbers": group(b"K\x01", b"M\x01\x01", b"J\x01\0\0\0", b"\x8a\x01\x01", TRUE, FALSE),
    "a device": call(name("torch", "device"), text("cuda"), number(1)),
    "a dtype": name("torch", "float32"),
    "a size": call(name("torch", "Size"), listed(number(2))),
    "a complex number": call(name("builtins", "complex"), b"K\x01", b"K\x02"),
    "a Counter": call(name("collections", "Counter"), b"}K\x01K\x02s"),
    "an OrderedDict of pairs": call(name("collections", "OrderedDict"), listed(PAIR)),
    "an OrderedDict with attributes": HOOKS + b"}(" + text("_metadata") + b"}ub",
    "a set": call(name("builtins", "set"), listed(number(1))),
    "a parameter with attributes": parameter(b"}(" + text("is_shared") + TRUE + b"u"),
    "a subclass with attributes": of_type(b"}(" + text("note") + text("a") + b"u"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_torch_reads_passes(folder, run_gate, ask_torch, kind):
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), x=ACCEPTED[kind])), DATA)
    answer = ask_torch(path, "weights only")
    assert (answer["loads"], answer["values"]["w"]) == (True, PLAIN)
    code, output = run_gate(path)
    assert code == 0, output
