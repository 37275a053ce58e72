import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.folding import fold_by_pattern, replace_layer_numbers
from ckptool.phrases import (
    format_size,
    join_limited,
    make_printable,
    pluralize,
    quote_code,
    truncate,
)
from ckptool.render.text import truncate_middle


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ümläut", "plain ümläut"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("right\u202eto left", "right\\u202eto left"),
        ("\ud800", "\\ud800"),
        ("nul\x00", "nul\\x00"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_nothing_reaches_the_terminal_raw(text, shown):
    assert make_printable(text) == shown


@given(st.text())
def test_printable_text_is_printable(text):
    assert make_printable(text).isprintable()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (144, "144 B"), (2048, "2.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3,072.0 MiB")],
)
def test_size(nbytes, text):
    assert format_size(nbytes) == text


def test_count():
    assert [pluralize(n, "key") for n in (0, 1, 2000)] == ["0 keys", "1 key", "2,000 keys"]
    assert pluralize(2000, "key", "") == "2000 keys"


@pytest.mark.parametrize(
    ("count", "limit", "options", "text"),
    [
        (0, 2, {}, ""),
        (2, 2, {}, "a, b"),
        (4, 2, {}, "a, b and 2 more"),
        (4, 1, {"format_item": quote_code}, "`a` and 3 more"),
        (4, 3, {"more": " and {} steps more"}, "a, b, c and 1 steps more"),
        (4, 3, {"more": " ..."}, "a, b, c ..."),
        (4, 3, {"more": ""}, "a, b, c"),
        (3, 3, {"more": " ..."}, "a, b, c"),
    ],
)
def test_a_list_is_cut_and_says_so(count, limit, options, text):
    assert join_limited("abcd"[:count], limit, **options) == text


def test_a_cut_text_ends_in_dots():
    assert [truncate("abcd", n) for n in (3, 4)] == ["abc...", "abcd"]


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_cut_text_is_never_wider(text, width):
    assert len(truncate_middle(text, width)) <= max(width, 0) or len(text) <= width


def test_cut_keeps_both_ends():
    assert truncate_middle("transformer.layers.10.attention.bias", 20) == "transf...ention.bias"


@pytest.mark.parametrize(
    ("key", "folded"),
    [
        ("layers.3.attn.bias", "layers.*.attn.bias"),
        ("0.weight", "*.weight"),
        ("convs[12].weight", "convs[*].weight"),
        ("W_1.bias2", "W_1.bias2"),
    ],
)
def test_pattern_replaces_whole_numbers_only(key, folded):
    assert replace_layer_numbers(key) == folded


def test_fold_keeps_order_and_counts():
    groups = fold_by_pattern([("a.0", 1, "x"), ("b", 1, "y"), ("a.1", 1, "z"), ("a.2", 2, "w")])
    assert [(g.key, g.items) for g in groups] == [
        ("a.*", ("x", "z")),
        ("b", ("y",)),
        ("a.2", ("w",)),
    ]
