"""JSON of an exported program -> names and expressions that torch.export.load evaluates.

torch parses symbolic sizes with sympy, which evaluates them as Python, and looks operators up by
attributes of `torch`. What is more than arithmetic, or no operator, is reported.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.safe_globals import classify_name
from ckptool.formats.python_text import parse_single_expression
from ckptool.locations import Location
from ckptool.model import GlobalUse, Safety

_MAX_EXPRESSION_CHARACTERS: Final = 10_000
_OPERATOR: Final = re.compile(
    r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\._higher_order_ops\.[\w.]+"
    r"|torch\._?sym_\w+|#\w+:.*|"
)
_EXPRESSION_KEYS: Final = frozenset({"expr_str", "guards_code"})
_SYMBOL: Final = re.compile(r"-?[A-Za-z_]\w*|-?\d+")
_FUNCTION_NAMES: Final = """
    Abs And CeilToInt CleanDiv Eq Float FloorDiv FloorToInt Ge Gt Identity IntTrueDiv Integer
    IsNonOverlappingAndDenseIndicator Le LShift Lt Max Min Mod ModularIndexing Ne Not Or
    OpaqueUnaryFn_sqrt Piecewise PowByNatural PythonMod RShift RoundDecimal RoundToInt ToFloat
    TruncToFloat TruncToInt Where abs ceiling exp floor len log max min not_ or_ and_ size
    sqrt storage_offset stride sum zoo
"""
_FUNCTIONS: Final = frozenset(_FUNCTION_NAMES.split())
"""Functions of torch's own symbolic sizes and guards."""
_NODES: Final = (
    ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Constant,
    ast.Attribute, ast.Subscript, ast.Name, ast.Tuple, ast.List, ast.Load, ast.IfExp,
    ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip


def find_evaluated_names(path: Location, record: str, data: bytes) -> tuple[GlobalUse, ...]:
    """Return a use for each operator that is none of torch.ops.

    Raises:
        CorruptCheckpointError: it is no JSON, or an expression is more than arithmetic.
    """
    try:
        program = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptCheckpointError(
            path, f"{quote_name(record)} is not valid JSON: {error}"
        ) from error
    targets: dict[str, None] = {}
    for key, text in _iter_texts(program):
        if key in _EXPRESSION_KEYS and not _is_arithmetic(text):
            reason = f"{quote_name(record)} has an expression that is not arithmetic: "
            raise CorruptCheckpointError(path, reason + quote_name(text))
        if key == "target" and _OPERATOR.fullmatch(text) is None and text.startswith("torch"):
            targets[text] = None
    if isinstance(program, dict):
        _check_symbols(path, record, program.get("range_constraints"))
    return tuple(_build_use(text, record) for text in targets)


def _is_arithmetic(text: str) -> bool:
    """Whether an expression only computes: numbers, symbols, sizes, and torch's own functions."""
    if len(text) > _MAX_EXPRESSION_CHARACTERS:
        return False
    try:
        tree = parse_single_expression(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if not isinstance(node, _NODES):
        return False
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _FUNCTIONS and not node.keywords
        case ast.Call():
            return False
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return "__" not in name
        case ast.Constant(value=str()):
            return True  # evaluated once: L['x'].size()[0]
        case _:
            return True


def _iter_texts(program: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of every string; those in lists have the key of the list."""
    todo: list[tuple[str, Any]] = [("", program)]
    while todo:
        key, node = todo.pop()
        if isinstance(node, dict):
            todo.extend(node.items())
        elif isinstance(node, list):
            todo.extend((key, child) for child in node)
        elif isinstance(node, str):
            yield key, node


def _check_symbols(path: Location, record: str, constraints: Any) -> None:
    for name in constraints if isinstance(constraints, dict) else ():
        if _SYMBOL.fullmatch(name) is None and not _is_arithmetic(name):
            reason = f"{quote_name(record)} has an invalid symbol: {quote_name(name)}"
            raise CorruptCheckpointError(path, reason)


def _build_use(text: str, record: str) -> GlobalUse:
    module, _, name = text.rpartition(".")
    safety = classify_name(module, name)
    unsafe = Safety.UNKNOWN if safety is Safety.SAFE else safety
    return GlobalUse(module, name, unsafe, f"record {record}")
