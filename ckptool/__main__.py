"""Entry point of `python -m ckptool`."""

from ckptool.cli import run

run()
