"""AST of a function -> AttributeWrites: attributes of `self` and other objects that it writes."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ckptool.modules.source.local_aliases import (
    ANY_NAME,
    VIEW_ATTRIBUTES,
    LocalAliases,
    Path,
    collect_aliases,
)

_MUTATING_METHODS: Final = frozenset(
    {
        *("append", "appendleft", "extend", "insert", "update", "setdefault"),
        *("pop", "popitem", "popleft", "clear"),
    }
)
_METADATA_METHODS: Final = frozenset({"requires_grad_", "share_memory_", "detach_", "rename_"})
_COLLECTIVES: Final = frozenset({"all_reduce", "broadcast", "reduce", "all_gather_into_tensor"})
"""Functions of torch.distributed that write to their first argument."""
_LIBRARIES: Final = frozenset(
    {"torch", "init", "Tensor", "functional", "F", "dist", "distributed", "nn"}
)
"""Last names of modules and classes whose in-place functions take the tensor first."""
_REGISTRATION_FUNCTIONS: Final = frozenset(
    {"register_buffer", "register_parameter", "__setattr__", "setattr"}
)


@dataclass(frozen=True, slots=True)
class AttributeWrite:
    """An assignment, an in-place operation or a registration, of `root.path`."""

    root: str
    """Name of the variable that the path starts from: "self", "module"."""
    path: Path
    """Attribute names, ANY_NAME and ANY_DEPTH; () if the variable itself is written in place."""
    line: int
    is_registration: bool = False


@dataclass(frozen=True, slots=True)
class InPlaceFunction:
    """A function that writes to some of its arguments in place."""

    parameters: tuple[str, ...]
    """Names of the positional parameters, without `self`."""
    written_parameters: frozenset[str]


def _is_whole(path: Path) -> bool:
    """Whether a path is the variable itself, an element or a view of it."""
    return all(segment == ANY_NAME or segment in VIEW_ATTRIBUTES for segment in path)


@lru_cache(maxsize=8)
def find_in_place_functions(tree: ast.Module) -> dict[str, InPlaceFunction]:
    """Return name -> InPlaceFunction of the functions and methods of a file that are one."""
    functions: dict[str, InPlaceFunction] = {}
    for function, is_method in _iter_functions(tree):
        names = list_parameters(function)
        parameters = names[1:] if is_method else names
        written_names = {
            write.root for write in find_attribute_writes(function) if _is_whole(write.path)
        } & {*parameters}
        if written_names:
            functions[function.name] = InPlaceFunction(tuple(parameters), frozenset(written_names))
    return functions


def _iter_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Yield the functions of a file, and whether their first parameter is `self` or `cls`."""
    methods = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.FunctionDef) and not _is_static(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, id(node) in methods


def _is_static(function: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)


def list_parameters(function: ast.FunctionDef | ast.Lambda) -> list[str]:
    """Return the names of the positional parameters of a function, `self` included."""
    return [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]


def find_attribute_writes(
    function: ast.AST, in_place_functions: Mapping[str, InPlaceFunction] | None = None
) -> list[AttributeWrite]:
    """Return the writes in a function, nested functions included, in no certain order.

    Args:
        function: a function, or a file, of which the module-level statements count.
        in_place_functions: functions of the file whose calls write to their arguments.
    """
    nodes = list(_iter_own_nodes(function))
    finder = _WriteFinder(collect_aliases(nodes), in_place_functions or {})
    return [write for node in nodes for write in finder.iter_writes(node)]


def _iter_own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `function`; of a file, none of its functions and classes."""
    if not isinstance(function, ast.Module):
        yield from ast.walk(function)
        return
    for statement in function.body:
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield from ast.walk(statement)


def find_deferred_functions(function: ast.FunctionDef) -> list[ast.FunctionDef | ast.Lambda]:
    """Return the functions defined in `function` that it does not call itself, such as hooks."""
    nested_functions = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.FunctionDef | ast.Lambda) and node is not function
    ]
    called_names: set[str] = set()
    called_ids: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            applied = node.args if get_called_name(node) in {"apply", "_apply", "map"} else []
            for callee in (node.func, *applied):
                called_ids.add(id(callee))
                if isinstance(callee, ast.Name):
                    called_names.add(callee.id)
    return [
        nested
        for nested in nested_functions
        if id(nested) not in called_ids and getattr(nested, "name", "") not in called_names
    ]


def get_called_name(call: ast.Call) -> str:
    """Return the last name of the called function: "zeros" of torch.zeros(2); "" without one."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


@dataclass(frozen=True, slots=True)
class _WriteFinder:
    """Finds the writes of single AST nodes of one function."""

    aliases: LocalAliases
    in_place_functions: Mapping[str, InPlaceFunction]

    def iter_writes(self, node: ast.AST) -> Iterator[AttributeWrite]:
        """Yield what a statement or a call writes."""
        for target in self._list_written(node):
            reference = self.aliases.resolve_expression(target)
            if reference is not None:
                yield AttributeWrite(*reference, line=int(getattr(node, "lineno", 0)))
        if isinstance(node, ast.Call):
            name = get_called_name(node)
            if name in _REGISTRATION_FUNCTIONS:
                yield from self._iter_registrations(node)
            if name == "update":
                yield from self._iter_updated_names(node)

    def _list_written(self, node: ast.AST) -> list[ast.expr]:
        match node:
            case ast.Assign(targets=targets):
                return [part for target in targets for part in _iter_parts(target)]
            case ast.For(target=target):
                return [*_iter_parts(target)]
            case ast.AugAssign(target=target):
                return [target]
            case ast.AnnAssign(target=target, value=value) if value is not None:
                return [*_iter_parts(target)]
            case ast.Call():
                arguments = (*_list_written_arguments(node), *self._list_helper_arguments(node))
                return [part for argument in arguments for part in _iter_elements(argument)]
            case _:
                return []

    def _list_helper_arguments(self, call: ast.Call) -> list[ast.expr]:
        """Return the arguments that a function of the same file writes in place."""
        function = self.in_place_functions.get(get_called_name(call))
        if function is None:
            return []
        arguments = [*zip(function.parameters, call.args, strict=False)]
        arguments += [(keyword.arg or "", keyword.value) for keyword in call.keywords]
        return [value for name, value in arguments if name in function.written_parameters]

    def _iter_registrations(self, call: ast.Call) -> Iterator[AttributeWrite]:
        """Yield the name that self.register_buffer(), setattr() or object.__setattr__() sets."""
        match call.func, call.args:
            case ast.Attribute(value=owner), [ast.Constant(value=str(attribute)), *_]:
                pass
            case _, [owner, ast.Constant(value=str(attribute)), *_]:
                pass
            case _:
                return
        base = self.aliases.resolve_expression(owner)
        if base is not None:
            is_registration = get_called_name(call).startswith("register_")
            yield AttributeWrite(base[0], (*base[1], attribute), call.lineno, is_registration)

    def _iter_updated_names(self, call: ast.Call) -> Iterator[AttributeWrite]:
        """Yield the names passed to vars(self).update() or self.__dict__.update()."""
        match call.func:
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id=name), attr="__dict__")
                | ast.Call(func=ast.Name(id="vars"), args=[ast.Name(id=name)])
            ):
                names = [keyword.arg for keyword in call.keywords if keyword.arg]
                for argument in call.args:
                    keys = argument.keys if isinstance(argument, ast.Dict) else []
                    names += [str(key.value) for key in keys if isinstance(key, ast.Constant)]
                for attribute in names:
                    yield AttributeWrite(name, (attribute,), call.lineno)
            case _:
                pass


