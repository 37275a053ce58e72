"""Source of a class -> lines that assign, use and write its attributes; nothing is executed."""

import ast
import inspect
import linecache
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Final, TypeAlias

from ckptool.modules.moves import harmless_reads
from ckptool.modules.places import place
from ckptool.modules.walk import below_module

_ENTRIES: Final = ("forward", "__call__")
_CONSTRUCTORS: Final = ("__init__", "__new__", "__post_init__")
_PLUMBING: Final = frozenset(
    {
        *("_apply", "to", "to_empty", "type", "cpu", "cuda", "half", "float", "double", "bfloat16"),
        *("load_state_dict", "_load_from_state_dict", "set_extra_state"),
        *("__setstate__", "__deepcopy__", "__setattr__", "__delattr__"),
    }
)
"""Methods that move, load or copy state: writes in them do not count as changes."""
_MUTATORS: Final = frozenset(
    {
        *("append", "appendleft", "extend", "insert", "update", "setdefault"),
        *("pop", "popitem", "popleft", "clear"),
    }
)
_NOT_IN_PLACE: Final = frozenset({"requires_grad_", "share_memory_", "detach_", "rename_"})
_REGISTERING: Final = frozenset({"register_buffer", "register_parameter", "__setattr__", "setattr"})

_Definitions: TypeAlias = dict[tuple[int, str], ast.FunctionDef]


@dataclass(frozen=True, slots=True, eq=False)
class _Method:
    """Reads, writes and calls on `self` in one function."""

    cls: type
    name: str
    file: str
    uses: dict[str, int]
    """Attribute -> line of the first read."""
    bare: dict[str, int]
    """Attribute -> line of the first read without a move that needs more than metadata."""
    uncast: dict[str, int]
    """The same for reads that no cast follows."""
    taken: dict[str, int]
    """Attribute -> line of the first read that a move follows."""
    carried: frozenset[str]
    """Attributes that are assigned their own moved value."""
    writes: dict[str, int]
    """Attribute -> line of the first write."""
    supers: frozenset[str]
    """Names of methods called through super()."""
    patterns: dict[str, int]
    """Regular expression of a computed name -> line that assigns it."""

    def at(self, line: int) -> str:
        return place(self.file, line)


@dataclass(frozen=True, slots=True)
class _Class:
    """Methods of a class and of its bases below nn.Module."""

    forward: list[_Method]
    """Methods reachable from forward, in call order."""
    changing: list[_Method]
    """Methods that may run after construction, those reachable from forward first."""
    constructing: list[_Method]


@dataclass(slots=True)
class Sources:
    """Source locations of attributes; each file and each class is parsed once."""

    _classes: dict[type, _Class] = field(default_factory=dict)
    _trees: dict[str, ast.Module | None] = field(default_factory=dict)
    _functions: dict[str, _Definitions] = field(default_factory=dict)

    def assigned(self, cls: type, attribute: str) -> str:
        """Return "file:line" of the assignment by a method or the class body, or ""."""
        found = self._class(cls)
        for method in (*found.constructing, *found.changing):
            if attribute in method.writes:
                return method.at(method.writes[attribute])
        return self._in_body(cls, attribute) or self._computed(found, attribute)

    def used(self, cls: type, attribute: str) -> str:
        """Return "file:line" of the first use of `self.attribute` reachable from forward, or ""."""
        for method in self._class(cls).forward:
            if attribute in method.uses:
                return method.at(method.uses[attribute])
        return ""

    def moved(self, cls: type, attribute: str) -> str:
        """Return "file:line" where forward moves `self.attribute` or reads only its metadata.

        Return "" if forward does not use it, or also uses it unmoved.
        """
        using = [m for m in self._class(cls).forward if attribute in m.uses]
        bare = any(attribute in method.bare for method in using)
        if not using or (bare and not any(attribute in method.carried for method in using)):
            return ""
        taken = (m.at(m.taken[attribute]) for m in using if attribute in m.taken)
        return next(taken, using[0].at(using[0].uses[attribute]))

    def cast(self, cls: type, attribute: str) -> bool:
        """Whether forward casts `self.attribute` at each use."""
        using = [m for m in self._class(cls).forward if attribute in m.uses]
        return bool(using) and not any(attribute in method.uncast for method in using)

    def written(self, cls: type, attribute: str) -> str:
        """Return "file:line" of the first write of `self.attribute` after construction, or ""."""
        for method in self._class(cls).changing:
            if attribute in method.writes:
                return method.at(method.writes[attribute])
        return ""

    def _class(self, cls: type) -> _Class:
        if cls not in self._classes:
            self._classes[cls] = _read(below_module(cls), self._methods(cls))
        return self._classes[cls]

    def _methods(self, cls: type) -> dict[str, list[_Method]]:
        methods: dict[str, list[_Method]] = {}
        for base in below_module(cls):
            for name, value in vars(base).items():
                for function in _behind(value):
                    node = self._node(function)
                    if node is not None:
                        methods.setdefault(name, []).append(_method(base, name, function, node))
        return methods

    def _node(self, function: FunctionType) -> ast.FunctionDef | None:
        code = function.__code__
        file = code.co_filename
        if file not in self._functions:
            self._functions[file] = _definitions(self._tree(file))
        return self._functions[file].get((code.co_firstlineno, code.co_name))

    def _tree(self, file: str) -> ast.Module | None:
        if file not in self._trees:
            self._trees[file] = _parsed(file)
        return self._trees[file]

    def _computed(self, found: _Class, attribute: str) -> str:
        """Return "file:line" where the constructor assigns a computed name matching `attribute`."""
        for method in found.constructing:
            for pattern, line in method.patterns.items():
                if re.fullmatch(pattern, attribute):
                    return method.at(line)
        return ""

    def _in_body(self, cls: type, attribute: str) -> str:
        """Return "file:line" where the body of `cls` or of a base assigns `attribute`, or ""."""
        owner = next((base for base in below_module(cls) if _declares(base, attribute)), None)
        file = getattr(sys.modules.get(owner.__module__), "__file__", None) if owner else None
        tree = self._tree(file) if file else None
        if owner is None or file is None or tree is None:
            return ""
        bodies = [
            node.body
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__
        ]
        lines = [line.lineno for body in bodies for line in body if attribute in _names(line)]
        return place(file, lines[0]) if lines else ""


