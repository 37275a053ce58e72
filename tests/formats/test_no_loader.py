"""R1: nothing that reads a checkpoint can load or run one, because nothing there knows how to."""

import ast
from pathlib import Path

import pytest

import ckptool

PACKAGE = Path(ckptool.__file__).parent
READERS = (
    "model.py", "locations.py", "formats/**/*.py", "reports/*.py", "compare/*.py",
    "values/elements.py", "values/equality.py", "values/fingerprint*.py", "values/strides.py",
    "values/preview_grid.py", "values/batches/work_batches.py",
)  # fmt: skip
READ_PATH = sorted(path for pattern in READERS for path in PACKAGE.glob(pattern))
LOADERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNERS = {"runpy", "subprocess", "code", "codeop", "imp", "pkgutil", "pydoc"}
LIBRARIES = {"torch", "numpy", "safetensors"}
CALLS = {"eval", "exec", "compile", "__import__", "find_class", "import_module", "load_module"}


@pytest.mark.parametrize("path", READ_PATH, ids=[str(p.relative_to(PACKAGE)) for p in READ_PATH])
def test_nothing_loads(path):
    tree = ast.parse(path.read_text())
    imported = {name.partition(".")[0] for node in ast.walk(tree) for name in _imports(node)}
    assert imported & (LOADERS | RUNNERS | LIBRARIES) == set()
    by_name = {PACKAGE / "formats" / "__init__.py", PACKAGE / "reports" / "common.py"}
    allowed = {"import_module"} if path in by_name else set()
    assert (CALLS - allowed) & {name for node in ast.walk(tree) for name in _names(node)} == set()


def test_what_is_imported_by_name_is_ours():
    """An `import_module` takes its names from a constant table, or has one name."""
    from ckptool.formats import _MAGIC_READERS, _TRIAL_READERS

    tables = (*_MAGIC_READERS, *_TRIAL_READERS)
    common = (PACKAGE / "reports" / "common.py").read_text()
    assert common.count("import_module(") == common.count('import_module("ckptool.render")') == 1
    assert all((PACKAGE / "formats" / f"{name.replace('.', '/')}.py").is_file() for name in tables)


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and not _is_regex(node):
        return [node.attr]
    return [node.name] if isinstance(node, ast.FunctionDef) else []


def _is_regex(node: ast.Attribute) -> bool:
    """re.compile compiles no Python."""
    return isinstance(node.value, ast.Name) and node.value.id == "re"
