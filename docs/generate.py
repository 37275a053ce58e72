"""The code -> the pages that are made from it: `python docs/generate.py`, or `--check` in CI.

Rules, the report's JSON Schema, the commands' help, and the output of every example: a line
`<!-- run: COMMAND -->` in a page is followed by a block with what the command really prints.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec

from ckptool import report
from ckptool.cli import COMMANDS
from ckptool.rules import RULES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
FAMILIES = {
    "CK1": "State of a module",
    "CK2": "A checkpoint against a module",
    "CK3": "Files and containers",
    "CK4": "Values",
    "CK5": "Sharing",
    "CK6": "Shards",
    "CK7": "Ways of loading",
    "CK8": "Two releases, and what a policy asks for",
    "CK9": "Optimizer state",
}


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every generated file with what it must hold."""
    yield DOCS / "rules.md", rules()
    yield DOCS / "report.schema.json", schema()
    yield DOCS / "commands.md", commands()
    for page in PAGES:
        if page.exists() and page.name not in {"rules.md", "commands.md"}:
            yield page, with_examples(page.read_text(encoding="utf-8"))


def rules() -> str:
    made = "Made from the code by `docs/generate.py`. `ckptool rule CODE` says the same."
    lines = ["# Rules", "", made, ""]
    family = ""
    for code, rule in sorted(RULES.items()):
        if code[:3] != family:
            family = code[:3]
            lines += [f"## {family}xx: {FAMILIES[family]}", ""]
        gate = f"; {rule.gate.word} in `ckptool gate`" if rule.gate is not None else ""
        lines += [f"### {code} {rule.name}", "", f"Level: {rule.level.word}{gate}", ""]
        lines += [f"Says: {_braces(rule.message)}", "", f"Why it matters: {rule.why}", ""]
        if rule.example:
            lines += ["Fires for:", "", "```python", rule.example, "```", ""]
        lines += [f"Fix: {_braces(rule.fix)}", ""]
    return "\n".join(lines)


def _braces(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}").replace("<", "&lt;")


def schema() -> str:
    kinds = get_args(report.AnyReport)
    references, components = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What `ckptool --format json` prints",
        "anyOf": list(references),
        "$defs": components,
    }
    return json.dumps(whole, indent=2) + "\n"


def commands() -> str:
    lines = ["# Commands", "", "Made from `--help` by `docs/generate.py`.", ""]
    for name in ("", *COMMANDS):
        words = f"ckptool {name}".strip()
        lines += [f"## {words}", "", "```text", output(f"{words} --help"), "```", ""]
    return "\n".join(lines)


EXAMPLE = re.compile(r"(<!-- run: (?P<command>.*?) -->\n+```\w*\n)(?P<shown>.*?)(```)", re.DOTALL)


def with_examples(text: str) -> str:
    """Return the page with the output of each of its examples as it is now."""

    def run(match: re.Match[str]) -> str:
        command = match["command"]
        return f"{match[1]}$ {command}\n{output(command)}\n{match[4]}"

    return EXAMPLE.sub(run, text)


def output(command: str) -> str:
    """Return what a command prints on a terminal of 100 columns, errors included."""
    words = command.replace("ckptool", f"{sys.executable} -m ckptool", 1)
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(  # noqa: S602 (our own examples)
        words, shell=True, cwd=ROOT, env=plain, text=True, capture_output=True, check=False
    )
    return (done.stdout + done.stderr).rstrip()


def main() -> int:
    stale = [path for path, text in pages() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `python docs/generate.py`")
        return bool(stale)
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
