"""Whether a class could be imported is told from files alone."""

import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.modules import class_exists

SOURCE = """
import sys as system, os.path
from .impl import Net as Renamed
class Plain: ...
def function(): ...
alias = Plain
first, (second, *rest) = 1, (2, 3)
annotated: type = Plain
bare: type
if system.platform == "x":
    class Conditional: ...
elif True:
    class Otherwise: ...
try:
    import fast
except ImportError:
    class Fallback: ...
else:
    class Fast: ...
with open(__file__):
    class Within: ...
def outer():
    class Inside: ...
raise SystemExit("must not be run")
"""


@pytest.fixture
def root(tmp_path):
    package = tmp_path / "located"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('must not be run')\n")
    (package / "plain.py").write_text(SOURCE)
    (package / "star.py").write_text("from .plain import *\nclass Own: ...\n")
    (package / "lazy.py").write_text("def __getattr__(name): ...\n")
    (package / "dynamic.py").write_text("globals()['Made'] = type('Made', (), {})\n")
    (package / "broken.py").write_text("def f(:\n")
    (package / "null.py").write_bytes(b"x = 1\0")
    (package / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\nclass Net: ...\n")
    (package / f"compiled{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    (package / "old.pyc").write_bytes(b"")
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "net.py").write_text("class Net: ...\n")
    (tmp_path / "space" / "inner").mkdir(parents=True)
    (tmp_path / "space" / "inner" / "net.py").write_text("class Net: ...\n")
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "__init__.py").write_text("import sys\nsys.modules['hand.made'] = sys\n")
    return tmp_path


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("located.plain", "Plain", True),
        ("located.plain", "Plain.Inner", True),
        ("located.plain", "function", True),
        ("located.plain", "alias", True),
        ("located.plain", "rest", True),
        ("located.plain", "annotated", True),
        ("located.plain", "bare", False),
        ("located.plain", "Renamed", True),
        ("located.plain", "Net", False),
        ("located.plain", "system", True),
        ("located.plain", "os", True),
        ("located.plain", "Conditional", True),
        ("located.plain", "Otherwise", True),
        ("located.plain", "Fallback", True),
        ("located.plain", "Fast", True),
        ("located.plain", "Within", True),
        ("located.plain", "Inside", False),
        ("located.plain", "", False),
        ("located.star", "Own", True),
        ("located.star", "Plain", None),
        ("located.lazy", "Anything", None),
        ("located.dynamic", "Made", None),
        ("located.broken", "f", None),
        ("located.null", "x", None),
        ("located.latin", "Net", True),
        ("located.compiled", "Net", None),
        ("located.old", "Net", None),
        ("located.sub.net", "Net", True),
        ("located.sub.gone", "Net", False),
        ("located.plain.net", "Net", False),
        ("located", "Net", False),
        ("space.inner.net", "Net", True),
        ("space.inner", "Net", False),
        ("hand.made", "Net", None),
        ("no_such_package_here", "Net", False),
        ("", "Net", False),
        (".located", "Net", False),
        ("located..plain", "Net", False),
        ("located/../located.plain", "Plain", False),
        ("located.sub\0.net", "Net", False),
        ("builtins", "set", None),
        ("collections", "OrderedDict", True),
        ("collections", "NoSuchClass", False),
        ("torch.nn.modules.linear", "Linear", True),
        ("torch.nn.modules.linear", "Linaer", False),
        ("torch.nn", "Linear", None),
        ("torch._C", "Generator", None),
        ("os.path", "join", None),
        ("__main__", "no_such_name_in_pytest", False),
    ],
)
def test_answers(root, module, name, expected):
    assert class_exists(module, name, (root,)) is expected


def test_without_the_search_directory_it_is_not_there(root):
    assert class_exists("located.plain", "Plain") is False


def test_a_rewritten_file_is_read_again(tmp_path):
    file = tmp_path / "rewritten.py"
    file.write_text("class A: ...\n")
    assert class_exists("rewritten", "A", (tmp_path,)) is True
    file.write_text("class Other: ...\n")
    assert class_exists("rewritten", "A", (tmp_path,)) is False


@pytest.mark.process
def test_nothing_is_imported(root):
    code = (
        "import sys; from pathlib import Path\n"
        "from ckptool.modules.class_lookup import class_exists\n"
        f"search = (Path({str(root)!r}),)\n"
        "before = set(sys.modules)\n"
        "assert class_exists('located.sub.net', 'Net', search)\n"
        "assert class_exists('torch.nn.modules.linear', 'Linear', search)\n"
        "assert class_exists('numpy', 'ndarray', search) is not False\n"
        "new = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "sys.exit(bool(new & {'located', 'torch', 'numpy'}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.text(max_size=12), st.text(max_size=5))
def test_any_name_gets_an_answer(module, name):
    assert class_exists(module, name) in {True, False, None}
