"""How long a process does sums without torch before it imports torch for them."""

import sys
from typing import Final


class Allowance:
    """Seconds of work in this process that are cheaper done without torch than with its import."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def grants(self, seconds: float) -> bool:
        """Whether work of so many seconds is to be done without torch."""
        if "torch" in sys.modules or seconds > self._left:
            self._left = 0
            return False
        self._left -= seconds
        return True


ALLOWANCE: Final = Allowance(1.0)
"""About what importing torch takes. It is the process that has torch or not, so it is one."""
