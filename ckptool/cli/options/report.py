"""Options on reports: format, outputs, policy; every command that writes a report has them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import click
from msgspec.structs import replace

from ckptool.cli.given_words import collect_given_words
from ckptool.cli.options.module import choose_worker
from ckptool.cli.options.param_types import OUTPUT_PATH, CommandFunction, add_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.notices import (
    announce_configured_code,
    announce_file_kwargs,
    announce_model_folder,
    announce_namespace,
    announce_python_revision,
    announce_user_warnings,
)
from ckptool.cli.outputs.output_guard import OutputOption, check_outputs, check_replaced_report
from ckptool.cli.outputs.output_targets import resolve_outputs
from ckptool.cli.outputs.progress import show_progress
from ckptool.cli.outputs.secrets import remember_secrets
from ckptool.config import (
    GIVEN_WORDS,
    TRUST_RULE,
    ProjectConfig,
    TrustRule,
    load_config,
    read_config,
)
from ckptool.errors import UsageError
from ckptool.formats.files.atomic import check_target
from ckptool.formats.files.output_group import gather_outputs
from ckptool.formats.files.signals import raise_on_signal
from ckptool.policy import LEVELS
from ckptool.policy.resolve import PolicyOptions, resolve_policy
from ckptool.render import FORMATS


def report_options(function: CommandFunction) -> CommandFunction:
    """Add the report options; the command receives `out: ReportOutput` and `policy: Policy`."""
    return add_options(_wrap_report_command(function), _REPORT_OPTIONS)


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

    def decorate(function: CommandFunction) -> CommandFunction:
        command = _wrap_report_command(function, is_old_target)
        return add_options(command, (output_option, *others))

    return decorate


def _wrap_report_command(
    function: CommandFunction, is_old_target: Callable[[click.Context, Path], bool] | None = None
) -> CommandFunction:
    @click.pass_context
    @wraps(function)
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
        _reject_page_on_terminal(out)
        config = _find_config(policy_file, is_wanted=not no_config)
        remember_secrets(ctx, _iter_config_words(config))
        is_forced = replace_foreign or bool(options.get("force"))
        _check_outputs(ctx, out, config, replace_foreign=is_forced)
        policy_options = PolicyOptions(_split_codes(select), _split_codes(ignore), fail_on)
        ctx.obj |= {"config": config, "options": policy_options}
        policy = resolve_policy(config, policy_options)
        draws_progress = not options.pop("no_progress") and not quiet
        with (
            raise_on_signal(),
            gather_outputs(),
            _set_context(ctx, config),
            show_progress(is_wanted=draws_progress),
            choose_worker(ctx),
        ):
            return function(ctx, *args, out=out, policy=policy, **options)

    return command


def _reject_page_on_terminal(out: ReportOutput) -> None:
    if ("html", None) in out.destinations and sys.stdout.isatty():
        raise UsageError(
            "--format html is a page for a browser, not for a terminal: write it to a file, "
            "with > report.html or --format html -o report.html"
        )


@contextmanager
def _set_context(ctx: click.Context, config: ProjectConfig) -> Iterator[None]:
    """Set what fixes repeat of the command line, and whose code and arguments are trusted."""
    uses_file_kwargs = config.settings.file_kwargs and not ctx.params.get("no_file_kwargs")
    trust_rule = TrustRule(
        uses_file_kwargs,
        announce_file_kwargs,
        announce_namespace,
        announce_user_warnings,
        announce_configured_code,
        announce_model_folder,
        announce_python_revision,
    )
    token = TRUST_RULE.set(trust_rule)
    words_token = GIVEN_WORDS.set(collect_given_words(ctx))
    try:
        yield
    finally:
        GIVEN_WORDS.reset(words_token)
        TRUST_RULE.reset(token)


def _split_codes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Split comma-separated rule codes."""
    return tuple(code.strip() for text in texts for code in text.split(",") if code.strip())


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
    """Check that no output replaces an input or a foreign file, and that reports can be written.

    Raises:
        UsageError: an output would replace one.
        WriteError: the folder of a report does not exist.
    """
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
        if path is not None and not path.exists():
            check_target(path, (), force=True, folder=False)  # before the work, not behind it


def _leave_out_locks(config: ProjectConfig) -> ProjectConfig:
    """Return the configuration without its locks, which `lock` is there to replace."""
    from ckptool.compare.contracts.contract_lock import is_lock

    models = tuple(
        replace(entry, against=None)
        if entry.against and is_lock(config.directory / entry.against)
        else entry
        for entry in config.settings.models
    )
    return replace(config, settings=replace(config.settings, models=models))


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
