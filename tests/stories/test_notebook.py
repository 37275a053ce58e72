"""A notebook, executed: its own classes, reports as text and HTML, short errors."""

import re

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.process

NET = """
import torch
from torch import nn
import ckptool
class Net(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.fc = nn.Linear(size, size)
        self.register_buffer("mask", torch.triu(torch.ones(size, size), 1))
model = Net()
state = model.state_dict()
del state["mask"]
torch.save({"model": state}, "old.pth")
"""
CELLS = {
    "diff": 'ckptool.diff("old.pth", module=model)',
    "two": 'ckptool.diff(model, "old.pth")',
    "load": 'ckptool.load(model, "old.pth")',
    "typo": 'ckptool.load(model, "odl.pth")',
    "name": "ckptool.lod",
    "print": "print(ckptool.audit(Net))",
    "watch": "with ckptool.watch(model) as watched:\n    model.extra = torch.ones(2)\nwatched",
    "unused": "ckptool.watch(model)",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Cell -> its outputs: MIME type -> text; of an error "error"."""
    cells = [nbformat.v4.new_code_cell(text) for text in (NET, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return {
        name: _read_outputs(cell)
        for name, cell in zip(("net", *CELLS), notebook.cells, strict=True)
    }


def _read_outputs(cell):
    texts = {}
    for output in cell.outputs:
        if output.output_type == "error":
            texts["error"] = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
        elif output.output_type == "stream":
            texts[output.name] = texts.get(output.name, "") + output.text
        else:
            texts.update(output.data)
    return texts


def test_a_report_is_a_table_and_a_page(outputs):
    assert "error" not in outputs["net"]
    assert outputs["diff"]["text/plain"].startswith("does not load: 1 missing")
    assert "CK203" in outputs["diff"]["text/html"]
    assert outputs["load"]["text/plain"].startswith("loaded strictly after 1 step")
    assert outputs["print"]["stdout"].startswith("the state_dict contains everything")


def test_two_arguments_say_what_they_do_not_answer(outputs):
    """diff(model, PATH) compares tensors; whether the file loads is another question."""
    assert "whether old.pth loads into the module" in outputs["two"]["text/plain"]
    assert "whether" not in outputs["diff"]["text/plain"]


def test_an_error_has_the_lines_of_the_notebook_only(outputs):
    error = outputs["typo"]["error"]
    assert 'ckptool.load(model, "odl.pth")' in error
    assert error.rstrip().endswith("ReadError: odl.pth: no such file; did you mean old.pth?")
    assert len(error.splitlines()) < 8
    assert "did you mean 'load'?" in outputs["name"]["error"]


def test_a_watched_block_shows_its_report(outputs):
    assert "extra" in outputs["watch"]["text/plain"]
    assert "extra" in outputs["watch"]["text/html"]
    assert outputs["unused"]["text/plain"].startswith("nothing was watched")
