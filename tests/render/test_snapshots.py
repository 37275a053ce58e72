"""What each command prints in each format, whole, as it stands in `snapshots/`.

After a change that is meant, `pytest tests/render/test_snapshots.py --inline-snapshot=fix` writes
them anew; their diff is what users will see. HTML is tested in test_html.py.
"""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from command_runs import WITH_BUFFER
from inline_snapshot import external_file
from paths import ROOT

from ckptool.render import FORMATS

SNAPSHOTS = Path(__file__).parent / "snapshots"
WITHOUT_BUFFERS = ("-m", "samples.attention:CausalAttentionWithoutBuffers", *WITH_BUFFER[2:])
COMMANDS = {
    "inspect": ("inspect", "samples/model.pth"),
    "convert": ("convert", "samples/whole.pth", "--dry-run", "-o", "{folder}/new.pt"),
    "diff": ("diff", "samples/model.pth"),
    "diff-files": ("diff", "samples/model.pth", "samples/buffer.pth"),
    "digest": ("digest", "samples/model.pth"),
    "audit": ("audit", *WITHOUT_BUFFERS),
    "verify": ("verify", "samples/buffer.pth", "--inputs", "samples.attention:example_inputs"),
    "gate": ("gate", "samples/model.pth", "--policy", "samples/gate.toml"),
    "lock": ("lock", "samples/model.pth", "-o", "{folder}/model.lock.json"),
    "migrate": ("migrate", "samples/model.pth", "--dry-run", "-o", "{folder}/new.safetensors"),
}
SUFFIXES = {
    "table": "txt",
    "markdown": "md",
    "json": "json",
    "github": "github.txt",
    "gitlab": "gitlab.json",
    "sarif": "sarif.json",
    "junit": "junit.xml",
}


def without_what_changes(text: str, folder: Path) -> str:
    """Put names in the place of folders, versions and times."""
    for path, name in ((folder, "FOLDER"), (ROOT, "ROOT")):
        for written in (path.as_posix(), path.as_posix().replace("_", r"\_")):  # in Markdown
            text = text.replace(written, name)
    for package in ("ckptool", "torch"):
        text = re.sub(rf"(?<![\d.]){re.escape(version(package))}(?![\d.])", "VERSION", text)
    return re.sub(r"\b\d+(\.\d+)?(e-?\d+)? (ms|s)\b", "TIME", text)


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "html"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_printed(name, form, run_command, tmp_path):
    words = [word.format(folder=tmp_path) for word in COMMANDS[name]]
    ran = run_command(*words, "--format", form)
    shown = without_what_changes(ran.out, tmp_path)
    kept = SNAPSHOTS / f"{name}.{SUFFIXES[form]}"
    assert shown == external_file(str(kept), format=".txt")
    assert ran.err == ""


def test_what_changes_is_named(tmp_path):
    line = f"{tmp_path}/x of {ROOT}/samples took 0.25 s with ckptool {version('ckptool')}"
    shown = without_what_changes(line, tmp_path)
    assert shown == "FOLDER/x of ROOT/samples took TIME with ckptool VERSION"
