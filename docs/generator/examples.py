"""A page with examples -> the same page, with what each of them prints now.

Comments in a page, which readers do not see, say what is run:

- `<!-- run: COMMAND -->` before a fenced block: the block becomes the command and its output.
- `<!-- workspace: FILE... -->` once in a page: its commands are run in a new folder with copies of
  these files, in the order in which they stand; without it, in the root of the repository.
- `<!-- write: NAME -->` before a fenced block: the block is written to that file of the workspace,
  and its name is put above it for readers.
- `<!-- show: FILE -->` before a fenced block: the block becomes the text of that file.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = re.compile(
    r"(?P<head><!-- (?P<verb>run|write|show): (?P<words>.*?) -->\n+)(?P<caption>`[^`\n]+`:\n+)?"
    r"(?P<fence>```\w*\n)"
    r"(?P<body>.*?)(?P<end>```)",
    re.DOTALL,
)
WORKSPACE = re.compile(r"<!-- workspace: ?(?P<files>.*?) ?-->")
TOOLS = 'ckptool() { "$PYTHON" -P -m ckptool "$@"; }\npython() { "$PYTHON" "$@"; }\n'
"""The command and the interpreter of this tree, whatever else is installed."""


def page(path: Path) -> str:
    """Return the page with the output of each of its examples as it is now."""
    text = path.read_text(encoding="utf-8")
    with _folder(text) as folder:
        return STEP.sub(partial(_step, folder), text)


@contextmanager
def _folder(text: str) -> Iterator[Path]:
    """Give the folder in which a page's commands are run."""
    asked = WORKSPACE.search(text)
    if asked is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="ckptool-docs-") as name:
        for file in asked["files"].split():
            shutil.copy2(ROOT / file, name)
        yield Path(name)


def _step(folder: Path, match: re.Match[str]) -> str:
    words, body = match["words"], match["body"]
    if match["verb"] == "write":
        if folder == ROOT:
            raise ValueError(f"{words} is written outside of a workspace: {match[0]}")
        place = folder / words
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(body, encoding="utf-8")
        return f"{match['head']}`{words}`:\n\n{match['fence']}{body}{match['end']}"
    shown = f"$ {words}\n{output(words, folder)}".rstrip() + "\n"
    if match["verb"] == "show":
        shown = (ROOT / words).read_text(encoding="utf-8").rstrip() + "\n"
    return f"{match['head']}{match['fence']}{shown}{match['end']}"


def output(command: str, folder: Path = ROOT) -> str:
    """Return what a command prints on a terminal of 100 columns, errors included."""
    plain = {
        **os.environ,
        # A command that another one starts: `ckptool run -- python train.py`.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)])),
        "PYTHONWARNINGS": "ignore",
        "PYTHONDONTWRITEBYTECODE": "1",
        # ckptool's fixtures, installed or not, and no plugin that happens to be there.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "ckptool.pytest_plugin",
    }
    done = subprocess.run(  # noqa: S603 (our own examples)
        ["/bin/sh", "-c", f"{TOOLS}exec 2>&1\n{command}"],
        cwd=folder,
        env=plain,
        text=True,
        capture_output=True,
        check=False,
    )
    return (
        done.stdout.replace(str(folder), ".").rstrip() if folder != ROOT else done.stdout.rstrip()
    )
