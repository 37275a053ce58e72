"""DigestReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.model import natural_sort_key
from ckptool.phrases import pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    DTYPE,
    SHAPE,
    Block,
    LinesBlock,
    VerdictBlock,
    build_keys_table,
    build_table,
)
from ckptool.reports.digest import CheckpointDigestReport, DigestCheckReport, DigestReport

_DIGEST_CHARACTERS: Final = 16
"""Characters shown of a tensor's digest; -v and JSON give all."""


def build_blocks(report: DigestReport, options: RenderOptions) -> Iterator[Block]:
    if report.check is not None:
        yield VerdictBlock(format_digest_verdict(report), bool(report.exit_code))
        if options.verbosity >= 0:
            yield from _iter_check_blocks(report.check, options)
        return
    for checkpoint in report.checkpoints:
        yield VerdictBlock(f"{checkpoint.digest}  {checkpoint.path}", has_failed=False)
        if options.verbosity >= 0:
            yield from _build_checkpoint_blocks(checkpoint, report.format, options)


def format_digest_verdict(report: DigestReport) -> str:
    """Return the verdict of `digest --against`, "" without --against."""
    return (
        ""
        if report.check is None
        else _format_check_verdict(report.checkpoints[0].path, report.check)
    )


def _build_checkpoint_blocks(
    checkpoint: CheckpointDigestReport, digest_format: str, options: RenderOptions
) -> Iterator[Block]:
    location = "" if checkpoint.at == "*" else f" at `{checkpoint.at or '.'}`"
    yield LinesBlock(
        (
            (
                f"digest of the content of {pluralize(len(checkpoint.tensors), 'tensor')}"
                f"{location}, in the format {digest_format}"
            ),
        )
    )
    digest_length = None if options.verbosity > 0 else _DIGEST_CHARACTERS
    rows = [
        (t.key, t.dtype, str(list(t.shape)), t.digest[:digest_length] or "-")
        for t in sorted(checkpoint.tensors, key=lambda t: natural_sort_key(t.key))
    ]
    yield build_table("Tensors", ("key", DTYPE, SHAPE, "digest"), rows, options)


def _format_check_verdict(path: str, check: DigestCheckReport) -> str:
    counts = (
        (len(check.changed), "changed"),
        (len(check.missing), "missing"),
        (len(check.added), "added"),
    )
    differences = ", ".join(f"{n} {word}" for n, word in counts if n)
    if differences:
        return f"{path} differs from {check.saved}: {differences}"
    if check.uncompared or check.digest.startswith("partial:"):
        subject = pluralize(len(check.uncompared), "tensor") if check.uncompared else "a part"
        return f"{path}: could not be compared with {check.saved}: {subject} could not be digested"
    return f"{path} matches {check.saved}"


def _iter_check_blocks(check: DigestCheckReport, options: RenderOptions) -> Iterator[Block]:
    key_groups = (("Changed", check.changed), ("Missing", check.missing), ("Added", check.added))
    for title, keys in (*key_groups, ("Not compared", check.uncompared)):
        if keys:
            yield build_keys_table(title, keys, options)
