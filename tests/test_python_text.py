"""Text of files and of user code is parsed without a warning, whatever escapes it has."""

import io
import pickle
import warnings
import zipfile

import pytest
import torch

import ckptool
from ckptool.python_text import decode_escapes, evaluate_literal, parse_module


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("text", [r"'\d'", r"'\400'", r"1 if 1 is 1 else 2"])
def test_odd_source_is_parsed_in_silence(text):
    with pytest.raises((SyntaxError, DeprecationWarning)):
        # What Python itself warns of, as an error; Python 3.11 does not warn of all.
        compile(text, "source.py", "eval")
        raise DeprecationWarning
    assert parse_module(text).body


@pytest.mark.parametrize("text", [rb"\d", rb"a\s\n", rb"\x41", rb"\400", b"plain"])
def test_escapes_are_those_of_python(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pickle._loads(b"S'" + text + b"'\n.", encoding="bytes")
    assert decode_escapes(text) == expected


def test_a_literal_with_an_odd_escape():
    assert evaluate_literal(r"'\d'") == "\\d"


def test_a_python_2_string_with_an_odd_escape_is_read(tmp_path):
    r"""A mutant made `S'\s'` of a string of protocol 0: a warning of Python's own decoder."""
    buffer = io.BytesIO()
    torch.save({"key": torch.ones(2)}, buffer)
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00key" in content
                content = content.replace(b"X\x03\x00\x00\x00key", b"S'\\sy'\n")
            new.writestr(name, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [*torch.load(path, weights_only=False)] == ["\\sy"]
    (state,) = ckptool.open_checkpoint(path).states
    assert [*state.tensors] == ["\\sy"]
