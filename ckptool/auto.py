"""`import ckptool.auto` is `ckptool.install()`: notes at the errors of loading functions."""

from ckptool.commands.install import install

install()
