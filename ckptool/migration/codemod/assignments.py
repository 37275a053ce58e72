"""AST of a file -> the statements and calls that bind, delete or declare an attribute."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ckptool.migration.codemod.computed_names import has_text, list_names, may_be_name

_ATTRIBUTE_FUNCTIONS: Final = frozenset(
    {"setattr", "delattr", "__setattr__", "__delattr__", "register_buffer", "register_parameter",
     "add_module", "register_module"}
)  # fmt: skip
CONSTRUCTORS: Final = ("__init__", "__post_init__")
_BRANCHES: Final = {
    ast.If: "in a branch",
    ast.Match: "in a branch",
    ast.Try: "in a try statement",
    ast.TryStar: "in a try statement",
    ast.For: "in a loop",
    ast.AsyncFor: "in a loop",
    ast.While: "in a loop",
}
"""Statements whose bodies do not run exactly once -> where a statement in one is."""


@dataclass(frozen=True, slots=True, eq=False)
class AttributeBinding:
    """A place that binds, deletes or declares an attribute of some object."""

    node: ast.AST
    line: int
    form: str
    """"assignment", "annotated assignment", or what else it is, as in "is bound by FORM"."""
    root: str
    """Name of the variable whose attribute it is; "?" for another expression, "" for a class body.
    """
    class_name: str
    """Name of the innermost class around it, "" outside of classes."""
    function: "ast.FunctionDef | ast.AsyncFunctionDef | None"
    """The innermost function around it."""
    is_method: bool
    """Whether that function stands directly in the class."""
    branch: str
    """Where it stands if it does not run exactly once: "in a loop"; else ""."""

    @property
    def is_own(self) -> bool:
        """Whether the object is the first parameter of the method."""
        if not self.is_method or self.function is None:
            return False
        parameters = [*self.function.args.posonlyargs, *self.function.args.args]
        return bool(parameters) and self.root == parameters[0].arg

    @property
    def is_plain(self) -> bool:
        """Whether it is `object.attribute = value`, perhaps annotated, or setattr() of that."""
        is_statement = self.form in {"assignment", "annotated assignment"}
        return is_statement or find_set_value(self.node) is not None

    @property
    def computed_name(self) -> ast.expr | None:
        """Expression of the name in `setattr(self, f"mask_{n}", value)`; None for a literal."""
        name = find_name_argument(self.node) if isinstance(self.node, ast.Call) else None
        return None if isinstance(name, ast.Constant) else name


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What is around a node."""

    class_name: str = ""
    function: "ast.FunctionDef | ast.AsyncFunctionDef | None" = None
    is_method: bool = False
    branch: str = ""


def find_bindings(tree: ast.Module, attribute: str, set_line: int = 0) -> list[AttributeBinding]:
    """Return the bindings of `attribute` in a file, in the order of its lines.

    Args:
        tree: of the file.
        attribute: name of the attribute.
        set_line: line of a setattr() that was seen to set it, whatever its name says; 0 for none.
    """
    bindings = _iter_bindings(tree, _Sought(attribute, set_line), Scope())
    return sorted(bindings, key=lambda binding: binding.line)


@dataclass(frozen=True, slots=True)
class _Sought:
    """The attribute whose bindings are sought; see `find_bindings`."""

    attribute: str
    set_line: int


def _iter_bindings(node: ast.AST, sought: _Sought, scope: Scope) -> Iterator[AttributeBinding]:
    for form, root in _iter_forms(node, sought, scope):
        yield AttributeBinding(
            node,
            int(getattr(node, "lineno", 0)),
            form,
            root,
            scope.class_name,
            scope.function,
            scope.is_method,
            scope.branch,
        )
    for name, field in ast.iter_fields(node):
        inner = enter_scope(node, name, scope)
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _iter_bindings(child, sought, inner)


def enter_scope(node: ast.AST, field_name: str, scope: Scope) -> Scope:
    """Return the scope of what stands in a field of `node`."""
    match node:
        case ast.ClassDef(name=name) if field_name == "body":
            return Scope(name)
        case ast.FunctionDef() | ast.AsyncFunctionDef() if field_name == "body":
            is_method = bool(scope.class_name) and scope.function is None
            return Scope(scope.class_name, node, is_method)
        case ast.Lambda():
            return Scope(scope.class_name, scope.function, scope.is_method, "in a lambda")
        case _ if type(node) in _BRANCHES and field_name not in {"test", "iter", "subject"}:
            branch = scope.branch or _BRANCHES[type(node)]
            return Scope(scope.class_name, scope.function, scope.is_method, branch)
        case _:
            return scope


