"""Text of files and of user code is parsed without a warning, whatever escapes it has."""

import ast
import io
import pickle
import warnings
import zipfile

import pytest
import torch

import ckptool
from ckptool.formats.python_text import decode_escapes, evaluate_literal, parse_module


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("text", [r"x = '\d'", r"x = b'\q'"])
def test_odd_source_is_parsed_in_silence(text):
    with pytest.raises((SyntaxError, DeprecationWarning)):  # a SyntaxError from Python 3.12 on
        ast.parse(text)
    assert ast.dump(parse_module(text)) == ast.dump(ast.parse(text.replace("\\", "\\\\")))


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
