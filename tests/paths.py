"""Where things lie in this repository, and whether this is CI."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
IS_CI = "CKPTOOL_CI" in os.environ
"""Whether generated tests try as much as in CI, or what an inner loop has time for."""


def examples(number: int) -> int:
    """Return how many examples a test tries for whose CI `number` are enough."""
    return number if IS_CI else max(10, number // 4)
