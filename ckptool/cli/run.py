"""`ckptool run`."""

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.report import report_options
from ckptool.cli.output import ReportOutput
from ckptool.policy import Policy


@click.command("run", cls=GroupedCommand, context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--resume-check",
    is_flag=True,
    help="Also interrupt it after the first checkpoint, resume it, and compare with an "
    "uninterrupted run; runs the command four times, in copies of the current folder.",
)
@click.option(
    "--resume-args",
    metavar="WORDS",
    help='Words that resume the command: "--resume {checkpoint}"; {folder} is its folder.',
)
@report_options
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    *,
    resume_check: bool,
    resume_args: str | None,
    out: ReportOutput,
    policy: Policy,
) -> None:
    r"""Run a training or evaluation command, and report what its loads and saves did.

    The command runs unmodified. Its exit code stays; with --fail-on it is 1 where it was 0 and a
    finding has that level. With --resume-check it is 1 as well where the resumed run differs, or
    could not be compared.

    \b
    ckptool run -- python train.py --resume old.pth
    ckptool run --fail-on error -o report.json -- torchrun --nproc-per-node 2 train.py
    ckptool run --resume-check --resume-args "--resume {checkpoint}" -- python train.py
    """
    report = api.run(
        words,
        policy=policy,
        fails_on_findings=ctx.obj["options"].fail_on is not None,
        resume_check=resume_check,
        resume_args=resume_args,
    )
    out.finish(report)


for option in command.params:
    if isinstance(option, click.Option) and option.name == "fail_on":
        option.help = (
            "Lowest level that makes the exit code 1 where that of COMMAND is 0.  [default: never]"
        )
