"""Click options shared by the commands, and the output of reports."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from ckptool.cli.given_words import collect_given_words
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.notices import (
    announce_configured_code,
    announce_file_kwargs,
    announce_model_folder,
    announce_namespace,
    announce_user_warnings,
    show_user_output,
)
from ckptool.cli.outputs.output_guard import OutputOption, check_outputs, check_replaced_report
from ckptool.cli.outputs.output_targets import resolve_outputs
from ckptool.cli.outputs.progress import show_progress
from ckptool.cli.outputs.secrets import remember_secrets
from ckptool.cli.parsing import DEFAULT_TIMEOUT, parse_kwargs, parse_limits, parse_timeout
from ckptool.config import (
    GIVEN_WORDS,
    TRUST_RULE,
    ProjectConfig,
    TrustRule,
    load_config,
    read_config,
)
from ckptool.errors import UsageError
from ckptool.loaders.model_folder import LOADER_NAMES
from ckptool.locations import Location, parse_location
from ckptool.policy import LEVELS
from ckptool.policy.resolve import PolicyOptions, resolve_policy
from ckptool.render import FORMATS

CommandFunction = Callable[..., Any]


class _CheckpointParam(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Click type of a local or remote checkpoint; converts to `Location`."""

    name = "path"

    def convert(self, value: Any, param: object, ctx: object) -> Location:  # noqa: ARG002
        return parse_location(value)

    def shell_complete(
        self,
        ctx: object,  # noqa: ARG002
        param: object,  # noqa: ARG002
        incomplete: str,
    ) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class _OutputPathParam(click.Path):
    """Click type of a local output file or folder; remote locations are usage errors."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: object,  # noqa: ARG002
    ) -> Path:
        from ckptool.commands.target import require_local_path

        if str(value) == "-" and param is not None and param.name != "outputs":
            reason = "only a report can go to standard output: give a file"
            raise UsageError(f"{param.opts[0]} -: {reason}, or ./- for a file of that name")
        try:
            return require_local_path(value)
        except UsageError as error:
            option = param.opts[0] if param else ""
            raise UsageError(f"{option} {error}".strip()) from error


CHECKPOINT_PATH = _CheckpointParam()


OUTPUT_PATH = _OutputPathParam()


into_option = click.option(
    "--into", metavar="PATH", help='Compare with only this submodule ("encoder").'
)


base_option = click.option(
    "--base",
    metavar="FOLDER",
    type=CHECKPOINT_PATH,
    help="The base model of an adapter.  [default: as adapter_config.json says]",
)


def report_options(function: CommandFunction) -> CommandFunction:
    """Add the report options; the command receives `out: ReportOutput` and `policy: Policy`."""
    return _with_options(_wrap_report_command(function), _REPORT_OPTIONS)


def _has_no_old_targets(ctx: click.Context, path: Path) -> bool:  # noqa: ARG001
    """Whether a -o behind a --format is the target: never, in a command that is newer than 0.1."""
    return False


def target_options(
    metavar: str,
    description: str,
    is_old_target: Callable[[click.Context, Path], bool] = _has_no_old_targets,
) -> Callable[[CommandFunction], CommandFunction]:
    """Add the options of `report_options`; -o also names the file that the command itself writes.

    The command receives that file as `target`, None if it is not named, and declares --force.

    Args:
        metavar: how the help calls the file.
        description: help of -o for that file.
        is_old_target: whether a -o behind a --format is the target, as it was up to 0.1.
    """
    text = f"{description} After a --format: the file for that report."
    output_option = click.option(
        "-o", "--output", "outputs", type=OUTPUT_PATH, multiple=True, metavar=metavar, help=text
    )
    others = tuple(o for o in _REPORT_OPTIONS if o not in {_OUTPUT_OPTION, _FORCE_OPTION})

    def add_options(function: CommandFunction) -> CommandFunction:
        command = _wrap_report_command(function, is_old_target)
        return _with_options(command, (output_option, *others))

    return add_options


def _wrap_report_command(
    function: CommandFunction, is_old_target: Callable[[click.Context, Path], bool] | None = None
) -> CommandFunction:
    @wraps(function)
    @click.pass_context
    def command(
        ctx: click.Context,
        /,
        *args: object,
        formats: tuple[str, ...],
        color: str,
        quiet: bool,
        verbose: bool,
        select: tuple[str, ...],
        ignore: tuple[str, ...],
        fail_on: str | None,
        outputs: tuple[Path, ...] = (),
        replace_foreign: bool = False,
        no_config: bool = False,
        policy_file: Path | None = None,
        **options: object,
    ) -> object:
        ctx.obj["trace"] = verbose
        resolved = resolve_outputs(ctx, formats, outputs, is_old_target)
        if is_old_target is not None:
            options["target"] = resolved.target
        out = ReportOutput(resolved.destinations, color, quiet, verbose)
        if ("html", None) in out.destinations and sys.stdout.isatty():
            raise UsageError(
                "--format html is a page for a browser, not for a terminal: write it to a file, "
                "with > report.html or --format html -o report.html"
            )
        config = _find_config(policy_file, is_wanted=not no_config)
        remember_secrets(ctx, _iter_config_words(config))
        is_forced = replace_foreign or bool(options.get("force"))
        _check_outputs(ctx, out, config, replace_foreign=is_forced)
        policy_options = PolicyOptions(_split_codes(select), _split_codes(ignore), fail_on)
        ctx.obj |= {"config": config, "options": policy_options}
        policy = resolve_policy(config, policy_options)
        uses_file_kwargs = config.settings.file_kwargs and not ctx.params.get("no_file_kwargs")
        trust_rule = TrustRule(
            uses_file_kwargs,
            announce_file_kwargs,
            announce_namespace,
            announce_user_warnings,
            announce_configured_code,
            announce_model_folder,
        )
        draws_progress = not options.pop("no_progress") and not quiet
        token = TRUST_RULE.set(trust_rule)
        words_token = GIVEN_WORDS.set(collect_given_words(ctx))
        try:
            with show_progress(is_wanted=draws_progress), _choose_worker(ctx):
                return function(ctx, *args, out=out, policy=policy, **options)
        finally:
            GIVEN_WORDS.reset(words_token)
            TRUST_RULE.reset(token)

    return command


@contextmanager
def _choose_worker(ctx: click.Context) -> Iterator[None]:
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


def _find_config(policy_file: Path | None, *, is_wanted: bool) -> ProjectConfig:
    """Return the configuration of --policy, else the nearest one, or an empty one."""
    if policy_file is not None:
        return read_config(policy_file)
    return load_config(Path.cwd()) if is_wanted else ProjectConfig()


def _iter_config_words(config: ProjectConfig) -> Iterator[str]:
    for entry in config.settings.models:
        yield from (entry.path, entry.against or "", *entry.fixtures, *entry.plans)
        yield from (*entry.golden, *entry.inputs)


def _check_outputs(
    ctx: click.Context, out: ReportOutput, config: ProjectConfig, *, replace_foreign: bool
) -> None:
    """Raise UsageError if an output of the command would replace an input or a foreign file."""
    outputs: list[OutputOption] = []
    inputs: list[object] = []
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        if parameter.type is not OUTPUT_PATH:
            inputs.append(value)
            continue
        paths = value if isinstance(value, tuple) else (value,)
        is_source = str(parameter.metavar).endswith(".py")
        outputs += [
            OutputOption(parameter.opts[0], path, is_source) for path in paths if path is not None
        ]
    if ctx.command.name == "lock":
        config = _leave_out_locks(config)
    if ctx.command.name == "init" and ctx.params["folder"] is None:
        inputs.append(Path())
    check_outputs(outputs, inputs, config)
    for _, path in out.destinations:
        if path is not None and not replace_foreign:
            check_replaced_report(path)


def _leave_out_locks(config: ProjectConfig) -> ProjectConfig:
    """Return the configuration without its locks, which `lock` is there to replace."""
    from ckptool.compare.contract_lock import is_lock

    models = tuple(
        replace(entry, against=None)
        if entry.against and is_lock(config.directory / entry.against)
        else entry
        for entry in config.settings.models
    )
    return replace(config, settings=replace(config.settings, models=models))


def module_options(function: CommandFunction) -> CommandFunction:
    """Add -m, -k, --kwargs and --loader; the command receives `module`, `kwargs` and `loader`.

    Each is None if it is not given.
    """

    @wraps(function)
    def command(
        *args: object,
        kwargs_pairs: tuple[str, ...],
        kwargs_file: Path | None,
        no_file_kwargs: bool,  # noqa: ARG001 - these three are read by `_wrap_report_command`
        in_process: bool,  # noqa: ARG001
        timeout: float,  # noqa: ARG001
        import_paths: tuple[Path, ...],
        **options: object,
    ) -> object:
        kwargs = parse_kwargs(kwargs_pairs, kwargs_file)
        with _prepend_import_paths(import_paths):
            return function(*args, kwargs=kwargs or None, **options)

    return _with_options(command, _MODULE_OPTIONS)


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

    return _with_options(command, _LIMIT_OPTIONS)


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

    return _with_options(command, _INPUT_OPTIONS)


def _split_codes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Split comma-separated rule codes."""
    return tuple(code.strip() for text in texts for code in text.split(",") if code.strip())


