"""ExplainReport -> blocks."""

from collections.abc import Iterable, Iterator

from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, LinesBlock, VerdictBlock
from ckptool.reports.explain import AdviceReport, ExplainReport, ExplanationReport
from ckptool.rules.known_errors.known_error import UNNAMED_CHECKPOINT, UNNAMED_MODULE

_PLACEHOLDERS = {
    UNNAMED_CHECKPOINT: "the path of your checkpoint",
    UNNAMED_MODULE: "your module's class (package.module:Name or file.py:Name): give it with -m",
    "MODEL_FOLDER": "the folder of your model",
    "ADAPTER_FOLDER": "the folder of the adapter",
    "BASE_FOLDER": "the folder of its base model",
    "CHECKPOINT_FOLDER": "the folder that training wrote",
}


def build_blocks(report: ExplainReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, then for each error its line, causes and next steps."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    heading = ""
    for error in report.errors:
        previous, heading = heading, _format_heading(error)
        lines = _iter_error_lines(error, is_only=len(report.errors) == 1)
        yield LinesBlock((*((heading,) if heading != previous else ()), *lines))
    placeholders = tuple(iter_placeholders(report.errors))
    if placeholders:
        yield LinesBlock(placeholders)


def _format_heading(error: ExplanationReport) -> str:
    times = f" ({error.count} times)" if error.count > 1 else ""
    return f"line {error.line}{times}: {error.quote}"


def _iter_error_lines(error: ExplanationReport, *, is_only: bool) -> Iterator[str]:
    if not is_only:
        yield f"{error.certainty}: {error.cause}"
    for advice in error.advice:
        yield format_advice(advice)


def format_advice(advice: AdviceReport) -> str:
    """Return "next: register it: self.register_buffer(...)"."""
    step = advice.command or advice.code
    return f"next: {advice.text}: {step}" if step else f"next: {advice.text}"


def iter_placeholders(errors: Iterable[ExplanationReport]) -> Iterator[str]:
    """Yield what the words in capitals stand for, where a command or code has them."""
    steps = " ".join(f"{a.command} {a.code}" for error in errors for a in error.advice)
    for name, meaning in _PLACEHOLDERS.items():
        if name in steps.replace("CHECKPOINT_FOLDER", "") or (
            name == "CHECKPOINT_FOLDER" and name in steps
        ):
            yield f"{name} stands for {meaning}"
