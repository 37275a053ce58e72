"""Notices on standard error: code and arguments that somebody else may have chosen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from ckptool.cli.outputs.progress import echo_error
from ckptool.locations import Location
from ckptool.phrases import pluralize

_PRONOUNS = ("them", "it")


def announce_configured_code(file: Path, name: str) -> None:
    """Say which configuration file names the code that is about to be run, each text once."""
    _echo_once(f"{_shorten_path(file)} selects the module to run, {name} (--no-config ignores it)")


def announce_file_kwargs(target: str, kwargs: Mapping[str, str]) -> None:
    """Say which constructor arguments of a checkpoint are about to be used, each text once.

    `kwargs` has each value as Python source.
    """
    pairs = (f"{key}={value}" for key, value in kwargs.items())
    text = f"{target} is built with arguments from the file: {', '.join(pairs)}"
    _echo_once(f"{text} (--no-file-kwargs refuses them)")


def announce_model_folder(evidence: str) -> None:
    """Say what a framework's folder names, before the module is built, each text once."""
    _echo_once(
        f"{evidence}, which is used (-m selects another module; --loader torch uses "
        "load_state_dict)"
    )


def announce_python_revision(file: Path) -> None:
    """Say that the code of a revision is about to be run, each file once."""
    _echo_once(f"{_shorten_path(file)} is run: it is code of the project (--no-config refuses it)")


def _shorten_path(file: Path) -> Path:
    """Return the path relative to the current directory if it is below it."""
    folder = Path.cwd()
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def announce_namespace(target: str, name: str) -> None:
    """Say that a dict is passed as an argparse.Namespace, each text once."""
    reason = "its constructor reads its attributes"
    _echo_once(f"{target}: `{name}` is passed as an argparse.Namespace, because {reason}")


def announce_user_warnings(texts: Sequence[str], count: int) -> None:
    """Say how many warnings user code gave; with -v, which."""
    ctx = click.get_current_context(silent=True)
    if not (ctx is not None and ctx.obj and ctx.obj.get("trace")):
        _echo_once(f"{pluralize(count, 'warning')} of user code; -v shows {_PRONOUNS[count == 1]}")
        return
    for text in texts:
        _echo_once(f"warning of user code: {text}")
    if count > len(texts):
        _echo_once(f"and {pluralize(count - len(texts), 'more warning')} of user code")


def announce_old_spelling(old: str, new: str) -> None:
    """Say how something is written now that is still understood, each text once."""
    _echo_once(f"`{old}` is written `{new}` now; the old spelling goes with the next release")


def take_old_spelling(
    value: Location | None, old_value: Location | None, *, old: str, new: str
) -> Location | None:
    """Return the value of the option `new`, else that of its old name, with a notice; else None."""
    if old_value is None:
        return value
    announce_old_spelling(old, new)
    return old_value if value is None else value


def show_user_output(lines: Sequence[str]) -> None:
    """Show what code of the user printed, in lines that are safe to show."""
    from ckptool.cli.outputs.secrets import mask_secrets

    echo_error(mask_secrets("\n".join(lines)))


def _echo_once(text: str) -> None:
    from ckptool.cli.output import format_one_line

    ctx = click.get_current_context(silent=True)
    announced = ctx.meta.setdefault("ckptool.announced", set()) if ctx else set()
    if text not in announced:
        announced.add(text)
        echo_error(f"ckptool: {format_one_line(text)}")
