"""A module that cannot be had is one line, with the way out in it."""

import re

import pytest
from modules import modules_for_tests
from modules.marked_lines import marked
from modules.modules_for_tests import examined

from ckptool.errors import ModuleError
from ckptool.modules import ModuleSpec, examine_module

WAY_OUT = (
    "run from the directory that contains it, give its file (path/to/file.py:Name), pass "
    "--path DIR, or set PYTHONPATH"
)
CHOICE = "give a class, a function that returns one, or an instance"


def failure(target, kwargs=None, search=()):
    with pytest.raises(ModuleError) as caught:
        examine_module(ModuleSpec(target, kwargs or {}, search))
    assert "\n" not in str(caught.value)
    assert str(caught.value) == f"{target}: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (
            "samples.attention",
            (
                "expected package.module:Name or path/to/file.py:Name, for example "
                "samples.attention:Name"
            ),
        ),
        ("net", "expected package.module:Name or path/to/file.py:Name, for example net:Name"),
        ("a.b:", "expected package.module:Name or path/to/file.py:Name, for example a.b:Name"),
        (
            ":Net",
            "expected package.module:Name or path/to/file.py:Name, for example package.module:Net",
        ),
        ("src/model.py", "does not name a class: write src/model.py:Name"),
        ("src/model:Net", "is a path, but not of a Python file: write src/model.py:Net"),
        (
            "net.ipynb:Net",
            (
                "is a notebook: export its code with `jupyter nbconvert --to script net.ipynb` and "
                "name net.py:Net"
            ),
        ),
        (
            "torch.nn:Linear + 1",
            "'Linear + 1' is not one of Name, Outer.Inner, REGISTRY[key], or make(Config(d=3))",
        ),
        ("./src/model.py:Missing", "there is no file ./src/model.py"),
        (
            "no_such_package.net:Missing",
            f"no module 'no_such_package' was found: {WAY_OUT}",
        ),
        (
            "samples.attentoin:Missing",
            f"no module 'samples.attentoin' was found: {WAY_OUT}",
        ),
        (
            "modules.modules_for_tests:AtrMask",
            "modules.modules_for_tests has no 'AtrMask'; did you mean 'AttrMask'?",
        ),
        (
            "modules.modules_for_tests:Builder.make",
            "modules.modules_for_tests.Builder has no 'make'",
        ),
        (
            "modules.modules_for_tests:NOT_A_MODULE",
            "is a dict: give a class, a function that returns a module, or an instance",
        ),
        (
            "modules.modules_for_tests:make_nothing",
            f"gave a NoneType, not an nn.Module: {CHOICE}",
        ),
        (
            "modules.modules_for_tests:RunningStatistics",
            f"gave a RunningStatistics, not an nn.Module: {CHOICE}",
        ),
    ],
)
def test_reasons(target, reason):
    assert failure(target) == reason


def test_an_unknown_attribute_lists_the_classes():
    reason = failure("samples.attention:Missing")
    assert reason.startswith("samples.attention has no 'Missing'; it has CausalAttention")


def test_an_import_that_fails_inside(tmp_path):
    (tmp_path / "importing_model.py").write_text("import not_installed_at_all\n")
    assert failure("importing_model:Net", search=(tmp_path,)) == (
        "importing importing_model failed: it imports 'not_installed_at_all', "
        "which is not installed; if it is a module of your project, pass --path DIR or set "
        "PYTHONPATH"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax ({file}:1)"),
        ("from os import nothing\n", "ImportError: cannot import name 'nothing' from 'os'"),
        ("raise ValueError('a\\nb')\n", "ValueError: a b (at {file}:1)"),
        ("raise ValueError\n", "ValueError (at {file}:1)"),
    ],
)
def test_importing_raises(tmp_path, source, reason):
    file = tmp_path / "raising_model.py"
    file.write_text(source)
    expected = f"importing raising_model raised {reason.format(file=file)}"
    assert failure("raising_model:Net", search=(tmp_path,)).startswith(expected)