def _iter_parts(target: ast.expr) -> Iterator[ast.expr]:
    """Yield the attributes and elements that an assignment writes; no local variables."""
    match target:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from _iter_parts(part)
        case ast.Starred(value=value):
            yield from _iter_parts(value)
        case ast.Name():
            pass
        case _:
            yield target


def _iter_elements(argument: ast.expr) -> Iterator[ast.expr]:
    """Yield the elements of a literal list or tuple of tensors, else the argument itself."""
    yield from argument.elts if isinstance(argument, ast.List | ast.Tuple) else (argument,)


def _list_written_arguments(call: ast.Call) -> list[ast.expr]:
    """Return the arguments, and the receiver, that a call writes by the convention of its name."""
    name = get_called_name(call)
    written = [keyword.value for keyword in call.keywords if keyword.arg == "out"]
    if name in {"batch_norm", "instance_norm"}:
        written += _list_running_statistics(call)
    is_foreach = name.startswith("_foreach_") and name.endswith("_")
    in_place = name.endswith("_") and not name.startswith("_") and name not in _METADATA_METHODS
    if isinstance(call.func, ast.Attribute) and (in_place or name in _MUTATING_METHODS):
        written.append(call.func.value)
    if (in_place or is_foreach or name in _COLLECTIVES) and _is_library_function(call):
        # Functions such as those of nn.init write to their first argument.
        written += call.args[:1]
    return written


def _is_library_function(call: ast.Call) -> bool:
    """Whether a function is called by its name or from a library, not as a method of a tensor."""
    match call.func:
        case ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _LIBRARIES
        case _:
            return isinstance(call.func, ast.Name)


def _list_running_statistics(call: ast.Call) -> list[ast.expr]:
    """Return the running statistics that F.batch_norm() updates; none if training is false."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    training = keywords.get("training", keywords.get("use_input_stats"))
    if isinstance(training, ast.Constant) and not training.value:
        return []
    statistics = [*call.args[1:3], *(keywords.get(n) for n in ("running_mean", "running_var"))]
    return [
        expression
        for argument in statistics
        if argument is not None
        for expression in _list_branches(argument)
    ]


def _list_branches(expression: ast.expr) -> list[ast.expr]:
    """Return the results of a conditional expression, else the expression itself."""
    if isinstance(expression, ast.IfExp):
        return [*_list_branches(expression.body), *_list_branches(expression.orelse)]
    return [expression]
