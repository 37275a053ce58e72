"""`python -m ckptool` is `ckptool`."""

from ckptool.cli import main

main(prog_name="ckptool")
