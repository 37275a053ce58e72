"""ModuleTensor -> the line of source that registers it, for the object that owns it."""

import re
from typing import Final

from ckptool.model import Constancy, Kind, ModuleTensor
from ckptool.phrases import quote_python

_INSTALLED: Final = re.compile(r"(^|/)(site|dist)-packages/")
"""A source file of an installed package, which an update would overwrite."""
_INDEX: Final = re.compile(r"\[\d+\]")
_STRING_KEY: Final = re.compile(r"\[('[^'\\.]+'|\"[^\"\\.]+\")\]")
"""A key that nn.ModuleDict and nn.ParameterDict accept."""
_NUMBER: Final = re.compile(r"True|False|[-+]?[0-9][0-9_.eE+-]*")
"""Source text of a bool, an int or a float, of which a buffer can be made."""


def format_registration(module_tensor: ModuleTensor) -> str:
    """Return what to write where the tensor is assigned: code for the object that holds it.

    `...` stands for the value that is assigned there now.
    """
    name, location = get_attribute_name(module_tensor.key), module_tensor.assigned_at
    if is_in_package(location):
        return _format_package_fix(module_tensor, name)
    target = module_tensor.assigned_to or _guess_target(module_tensor, name)
    new_line = _format_line(module_tensor, name, target)
    effect = _describe_effect(module_tensor)
    if not new_line:
        advice = "keep it in a submodule, or register each tensor as a buffer"
        return f"{_format_place(location)}{advice}{effect}"
    if not module_tensor.assigned_to:
        return f"{_format_place(location, 'where it is assigned: ')}{new_line}{effect}"
    return f"{_format_place(location)}{new_line} instead of {target} = ...{effect}"


def _guess_target(module_tensor: ModuleTensor, name: str) -> str:
    """Return what the assignment is to: in a class of the user to `self`, else from outside."""
    if not module_tensor.owner.startswith("torch."):
        return f"self.{name}"
    steps = module_tensor.key.partition("[")[0].split(".")[:-1]
    path = "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in steps)
    return f"module{path}.{name}"


def format_saved_buffer(module_tensor: ModuleTensor) -> str:
    """Return what to write so that a buffer with persistent=False is saved; begins lower case."""
    name = get_attribute_name(module_tensor.key)
    if is_in_package(module_tensor.assigned_at):
        path = module_tensor.key.rpartition(".")[0]
        owner = f"module.get_submodule({quote_python(path)})" if path else "module"
        code = (
            f"owner.register_buffer({quote_python(name)}, owner.get_buffer({quote_python(name)}))"
        )
        return f"after building the module: owner = {owner}; {code}"
    place = f"in {module_tensor.assigned_at}: " if module_tensor.assigned_at else ""
    return f"{place}register_buffer({quote_python(name)}, ...) without persistent=False"


def format_value_registration(name: str, value_text: str, location: str = "") -> str:
    """Return what to write so that a plain Python value is part of the state_dict.

    Args:
        name: the attribute.
        value_text: the constructor's value, as source text.
        location: "file:line" of its assignment; "" if not known.
    """
    quoted_name = quote_python(name)
    if _NUMBER.fullmatch(value_text):
        new_line = f"self.register_buffer({quoted_name}, torch.tensor({value_text}))"
        return (
            f"{_format_place(location)}{new_line} instead of self.{name} = ...; a later assignment"
            f" is self.{name}.fill_(...)"
        )
    return (
        f"def get_extra_state(self): return {{{quoted_name}: self.{name}}}; and"
        f" def set_extra_state(self, state): self.{name} = state[{quoted_name}]"
    )


def format_alias_lookup(path: str, alias_of: str, *, is_parameter: bool) -> str:
    """Return the expression that finds the registered tensor of which `path` is an alias.

    Args:
        path: the alias, "net.tables[0]", from the whole module.
        alias_of: key of the registered tensor, from the whole module.
        is_parameter: whether that is a parameter, not a buffer.
    """
    getter = "get_parameter" if is_parameter else "get_buffer"
    owner = path.partition("[")[0].rpartition(".")[0]
    is_within = not owner or alias_of.startswith(f"{owner}.")
    key = alias_of.removeprefix(f"{owner}.") if owner else alias_of
    whole = f"module.{getter}({quote_python(alias_of)}) of the whole module"
    return f"self.{getter}({quote_python(key)})" if is_within else whole


