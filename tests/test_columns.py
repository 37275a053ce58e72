"""Rows of a table -> its lines."""

import pytest

from ckptool.render.columns import lines

RIGHT = {"count"}


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([], ["key    count", "-----  -------"]),
        (
            [("a.weight", "1"), ("b", "1,000,000")],
            [
                "key           count",
                "--------  ---------",
                "a.weight          1",
                "b         1,000,000",
            ],
        ),
        (
            [("a\nlonger", "1"), ("b", "")],
            ["key       count", "------  -------", "a             1", "longer", "b"],
        ),
    ],
)
def test_lines(rows, drawn):
    assert list(lines(rows, ["key", "count"], RIGHT)) == drawn