def _iter_forms(  # noqa: C901, PLR0912 - a case each
    node: ast.AST, sought: _Sought, scope: Scope
) -> Iterator[tuple[str, str]]:
    """Yield (form, root) of the bindings that `node` itself is."""
    attribute = sought.attribute
    match node:
        case ast.Assign(targets=targets):
            yield from _iter_targets(targets, attribute, scope)
        case ast.AnnAssign(target=target, value=value) if value is not None:
            for _, root in _iter_targets([target], attribute, scope):
                yield "annotated assignment", root
        case ast.AugAssign(target=target):
            for _, root in _iter_targets([target], attribute, scope):
                yield "an augmented assignment", root
        case ast.For(target=target) | ast.AsyncFor(target=target):
            for _, root in _iter_targets([target], attribute, scope):
                yield "the variable of a loop", root
        case ast.With(items=items) | ast.AsyncWith(items=items):
            targets = [item.optional_vars for item in items if item.optional_vars is not None]
            for _, root in _iter_targets(targets, attribute, scope):
                yield "a with statement", root
        case ast.Delete(targets=targets):
            for _, root in _iter_targets(targets, attribute, scope):
                yield "a del statement", root
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name == attribute:
            if scope.class_name and scope.function is None:
                is_property = any("property" in ast.dump(d) for d in node.decorator_list)
                yield ("a property" if is_property else "a method"), ""
        case ast.Call():
            yield from _iter_calls(node, sought, scope)
        case (
            ast.Subscript(value=ast.Attribute(value=owner, attr="__dict__"))
            | ast.Subscript(value=ast.Call(func=ast.Name(id="vars"), args=[owner]))
        ) if isinstance(node.slice, ast.Constant) and node.slice.value == attribute:
            yield "an item of __dict__", get_root(owner)
        case _:
            pass


def _iter_targets(
    targets: list[ast.expr], attribute: str, scope: Scope
) -> Iterator[tuple[str, str]]:
    form = "a chained assignment" if len(targets) > 1 else "assignment"
    for target in targets:
        match target:
            case ast.Attribute(value=owner, attr=name) if name == attribute:
                yield form, get_root(owner)
            case ast.Name(id=name) if name == attribute and scope.class_name:
                if scope.function is None:
                    yield "an attribute of the class", ""
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for _, root in _iter_targets(parts, attribute, scope):
                    yield "an assignment to several targets", root
            case ast.Starred(value=value):
                for _, root in _iter_targets([value], attribute, scope):
                    yield "an assignment to several targets", root
            case _:
                pass


def _iter_calls(call: ast.Call, sought: _Sought, scope: Scope) -> Iterator[tuple[str, str]]:
    """Yield what setattr(), delattr(), self.register_buffer() and their like bind.

    A name that is a variable may be any outside of the constructor, which a proof runs.
    """
    match call.func:
        case ast.Name(id=name) if name in _ATTRIBUTE_FUNCTIONS:
            owner = call.args[0] if call.args else None
        case ast.Attribute(value=value, attr=name) if name in _ATTRIBUTE_FUNCTIONS:
            is_unbound = isinstance(value, ast.Name) and value.id == "object"
            owner = call.args[0] if is_unbound and call.args else value
        case _:
            return
    names = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    if sought.attribute in names:
        yield f"{name}()", get_root(owner)
    elif _may_set(call, sought, scope):
        yield f"{name}() with a computed name", get_root(owner)


def _may_set(call: ast.Call, sought: _Sought, scope: Scope) -> bool:
    """Whether a call whose name is computed may bind the attribute."""
    name = find_name_argument(call)
    if name is None or isinstance(name, ast.Constant):
        return False
    if has_text(name) or list_names(name, scope.function) is not None:
        return may_be_name(name, sought.attribute, scope.function)
    if find_set_value(call) is not None and call.lineno == sought.set_line:
        return True
    return _sets_any_attribute(call) and _is_later_method(scope)


def find_name_argument(call: ast.Call) -> ast.expr | None:
    """Return the name that setattr(object, name, ...) or self.register_buffer(name, ...) gets."""
    is_unbound = isinstance(call.func, ast.Name) or (
        isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "object"
    )
    number = 1 if is_unbound else 0
    return call.args[number] if len(call.args) > number else None


def find_set_value(node: ast.AST) -> ast.expr | None:
    """Return the value that `setattr(object, name, value)` sets, None for anything else."""
    match node:
        case ast.Call(func=ast.Name(id="setattr"), args=[_, name, value], keywords=[]) if not (
            isinstance(name, ast.Starred) or isinstance(value, ast.Starred)
        ):
            return value
        case _:
            return None


def _sets_any_attribute(call: ast.Call) -> bool:
    """Whether it is setattr(self, ...) or super().__setattr__(...)."""
    match call:
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[ast.Name(id="self"), _, *_]):
            return True
        case ast.Call(
            func=ast.Attribute(
                value=ast.Call(func=ast.Name(id="super")), attr="__setattr__" | "__delattr__"
            )
        ):
            return True
        case _:
            return False


def _is_later_method(scope: Scope) -> bool:
    return scope.function is not None and scope.function.name not in CONSTRUCTORS


def get_root(owner: ast.expr | None) -> str:
    """Return the name of the variable that is the object; "self" for super(), else "?"."""
    if (
        isinstance(owner, ast.Call)
        and isinstance(owner.func, ast.Name)
        and owner.func.id == "super"
    ):
        return "self"
    return owner.id if isinstance(owner, ast.Name) else "?"
