"The tool that breaks rules: it breaks what it should, and finds what tests do not notice."

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import mutate
import pytest

import minima.operators

ROOT = Path(__file__).resolve().parent.parent

# ---- what it changes ----


def changes(tmp_path, source):
    "The changes to the functions in `source`, without the names of module and function."
    package = tmp_path / "planted"
    package.mkdir()
    (package / "rules.py").write_text(source)
    found = [*mutate.mutants_of(package / "rules.py", package)]
    for _, m in found:
        ast.parse(m.source)
    return [m.key.partition(": ")[2] for _, m in found]


@pytest.mark.parametrize(
    "source, expected",
    [
        ("@op\ndef f(xp, a): return xp.exp(a), lambda g: g * a",
         ["xp.exp(a) -> xp.expm1(a)", "xp.exp(a) -> a", "xp.exp(a) -> (-xp.exp(a))",
          "g * a -> (-(g * a))", "g * a -> g", "g * a -> a"]),
        ("@op\ndef f(xp, a, b): return a, lambda g: g, lambda g: -g",
         ["lambda g: g, lambda g: -g -> lambda g: -g, lambda g: g", "-g -> g", "g -> (-g)"]),
        ("@op\ndef f(xp, *a): return xp.stack(a), *pullbacks", ["pullbacks -> pullbacks[::-1]"]),
        ("def f(a, b): return a - b / a ** 2",
         ["a - b / a ** 2 -> (a + b / a ** 2)", "a - b / a ** 2 -> a",
          "a - b / a ** 2 -> (-(b / a ** 2))", "b / a ** 2 -> (b * a ** 2)", "b / a ** 2 -> b",
          "b / a ** 2 -> (a ** 2)", "a ** 2 -> a", "a ** 2 -> a ** 3"]),
        ("def f(a): return 0.5 if a > 0 else not a",
         ["a > 0 -> (a >= 0)", "a > 0 -> (a < 0)", "a > 0 -> a > 1",
          "0.5 if a > 0 else not a -> 0.5", "not a -> a"]),
        ("def f(xp, a, *, k=True): return xp.sum(a, axis=k, keepdims=True)[:-1]",
         ["True -> False", "keepdims=True -> keepdims=False",
          "xp.sum(a, axis=k, keepdims=True) -> xp.sum(a, keepdims=True)",
          "xp.sum(a, axis=k, keepdims=True) -> xp.sum(a, axis=k)",
          "xp.sum(a, axis=k, keepdims=True) -> xp.mean(a, axis=k, keepdims=True)",
          "xp.sum(a, axis=k, keepdims=True) -> a", "-1 -> 1", "-1 -> 0",
          "xp.sum(a, axis=k, keepdims=True)[:-1] -> xp.sum(a, axis=k, keepdims=True)"]),
        ("def f(xp, a): return xp.where(a, 1, 2)",
         ["xp.where(a, 1, 2) -> xp.where(a, 2, 1)", "xp.where(a, 1, 2) -> 1"]),
        ("def f(a):\n  check(a)\n  if a:\n    raise E('a' + 1)\n  return [i for i in a if i]",
         ["check(a) -> (False and check(a))", "a -> True", "a -> False", "i -> True"]),
    ],
)  # fmt: skip
def test_what_is_changed(tmp_path, source, expected):
    found = changes(tmp_path, source)
    assert set(expected) <= set(found) and len(set(found)) == len(found)
    assert not any("'a'" in change for change in found), "messages are left alone"


def test_rules_are_known_by_their_decorator_or_by_being_handed_xp():
    source = """
@op
def first(xp, a): return helper(a)
@minima.op
def second(library, a): return a
@first.kernel("cpu")
def third(xp, a): return a
def fourth(xp, a): return a
def helper(a): return deeper(a)
def deeper(a): return a
def other(a): return first(a)
@open
def another(a): return a
"""
    functions = mutate.functions_of(ast.parse(source))
    rules = [name for name, f in functions.items() if mutate.is_rule(f)]
    assert rules == ["first", "second", "third", "fourth"]
    assert mutate.with_helpers(rules, functions) == [*rules, "helper", "deeper"]


def test_every_rule_of_the_package_is_found():
    paths = (ROOT / "minima").rglob("*.py")
    functions = [mutate.functions_of(ast.parse(path.read_text())) for path in paths]
    found = {name for group in functions for name, f in group.items() if mutate.is_rule(f)}
    known = {f.rule.__name__ for f in vars(minima.operators).values() if hasattr(f, "rule")}
    assert len(known) > 70 and known <= found and "_extremum" in found and "einsum" not in found


# ---- what it finds ----

