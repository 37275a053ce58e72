"""Budget of pure-Python work that costs less time than importing torch."""

import sys
from typing import Final


class TorchImportBudget:
    """Remaining seconds of pure-Python work of this process before torch is imported instead."""

    def __init__(self, seconds: float) -> None:
        self._remaining = seconds

    def try_spend(self, seconds: float) -> bool:
        """Spend `seconds` if left; False, and nothing left, if exceeded or torch is imported."""
        if "torch" in sys.modules or seconds > self._remaining:
            self._remaining = 0
            return False
        self._remaining -= seconds
        return True


TORCH_IMPORT_BUDGET: Final = TorchImportBudget(1.0)
"""About the seconds that importing torch takes; one budget per process, as imports are."""