def _declares(cls: type, attribute: str) -> bool:
    """Whether the body of `cls` has the attribute or, in a dataclass, a field without a default."""
    return attribute in vars(cls) or attribute in getattr(cls, "__dataclass_fields__", {})


def _behind(value: object) -> Iterator[FunctionType]:
    """Yield the functions with a `self` argument in a value of a class `__dict__`."""
    if isinstance(value, staticmethod | classmethod):
        return
    parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
    for part in parts:
        inner = getattr(part, "func", part)
        function = inspect.unwrap(inner) if callable(inner) else inner
        if isinstance(function, FunctionType):
            yield function


def _definitions(tree: ast.Module | None) -> _Definitions:
    """Return the functions of a file by (first line, name), as in their code objects."""
    found: _Definitions = {}
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[first, node.name] = node
    return found


def _parsed(file: str) -> ast.Module | None:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        # Not Python (a compiled cell, a template), or changed since it was imported.
        return None


def _read(order: tuple[type, ...], methods: dict[str, list[_Method]]) -> _Class:
    forward = _reach(order, methods, _named(methods, _ENTRIES))
    built = _reach(order, methods, _named(methods, _CONSTRUCTORS))
    everything = [m for found in methods.values() for m in found if m.name not in _PLUMBING]
    # A helper of the constructor counts as constructor only if no other method calls it.
    others = _reach(order, methods, [m for m in everything if m not in built])
    changing = [*forward, *(m for m in others if m not in forward)]
    return _Class(
        forward=forward,
        changing=[m for m in changing if m.name not in {*_PLUMBING, *_CONSTRUCTORS}],
        constructing=built,
    )


def _named(methods: dict[str, list[_Method]], names: Iterable[str]) -> list[_Method]:
    """Return the methods with these names: two for a property with a setter."""
    found = [methods[name] for name in names if name in methods]
    return [method for same in found for method in same if method.cls is same[0].cls]


def _reach(
    order: tuple[type, ...], methods: dict[str, list[_Method]], start: list[_Method]
) -> list[_Method]:
    """Return `start` and the methods reachable from it by calls on self, nearest first."""
    reached = list(start)
    for method in reached:
        called = _named(methods, sorted(method.uses, key=lambda name: method.uses[name]))
        above = order[order.index(method.cls) + 1 :]
        for name in sorted(method.supers):
            called += [m for m in methods.get(name, ()) if m.cls in above][:1]
        reached += [m for m in called if m not in reached]
    return reached


def _method(cls: type, name: str, function: FunctionType, node: ast.FunctionDef) -> _Method:
    arguments = [*node.args.posonlyargs, *node.args.args]
    this = arguments[0].arg if arguments else ""
    uses: dict[str, int] = {}
    writes: dict[str, int] = {}
    supers: set[str] = set()
    moves, casts = harmless_reads(node, this)
    bare: dict[str, int] = {}
    uncast: dict[str, int] = {}
    taken: dict[str, int] = {}
    patterns: dict[str, int] = {}
    for inner in ast.walk(node):
        for attribute in _reads(inner, this):
            uses[attribute] = min(uses.get(attribute, sys.maxsize), _line(inner))
            if id(inner) in moves.taken:
                taken[attribute] = min(taken.get(attribute, sys.maxsize), _line(inner))
            for found, harmless in ((bare, moves), (uncast, casts)):
                if id(inner) not in harmless.reads and attribute not in harmless.attributes:
                    found[attribute] = min(found.get(attribute, sys.maxsize), _line(inner))
        for attribute in _writes(inner, this):
            writes[attribute] = min(writes.get(attribute, sys.maxsize), _line(inner))
        supers |= _supers(inner)
        for pattern in _patterns(inner, this) if isinstance(inner, ast.Call) else ():
            patterns.setdefault(pattern, _line(inner))
    return _Method(
        cls,
        name,
        function.__code__.co_filename,
        uses=uses,
        bare=bare,
        uncast=uncast,
        taken=taken,
        carried=frozenset(moves.attributes),
        writes=writes,
        supers=frozenset(supers),
        patterns=patterns,
    )


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _reads(node: ast.AST, this: str) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute, ctx=ast.Load()) if name == this:
            yield attribute
        case ast.AugAssign(target=target):
            yield from _base(target, this)
        case ast.Call(
            func=ast.Name(id="getattr"), args=[ast.Name(id=name), ast.Constant(value=str(attr)), *_]
        ) if name == this:
            yield attr
        case _:
            pass


