"""Imports of a file -> the names by which it calls torch and torch.nn."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import libcst as cst
from libcst import matchers

_STATEMENTS: Final = {"torch": "import torch", "torch.nn": "from torch import nn"}
"""What makes a module's name available -> where no import does."""
_NAMES: Final = {"torch": "torch", "torch.nn": "nn"}


class ImportNames:
    """Names of modules in a file, and those that have to be imported for an edit."""

    def __init__(self, module: cst.Module) -> None:
        bound = {
            node.target.value
            for node in matchers.findall(module, matchers.AssignTarget())
            if isinstance(node, cst.AssignTarget) and isinstance(node.target, cst.Name)
        }
        pairs = [pair for pair in _iter_names(module) if pair[1] not in bound]
        self._names = dict(pairs)
        self._is_bound = bound.__contains__
        self.new_imports: list[str] = []
        """Statements to add, in order."""

    def need(self, module_name: str) -> str:
        """Return the name of "torch" or "torch.nn" in the file: "nn", "torch.nn", "th"."""
        if module_name in self._names:
            return self._names[module_name]
        if module_name == "torch.nn" and "torch" in self._names:
            return f"{self._names['torch']}.nn"
        if module_name == "torch.nn" and self._is_bound("nn"):
            return f"{self.need('torch')}.nn"
        self.new_imports.append(_STATEMENTS[module_name])
        self._names[module_name] = _NAMES[module_name]
        return self._names[module_name]


def add_imports(module: cst.Module, statements: list[str]) -> cst.Module:
    """Return the module with statements behind its first import of torch, else its last import."""
    if not statements:
        return module
    lines = [
        index
        for index, line in enumerate(module.body)
        if isinstance(line, cst.SimpleStatementLine)
        and isinstance(line.body[0], cst.Import | cst.ImportFrom)
    ]
    torch_lines = [i for i in lines if "torch" in module.code_for_node(module.body[i])]
    place = (torch_lines or lines or [-1])[0 if torch_lines else -1] + 1
    new_lines = [cst.parse_statement(text, module.config_for_parsing) for text in statements]
    return module.with_changes(body=[*module.body[:place], *new_lines, *module.body[place:]])


def _iter_names(module: cst.Module) -> Iterator[tuple[str, str]]:
    """Yield (module, name in the file) of the imports at the top of the file."""
    statements = (statement for line in _iter_lines(module.body) for statement in line.body)
    for statement in statements:
        if isinstance(statement, cst.Import):
            yield from _iter_module_names(statement.names)
        elif isinstance(statement, cst.ImportFrom) and not isinstance(
            statement.names, cst.ImportStar
        ):
            source = module.code_for_node(statement.module) if statement.module else ""
            for alias in statement.names:
                name = alias.evaluated_name
                yield f"{source}.{name}", alias.evaluated_alias or name


def _iter_module_names(aliases: Iterable[cst.ImportAlias]) -> Iterator[tuple[str, str]]:
    """Yield the names of `import a, b.c as d`; of `import torch.nn` that of torch as well."""
    for alias in aliases:
        name = alias.evaluated_name
        yield name, alias.evaluated_alias or name
        if not alias.evaluated_alias and name.startswith("torch."):
            yield "torch", "torch"


def _iter_lines(statements: Sequence[cst.BaseStatement]) -> Iterator[cst.SimpleStatementLine]:
    """Yield the lines at the top of a file, and those in its try statements."""
    for statement in statements:
        if isinstance(statement, cst.SimpleStatementLine):
            yield statement
        elif isinstance(statement, cst.Try) and isinstance(statement.body, cst.IndentedBlock):
            yield from _iter_lines(statement.body.body)
