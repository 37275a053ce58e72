"""Words with which each command reads one file, for tests of all commands."""

import click

from ckptool.cli import main

CONTEXT = click.Context(main)
LINEAR = ("torch.nn:Linear", "-k", "in_features=2", "-k", "out_features=3")
LEAST = {
    "audit": ("-m", "torch.nn:ReLU"),
    "check": ("--chain", "{chain}", "-m", *LINEAR),
    "convert": ("{input}", "--no-provenance"),
    "current": ("{input}", "--chain", "{chain}"),
    "diff": ("{input}", "{other}", "--no-values"),
    "digest": ("{input}",),
    "downgrade": ("{input}", "--chain", "{chain}", "--to", "base"),
    "explain": ("{input}",),
    "fix": ("-m", "torch.nn:ReLU"),
    "gate": ("{input}", "--no-values"),
    "history": ("--chain", "{chain}"),
    "inspect": ("{input}",),
    "lock": ("{input}",),
    "merge": ("{input}",),
    "migrate": ("{input}", "--no-provenance"),
    "revision": ("-m", "x", "--dry-run", "--chain", "{chain}", "--module", *LINEAR),
    "upgrade": ("{input}", "--chain", "{chain}"),
    "verify": ("{input}", "-m", "torch.nn:Linear"),
}
"""Words with which a command reads `{input}`; audit reads the file of constructor arguments."""
