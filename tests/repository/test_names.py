"""The house: where files lie and how things are named, measured on the package's source."""

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import ckptool
from ckptool import rules

PACKAGE = Path(ckptool.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
Trees = dict[str, ast.Module]
"""Path of a source, relative to the package -> its syntax tree."""

PARTICIPLES = {
    "told", "met", "said", "lived", "apart", "ahead", "valued", "drawn", "looked", "below",
    "front", "beside", "lacking", "unanswered", "asked", "given", "wanted", "want", "have",
    "there", "here", "known", "found", "held", "seen", "one", "rest", "how", "way", "made",
    "again", "still", "together", "alone", "most", "both", "inside", "outside",
}  # fmt: skip
"""Participles, adverbs and pronouns that would stand for a noun."""
FILE_FIELDS = {"RenameKeys.how"}
"""A field that plan files hold keeps its name."""
RULE_CODE = re.compile(r"CK\d{1,3}")


@pytest.fixture(scope="module")
def trees() -> Trees:
    """A million objects: kept for these tests alone."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in SOURCES}


def words(name: str) -> list[str]:
    """Split a name at underscores and capitals: `read_header` and `ZipMember` have two words."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name.replace("_", " "))


def share_of_one_word(names: list[str]) -> float:
    return sum(len(words(name)) == 1 for name in names) / len(names)


def defined(trees: Trees, *kinds: type[ast.AST]) -> list[str]:
    return [
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and not node.name.startswith("__")
    ]


def bound_names(tree: ast.AST) -> set[str]:
    """Return every name that the source binds: definitions, parameters, locals, attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
    return names


def test_functions_say_a_verb_and_its_object(trees):
    names = defined(trees, ast.FunctionDef, ast.AsyncFunctionDef)
    assert share_of_one_word(names) <= 0.35
    assert len(names) > 2000


def test_classes_say_what_one_of_them_is(trees):
    assert share_of_one_word(sorted(set(defined(trees, ast.ClassDef)))) <= 0.25


def test_no_class_name_is_in_two_modules(trees):
    homes = defaultdict(set)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].add(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def find_participles(tree: ast.Module) -> set[str]:
    fields = {
        node.target.id
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and f"{owner.name}.{node.target.id}" in FILE_FIELDS
    }
    names = {name.strip("_").lower() for name in bound_names(tree)}
    return (names & PARTICIPLES) - fields


def test_no_participle_stands_for_a_noun(trees):
    found = {path: find_participles(tree) for path, tree in trees.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_folder_can_be_surveyed():
    entries = {"auto"}  # `import ckptool.auto` is an entry, as `python -m ckptool` is
    loose = [path for path in SOURCES if path.parent == PACKAGE and path.stem not in entries]
    loose = [path for path in loose if not path.stem.startswith("__")]
    assert len(loose) <= 9
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(packages) <= 16
    files = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {folder.name: count for folder, count in files.items() if count > 20} == {}


MAX_BODY_LINES = 60


def test_a_function_fits_on_a_screen(trees):
    """Lines of its body, without signature and docstring: those of the API name every argument."""
    lengths = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    lengths[f"{path}:{node.name}"] = body[-1].end_lineno - body[0].lineno + 1
    assert {name: n for name, n in lengths.items() if n > MAX_BODY_LINES} == {}


def test_files_are_named_like_their_command():
    """A command has a file of its name wherever commands have files."""
    from ckptool.cli import COMMANDS, REVISION_COMMANDS

    for command in COMMANDS:
        path = f"revisions/{command}" if command in REVISION_COMMANDS else command
        assert (PACKAGE / "cli" / f"{path}.py").exists()
        assert (PACKAGE / "commands" / f"{path}.py").exists()
        # `merge` gives the report of `diff OLD NEW`, and `rule` is printed as it is; `downgrade` is
        # an `upgrade` the other way.
        other_reports = {"merge": "diff_files", "revisions/downgrade": "revisions/upgrade"}
        report = other_reports.get(path, path)
        assert (PACKAGE / "reports" / f"{report}.py").exists()
        assert (PACKAGE / "render" / "views" / f"{report}.py").exists() or command == "rule"


def test_every_report_has_a_view(trees):
    from typing import get_args

    from ckptool.reports.any_report import AnyReport

    for report in get_args(AnyReport):
        name = report.__module__.removeprefix("ckptool.reports.").replace(".", "/")
        view = trees[f"render/views/{name}.py"]
        assert "build_blocks" in {n.name for n in view.body if isinstance(n, ast.FunctionDef)}


def test_codes_of_rules_are_compared_in_rules_only(trees):
    found = [
        f"{path}:{node.lineno} {node.value}"
        for path, tree in trees.items()
        if not path.startswith("rules/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and RULE_CODE.fullmatch(node.value)
    ]
    assert found == []


def test_the_table_of_families_names_the_file_of_every_rule(trees):
    table: dict[str, str] = {}
    for line in (rules.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].endswith(".py"):
            for span in cells[0].split(", "):
                first, _, last = span.partition("-")
                for number in range(int(first[2:]), int((last or first)[2:]) + 1):
                    table[f"CK{number}"] = cells[1]
    homes: dict[str, str] = {}
    for path, tree in trees.items():
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant)
            for target in [node.target]
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Rule"
            ):
                (code,) = [k.value for k in node.keywords if k.arg == "code"]
                text = code.value if isinstance(code, ast.Constant) else constants[code.id]
                homes[str(text)] = path.removeprefix("rules/")
    assert homes.keys() == rules.RULES.keys()
    assert {code: table.get(code) for code in homes} == homes
