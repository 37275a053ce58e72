"""What the inner loop leaves out: `pytest -m "not process and ..."` starts no process."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

STARTERS = {
    *("subprocess", "multiprocessing", "ProcessPoolExecutor", "LocalCluster"),
    *("fork", "forkpty", "posix_spawn", "run_process", "run_and_list_heavy_imports"),
}
"""Names that start processes, imported or used as an attribute."""


def starts_processes(tree: ast.Module) -> bool:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name for alias in node.names}
            names.add(getattr(node, "module", None) or "")
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    return bool(names & STARTERS)


def test_a_file_that_starts_processes_has_the_mark():
    unmarked = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if starts_processes(ast.parse(text)) and "pytest.mark.process" not in text:
            unmarked.append(path.relative_to(ROOT).as_posix())
    assert unmarked == []


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("import subprocess", True),
        ("from subprocess import Popen", True),
        ("import os; os.fork()", True),
        ("name = 'subprocess'", False),
    ],
)
def test_what_starts_a_process_is_known(line, starts):
    assert starts_processes(ast.parse(line)) is starts


def test_the_fixtures_that_start_processes_give_the_mark():
    from conftest import PROCESSES

    for folder in (ROOT / "tests", ROOT / "tests" / "ci", ROOT / "tests" / "repository"):
        tree = ast.parse(Path(folder / "conftest.py").read_text(encoding="utf-8"))
        named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert named & PROCESSES, folder
