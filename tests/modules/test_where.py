"""The place of an assignment, however it is written."""

from pathlib import Path

import pytest
from modules import assigning
from modules.places_in import marked
from modules.zoo import examined

from ckptool.modules import describe_module

FILE = Path(assigning.__file__)
NAMES = ("mixed", "based", "reset", "declared", "two", "rest", "annotated", "again", "walrus")
MORE = ("updated", "literal", "later", "_through", "level_1")
BY_CLASS = [
    *((assigning.Assigning, name) for name in (*NAMES, *MORE)),
    *((assigning.Fields, name) for name in ("table", "post")),
]


@pytest.mark.parametrize(("cls", "name"), BY_CLASS)
def test_of_a_class(cls, name):
    assert examined(cls).tensors[name].assigned_at == marked(name, FILE)


@pytest.mark.parametrize(("cls", "name"), BY_CLASS)
def test_of_an_instance_whose_source_says_it(cls, name):
    assert describe_module(cls(), "live").tensors[name].assigned_at == marked(name, FILE)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (assigning.Computed, "right"),
        (assigning.Computed, "grown"),
        (assigning.built, "outside"),
    ],
)
def test_what_only_building_tells(made, name):
    assert examined(made).tensors[name].assigned_at == marked(name, FILE)


def test_of_an_instance_it_is_unknown_rather_than_wrong():
    held = describe_module(assigning.Computed(), "live").tensors
    assert held["right"].assigned_at == ""
    assert describe_module(assigning.built(), "live").tensors["outside"].assigned_at == ""
