"""Options that a command does not name go to its library function as they are, by their names."""

import inspect

import click
import pytest

from ckptool import api
from ckptool.cli import COMMANDS, main

POPPED = {"no_progress", "target"}
"""Taken out of the options by the decorators: no layer has them as a parameter."""


def layers(function):
    """Yield a function and those that it wraps: each takes the options that are its parameters."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def names_of(function):
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_named_by_the_command_or_a_parameter_of_its_function(name):
    command = main.get_command(click.Context(main), name)
    options = {parameter.name for parameter in command.params}
    taken = set().union(*map(names_of, layers(command.callback)))
    passed = options - taken - POPPED
    assert passed <= names_of(inspect.unwrap(getattr(api, name)))
    innermost = [*layers(command.callback)][-1]
    parameters = inspect.signature(innermost).parameters.values()
    assert any(p.kind is p.VAR_KEYWORD for p in parameters) or not passed
