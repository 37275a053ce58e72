"""A lock's text: the same bytes every time, one key a line, and read strictly."""

import json
from pathlib import Path

import pytest
import torch
from compare import models
from hypothesis import given
from hypothesis import strategies as st

from ckptool.compare.contracts import contract, contract_lock
from ckptool.compare.contracts.contract import Contract, ContractEntry, ContractOrigin
from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats import open_checkpoint
from ckptool.model import Constancy, Kind
from ckptool.modules import ModuleSpec, examine_module

LOCK = Path("ckpt.lock.json")


def of_module(name: str) -> Contract:
    return contract.build_module_contract(examine_module(ModuleSpec(f"compare.models:{name}")))


def test_one_key_a_line_in_natural_order():
    text = contract_lock.format_lock(of_module("First"))
    assert text.splitlines()[:5] == [
        "{",
        '  "ckptool-lock": 1,',
        '  "source": "module",',
        '  "name": "compare.models:First",',
        '  "keys": {',
    ]
    lines = [line.strip().rstrip(",") for line in text.splitlines()[5:-3]]
    keys = [json.loads(f"{{{line}}}") for line in lines if line.startswith('"')]
    assert [next(iter(key)) for key in keys] == [
        "body.bias",
        "body.weight",
        "mask",
        "norm.bias",
        "norm.num_batches_tracked",
        "norm.running_mean",
        "norm.running_var",
        "norm.weight",
        "scale",
    ]
    assert text == contract_lock.format_lock(of_module("First"))


def test_what_a_module_promises():
    terms = of_module("First").entries
    assert terms["mask"] == ContractEntry(
        key="mask",
        shape=(4, 4),
        dtype="float32",
        kind=Kind.BUFFER,
        saved=True,
        owner="compare.models.First",
        version=1,
        constancy=Constancy.CONSTANT,
        value=terms["mask"].value,
    )
    assert len(terms["mask"].value) == 16
    assert (terms["scale"].saved, terms["scale"].kind) == (False, Kind.ATTRIBUTE)
    assert (terms["norm.running_mean"].version, terms["norm.running_mean"].constancy) == (
        2,
        Constancy.MUTATED,
    )
    assert terms["body.weight"].constancy is None
    assert of_module("Extra").non_tensors == {"_extra_state": "dict of 1"}
    tied = of_module("Tied").entries
    assert {key: term.tied for key, term in tied.items() if term.tied} == {
        "first.weight": "first.weight",
        "second.weight": "first.weight",
    }


def test_a_file_promises_what_it_knows(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(models.First().state_dict(), path)
    checkpoint = open_checkpoint(path)
    found = contract.build_state_contract(checkpoint, contract.choose_state(checkpoint, None, None))
    text = contract_lock.format_lock(found)
    assert '"name": "model.pth"' in text
    assert str(tmp_path) not in text
    assert found.entries["norm.running_mean"] == ContractEntry(
        key="norm.running_mean", shape=(4,), dtype="float32", version=2
    )
    assert "scale" not in found.entries


kinds = st.sampled_from([None, *Kind])
texts = st.text(st.characters(codec="utf-8"), max_size=12)
terms = st.builds(
    ContractEntry,
    key=st.just(""),
    shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    dtype=st.sampled_from(["float32", "bfloat16", "int64", "something"]),
    layout=st.sampled_from(["strided", "sparse_coo", "lazy"]),
    kind=kinds,
    saved=st.booleans(),
    owner=st.none() | texts,
    version=st.none() | st.integers(0, 9),
    constancy=st.sampled_from([None, *Constancy]),
    value=st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
    tied=st.none() | texts,
)


@given(st.dictionaries(texts, terms, max_size=6), st.dictionaries(texts, texts, max_size=3))
def test_what_is_written_is_read(found, others):
    from msgspec.structs import replace

    named = {key: replace(term, key=key) for key, term in found.items()}
    once = Contract("n", ContractOrigin.MODULE, "a:B", named, others)
    text = contract_lock.format_lock(once)
    again = contract_lock.parse_lock(text.encode(), LOCK)
    assert dict(again.entries) == named
    assert dict(again.non_tensors) == others
    assert contract_lock.format_lock(again) == contract_lock.format_lock(
        contract_lock.parse_lock(text.encode(), LOCK)
    )


GOOD = contract_lock.format_lock(
    Contract(
        "n",
        ContractOrigin.MODULE,
        "a:B",
        {"w": ContractEntry(key="w", shape=(2,), dtype="float32")},
    )
)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"ckptool-lock": 1', '"ckptool-lock": 2', "is a lock of format 2.*create it again"),
        ('"ckptool-lock": 1', '"ckptool-lock": "1"', 'is a lock of format "1"'),
        ('"dtype"', '"dtyp"', r"unknown field `dtyp` - at `\$.keys\[.w.\]`; did you mean `dtype`"),
        ('"keys"', '"key"', "unknown field `key`; did you mean `keys`"),
        ("[2]", "[-2]", r"`int` >= 0 - at `\$.keys\[.w.\].shape\[0\]`"),
        ("[2]", '["2"]', r"Expected `int`, got `str`"),
        ('"saved": true', '"saved": 1', r"Expected `bool`, got `int` - at `\$.keys\[.w.\].saved`"),
        ('"module"', '"modul"', r"Invalid enum value 'modul' - at `\$.source`"),
        ('"others": {}', '"keys": {}', "the key 'keys' appears twice"),
        ('"shape": [2], ', "", "missing required field `shape`"),
        ("}\n}", "}", "is not a lock:"),
        (GOOD, "[]", "expected an object with 'ckptool-lock'"),
        (GOOD, "[" * 100_000, "nested too deep"),
        (GOOD, "\ud800", "is not a lock:"),
    ],
)
def test_a_fault_is_named_with_its_place(old, new, said):
    assert old in GOOD
    text = GOOD.replace(old, new, 1).encode(errors="surrogatepass")
    with pytest.raises(CorruptCheckpointError, match=said) as error:
        contract_lock.parse_lock(text, LOCK)
    assert str(error.value).startswith("ckpt.lock.json: ")
    assert "\n" not in str(error.value)


def test_a_lock_that_cannot_be_read(tmp_path):
    with pytest.raises(ReadError, match="no such file"):
        contract_lock.read_lock(tmp_path / "none.json")
    assert not contract_lock.is_lock(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{}")
    assert not contract_lock.is_lock(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(GOOD)
    assert contract_lock.is_lock(tmp_path / "x.json")
