"""Fixtures of the tests of fixes: what a case asked, and a project with a checkpoint."""

from functools import partial
from pathlib import Path

import pytest
import torch
from rules.fixes.fix_runs import Calls, write_net
from torch import nn

from ckptool import api


@pytest.fixture
def calls(monkeypatch) -> Calls:
    """Record the last call of inspect, diff and audit."""
    seen = Calls()
    inspect, diff, audit = api.inspect, api.diff, api.audit

    def record_inspect(path, **options):
        seen.again.append(partial(inspect, **options))
        seen.paths, seen.module = (Path(path),), None
        return inspect(path, **options)

    def record_diff(*paths, **options):
        seen.module, seen.at = options.get("module"), options.get("at")
        seen.kwargs, seen.paths = options.get("kwargs") or {}, tuple(map(Path, paths))
        if len(paths) > 1:
            seen.again.append(lambda path: diff(paths[0], path, **options))
        else:
            seen.again.append(partial(diff, **options))
        return diff(*paths, **options)

    def record_audit(module, **options):
        seen.module, seen.kwargs = module, options.get("kwargs") or {}
        return audit(module, **options)

    monkeypatch.setattr(api, "inspect", record_inspect)
    monkeypatch.setattr(api, "diff", record_diff)
    monkeypatch.setattr(api, "audit", record_audit)
    return seen


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder `src` with a module `lib_net`, and a file of it without its mask."""
    (tmp_path / "src").mkdir()
    write_net(tmp_path, 'self.register_buffer("mask", torch.eye(n))')
    state = nn.Linear(3, 3).state_dict()
    torch.save({"model": {f"fc.{k}": v for k, v in state.items()}, "epoch": {}}, tmp_path / "a.pth")
    return tmp_path
