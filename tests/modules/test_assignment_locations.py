"""The place of an assignment, however it is written."""

from pathlib import Path

import pytest
from modules import assignment_examples
from modules.marked_lines import marked
from modules.modules_for_tests import examined

from ckptool.modules import describe_module
from ckptool.modules.assignment_locations import read_assignment_target

FILE = Path(assignment_examples.__file__)
NAMES = ("mixed", "based", "reset", "declared", "two", "rest", "annotated", "again", "walrus")
MORE = ("updated", "literal", "later", "_through", "level_1")
BY_CLASS = [
    *((assignment_examples.Assigning, name) for name in (*NAMES, *MORE)),
    *((assignment_examples.Fields, name) for name in ("table", "post")),
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
        (assignment_examples.Computed, "right"),
        (assignment_examples.Computed, "grown"),
        (assignment_examples.built, "outside"),
    ],
)
def test_what_only_building_tells(made, name):
    assert examined(made).tensors[name].assigned_at == marked(name, FILE)


def test_of_an_instance_it_is_unknown_rather_than_wrong():
    held = describe_module(assignment_examples.Computed(), "live").tensors
    assert held["right"].assigned_at == ""
    assert describe_module(assignment_examples.built(), "live").tensors["outside"].assigned_at == ""


def test_a_file_of_the_same_name_in_another_folder_is_another_file(tmp_path, monkeypatch):
    """A relative location is read from the working directory, not from an earlier one."""
    for name in ("mask", "table"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("net.py").write_text(f"self.{name} = 1\n")
        assert read_assignment_target("net.py:1", name) == f"self.{name}"
