"""The commands' help -> docs/commands.md."""

from ckptool.cli import COMMANDS
from generator.examples import output


def page() -> str:
    lines = ["# Commands", "", "Made from `--help` by `docs/generate.py`.", ""]
    for name in ("", *COMMANDS):
        words = f"ckptool {name}".strip()
        lines += [f"## {words}", "", "```text", output(f"{words} --help"), "```", ""]
    return "\n".join(lines)
