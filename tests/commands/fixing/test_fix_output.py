"""What `ckptool fix` prints: diff, refusals, proofs and notes, whole, as they stand in `snapshots/`.

`pytest tests/commands/fixing/test_fix_output.py --inline-snapshot=fix` writes them anew.
"""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from commands.fixing.faulty_classes import make_class
from inline_snapshot import external_file

pytestmark = pytest.mark.process

SNAPSHOTS = Path(__file__).parent / "snapshots"
SOURCE = make_class(
    """
    self.mask: torch.Tensor = torch.ones(4)  # not trained
    self.mean = np.zeros(4)
    self.norms = [nn.BatchNorm1d(4)]
    if True:
        self.scale = torch.ones(4)
    self.count = torch.zeros(1)
    """,
    """
    is_counted = "count" in dict(self.named_buffers())
    x = self.norms[0](x) - torch.tensor(self.mean, dtype=torch.float32)
    return self.linear(x) * self.mask * self.scale + is_counted + self.count
    """,
    """
    def invert(self, y):
        return y / self.mask
    """,
)
SUFFIXES = {"table": "txt", "markdown": "md", "json": "json", "sarif": "sarif.json"}
COMMAND = ("fix", "-m", "net:Net", "--input", "float32[2,4]")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize("form", SUFFIXES)
def test_what_is_printed(form, project, ckptool):
    ran = ckptool(*COMMAND, "--format", form, cwd=project)
    shown = ran.out.replace(version("ckptool"), "VERSION")
    assert shown == external_file(str(SNAPSHOTS / f"fix.{SUFFIXES[form]}"), format=".txt")
    assert ran.err == ""


def test_the_printed_diff_is_a_patch(project, ckptool):
    """As a user would paste it: git applies it, and the result is what fix --write writes."""
    report = json.loads(ckptool(*COMMAND, "--format", "json", cwd=project).out)
    subprocess.run(["git", "apply", "-"], input=report["diff"], text=True, check=True, cwd=project)
    patched = (project / "net.py").read_text()
    (project / "net.py").write_text(SOURCE)
    ckptool(*COMMAND, "--write", "--allow-unproved", cwd=project)
    assert (project / "net.py").read_text() == patched != SOURCE


def test_the_fixes_of_sarif_are_the_edits(project, ckptool):
    """A viewer that puts the lines of all fixes in their place gets the file that fix writes."""
    (run,) = json.loads(ckptool(*COMMAND, "--format", "sarif", cwd=project).out)["runs"]
    replacements = {
        json.dumps(replacement)
        for result in run["results"]
        for fix in result.get("fixes", ())
        for change in fix["artifactChanges"]
        for replacement in change["replacements"]
    }
    lines = SOURCE.splitlines(keepends=True)
    for replacement in sorted(map(json.loads, replacements), key=_get_start, reverse=True):
        region = replacement["deletedRegion"]
        assert (region["startColumn"], region["endColumn"]) == (1, 1)
        new_lines = [replacement["insertedContent"]["text"]]
        lines[region["startLine"] - 1 : region["endLine"] - 1] = new_lines
    ckptool(*COMMAND, "--write", "--allow-unproved", cwd=project)
    assert (project / "net.py").read_text() == "".join(lines) != SOURCE


def _get_start(replacement):
    return replacement["deletedRegion"]["startLine"]
