"""AST of a function -> AttributeWrites: attributes of `self` and other objects that it writes."""

import ast
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

ANY_NAME: Final = "*"
"""Segment of a path for a subscript, or for a name computed at run time."""
ANY_DEPTH: Final = "**"
"""Segment of a path for any number of segments: `self.modules()`."""

_REGISTRIES: Final = frozenset({"__dict__", "_buffers", "_parameters", "_modules"})
"""Attributes of a module whose items are its attributes."""
_VIEW_ATTRIBUTES: Final = frozenset({"data", "T", "mT", "H", "mH", "real", "imag"})
_VIEW_METHODS: Final = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze"),
        *("unsqueeze", "expand", "expand_as", "transpose", "permute", "t", "narrow", "select"),
        *("detach", "swapaxes", "swapdims", "movedim", "diagonal", "ravel", "contiguous"),
        *("to", "type", "type_as", "cpu", "cuda", "float", "half", "double", "bfloat16"),
        *("long", "int", "bool", "view_as_real", "requires_grad_"),
    }
)
"""Methods whose result may share the memory of the tensor, as that of `to()` without a move."""
_LOOKUP_METHODS: Final = frozenset({"get_buffer", "get_parameter", "get_submodule"})
_ITEM_METHODS: Final = frozenset({"values", "items"})
_MEMBER_METHODS: Final = frozenset(
    {"modules", "named_modules", "children", "named_children", "buffers", "named_buffers"}
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

Path: TypeAlias = tuple[str, ...]
_Reference: TypeAlias = tuple[str, Path]
"""Name of a variable, and the path of attributes from it."""


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


def match_path(pattern: Path, path: Path) -> bool:
    """Whether the segments of `path` fit those of `pattern`, which may be wildcards."""
    if not pattern:
        return not path
    if pattern[0] == ANY_DEPTH:
        return any(match_path(pattern[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and match_path(pattern[1:], path[1:])


def strip_index(path: Path) -> Path:
    """Return a path without the indices, or the computed names, at its end."""
    while path and path[-1] == ANY_NAME:
        path = path[:-1]
    return path


def _is_whole(path: Path) -> bool:
    """Whether a path is the variable itself, an element or a view of it."""
    return all(segment == ANY_NAME or segment in _VIEW_ATTRIBUTES for segment in path)


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
    finder = _WriteFinder(_collect_aliases(nodes), in_place_functions or {})
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


@dataclass(slots=True)
class _Aliases:
    """What local variables stand for, by the line from which on they do."""

    bindings: dict[str, list[tuple[int, _Reference | None]]] = field(default_factory=dict)

    def bind_name(self, name: str, line: int, reference: _Reference | None) -> None:
        self.bindings.setdefault(name, []).append((line, reference))

    def resolve_name(self, name: str, line: int) -> _Reference:
        """Return what `name` stands for in `line`: itself, with an empty path, if not known."""
        bindings = self.bindings.get(name, [])
        index = bisect_right([binding_line for binding_line, _ in bindings], line) - 1
        reference = bindings[index][1] if index >= 0 else None
        return reference or (name, ())

    def resolve_expression(self, expression: ast.AST | None) -> _Reference | None:
        """Return the reference of self.layers[0].mean.data, self._buffers["mean"] and the like."""
        match expression:
            case ast.Name(id=name):
                return self.resolve_name(name, expression.lineno)
            case ast.Attribute(value=inner, attr=attr):
                segments: Path = (
                    () if attr in _VIEW_ATTRIBUTES and self._has_path(inner) else (attr,)
                )
            case ast.Subscript(value=ast.Attribute(value=inner, attr=attr), slice=index) if (
                attr in _REGISTRIES
            ):
                segments = (_get_name_pattern(index),)
            case ast.Subscript(value=inner):
                # An element of a local variable stands for the variable itself.
                segments = (ANY_NAME,) if self._has_path(inner) else ()
            case ast.Call(func=ast.Name(id="getattr"), args=[inner, name, *_]):
                segments = (_get_name_pattern(name),)
            case ast.Call(func=ast.Attribute(value=inner, attr=attr), args=arguments):
                if attr in _LOOKUP_METHODS and arguments:
                    segments = _split_dotted_name(arguments[0])
                elif attr in _VIEW_METHODS:
                    segments = ()
                else:
                    return None
            case _:
                return None
        return self._extend(inner, segments)

    def resolve_items(
        self, iterable: ast.expr, target: ast.expr
    ) -> Iterator[tuple[str, int, _Reference | None]]:
        """Yield (name, line, reference) of the variables of `for target in iterable`."""
        match iterable, target:
            case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]), ast.Tuple(
                elts=[_, item]
            ):
                yield from self.resolve_items(inner, item)
            case ast.Call(func=ast.Name(id="zip"), args=inners), ast.Tuple(elts=items):
                for inner, item in zip(inners, items, strict=False):
                    yield from self.resolve_items(inner, item)
            case ast.Call(func=ast.Name(id="list" | "tuple" | "reversed"), args=[inner]), _:
                yield from self.resolve_items(inner, target)
            case ast.Tuple(elts=elements) | ast.List(elts=elements), ast.Name(id=name):
                references = [self.resolve_expression(element) for element in elements]
                yield name, target.lineno, _merge_references(references)
            case _, ast.Tuple(elts=[*_, ast.Name() as item]):
                yield from self.resolve_items(iterable, item)
            case _, ast.Name(id=name):
                yield name, target.lineno, self._resolve_item(iterable)
            case _:
                pass

    def _resolve_item(self, iterable: ast.expr) -> _Reference | None:
        match iterable:
            case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if attr in _MEMBER_METHODS:
                is_buffers = attr.endswith("buffers")
                return self._extend(inner, (ANY_DEPTH, ANY_NAME) if is_buffers else (ANY_DEPTH,))
            case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if attr in _ITEM_METHODS:
                if isinstance(inner, ast.Attribute) and inner.attr in _REGISTRIES:
                    return self._extend(inner.value, (ANY_NAME,))
                return self._extend(inner, (ANY_NAME,))
            case _:
                return self._extend(iterable, (ANY_NAME,))

    def _has_path(self, expression: ast.expr) -> bool:
        """Whether it is more than a variable: `.data` of `self` is an attribute, not a view."""
        reference = self.resolve_expression(expression)
        return reference is not None and bool(reference[1])

    def _extend(self, inner: ast.expr, segments: Path) -> _Reference | None:
        base = self.resolve_expression(inner)
        return None if base is None else (base[0], (*base[1], *segments))


def _merge_references(references: Sequence[_Reference | None]) -> _Reference | None:
    """Return one reference with wildcards for several that differ in names only."""
    known = [reference for reference in references if reference is not None]
    if not known or len({(root, len(path)) for root, path in known}) > 1:
        return known[0] if known else None
    paths = [path for _, path in known]
    merged = (
        segments[0] if len({*segments}) == 1 else ANY_NAME for segments in zip(*paths, strict=True)
    )
    return known[0][0], tuple(merged)


def _get_name_pattern(name: ast.expr) -> str:
    """Return a constant name, or a pattern for a name computed at run time."""
    match name:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                str(part.value) if isinstance(part, ast.Constant) else ANY_NAME for part in parts
            )
        case _:
            return ANY_NAME


def _split_dotted_name(name: ast.expr) -> Path:
    pattern = _get_name_pattern(name)
    return (ANY_DEPTH, ANY_NAME) if pattern == ANY_NAME else tuple(pattern.split("."))


def _collect_aliases(nodes: Iterable[ast.AST]) -> _Aliases:
    """Return the local variables that stand for attributes, in the order of their lines."""
    aliases = _Aliases()
    kinds = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension)
    bindings = [node for node in nodes if isinstance(node, kinds)]
    for node in sorted(bindings, key=_get_binding_line):
        line = _get_binding_line(node)
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    _bind_target(aliases, target, value, line)
            case (
                ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.NamedExpr(target=target, value=value)
            ):
                _bind_target(aliases, target, value, line)
            case (
                ast.For(target=target, iter=iterable)
                | ast.comprehension(target=target, iter=iterable)
            ):
                for name, target_line, reference in [*aliases.resolve_items(iterable, target)]:
                    aliases.bind_name(name, target_line, reference)
            case _:
                pass
    return aliases


