"""What the kernel of a notebook shows of reports, and of work that takes longer than a second."""

import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[dev]'")
nbformat = pytest.importorskip("nbformat")

CELLS = {
    "shell": "import torch, ckptool\ntype(get_ipython()).__name__",
    "load": (
        "m = torch.nn.Linear(2, 2)\ntorch.save(m.state_dict(), 'm.pth')\nckptool.load(m, 'm.pth')"
    ),
    "diff": "ckptool.diff(m, 'm.pth')",
    "digest": "ckptool.digest(m)",
    "inspect": "ckptool.inspect('m.pth')",
    "audit": "ckptool.audit(m)",
    "verify": "ckptool.verify('m.pth', module=m)",
    "rule": "ckptool.rule('CK101')[0]",
    "slow": (
        "from ckptool.values.progress import start_step, LISTENER\n"
        "from ckptool.render.progress_bar import with_progress_bar\n"
        "import time\n"
        "@with_progress_bar\n"
        "def work():\n"
        "    start_step('hashing model.pth', 100)\n"
        "    time.sleep(2.5)\n"
        "work()"
    ),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return the outputs of each cell, of a kernel of this interpreter."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": folder}}
    )
    client.create_kernel_manager()
    client.km.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    root = str(Path(__file__).resolve().parents[2])
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])})
    return dict(zip(CELLS, (cell.outputs for cell in notebook.cells), strict=True))


def test_it_is_the_shell_of_a_notebook(outputs):
    assert "ZMQInteractiveShell" in outputs["shell"][-1]["data"]["text/plain"]


@pytest.mark.parametrize("name", [name for name in CELLS if name not in {"shell", "slow"}])
def test_a_report_shows_itself(outputs, name):
    (result,) = (output for output in outputs[name] if output["output_type"] == "execute_result")
    assert {"text/html", "text/markdown"} <= result["data"].keys()
    assert result["data"]["text/markdown"].startswith("### ")
    assert "Warning" not in str(outputs[name])


def test_long_work_has_a_progress_bar_that_is_erased(outputs):
    texts = [output["text"] for output in outputs["slow"] if output["output_type"] == "stream"]
    widgets = [output for output in outputs["slow"] if "data" in output]
    assert any("hashing model.pth" in text for text in texts) or widgets
    assert "Warning" not in str(outputs["slow"])
    assert not texts or not texts[-1].strip()
