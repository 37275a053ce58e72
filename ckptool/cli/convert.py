"""`ckptool convert`."""

from pathlib import Path
from typing import Any

import click

from ckptool import api
from ckptool.cli.help_groups import GroupedCommand
from ckptool.cli.options.module import limit_options
from ckptool.cli.options.param_types import CHECKPOINT_PATH
from ckptool.cli.options.report import target_options
from ckptool.cli.output import ReportOutput
from ckptool.cli.outputs.progress import report_interrupt
from ckptool.cli.parsing import parse_rename, parse_shard_size, reject_duplicates
from ckptool.locations import Location
from ckptool.policy import Policy
from ckptool.values.progress import get_byte_counter


@click.command("convert", cls=GroupedCommand)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True, type=CHECKPOINT_PATH)
@click.option(
    "--at", metavar="KEY_PATH", help='Write only the state_dict at this key path ("model").'
)
@click.option("--to", type=click.Choice(["safetensors", "pth"]),
              help="The format.  [default: by the suffix of DST]")  # fmt: skip
@click.option("--dtype", metavar="DTYPE",
              help="Cast floating point tensors: bf16, fp16, fp32, or torch's name.")  # fmt: skip
@click.option("--weights-only", is_flag=True,
              help="Write the tensors of the model's state_dict, and nothing else.")  # fmt: skip
@click.option("--strip", multiple=True, metavar="KEY",
              help="Drop what is at KEY, a name or a pattern; 'optimizer' is the state of all "
              "optimizers. Repeatable.")  # fmt: skip
@click.option("--rename", "renamed", multiple=True, metavar="OLD=NEW",
              help="`*` is one segment, at the end all that follow: 'module.*=*'.")  # fmt: skip
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    help='Write shards of at most this size ("5GB") to the folder DST.',
)
@click.option("--merge-shards", is_flag=True, help="Write a sharded source as one file.")
@click.option("--dry-run", is_flag=True, help="Show what would be done and write nothing.")
@click.option(
    "--no-provenance", is_flag=True, help="Do not record the steps and digests with the output."
)
@click.option("--force", is_flag=True, help="Replace an existing DST.")
@limit_options
@target_options("DST", "Output; its suffix is the format. A folder if several SRC.")
def command(
    ctx: click.Context,
    sources: tuple[Location, ...],
    *,
    target: Path | None,
    renamed: tuple[str, ...],
    max_shard_size: str | None,
    no_provenance: bool,
    out: ReportOutput,
    policy: Policy,  # noqa: ARG001 - a conversion has no findings
    **options: Any,
) -> None:
    r"""Write checkpoints in another format, as files that torch.load(weights_only=True) reads.

    No module is needed, and nothing in a file is imported or executed. The report names everything
    that was dropped.

    \b
    ckptool convert old.ckpt -o clean.pt                     all that weights_only=True reads
    ckptool convert old.ckpt -o model.safetensors --at model --dtype bf16
    ckptool convert shards/ -o model.safetensors
    ckptool convert runs/*.ckpt -o converted/ --weights-only
    """
    with report_interrupt(ctx):
        report = api.convert(
            sources,
            target,
            renames=reject_duplicates("--rename", map(parse_rename, renamed)),
            max_shard_size=parse_shard_size(max_shard_size),
            provenance=not no_provenance,
            progress=get_byte_counter(),
            **options,
        )
    out.finish(report, report.errors)
