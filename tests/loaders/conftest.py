"""Folders of tiny models, and what the framework's own loader says of them."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _quiet_frameworks(monkeypatch):
    """Frameworks warn about themselves, and are asked without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def save_model(tmp_path):
    """Return a function that saves a model as its framework does, and returns the folder."""

    def save(model, name="model", **options) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder, **options)
        return folder

    return save
