"""Plain data of two files is equal if code cannot tell what torch.load returns for each."""

import decimal
import itertools
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import Enum, IntEnum

import numpy as np
import pytest
import torch

import ckptool
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits

Pair = namedtuple("Pair", "a b")  # noqa: PYI024


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Items(list):
    pass


class Config(dict):
    pass


class Point(tuple):
    __slots__ = ()


class Color(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1


def make_default_dict(factory):
    return defaultdict(factory, a=1)


def unpack_double(text):
    return struct.unpack(">d", bytes.fromhex(text))[0]


FAMILIES = {
    "mappings": (
        {"a": 1}, OrderedDict(a=1), Counter(a=1), make_default_dict(int), make_default_dict(list),
        make_default_dict(None), Config(a=1), {"a": True}, {"a": 1.0},
    ),
    "empty mappings": ({}, OrderedDict(), Counter(), defaultdict(), defaultdict(int), Config()),
    "sets": ({1, 2}, frozenset({1, 2}), {1, 3}, [1, 2], {1.0, 2.0}),
    "empty sets": (set(), frozenset(), [], ()),
    "sequences": (
        [1, 2], (1, 2), Pair(1, 2), torch.Size((1, 2)), deque([1, 2]), deque([1, 2], maxlen=5),
        Items([1, 2]), Point((1, 2)), range(1, 3), [True, 2], (1.0, 2),
    ),
    "numbers": (
        True, 1, 1.0, Number(1), Level.LOW, Color.RED, Color.BLUE, np.int64(1), np.int32(1),
        np.float64(1), np.bool_(True), np.array(1), complex(1), decimal.Decimal(1), 1 + 2**70,
    ),
    "zeros and NaNs": (
        0.0, -0.0, unpack_double("7ff8000000000000"), unpack_double("fff8000000000000"),
        unpack_double("7ff8000000000001"), np.float64("nan"), complex(0.0, 0.0), complex(-0.0, 0.0),
    ),
    "texts": ("1", Text("1"), b"1", bytearray(b"1"), np.str_("1"), np.bytes_(b"1")),
    "long texts": (b"1" * 300, bytearray(b"1" * 300), "1" * 300, Text("1" * 300)),
    "of torch": (
        torch.float32, torch.float64, torch.strided, torch.device("cpu"), torch.device("cuda", 0),
        torch.device("cuda", 1), "cpu", None,
    ),
}  # fmt: skip
PLACES = {
    "alone": lambda value, _: value,
    "in a list": lambda value, _: [0, value],
    "in a mapping": lambda value, _: OrderedDict(key=value),
    "beside a tensor": lambda value, tensor: [tensor, value],
    "as an attribute": lambda value, _: give_attribute(OrderedDict(a=1), value),
}


def give_attribute(mapping, value):
    mapping.attribute = value
    return mapping


def describe(value):
    """Return all that code can tell of a value: classes, bits of numbers and factories."""
    if isinstance(value, dict):
        parts = sorted(((describe(key), describe(item)) for key, item in value.items()), key=repr)
    elif isinstance(value, set | frozenset):
        parts = sorted(map(describe, value), key=repr)
    elif isinstance(value, list | tuple | deque):
        parts = list(map(describe, value))
    elif isinstance(value, float):
        parts = struct.pack("d", value)
    elif isinstance(value, complex):
        parts = [describe(value.real), describe(value.imag)]
    else:
        parts = repr(value)
    details = [getattr(value, name, None) for name in ("default_factory", "maxlen", "dtype")]
    attribute = describe(value.attribute) if hasattr(value, "attribute") else None
    return type(value), parts, details, attribute


def save(value, place, path, *, is_legacy):
    tensor = torch.ones(2)
    content = {"state": {"w": tensor}, "x": PLACES[place](value, tensor)}
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_equal_if_code_cannot_tell_them(family, place, is_legacy, tmp_path):
    files = []
    for number, value in enumerate(FAMILIES[family]):
        for copy in range(2):
            path = tmp_path / f"{number}-{copy}.pth"
            save(value, place, path, is_legacy=is_legacy)
            contents = open_checkpoint(path, Limits(contents=True)).contents
            files.append((path, torch.load(path, weights_only=False)["x"], contents))
    for (old, old_value, old_contents), (new, new_value, new_contents) in itertools.combinations(
        files, 2
    ):
        is_same = describe(old_value) == describe(new_value)
        assert (old_contents == new_contents) == is_same, (old_value, new_value)
        assert "" not in old_contents.values(), (old, new)


HOLDERS = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "defaultdict": lambda **items: defaultdict(list, items),
    "defaultdict of int": lambda **items: defaultdict(int, items),
    "Config": Config,
    "list": lambda w: [w],
    "tuple": lambda w: (w,),
    "set": lambda w: {w},
    "frozenset": lambda w: frozenset({w}),
}


HOLDER_PAIRS = list(itertools.combinations_with_replacement(HOLDERS, 2))


@pytest.mark.parametrize("names", HOLDER_PAIRS, ids=" and ".join)
def test_the_class_of_what_holds_tensors_counts_but_for_a_state_dict(names, tmp_path):
    """load_state_dict() takes a dict as it takes an OrderedDict."""
    paths = [tmp_path / f"{number}.pth" for number in range(2)]
    for name, path in zip(names, paths, strict=True):
        torch.save({"state": HOLDERS[name](w=torch.ones(2))}, path)
    loaded = [type(torch.load(path, weights_only=False)["state"]) for path in paths]
    is_same = loaded[0] is loaded[1] and names[0] == names[1]
    report = ckptool.diff(*paths)
    assert (report.verdict == "identical") == (is_same or set(loaded) == {dict, OrderedDict})