def format_module_registration(path: str, assigned_to: str, location: str) -> str:
    """Return what to write where a hidden module is assigned; `path` is its path."""
    remainder = _get_remainder(path)
    name = get_attribute_name(path)
    target = assigned_to or f"self.{name}"
    container = (
        "ModuleList"
        if _INDEX.fullmatch(remainder)
        else "ModuleDict"
        if _STRING_KEY.fullmatch(remainder)
        else ""
    )
    if not container or is_in_package(location):
        return "keep it in an attribute of the module, in nn.ModuleList or in nn.ModuleDict"
    return f"{_format_place(location)}{target} = nn.{container}(...) instead of {target} = ..."


def is_in_package(location: str) -> bool:
    """Whether a source file is one of an installed package, which is not edited."""
    return _INSTALLED.search(location) is not None


def get_attribute_name(key: str) -> str:
    """Return the attribute name: "banks" of "net.banks['k']", "heads" of "heads[0].weight"."""
    return key.partition("[")[0].rpartition(".")[2]


def _get_remainder(key: str) -> str:
    """Return what follows the attribute: "['k']" of "net.banks['k']"."""
    bracket = key.find("[")
    return key[bracket:] if bracket >= 0 else ""


def _format_place(location: str, otherwise: str = "") -> str:
    return f"In {location}: " if location else otherwise


def is_rebuilt(module_tensor: ModuleTensor) -> bool:
    """Whether the constructor makes its value again, so that no file has to have it."""
    return module_tensor.constancy is Constancy.CONSTANT and not module_tensor.written_at


def _format_line(module_tensor: ModuleTensor, name: str, target: str) -> str:
    """Return the new line; "" if no one line registers it."""
    remainder = _get_remainder(module_tensor.key)
    owner = target.rpartition(".")[0] or "self"
    if module_tensor.kind is Kind.PARAMETER:
        if _INDEX.fullmatch(remainder):
            return f"{target} = nn.ParameterList(...)"
        return f"{target} = nn.ParameterDict(...)" if _STRING_KEY.fullmatch(remainder) else ""
    if module_tensor.kind is Kind.CONTAINER or remainder:
        parameter = "nn.Parameter(t, requires_grad=False)"
        if _INDEX.fullmatch(remainder):
            return f"{target} = nn.ParameterList({parameter} for t in ...)"
        if _STRING_KEY.fullmatch(remainder):
            parameter = parameter.replace("(t,", "(v,")
            return f"{target} = nn.ParameterDict({{k: {parameter} for k, v in (...).items()}})"
        return ""
    value = "torch.as_tensor(...)" if module_tensor.kind is Kind.ARRAY else "..."
    options = ", persistent=False" if is_rebuilt(module_tensor) else ""
    return f"{owner}.register_buffer({quote_python(name)}, {value}{options})"


def _describe_effect(module_tensor: ModuleTensor) -> str:
    """Return what becomes of old checkpoints, after a colon."""
    if module_tensor.kind in {Kind.CONTAINER, Kind.PARAMETER} or not is_rebuilt(module_tensor):
        return ": it is saved from then on, and old checkpoints need a migration"
    return (
        ": old checkpoints load as before. Without persistent=False it is saved as well, and they"
        " need a migration"
    )


def _format_package_fix(module_tensor: ModuleTensor, name: str) -> str:
    """Return code for a subclass or for after the construction: a package is not edited."""
    text = f"{module_tensor.owner} belongs to an installed package: report it there. Until then"
    is_plain = module_tensor.kind in {Kind.ATTRIBUTE, Kind.ARRAY}
    if not is_plain or "[" in module_tensor.key:
        return f"{text}, override it in a subclass that registers it"
    path = module_tensor.key.rpartition(".")[0]
    owner = f"module.get_submodule({quote_python(path)})" if path else "module"
    value = f"owner.__dict__.pop({quote_python(name)})"
    if module_tensor.kind is Kind.ARRAY:
        value = f"torch.as_tensor({value})"
    options = ", persistent=False" if is_rebuilt(module_tensor) else ""
    return (
        f"{text}, after building the module: owner = {owner};"
        f" owner.register_buffer({quote_python(name)}, {value}{options})"
    )
