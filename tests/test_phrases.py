"""Messages of several lines in one: the lines that say something, bounded."""

import pickle

import pytest
import torch
from torch import nn

from ckptool.modules.user_code import format_exception_line
from ckptool.phrases import summarize_message


def _load_error(module, state):
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state)
    return caught.value


def test_a_load_error_names_its_keys():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    error = _load_error(module, {"0.weight": torch.ones(3, 3), "other": torch.ones(1)})
    line = format_exception_line(error)
    assert '"0.bias", "1.weight", "1.bias"' in line
    assert 'Unexpected key(s) in state_dict: "other".' in line
    assert "\n" not in line


def test_a_load_error_names_sizes_and_counts_the_rest():
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)))
    state = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))).state_dict()
    line = format_exception_line(_load_error(module, state))
    assert "size mismatch for 0.weight: copying a param with shape torch.Size([4, 4])" in line
    assert line.endswith("and 16 more lines")
    assert str(_load_error(module, state)).count("size mismatch") == 18


def test_a_long_list_of_keys_is_counted():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(500)))
    line = format_exception_line(_load_error(module, {}))
    assert line.endswith('"0.weight", "0.bias", "1.weight" and 997 more.')


def test_all_kinds_of_a_load_error_are_seen():
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)))
    state = {f"x{i}": torch.ones(1) for i in range(9)} | {"0.weight": torch.ones(7)}
    line = format_exception_line(_load_error(module, state))
    for words in ("Missing key(s)", "Unexpected key(s)", "size mismatch for 0.weight"):
        assert words in line


def test_a_message_that_begins_with_an_empty_line_is_shown():
    assert format_exception_line(ImportError("\nNet needs timm\n")) == "ImportError: Net needs timm"


def test_a_message_of_one_line_stays():
    assert format_exception_line(ValueError("a b")) == "ValueError: a b"
    assert format_exception_line(ValueError()) == "ValueError"


def test_a_huge_message_is_bounded():
    text = "\n".join(f"{i} {'x' * 50}" for i in range(100_000))
    line = summarize_message(text)
    assert len(line) < 350
    assert line.endswith("more lines")
    assert len(summarize_message("x" * 10**6)) == 303


def test_the_cause_inside_torchscript_is_shown():
    @torch.jit.script
    def reshape(x):
        return x.view(7)

    with pytest.raises(RuntimeError) as caught:
        reshape(torch.ones(3))
    assert "shape '[7]' is invalid for input of size 3" in format_exception_line(caught.value)


def test_what_weights_only_refuses_is_shown(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pth")
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(tmp_path / "whole.pth", weights_only=True)
    assert "torch.nn.modules.linear.Linear" in format_exception_line(caught.value)


def test_color_codes_of_a_message_are_left_out():
    assert summarize_message("Weights only \x1b[1mload\x1b[0m failed") == "Weights only load failed"
