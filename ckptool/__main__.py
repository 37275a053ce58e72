"""`python -m ckptool` is `ckptool`."""

from ckptool.cli import run

run()
