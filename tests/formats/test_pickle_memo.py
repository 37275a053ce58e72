"""What a pickle puts aside, and what of it is one object: as little memory as the file is worth."""

import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.pickle.graph import read_graph
from ckptool.formats.pickle.machine import PickleMachine, PickleMemo
from ckptool.formats.pickle.reader import parse_pickle

SLOTS = st.lists(st.tuples(st.integers(0, 12), st.integers()))


@given(SLOTS)
def test_a_memo_is_a_dict(puts):
    memo, same = PickleMemo(), {}
    for slot, value in puts:
        memo.put(slot, value)
        same[slot] = value
        assert len(memo) == len(same)
    assert {slot: memo.get(slot) for slot in same} == same


def test_an_empty_slot_is_a_key_error_wherever_it_would_be():
    memo = PickleMemo()
    memo.put(0, "a")
    for slot in (1, 2**32 - 1):
        with pytest.raises(KeyError):
            memo.get(slot)


def test_a_slot_far_away_takes_no_memory_up_to_it():
    memo = PickleMemo()
    memo.put(2**32 - 1, "far")
    assert memo.slots == []
    assert memo.get(2**32 - 1) == "far"


def test_slots_that_follow_a_far_one_are_kept():
    data = b"\x80\x02K\x05r\xff\xff\x00\x00K\x06r\x00\x00\x00\x00\x87."
    far = b"\x80\x02K\x05r\xff\xff\x00\x00K\x06r\x00\x00\x00\x00j\xff\xff\x00\x00\x87."
    assert parse_pickle(far, DEFAULT_LIMITS).root == (5, 6, 5) == pickle.loads(far)
    assert parse_pickle(data, DEFAULT_LIMITS).error


def test_a_slot_that_is_set_again_holds_the_later_value():
    data = b"\x80\x02K\x05r\x00\x00\x00\x00K\x06r\x00\x00\x00\x00j\x00\x00\x00\x00h\x00\x87."
    assert parse_pickle(b"\x80\x02" + data[2:], DEFAULT_LIMITS).root == (6, 6, 6)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_that_are_equal_and_of_other_types_stay_apart(protocol):
    value = [(1,), (True,), (1.0,), (1, 2), (1, 2.0), (1, 2), (False, 0, 0), (0, 0, 0)]
    made = parse_pickle(pickle.dumps(value, protocol), DEFAULT_LIMITS).root
    assert [[type(item) for item in one] for one in made] == [
        [type(item) for item in one] for one in value
    ]
    assert made == value


def test_shapes_that_come_again_are_one_object_and_only_so_many():
    sizes = [(n % 600, 3) for n in range(1200)]
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True  # each tuple is written out
    pickler.dump(sizes)
    machine = PickleMachine(b"", DEFAULT_LIMITS)
    once = [machine.intern_tuple(size) for size in sizes]
    assert once == sizes
    assert once[0] is once[600]
    assert len(machine.interned_tuples) == 256
    made = parse_pickle(buffer.getvalue(), DEFAULT_LIMITS).root
    assert made == sizes
    assert made[1] is made[601]


def test_a_graph_that_is_written_again_keeps_its_tuples_apart():
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True
    pickler.dump([(4, 1), (4, 1)])
    first, second = read_graph(buffer.getvalue(), DEFAULT_LIMITS).root
    assert first == second
    assert first is not second
