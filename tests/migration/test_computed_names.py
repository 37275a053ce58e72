"""Names that setattr() computes: what is listed is what Python runs."""

import ast
from textwrap import indent

import pytest

from ckptool.migration.codemod.computed_names import list_names, may_be_name

LOOPS = [
    'for n in range(3):\n    setattr(self, f"mask_{n}", 1)',
    'for n in range(1, 9, 3):\n    setattr(self, "mask_" + str(n), 1)',
    'for name in ("a", "b"):\n    setattr(self, name, 1)',
    'names = ["a", "b"]\nfor name in names:\n    setattr(self, name + "_", 1)',
    'for n, name in enumerate("ab"):\n    setattr(self, f"{name}{n}", 1)',
    'for name, value in {"a": 1, "b": 2}.items():\n    setattr(self, name, value)',
    'for name, value in zip(("a", "b"), self.make()):\n    setattr(self, name, value)',
    'for name, (value, _) in (("a", (1, 2)), ("b", (3, 4))):\n    setattr(self, name, value)',
    'prefix = "mask"\n[setattr(self, f"{prefix}_{n}", n) for n in range(2)]',
]


class Recorder:
    """Records the names that are set."""

    def __init__(self):
        self.__dict__["names"] = set()

    def __setattr__(self, name, value):
        self.names.add(name)

    def make(self):
        return 1, 2


def parse(statements, arguments="self"):
    """Return the source of a function, its AST, and the name that its setattr() is given."""
    source = f"def build({arguments}):\n{indent(statements, '    ')}\n"
    function = ast.parse(source).body[0]
    (name,) = (
        node.args[1]
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "setattr"
    )
    return source, function, name


@pytest.mark.parametrize("statements", LOOPS, ids=range(len(LOOPS)))
def test_the_names_of_a_loop_over_literals_are_those_that_it_sets(statements):
    source, function, name = parse(statements)
    scope = {}
    exec(source, scope)
    recorder = Recorder()
    scope["build"](recorder)
    names = list_names(name, function)
    assert names is not None
    assert recorder.names <= names
    assert all(may_be_name(name, attribute, function) for attribute in recorder.names)
    assert not may_be_name(name, "cover", function)


@pytest.mark.parametrize(
    "statements",
    [
        "for name in names:\n    setattr(self, name, 1)",
        "for name, value in options.items():\n    setattr(self, name, value)",
        'names = ["a"]\nnames.append(options)\nfor name in names:\n    setattr(self, name, 1)',
        'name = "a"\nif options:\n    name = options\nsetattr(self, name, 1)',
        'for n in range(options):\n    setattr(self, f"mask_{n}", 1)',
        'for n in range(10**30):\n    setattr(self, f"mask_{n}", 1)',
        'for n in range(1000000000000000000000000):\n    setattr(self, f"mask_{n}", 1)',
        'for n in range(0, 5, 0):\n    setattr(self, f"mask_{n}", 1)',
        'for n in range():\n    setattr(self, f"mask_{n}", 1)',
    ],
    ids=["argument", "items", "appended", "assigned", "range", "power", "huge", "no step", "none"],
)
def test_names_that_depend_on_arguments_are_not_listed(statements):
    _, function, name = parse(statements, "self, names, options")
    assert list_names(name, function) is None


@pytest.mark.parametrize(
    "text", ['f"mask_{n}"', '"mask_%d" % n', '"mask_{}".format(n)', '"mask_" + n']
)
def test_text_in_a_name_tells_what_it_may_be(text):
    _, function, name = parse(f"setattr(self, {text}, 1)", "self, n")
    assert may_be_name(name, "mask_7", function)
    assert not may_be_name(name, "cover_7", function)