def _get_binding_line(node: ast.AST) -> int:
    target = getattr(node, "target", None)
    return int(getattr(node, "lineno", getattr(target, "lineno", 0)))


def _bind_target(aliases: _Aliases, target: ast.expr, value: ast.expr, line: int) -> None:
    match target, value:
        case ast.Name(id=name), _:
            # From the next line on: the value itself still means what it meant before.
            aliases.bind_name(name, line + 1, aliases.resolve_expression(value))
        case ast.Tuple(elts=parts), ast.Tuple(elts=values) if len(parts) == len(values):
            for part, part_value in zip(parts, values, strict=True):
                _bind_target(aliases, part, part_value, line)
        case ast.Tuple(elts=parts) | ast.List(elts=parts), _:
            for part in parts:
                if isinstance(part, ast.Name):
                    aliases.bind_name(part.id, line + 1, None)
        case _:
            pass


@dataclass(frozen=True, slots=True)
class _WriteFinder:
    """Finds the writes of single AST nodes of one function."""

    aliases: _Aliases
    in_place_functions: Mapping[str, InPlaceFunction]

    def iter_writes(self, node: ast.AST) -> Iterator[AttributeWrite]:
        match node:
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from self._iter_target_writes(target)
            case ast.AugAssign(target=target):
                yield from self._write_in_place(target)
            case ast.For(target=target):
                yield from self._iter_target_writes(target)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                yield from self._iter_target_writes(target)
            case ast.Call():
                yield from self._iter_call_writes(node)
            case _:
                pass

    def _iter_target_writes(self, target: ast.expr) -> Iterator[AttributeWrite]:
        match target:
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    yield from self._iter_target_writes(part)
            case ast.Starred(value=value):
                yield from self._iter_target_writes(value)
            case ast.Name():
                pass  # a local variable gets another value
            case _:
                yield from self._write_in_place(target)

    def _write_in_place(self, target: ast.expr | None) -> Iterator[AttributeWrite]:
        reference = self.aliases.resolve_expression(target)
        if reference is not None and target is not None:
            yield AttributeWrite(*reference, line=target.lineno)

    def _iter_call_writes(self, call: ast.Call) -> Iterator[AttributeWrite]:
        for written in (*_list_written_arguments(call), *self._list_helper_arguments(call)):
            yield from self._write_elements(written)
        name = get_called_name(call)
        if name in _REGISTRATION_FUNCTIONS:
            yield from self._iter_registrations(call)
        if name == "update":
            yield from self._iter_updated_names(call)

    def _list_helper_arguments(self, call: ast.Call) -> list[ast.expr]:
        """Return the arguments that a function of the same file writes in place."""
        function = self.in_place_functions.get(get_called_name(call))
        if function is None:
            return []
        arguments = [*zip(function.parameters, call.args, strict=False)]
        arguments += [(keyword.arg or "", keyword.value) for keyword in call.keywords]
        return [value for name, value in arguments if name in function.written_parameters]

    def _write_elements(self, argument: ast.expr) -> Iterator[AttributeWrite]:
        elements = argument.elts if isinstance(argument, ast.List | ast.Tuple) else [argument]
        for element in elements:
            yield from self._write_in_place(element)

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