def _writes(node: ast.AST, this: str) -> Iterator[str]:
    match node:
        case ast.Assign(targets=targets):
            for target in targets:
                yield from _targets(target, this)
        case ast.AugAssign(target=target) | ast.For(target=target):
            yield from _targets(target, this)
        case ast.AnnAssign(target=target, value=value) if value is not None:
            yield from _targets(target, this)
        case ast.Call():
            yield from _written_by_call(node, this)
        case _:
            pass


def _targets(target: ast.expr, this: str) -> Iterator[str]:
    match target:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from _targets(part, this)
        case ast.Starred(value=value):
            yield from _targets(value, this)
        case _:
            yield from _base(target, this)


def _base(expression: ast.expr, this: str) -> Iterator[str]:
    """Yield "x" for self.x, self.x[...], self.x.data[...] and self.__dict__["x"]."""
    while True:
        match expression:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                if name == this:
                    yield attribute
                return
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id=name), attr="__dict__"),
                slice=ast.Constant(value=str(key)),
            ):
                if name == this:
                    yield key
                return
            case ast.Subscript(value=inner) | ast.Attribute(value=inner):
                expression = inner
            case _:
                return


def _written_by_call(call: ast.Call, this: str) -> Iterator[str]:
    name = _called(call)
    for keyword in call.keywords:
        if keyword.arg == "out":
            yield from _targets(keyword.value, this)
    if name in {"batch_norm", "instance_norm"}:
        yield from _running_statistics(call, this)
    if name in _REGISTERING:
        yield from _registered(call, this)
    if name == "update":
        yield from _updated(call, this)
    in_place = name.endswith("_") and not name.startswith("_") and name not in _NOT_IN_PLACE
    if isinstance(call.func, ast.Attribute) and (in_place or name in _MUTATORS):
        yield from _base(call.func.value, this)
    if in_place and call.args:
        # Functions such as those of nn.init write to their first argument.
        yield from _base(call.args[0], this)


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _registered(call: ast.Call, this: str) -> Iterator[str]:
    """Yield the constant name passed to self.register_buffer(), setattr(), object.__setattr__()."""
    match call.func, call.args:
        case ast.Attribute(value=ast.Name(id=name)), [ast.Constant(value=str(attribute)), *_]:
            if name == this:
                yield attribute
        case _, [ast.Name(id=name), ast.Constant(value=str(attribute)), *_]:
            if name == this:
                yield attribute
        case _:
            pass


def _updated(call: ast.Call, this: str) -> Iterator[str]:
    """Yield the names passed to vars(self).update() or self.__dict__.update()."""
    match call.func:
        case ast.Attribute(
            value=ast.Attribute(value=ast.Name(id=name), attr="__dict__")
            | ast.Call(func=ast.Name(id="vars"), args=[ast.Name(id=name)])
        ) if name == this:
            yield from (keyword.arg for keyword in call.keywords if keyword.arg)
            for given in call.args:
                keys = given.keys if isinstance(given, ast.Dict) else []
                yield from (str(k.value) for k in keys if isinstance(k, ast.Constant))
        case _:
            pass


def _patterns(call: ast.Call, this: str) -> Iterator[str]:
    """Yield a regular expression for an f-string passed to setattr() or self.register_buffer()."""
    if _called(call) not in _REGISTERING:
        return
    match call.func, call.args:
        case ast.Attribute(value=ast.Name(id=name)), [ast.JoinedStr(values=parts), *_]:
            known = name == this
        case _, [ast.Name(id=name), ast.JoinedStr(values=parts), *_]:
            known = name == this
        case _:
            return
    texts = [part.value if isinstance(part, ast.Constant) else "" for part in parts]
    if known and any(texts):
        yield "".join(re.escape(str(text)) if text else ".+" for text in texts)


def _running_statistics(call: ast.Call, this: str) -> Iterator[str]:
    """Yield the running statistics that F.batch_norm() updates; none if training is false."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    training = named.get("training", named.get("use_input_stats"))
    if isinstance(training, ast.Constant) and not training.value:
        return
    statistics = [*call.args[1:3], *(named.get(n) for n in ("running_mean", "running_var"))]
    for argument in statistics:
        for inner in ast.walk(argument) if argument is not None else ():
            if isinstance(inner, ast.Attribute):
                yield from _base(inner, this)


def _supers(node: ast.AST) -> set[str]:
    match node:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
            return {name}
        case _:
            return set()


def _names(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Assign(targets=targets):
            return {t.id for t in targets if isinstance(t, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()
