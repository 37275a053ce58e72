"""Fingerprints are computed in a thread while the module's own code runs."""

import subprocess
import sys

import pytest
import torch

SCRIPT = """
import sys
from threading import Event
from ckptool.formats import open_checkpoint
from ckptool.migration.write.background_fingerprints import BackgroundFingerprints

state = open_checkpoint("model.pth").states[0]
assert "blake3" not in sys.modules
with BackgroundFingerprints() as fingerprints:
    release = Event()
    fingerprints._pool.submit(release.wait)  # the thread begins once user code has its way
    fingerprints.start_fingerprints(state)
    sys.path[:] = []
    release.set()
    assert all(fingerprints.get_fingerprints(state).values())
print("done")
"""


@pytest.mark.process
def test_the_thread_imports_nothing_while_user_code_owns_the_path(tmp_path):
    """A migration failed now and then with `No module named 'blake3'`."""
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pth")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
