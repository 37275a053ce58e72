"""What is read into a graph and written again is the same to Python's own unpickler."""

import collections
import copyreg
import io
import pickle
from argparse import Namespace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.pickle.graph import read_graph
from ckptool.formats.pickle.nodes import PickleError
from ckptool.formats.pickle.writer import write_pickle

atoms = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
trees = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.builds(collections.OrderedDict, st.dictionaries(st.text(), inner))
        | st.frozensets(st.integers())
        | st.sets(st.text())
    ),
)


class Point:
    """Cannot be made by calling it without arguments, and says so."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is type(self) and vars(self) == vars(other)

    __hash__ = None


class Keyed(Point):
    def __new__(cls, *, x):
        return super().__new__(cls)

    def __init__(self, *, x):
        super().__init__(x)

    def __getnewargs_ex__(self):
        return (), {"x": self.x}


def again(data: bytes) -> bytes:
    graph = read_graph(data, DEFAULT_LIMITS)
    return write_pickle(graph.root, graph.protocol)[0]


@given(trees, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_stays(tree, protocol):
    assert pickle.loads(again(pickle.dumps(tree, protocol))) == tree


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "thing",
    [
        Point(3),
        Namespace(lr=0.1, steps=[1, 2]),
        Fraction(1, 3),
        collections.Counter("hello"),
        collections.defaultdict(list, a=[1]),
        collections.deque([1, 2], maxlen=3),
        bytearray(b"abc"),
        b"x" * 300,
        -1,
        1 << 40,
        -(1 << 900),
        1 << 3000,
        "\ud800",
        1.5,
        {(1, "a"): {1, 2}},
        torch.float32,
        torch.Size([1, 2]),
        complex(1, 2),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_objects_stay(thing, protocol):
    data = pickle.dumps(thing, protocol)
    assert pickle.loads(again(data)) == thing
    # Nothing is lost the second time, either.
    assert again(again(data)) == again(data)


def test_an_object_with_keyword_arguments_stays():
    data = pickle.dumps(Keyed(x=5), 4)
    assert pickle.loads(again(data)) == Keyed(x=5)


def test_what_is_shared_stays_shared_and_what_is_cyclic_stays_cyclic():
    shared, cycle = [1], []
    cycle.append((cycle, shared))
    root = pickle.loads(again(pickle.dumps({"a": shared, "b": shared, "c": cycle})))
    assert root["a"] is root["b"]
    assert root["c"][0][0] is root["c"]
    assert root["c"][0][1] is root["a"]


def test_depth_costs_no_recursion():
    tree = None
    for _ in range(5000):
        tree = [tree]
    data = b"\x80\x02" + b"]" * 5000 + b"N" + b"a" * 5000 + b"."
    assert len(again(data)) > 5000


def test_what_is_left_to_the_container_is_named_in_order():
    class Leaving(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", thing.x) if isinstance(thing, Point) else None

    out = io.BytesIO()
    Leaving(out, 2).dump([Point("a"), Point("b"), Point("a")])
    data, left = write_pickle(read_graph(out.getvalue(), DEFAULT_LIMITS).root)
    assert [node.persistent_id[1] for node in left] == ["a", "b", "a"]
    assert len(data) < 100


def test_a_name_that_is_only_known_when_it_is_loaded_is_refused():
    copyreg.add_extension("fractions", "Fraction", 200)
    try:
        data = pickle.dumps(Fraction(1, 2), 2)
    finally:
        copyreg.remove_extension("fractions", "Fraction", 200)
    with pytest.raises(PickleError, match="is a name that is only computed while loading"):
        again(data)