def _with_options(
    function: CommandFunction, options: tuple[Callable[[CommandFunction], CommandFunction], ...]
) -> CommandFunction:
    for option in reversed(options):
        function = option(function)
    return function


_OUTPUT_OPTION = click.option(
    "-o",
    "--output",
    "outputs",
    type=OUTPUT_PATH,
    multiple=True,
    help="File for the preceding --format; without one, its suffix determines the format.",
)


_FORCE_OPTION = click.option(
    "--force",
    "replace_foreign",
    is_flag=True,
    help="With -o: replace a file that is not a ckptool report.",
)


_REPORT_OPTIONS = (
    click.option(
        "--format",
        "formats",
        type=click.Choice(FORMATS),
        multiple=True,
        help="Repeatable; every format but one needs its own -o.  [default: table]",
    ),
    _OUTPUT_OPTION,
    _FORCE_OPTION,
    click.option(
        "--fail-on",
        type=click.Choice([*LEVELS, "never"]),
        help="Lowest level that makes the command exit 1.  [default: error]",
    ),
    click.option(
        "--no-config",
        is_flag=True,
        help="Ignore pyproject.toml and ckptool.toml.",
    ),
    click.option(
        "--select", multiple=True, metavar="CODES", help="Report only these rules or families."
    ),
    click.option(
        "--ignore", multiple=True, metavar="CODES", help="Ignore these rules or families."
    ),
    click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print only the verdict."),
    click.option(
        "--no-progress", is_flag=True, help="Draw no progress bar; none is drawn in pipes and CI."
    ),
    click.option("-v", "--verbose", is_flag=True, help="Print all details; on errors a traceback."),
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


_MODULE_OPTIONS = (
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
        help="Constructor argument: a Python literal, or @PLACE in the file; cfg.d=3 sets a field.",
    ),
    click.option(
        "--kwargs",
        "kwargs_file",
        type=click.Path(path_type=Path),
        help="Constructor arguments: a JSON, TOML or YAML file, or @PLACE in the checkpoint.",
    ),
    click.option(
        "-I",
        "--path",
        "import_paths",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        multiple=True,
        metavar="DIR",
        help="Import from this directory first, as with PYTHONPATH; repeatable.",
    ),
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
