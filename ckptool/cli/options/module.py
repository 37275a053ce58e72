"""Options on the module: what it is, how it is built and run, its inputs and bounds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import click

from ckptool.cli.options.param_types import (
    INPUT_FOLDER,
    CommandFunction,
    add_options,
)
from ckptool.cli.outputs.notices import show_user_output
from ckptool.cli.parsing import DEFAULT_TIMEOUT, parse_kwargs, parse_limits, parse_timeout
from ckptool.errors import UsageError
from ckptool.loaders.model_folder import LOADER_NAMES

at_option = click.option(
    "--at",
    metavar="KEY_PATH",
    help='Key path of the state_dict inside the file ("state_dict"; "." is the root).',
)


into_option = click.option(
    "--into", metavar="PATH", help='Compare with only this submodule ("encoder").'
)


base_option = click.option(
    "--base",
    metavar="FOLDER",
    type=INPUT_FOLDER,
    help="The base model of an adapter.  [default: as adapter_config.json says]",
)


def module_options(function: CommandFunction) -> CommandFunction:
    """Add -m, -k, --kwargs and --loader; the command receives `module`, `kwargs` and `loader`.

    Each is None if it is not given.
    """

    @wraps(function)
    def command(
        *args: object,
        kwargs_pairs: tuple[str, ...],
        kwargs_file: Path | None,
        no_file_kwargs: bool,  # noqa: ARG001 - these three are read by the options of reports
        in_process: bool,  # noqa: ARG001
        timeout: float,  # noqa: ARG001
        import_paths: tuple[Path, ...],
        **options: object,
    ) -> object:
        kwargs = parse_kwargs(kwargs_pairs, kwargs_file)
        with _prepend_import_paths(import_paths):
            return function(*args, kwargs=kwargs or None, **options)

    return add_options(command, _MODULE_OPTIONS)


def module_name_options(function: CommandFunction) -> CommandFunction:
    """Add -m, -k, --kwargs and -I to a command that only repeats them in others.

    The command receives `module` and `kwargs`, each None if it is not given.
    """

    @wraps(function)
    def command(
        *args: object,
        kwargs_pairs: tuple[str, ...],
        kwargs_file: Path | None,
        import_paths: tuple[Path, ...],  # noqa: ARG001 - read by the options of reports
        **options: object,
    ) -> object:
        kwargs = parse_kwargs(kwargs_pairs, kwargs_file)
        return function(*args, kwargs=kwargs or None, **options)

    return add_options(command, _NAME_OPTIONS)


@contextmanager
def _prepend_import_paths(folders: tuple[Path, ...]) -> Iterator[None]:
    """Prepend the folders of --path to sys.path, which the process that runs the module gets."""
    original_path = list(sys.path)
    sys.path[:0] = [str(folder.absolute()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = original_path


def limit_options(function: CommandFunction) -> CommandFunction:
    """Add --deep and --limit; the command receives `limits: Limits`."""

    @wraps(function)
    def command(
        *args: object, deep: bool, limit_pairs: tuple[str, ...], **options: object
    ) -> object:
        return function(*args, limits=parse_limits(limit_pairs, deep=deep), **options)

    return add_options(command, _LIMIT_OPTIONS)


def input_options(function: CommandFunction) -> CommandFunction:
    """Add --input and --inputs; the command receives `inputs`, None if neither is given."""

    @wraps(function)
    def command(
        *args: object,
        input_words: tuple[str, ...],
        inputs_from: str | None,
        **options: object,
    ) -> object:
        if input_words and inputs_from:
            raise UsageError("--input and --inputs exclude each other")
        input_texts = (inputs_from,) if inputs_from else input_words
        return function(*args, inputs=input_texts or None, **options)

    return add_options(command, _INPUT_OPTIONS)


@contextmanager
def choose_worker(ctx: click.Context) -> Iterator[None]:
    """Have a child process run the modules of the command, unless the options say otherwise."""
    if ctx.params.get("in_process", True):
        yield
        return
    from ckptool.commands.worker.child_worker import ChildProcessWorker
    from ckptool.commands.worker.worker import stop_using_worker, use_worker

    worker = ChildProcessWorker(parse_timeout(ctx.params["timeout"]), show_user_output)
    token = use_worker(worker)
    try:
        yield
    finally:
        stop_using_worker(token)
        worker.close()


_NAME_OPTIONS = (
    click.option(
        "-m",
        "--module",
        metavar="MODULE:NAME",
        help="A class, a factory, a call or an instance: pkg.mod:Net, net.py:Net, net:make(3).",
    ),
    click.option(
        "-k",
        "kwargs_pairs",
        multiple=True,
        metavar="NAME=VALUE",
        help="Constructor argument: a Python literal, @KEY_PATH of the file; cfg.d=3 is a field.",
    ),
    click.option(
        "--kwargs",
        "kwargs_file",
        type=click.Path(path_type=Path),
        help="Constructor arguments: a JSON, TOML or YAML file, or @KEY_PATH in the checkpoint.",
    ),
    click.option(
        "-I",
        "--path",
        "import_paths",
        type=INPUT_FOLDER,
        multiple=True,
        metavar="DIR",
        help="Import from this directory first, as with PYTHONPATH; repeatable.",
    ),
)


_MODULE_OPTIONS = (
    *_NAME_OPTIONS,
    click.option(
        "--no-file-kwargs",
        is_flag=True,
        help="Do not use constructor arguments stored in the checkpoint (hyper_parameters).",
    ),
    click.option(
        "--loader",
        type=click.Choice(LOADER_NAMES),
        help="Loader: load_state_dict (torch) or a framework's.  [default: according to the "
        "folder]",
    ),
    click.option(
        "--in-process",
        is_flag=True,
        help="Run the module in this process instead of a child process, for debugging.",
    ),
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=DEFAULT_TIMEOUT,
        show_default=True,
        help="Time limit for each step that runs the module.",
    ),
)


_INPUT_OPTIONS = (
    click.option(
        "--input",
        "input_words",
        multiple=True,
        metavar="[NAME=]VALUE",
        help='Example input for forward: "float32[2,6,3]", "int64[2,8]<1000", a safetensors file.',
    ),
    click.option(
        "--inputs",
        "inputs_from",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="Function that returns inputs for forward().",
    ),
)


_LIMIT_OPTIONS = (
    click.option("--deep", is_flag=True, help="Verify every checksum, regardless of size."),
    click.option(
        "--limit",
        "limit_pairs",
        multiple=True,
        metavar="NAME=NUMBER",
        help="Override a resource limit, for example pickle-bytes=1000000.",
    ),
)