def test_importing_a_script_that_ends_the_process(tmp_path):
    file = tmp_path / "ending_script.py"
    file.write_text("x = 1\nraise SystemExit('bye')\n")
    assert failure("ending_script:Missing", search=(tmp_path,)) == (
        f"importing ending_script ended the process (SystemExit: bye (at {file}:2)): move code "
        'that runs on import, such as argument parsing, below `if __name__ == "__main__":`'
    )


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({}, "missing a required argument: 'd_in'"),
        ({"d_in": 1, "d_out": 1, "context_length": 1, "din": 2}, "got an unexpected keyword"),
    ],
)
def test_arguments_that_do_not_fit(kwargs, reason):
    text = failure("samples.attention:CausalAttentionWithBuffer", kwargs)
    assert text.startswith(reason)
    assert "; the signature is CausalAttention" in text
    assert "(d_in: int, d_out: int, context_length: int" in text


def test_arguments_that_do_not_fit_inside():
    text = failure("modules.modules_for_tests:Forwarding", {"in_features": 1})
    assert "missing 1 required positional argument: 'out_features'" in text
    assert text.endswith("give arguments with -k name=value; the signature is Forwarding(**kwargs)")


@pytest.mark.parametrize(
    "error",
    [ValueError("d_model must divide"), SystemExit(2), TypeError("bad"), GeneratorExit("x")],
)
def test_a_constructor_that_raises(error):
    text = failure("modules.modules_for_tests:Raising", {"error": error})
    expected = f"building it raised {type(error).__name__}: {error} (at {marked('Raising')})"
    assert text.split("; tried")[0] == expected


def test_an_interrupt_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        examined(modules_for_tests.Raising, error=KeyboardInterrupt())


def test_an_instance_takes_no_arguments():
    assert (
        failure("modules.modules_for_tests:INSTANCE", {"n": 3})
        == "is an instance: it takes no arguments"
    )


def test_a_long_message_is_cut():
    text = failure("modules.modules_for_tests:Raising", {"error": ValueError("x" * 5000)})
    assert re.search(r"x{200,300}\.\.\. \(at ", text)


PROJECT_FILES = {
    "src/nets.py": (
        "from torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 2)\n"
    ),
    "src/pkg/__init__.py": "",
    "src/pkg/deep.py": "from pkg import other\n",
    "lib/inner/nets.py": "",
    "top.py": "import pkg.deep\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, text in PROJECT_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("nets:Net", "src/nets.py:Name, or pass --path src or set PYTHONPATH=src"),
        ("pkg.deep:Net", "it is in src/: give its file, src/pkg/deep.py:Name"),
        ("pkg:Net", "it is in src/: pass --path src or set PYTHONPATH=src"),
        ("inner.nets:Net", "it is in lib/: give its file, lib/inner/nets.py:Name"),
        ("top:Net", "if it is a module of your project, pass --path src or set PYTHONPATH=src"),
        ("nowhere:Net", "pass --path DIR, or set PYTHONPATH"),
    ],
)
def test_a_module_that_python_does_not_find_is_looked_for(target, advice, project):
    with pytest.raises(ModuleError) as error:
        examine_module(ModuleSpec(target, search_paths=(project,)))
    assert advice in str(error.value)


def test_what_was_advised_works(project):
    assert examine_module(ModuleSpec("src/nets.py:Net")).tensors
    assert examine_module(ModuleSpec("nets:Net", search_paths=(project / "src",))).tensors


def fails(d=1, name="x" * 100):
    raise KeyError("no such size")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModuleSpec("fails", python_object=fails), "and with real ones, without arguments"),
        (ModuleSpec("fails", {"d": 2}, python_object=fails), "and with real ones, with d=2"),
        (
            ModuleSpec("fails", {"d": 2}, python_object=fails, defaults={"name": "n"}),
            "with real ones, with name='n' (from the file), d=2",
        ),
        (
            ModuleSpec("fails", python_object=fails, offers={"cfg": ("d", "e")}),
            "without arguments; the file has `cfg` (d, e): --kwargs @cfg",
        ),
    ],
)
def test_a_failure_says_what_was_tried(spec, words):
    with pytest.raises(ModuleError) as error:
        examine_module(spec)
    assert "building it raised KeyError: 'no such size'" in str(error.value)
    assert words in str(error.value)
