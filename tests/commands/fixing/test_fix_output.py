"""What `ckptool fix` prints: diff, refusals, proofs and notes, whole, as in `snapshots/`.

`CKPTOOL_SNAPSHOTS=write pytest tests/commands/fixing/test_fix_output.py` writes them anew.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from commands.fixing.source_parts import make_class

import ckptool
from ckptool.config import load_config
from ckptool.render import RenderOptions, render

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


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Return the report of `fix` before it writes, and the file that `fix --write` writes."""
    folder = tmp_path_factory.mktemp("printed")
    (folder / "net.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        reports = [
            ckptool.fix(
                "net:Net",
                inputs=("float32[2,4]",),
                write=write,
                allow_unproved=True,
                config=load_config(folder),
            )
            for write in (False, True)
        ]
    sys.modules.pop("net", None)
    assert [report.is_written for report in reports] == [False, True]
    return reports[0], (folder / "net.py").read_text()


@pytest.mark.parametrize("form", SUFFIXES)
def test_what_is_printed(fixed, form):
    shown = render(form, fixed[0], RenderOptions()).replace(version("ckptool"), "VERSION")
    kept = SNAPSHOTS / f"fix.{SUFFIXES[form]}"
    if os.environ.get("CKPTOOL_SNAPSHOTS") == "write":
        kept.write_text(f"{shown}\n")
    assert f"{shown}\n" == kept.read_text()


def test_the_printed_diff_is_a_patch(fixed, tmp_path):
    """Git applies it, and the result is what fix --write writes."""
    report, written = fixed
    (tmp_path / "net.py").write_text(SOURCE)
    subprocess.run(["git", "apply", "-"], input=report.diff, text=True, check=True, cwd=tmp_path)
    assert (tmp_path / "net.py").read_text() == written != SOURCE


def test_the_fixes_of_sarif_are_the_edits(fixed):
    """A viewer that puts the lines of all fixes in their place gets the file that fix writes."""
    report, written = fixed
    (run,) = json.loads(render("sarif", report, RenderOptions()))["runs"]
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
    assert "".join(lines) == written


def test_a_finding_that_is_refused_has_no_fix_in_sarif(fixed):
    (run,) = json.loads(render("sarif", fixed[0], RenderOptions()))["runs"]
    fixed_keys = {
        result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"]
        for result in run["results"]
        if "fixes" in result
    }
    assert fixed_keys == {"mask", "mean", "norms[0]", "scale"}


def _get_start(replacement):
    return replacement["deletedRegion"]["startLine"]
