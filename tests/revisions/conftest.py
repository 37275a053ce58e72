import pytest
from revisions.sample_project import build_project, configure, copy_project


@pytest.fixture(scope="session")
def whole_project(tmp_path_factory):
    """The sample with all its revisions; tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("project")
        patch.chdir(folder)
        return build_project(folder)


@pytest.fixture
def repository(whole_project, tmp_path, monkeypatch):
    """A copy of the sample, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    return copy_project(whole_project, tmp_path)


@pytest.fixture
def config(repository):
    """The configuration of the sample, whose code is the newest."""
    return configure(repository, "Net6")
