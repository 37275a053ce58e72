"""What users read avoids the words of the list in CONTRIBUTING.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

AVOIDED = re.compile(
    r"\b(?:mend(?:s|ed|ing)?|cures?|besides?|anew|graver|need not|of before|whole numbers?|tells"
    r"|of another (?:shape|dtype|kind|type)|without a word|fresh instance"
    r"|at hand|all the same|by itself\)|(?:is|are) dealt out|lets pass|trade places|is told"
    r"|whatever (?:the|its|their|it)|as seen from|a look at|at fault only"
    r"|(?<!there )is no (?!longer|more)[a-z]+|that no state_dict)\b",
    re.IGNORECASE,
)
FILES_HOLD = re.compile(r"\bholds? (?!for\b)")
"""Of a file or a module, in what the tool prints; in prose, promises and limits hold."""
PACKAGE = sorted((ROOT / "ckptool").rglob("*.py"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
ENGINEERS = {ROOT / "docs/architecture.md", ROOT / "docs/api.md"}
"""Pages on the code, with its docstrings."""
METADATA = [
    ROOT / name
    for name in (
        *("pyproject.toml", "mkdocs.yml", "CITATION.cff", "action.yml"),
        *(".pre-commit-hooks.yaml", ".gitlab-ci.yml"),
    )
    if (ROOT / name).exists()
]
"""Descriptions that package indexes, catalogues and hook runners show."""
VOCABULARY = "## Words"
COMMANDS = {"command", "main"}
"""Functions whose docstring is printed: the help of a command."""


def docstrings(tree: ast.AST) -> set[ast.AST]:
    return {
        statement.value
        for node in ast.walk(tree)
        if getattr(node, "name", "") not in COMMANDS
        and isinstance(body := getattr(node, "body", None), list)
        for statement in body
        if isinstance(statement, ast.Expr)
    }


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of the string literals of several words, without docstrings.

    The docstring of a command is its help.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = [] if node in left_out else [node.value]
        else:
            continue
        for text in texts:
            if " " in str(text).strip():
                yield node.lineno, str(text)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a page, without code and its vocabulary."""
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line == VOCABULARY:
            return
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, re.sub(r"`[^`]*`|\([^) ]*\.md[^)]*\)", "", line)


def test_what_the_tool_says():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in PACKAGE
        for line, text in sentences(path)
        if AVOIDED.search(text)
    ]
    assert found == []


@pytest.mark.parametrize("path", METADATA, ids=lambda path: path.name)
def test_what_catalogues_show(path: Path):
    """The description on PyPI said what a file "really holds"."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if AVOIDED.search(line) or FILES_HOLD.search(line)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages(path: Path):
    if path in ENGINEERS:
        pytest.skip("a page on the code")
    assert [f"{line}: {text}" for line, text in prose(path) if AVOIDED.search(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Mend the file",
        "is no tensor",
        "besides the model",
        "it need not be saved",
    ],
)
def test_an_avoided_word_is_seen(text: str):
    assert AVOIDED.search(text)


@pytest.mark.parametrize(
    "text", ["is no longer in", "there is no tensor", "a shape mismatch", "recommends"]
)
def test_other_words_are_not(text: str):
    assert not AVOIDED.search(text)
