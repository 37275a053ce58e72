"""The parsed command line -> GivenWords: what the commands in fixes repeat of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from ckptool.config import GivenWords

_SHARED_OPTIONS: Final = {
    "import_paths": "-I",
    "loader": "--loader",
    "no_config": "--no-config",
    "no_file_kwargs": "--no-file-kwargs",
    "input_words": "--input",
    "inputs_from": "--inputs",
    "limit_pairs": "--limit",
}
"""Parameter -> option that other commands take as well."""


def collect_given_words(ctx: click.Context) -> GivenWords:
    """Return what fixes repeat of the command line of `ctx`, as it was typed."""
    policy_file = ctx.params.get("policy_file")
    folder = Path(policy_file).parent if policy_file else Path()
    # The modules of a policy are imported from its folder.
    policy_words = () if folder.absolute() == Path.cwd() else ("-I", str(folder))
    name = ctx.info_name or ""
    return GivenWords(
        ("ckptool", name, *ctx.meta.get("ckptool.arguments", ())),
        (*_iter_words(ctx, _SHARED_OPTIONS), *policy_words),
    )


def _iter_words(ctx: click.Context, options: Mapping[str, str]) -> Iterator[str]:
    """Yield the given options (parameter -> option) and their values as they were typed."""
    for name, option in options.items():
        value = ctx.params.get(name)
        if value is True:
            yield option
        elif isinstance(value, tuple):
            yield from (word for item in value for word in (option, str(item)))
        elif value:
            yield from (option, str(value))