RULES = """
op = lambda rule: rule


@op
def scale(xp, a, b, *, times=2):
    "The product, `times` over."
    y = a * b * times
    return y, lambda g: g * b * times, lambda g: g * a * times


@op
def count(xp, a):
    n = 0
    while n < a:
        n += 1
    return n
"""
STRONG = """
from planted.rules import count, scale

def test_scale():
    y, by_a, by_b = scale(None, 3.0, 5.0)
    assert (y, by_a(7.0), by_b(7.0)) == (30.0, 70.0, 42.0)

def test_count():
    assert (count(None, 0), count(None, 4), count(None, 2.5)) == (0, 4, 3)
"""


@pytest.fixture
def planted(tmp_path):
    "A function that runs the tool over a small package whose tests are these, in a process."
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text("")
    (tmp_path / "planted" / "rules.py").write_text(RULES)
    (tmp_path / "tests").mkdir()

    def run(tests, *argv, equivalent=()):
        (tmp_path / "tests" / "test_planted.py").write_text(tests)
        code = f"""
import sys; sys.path[:0] = {[str(tmp_path), str(ROOT / "tools")]!r}
import mutate; from pathlib import Path
mutate.EQUIVALENT = {dict.fromkeys(equivalent, "a reason")!r}
sys.exit(mutate.main({[*argv, "--jobs=2", "--limit=0.1"]!r}, Path({str(tmp_path / "planted")!r})))
"""
        command = [sys.executable, "-B", "-c", code]
        before = fingerprint(tmp_path)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert fingerprint(tmp_path) == before, "the tool wrote into the tree"
        assert not done.stderr
        return done.returncode, done.stdout

    return run


def fingerprint(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [(p, hashlib.sha256(p.read_bytes()).digest()) for p in files]


def test_good_tests_leave_no_survivor_not_even_one_that_loops_for_ever(planted):
    status, out = planted(STRONG)
    assert status == 0 and "25 changes to 2 functions: 25 noticed, 0 survived, 0 could" in out


def test_what_no_test_notices_is_printed_with_its_line_and_its_change(planted):
    weak = STRONG.replace(", by_b(7.0)) == (30.0, 70.0, 42.0)", ") == (30.0, 70.0)")
    same = "rules.scale: g * a -> g"  # said to be equivalent, and so left alone
    status, out = planted(weak, equivalent=[same, "rules.scale: a -> b"])
    assert status == 1 and same not in out and "1 are listed as equivalent" in out
    assert "planted/rules.py:9: rules.scale: g * a -> a\n" in out
    assert "    -    return y, lambda g: g * b * times, lambda g: g * a * times\n" in out
    assert "    +    return y, lambda g: g * b * times, lambda g: (-(g * a * times))\n" in out
    assert "rules.count" not in out and "y -> " not in out and "g * b ->" not in out
    assert "but no longer so: rules.scale: a -> b\n" in out


def test_only_and_sample_choose_and_a_test_that_fails_anyway_is_told(planted):
    bad = STRONG + "\n\ndef test_no():\n    assert 0\n"
    status, out = planted(bad, "--only", "s*", "--sample", "3")
    assert status == 0 and "3 changes to 1 functions: 3 noticed" in out
    assert "left out, for it fails as it is: tests/test_planted.py::test_no" in out


def test_a_change_that_tests_notice_is_not_equivalent(planted):
    same = "rules.scale: g * a -> g"
    status, out = planted(STRONG, "--equivalent", equivalent=[same])
    assert status == 1 and f"no longer so: {same}" in out


def test_nothing_is_run_where_all_is_listed(planted):
    out = planted(STRONG, "--list")[1]
    keys = [line.partition(": ")[2] for line in out.splitlines() if ".py:" in line]
    status, out = planted(STRONG, equivalent=keys)
    assert status == 0 and "0 changes" in out and "25 are listed as equivalent" in out


LOOPS = """
import numba
from numba.extending import overload

def twice(x):
    "For use in loops."

@overload(twice)
def twice_of(x):
    def double(x):
        return x + x
    return double

@numba.njit
def scaled(x, by):
    return twice(x) * by

def whole(x):
    return scaled(x, 3.0)
"""
OF_LOOPS = """
from planted.kernels.cpu import whole

def test_whole():
    assert whole(5.0) == 30.0
"""


def test_what_numba_compiles_is_compiled_anew(planted, tmp_path):
    pytest.importorskip("numba")
    (tmp_path / "planted" / "kernels").mkdir()
    (tmp_path / "planted" / "kernels" / "cpu.py").write_text(LOOPS)
    status, out = planted(OF_LOOPS, "--compiled")
    assert status == 0 and "7 changes to 3 functions: 7 noticed, 0 survived" in out
    status, out = planted(OF_LOOPS.replace("== 30.0", "> 0"), "--compiled")
    assert (
        status == 1 and "twice_of: x + x -> x\n" in out and "twice_of: x + x -> (x - x)" not in out
    )
    assert "scaled: twice(x) * by -> by\n" in out and "whole: scaled(x, 3.0) -> x\n" in out
