"""Constructors -> the modules that are seen, the same on every version of Python; without torch."""

import sys
import threading

import pytest

from ckptool.tracing.construction import call_after_construction


@pytest.fixture
def seen():
    """Return (class, attributes, arguments) of what has been built, in order."""
    modules = []
    Base.report = lambda module, arguments: modules.append(
        (type(module).__name__, sorted(vars(module)), arguments)
    )
    return modules


class Base:
    """Calls what the traced nn.Module.__init__ calls, two frames below the constructor."""

    report = None

    def __init__(self):
        _watch(self)


def _watch(module):
    call_after_construction(module, Base.report)


class Inner(Base):
    def __init__(self, n):
        super().__init__()
        self.n = n


class Outer(Base):
    def __init__(self, n=3, *, name="a"):
        super().__init__()
        self.inner = Inner(n)
        self.late = 1


class Child(Outer):
    def __init__(self):
        super().__init__(5)
        self.child = True


class Recursive(Base):
    def __init__(self, depth):
        super().__init__()
        if depth:
            self.sub = Recursive(depth - 1)
        self.done = depth


class Late(Base):
    def __init__(self):
        self.early = 1
        super().__init__()
        self.late = lambda: self


class Failing(Base):
    def __init__(self, *, is_bad=True):
        super().__init__()
        self.inner = Inner(1)
        if is_bad:
            raise ValueError("no")
        self.end = 1


class Catching(Base):
    def __init__(self):
        super().__init__()
        try:
            self.part = Failing()
        except ValueError:
            self.part = None
        self.end = 1


@pytest.mark.parametrize(
    ("build", "name", "attributes", "arguments"),
    [
        (lambda: Outer(4), "Outer", ["inner", "late"], {"n": "4"}),
        (Outer, "Outer", ["inner", "late"], {}),
        (Child, "Child", ["child", "inner", "late"], {}),
        (lambda: Recursive(3), "Recursive", ["done", "sub"], {"depth": "3"}),
        (Late, "Late", ["early", "late"], {}),
        (lambda: Failing(is_bad=False), "Failing", ["end", "inner"], {"is_bad": "False"}),
        (Catching, "Catching", ["end", "part"], {}),
    ],
    ids=["arguments", "defaults", "base class", "recursive", "late", "succeeds", "caught inside"],
)
def test_a_module_is_seen_once_when_its_outermost_constructor_has_returned(
    seen, build, name, attributes, arguments
):
    build()

    assert seen == [(name, attributes, arguments)]


def test_a_module_whose_constructor_raises_is_not_seen_and_the_next_one_is(seen):
    with pytest.raises(ValueError, match="no"):
        Failing()
    Outer()

    assert [name for name, _, _ in seen] == ["Outer"]


def test_constructors_of_four_threads_are_each_seen_once(seen):
    threads = [threading.Thread(target=lambda: [Outer(i) for i in range(10, 60)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(arguments["n"] for _, _, arguments in seen) == sorted(
        str(i) for i in range(10, 60) for _ in range(4)
    )


def test_nothing_stays_watched_after_a_constructor(seen):
    with pytest.raises(ValueError, match="no"):
        Failing()
    Outer()

    assert sys.gettrace() is None
    if sys.version_info >= (3, 12):
        tools = [t for t in (3, 4) if sys.monitoring.get_tool(t) == "ckptool"]
        assert [sys.monitoring.get_events(tool) for tool in tools] == [0]
        assert sys.monitoring.get_local_events(tools[0], Outer.__init__.__code__) == 0


def test_a_debugger_that_traces_keeps_its_trace_function(seen):
    def trace(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        Outer()
        during = sys.gettrace()
    finally:
        sys.settrace(before)

    assert during is trace
