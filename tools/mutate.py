"""Break the package in many small ways, one at a time, and see whether the tests notice.

    python tools/mutate.py                       every rule of every operation
    python tools/mutate.py --only tanh 'log*'    functions by name
    python tools/mutate.py --modules nn optim    every function of these modules
    python tools/mutate.py --sample 100          a quick look at some, chosen at random
    python tools/mutate.py --kernels             kernels that are written in NumPy, not rules
    python tools/mutate.py --compiled            kernels that numba compiles, and their loops
    python tools/mutate.py --list                print the changes, try none

A change flips a sign, drops a term or a factor, swaps two pullbacks or returns the cotangent as it
came, moves a comparison or a number, leaves out a call, a setting or a branch. A change that no
test notices has survived: it is printed with the line, and the exit status is 1. Changes that
cannot change any number are listed in `equivalent_mutants.py`, each with the reason.

The tests are collected once. Each change is then made in a forked process, in memory, by giving a
function other code; no file is written. First every test runs once and it is noted what it calls,
so that a change is shown only to the tests that reach it, those that reach least going first, and
those in files with slow preparations last.

Where a kernel is read in a rule's place, the rule is not: so rules are tried with all kernels off,
and the modules that have kernels in NumPy by themselves, with `--kernels`. With `--compiled`, numba
compiles anew what a change is in, and all that calls it: seconds for each change, so that
`--modules kernels.cpu --sample 100` is a good start.
"""

import argparse
import ast
import gc
import importlib
import os
import pickle
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from difflib import unified_diff
from fnmatch import fnmatchcase
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType

from equivalent_mutants import EQUIVALENT
from run_notebooks import THREADS

ROOT = Path(__file__).resolve().parent.parent
COMPREHENSION = re.compile(r"\.<(?:gen|list|set|dict)(?:expr|comp)>")  # in a function's name
COMPILED = re.compile(r"\.(kernels\.(compiling|cpu|linear|norms|optim)|capture\.(fusion|runs))$")
KERNELS = re.compile(r"\.(kernels\.\w+|nn\.blockwise|operators\.fused)$")  # modules with kernels
COMPILING = 60  # CPU seconds that a test may need for it
ELSEWHERE = "house notebooks readme mutate".split()  # tests of other things than functions

# ---- what is changed ----


def is_rule(function):
    "Whether `function` is decorated with `op`, or is handed an array library as `xp`."
    decorated = any(re.fullmatch(r"(\w+\.)*op", ast.unparse(d)) for d in function.decorator_list)
    return decorated or "xp" in [a.arg for a in function.args.args]


def with_helpers(names, functions):
    "The `names` of functions of a module, and of those that these call."
    found = list(names)
    for name in found:
        inside = (n for part in functions[name].body for n in ast.walk(part))
        used = {n.id for n in inside if isinstance(n, ast.Name)}
        found += [other for other in functions if other in used and other not in found]
    return found


def functions_of(tree):
    "The functions and methods of a module, by qualified name."
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n}": f for n, f in functions_of(node).items()}
    return found


OTHER = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Div: [ast.Mult],
    ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd], ast.And: [ast.Or], ast.Or: [ast.And],
    ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt, ast.LtE],
    ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt, ast.GtE],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip
COUNTERPARTS = [
    ("max", "min"), ("maximum", "minimum"), ("argmax", "argmin"), ("any", "all"), ("sum", "mean"),
    ("sin", "cos"), ("exp", "expm1"), ("log", "log1p"), ("zeros_like", "ones_like"),
    ("tril", "triu"), ("logical_and", "logical_or"), ("bitwise_and", "bitwise_or"),
]  # fmt: skip
COUNTERPART = dict(COUNTERPARTS) | {b: a for a, b in COUNTERPARTS}


def negative(node):
    "The expression `node` with the other sign."
    return ast.UnaryOp(ast.USub(), node)


def wrong(node):
    "What could stand in the place of `node`, each wrong in its own way."
    match node:
        case ast.BinOp(left, op, right):
            yield from (ast.BinOp(left, other(), right) for other in OTHER.get(type(op), ()))
            yield left
            if not isinstance(op, ast.Pow | ast.FloorDiv | ast.Mod):
                yield negative(right) if isinstance(op, ast.Sub) else right
        case ast.UnaryOp(operand=operand):
            yield operand
            if isinstance(operand, ast.Constant) and operand.value:
                yield ast.Constant(0)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(float(f"{value * 1.01:.6g}") if value else 1.0)
        case ast.Compare(left, [op], [right]):
            yield from (ast.Compare(left, [other()], [right]) for other in OTHER[type(op)])
        case ast.BoolOp(op, values):
            yield from values
            yield ast.BoolOp(OTHER[type(op)][0](), values)
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Call(function, args, keywords):
            for k in keywords:
                yield ast.Call(function, args, [other for other in keywords if other is not k])
            match function:
                case ast.Attribute(where, "where"):
                    yield from args[1:]
                    yield ast.Call(function, [args[0], *args[:0:-1]], keywords)
                case ast.Attribute(where, name) if name in COUNTERPART:
                    yield ast.Call(ast.Attribute(where, COUNTERPART[name]), args, keywords)
            if args and not isinstance(args[0], ast.Starred | ast.GeneratorExp):
                yield args[0]
        case ast.Subscript(value, ctx=ast.Load()):
            yield value
        case ast.Slice(lower, upper, step):
            for kept in ((None, upper, step), (lower, None, step), (lower, upper, None)):
                if kept != (lower, upper, step):
                    yield ast.Slice(*kept)
        case ast.If(test):
            yield test, ast.Constant(True)
            yield test, ast.Constant(False)
        case ast.comprehension(ifs=ifs):
            yield from ((test, ast.Constant(True)) for test in ifs)
        case ast.Expr(ast.Call() as call):
            yield call, ast.BoolOp(ast.And(), [ast.Constant(False), call])
        case ast.AugAssign(target, op, value):
            yield from (ast.AugAssign(target, o(), value) for o in OTHER.get(type(op), ()))


def wrong_in_rules(node, argument):
    "The same for what a rule returns, and what its pullbacks (of `argument`) do."
    match node:
        case ast.Return(ast.Tuple([first, *pullbacks])):
            yield first, negative(first)
            yield from ((pair, None) for pair in pairwise(pullbacks))
            if isinstance(pullbacks[-1], ast.Starred):
                yield pullbacks[-1].value, ast.parse(f"{ast.unparse(pullbacks[-1].value)}[::-1]")
        case ast.Return(ast.expr() as value) | ast.Lambda(body=value):
            yield value, negative(value)
            if argument and ast.unparse(value) != argument:
                yield value, ast.Name(argument)


# ---- changes as text ----


@dataclass(frozen=True)
class Mutant:
    "One function with one change."

    module: str
    path: Path
    function: str  # its qualified name
    reached: str  # that of the function inside of it where the change is
    line: int
    around: tuple  # (first byte, last byte) of what names the change
    edits: tuple  # (first byte, last byte, new text), each
    which: int = 1  # if the function has several changes that read alike, their number

    @cached_property
    def original(self):
        return _source(self.path)

    @cached_property
    def source(self):
        "The module's text with the change."
        return self.changed(0, len(self.original))

    def changed(self, start, stop):
        "What becomes of the text from `start` to `stop`, around the change."
        text = self.original[:stop]
        for i, j, new in sorted(self.edits, reverse=True):
            text = text[:i] + new.encode() + text[j:]
        return text[start:].decode()

    @cached_property
    def key(self):
        "What names the change in `equivalent_mutants.py`: it does not depend on lines."
        start, stop = self.around
        change = f"{self.original[start:stop].decode()} -> {self.changed(start, stop)}"
        words = change.split() + [f"({self.which})"] * (self.which > 1)
        return f"{self.module.partition('.')[2]}.{self.function}: {' '.join(words)}"

    def __str__(self):
        texts = self.original.decode().splitlines(), self.source.splitlines()
        lines = [line for line in [*unified_diff(*texts, n=0, lineterm="")][3:] if line[0] in "-+"]
        place = os.path.relpath(self.path)
        return "\n".join([f"{place}:{self.line}: {self.key}", *(f"    {line}" for line in lines)])


@cache
def _source(path):
    return path.read_bytes()


def mutants_of(path, package):
    "All changes to the functions of the module at `path`."
    module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
    text = _source(path)
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node):
        last = starts[node.end_lineno - 1] + node.end_col_offset
        return starts[node.lineno - 1] + node.col_offset, last

    def edit(place, new):
        if new is None:  # two that change places
            spans = [span(p) for p in place]
            return tuple((*s, text[slice(*t)].decode()) for s, t in zip(spans, reversed(spans)))
        start, stop = span(place)
        bare = isinstance(new, BARE) or text[start - 1 : start] + text[stop : stop + 1] == b"()"
        return ((start, stop, ast.unparse(new) if bare else f"({ast.unparse(new)})"),)

    def visit(node, parent, reached, argument, in_rule):
        if isinstance(node, ast.FunctionDef | ast.Lambda) and reached:
            reached += f".<locals>.{getattr(node, 'name', '<lambda>')}"
            names = [a.arg for a in node.args.args]
            argument = names[0] if names else None
        for change in (*wrong(node), *(wrong_in_rules(node, argument) if in_rule else ())):
            place, new = change if isinstance(change, tuple) else (node, change)
            first, *_, last = place if isinstance(place, tuple) else (place, place)
            small = isinstance(first, ast.Constant) and hasattr(parent, "lineno")
            around = span(parent) if small else (span(first)[0], span(last)[1])
            yield first.lineno, reached, around, edit(place, new)
        for name, value in ast.iter_fields(node):
            if name not in ("decorator_list", "annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    signed = isinstance(node, ast.UnaryOp) and isinstance(child, ast.Constant)
                    if isinstance(child, ast.AST) and not (signed or isinstance(child, UNTOUCHED)):
                        yield from visit(child, node, reached or function, argument, in_rule)

    functions = functions_of(ast.parse(text))
    rules = [name for name, node in functions.items() if is_rule(node)]
    concerned = with_helpers(rules, functions)
    for function, node in functions.items():
        found, alike = {}, Counter()
        for line, reached, around, edits in visit(node, None, "", None, function in rules):
            if edits not in found and any(text[i:j].decode() != new for i, j, new in edits):
                mutant = Mutant(module, path, function, reached, line, around, edits)
                alike[mutant.key] += 1
                found[edits] = replace(mutant, which=alike[mutant.key])
        yield from ((function in concerned, m) for m in found.values())


BARE = (
    ast.Name | ast.Attribute | ast.Call | ast.Constant | ast.Subscript | ast.Slice | ast.Tuple
    | ast.AugAssign | ast.Module
)  # fmt: skip
UNTOUCHED = ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.ClassDef


def choose(args, package):
    "The changes that the command line asks for, and all there are."
    paths = [p for p in sorted(package.rglob("*.py")) if p.name != "_modidx.py"]
    everything = [pair for path in paths for pair in mutants_of(path, package)]
    every = args.modules or args.only or args.compiled
    wanted = [m for concerned, m in everything if concerned or every]
    wanted = [m for m in wanted if _kind(m.module) == (args.compiled, args.kernels)]
    if args.modules:
        inside = lambda m: any(f".{name}." in f"{m.module}." for name in args.modules)
        wanted = [m for m in wanted if inside(m)]
    if args.only:
        wanted = [m for m in wanted if any(fnmatchcase(m.function, name) for name in args.only)]
    return wanted, [m for _, m in everything]


def _kind(module):
    "Whether `module` has compiled kernels, and whether it has others."
    compiled = bool(COMPILED.search(f".{module}"))
    return compiled, bool(KERNELS.search(f".{module}")) and not compiled


# ---- making a change in a process ----


def live_functions(package):
    "Every function of the package that exists in memory, by file, qualified name and line."
    found = {}
    for f in gc.get_objects():
        if type(f) is FunctionType and f.__code__.co_filename.startswith(str(package)):
            code = f.__code__
            key = code.co_filename, code.co_qualname, code.co_firstlineno
            found.setdefault(key, []).append(f)
    return found


def codes(code):
    "`code` and all the code inside of it."
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from codes(inner)


def install(mutant, live):
    "Give the function its changed code. Returns whether that was possible."
    name, tree = str(mutant.path), ast.parse(mutant.source)
    by_place = {}
    for code in codes(compile(tree, name, "exec")):
        by_place.setdefault((name, code.co_qualname, code.co_firstlineno), []).append(code)
    changed = False
    for place, found in by_place.items():
        if f"{place[1]}.".startswith(f"{mutant.function}.") and len(found) == 1:
            for f in live.get(place, ()):
                if found[0].co_freevars == f.__code__.co_freevars:
                    f.__code__, changed = found[0], True
                    if place[1] == mutant.function:
                        _set_defaults(f, functions_of(tree)[mutant.function].args)
    return changed


def _set_defaults(f, args):
    "Let the arguments of `f` default to what `args` say."
    value = lambda node: eval(compile(ast.Expression(node), "", "eval"), f.__globals__)
    f.__defaults__ = tuple(value(d) for d in args.defaults) or None
    named = zip(args.kwonlyargs, args.kw_defaults)
    f.__kwdefaults__ = {a.arg: value(d) for a, d in named if d is not None} or None


# ---- what numba compiles ----


class Loops:
    "The compiled loops of a package: what each calls, and which were called."

    def __init__(self, package, live):
        self.package = str(package)
        self.all = [f for f in gc.get_objects() if hasattr(type(f), "recompile")]
        self.all = [f for f in self.all if self._is_ours(f.py_func)]
        self.overloads = {}  # by the name of what they stand for, the functions that write code
        for (file, *_), functions in live.items():
            for stands_for in OVERLOAD.findall(_above(file, functions[0].__code__)):
                self.overloads.setdefault((file, stands_for), []).extend(functions)
        self.inside = {id(loop): self._names(loop.py_func) for loop in self.all}

    def _is_ours(self, f):
        return type(f) is FunctionType and f.__code__.co_filename.startswith(self.package)

    def _names(self, function):
        "(file, qualified name) of `function` and of all that is compiled into it."
        waiting, found = [function], {}
        while waiting:
            f = waiting.pop()
            if self._is_ours(f) and f.__code__ not in found:
                parts = [*codes(f.__code__)]
                file = f.__code__.co_filename
                found[f.__code__] = {(file, code.co_qualname) for code in parts}
                called = [f.__globals__.get(name) for code in parts for name in code.co_names]
                waiting += [getattr(c, "py_func", c) for c in called]
                waiting += self.overloads.get((file, f.__name__), [])
        return set().union(*found.values())

    def has(self, mutant):
        "Whether `mutant` changes what is compiled."
        here = str(mutant.path), mutant.function
        return any(here in names for names in self.inside.values())

    def forget(self, anew=False):
        "Let the next calls look for machine code, or write it `anew`."
        for loop in self.all:
            loop._reset_overloads()
            if anew:
                from numba.core.caching import NullCache

                loop._cache = NullCache()

    def called(self):
        "(file, qualified name) of all that is in the loops called since they were forgotten."
        return set().union(*(self.inside[id(loop)] for loop in self.all if loop.overloads))


OVERLOAD = re.compile(r"@overload\((\w+)")


def _above(file, code):
    "The first line of the function with this `code`: of its decorators, if it has some."
    return _source(Path(file)).decode().splitlines()[code.co_firstlineno - 1]


# ---- running tests in processes ----


def in_children(work, tasks, jobs, folder):
    "`work(task)` in a forked process for each task, `jobs` at once; yields (task, result or None)."
    waiting, running = [*enumerate(tasks)][::-1], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, task = waiting.pop()
            pid = os.fork()
            if not pid:
                _be_child(work, task, folder / str(number))
            running[pid] = task, folder / str(number)
        pid, _ = os.wait()
        task, path = running.pop(pid)
        yield task, pickle.loads(path.read_bytes()) if path.exists() else None


def _be_child(work, task, path):
    "Do `work`, silently, leave its result at `path`, and end."
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.mkdtemp(dir=path.parent)
    try:
        result = pickle.dumps(work(task))
        path.with_suffix(".part").write_bytes(result)
        path.with_suffix(".part").rename(path)
    finally:
        os._exit(0)


class Hunt:
    "The pytest plugin that shows each change to the tests, in place of pytest's own loop."

    def __init__(self, package, mutants, args):
        self.package, self.mutants = package, mutants
        self.jobs, self.limit = args.jobs, args.limit
        self.outcomes = {}

    def pytest_collection(self):
        "Hypothesis shall report what it finds, and not look for the smallest example."
        if "hypothesis" not in sys.modules:
            return
        from hypothesis import Phase, settings

        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutate", settings(settings.default, phases=phases))
        settings.load_profile("mutate")

    def pytest_runtest_logreport(self, report):
        self.failed = self.failed or report.failed
        self.prepared = max(self.prepared, report.duration if report.when == "setup" else 0)

    def passes(self, i, after=None):
        "Whether test number `i` passes; that numbered `after` follows, and may use its fixtures."
        self.failed, self.prepared = False, 0
        item, after = self.items[i], None if after is None else self.items[after]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return not self.failed

    def pytest_runtestloop(self, session):
        for name in {m.module for m in self.mutants}:
            importlib.import_module(name.removesuffix(".__init__"))
        self.items, self.live = session.items, live_functions(self.package)
        self.loops = Loops(self.package, self.live)
        gc.collect()
        gc.freeze()  # so that children share the memory
        with tempfile.TemporaryDirectory() as folder:
            self.look(Path(folder))
            for m, noticed in in_children(self.show, self.mutants, self.jobs, Path(folder) / "m"):
                self.outcomes[m] = noticed
                if noticed == "":
                    print(f"\n{m}", flush=True)
        return True

    def look(self, folder):
        "Run every test as things are, and note its time, what it calls, and slow preparations."
        for name in ("look", "m"):
            (folder / name).mkdir()
        files = {}
        for i, item in enumerate(self.items):
            files.setdefault(item.path, []).append(i)
        self.calls, self.times, self.slow = {}, {}, set()
        parts = sorted(files.values(), key=len, reverse=True)
        for part, found in in_children(self.trace, parts, self.jobs, folder / "look"):
            if found is None:
                raise RuntimeError("pytest ended in the middle of the tests, with nothing changed")
            for i, (good, seconds, prepared, called) in zip(part, found, strict=True):
                if prepared > 1:
                    self.slow.add(self.items[i].path)
                if good:
                    self.calls[i], self.times[i] = called, seconds
                else:
                    print(f"left out, for it fails as it is: {self.items[i].nodeid}")

    def trace(self, part):
        found, prefix, called = [], str(self.package), set()

        def note(frame, event, arg):
            if frame.f_code.co_filename.startswith(prefix):
                called.add((frame.f_code.co_filename, frame.f_code.co_qualname))

        threading.settrace(note)
        for i, after in zip(part, [*part[1:], None]):
            called.clear()
            self.loops.forget()
            start = time.process_time()
            sys.settrace(note)
            good = self.passes(i, after)
            sys.settrace(None)
            names = {(file, COMPREHENSION.sub("", name)) for file, name in called}
            names |= self.loops.called()
            found.append((good, time.process_time() - start, self.prepared, names))
        return found

    def show(self, mutant):
        "The first test that notices `mutant`, '' if none does, or False if it cannot be made."
        if not install(mutant, self.live):
            return False
        here = str(mutant.path), mutant.reached
        tests = [i for i, called in self.calls.items() if here in called]
        compiles = self.loops.has(mutant)
        if compiles:
            self.loops.forget(anew=True)
        is_slow = lambda i: self.items[i].path in self.slow
        tests.sort(key=lambda i: (is_slow(i), len(self.calls[i]), self.times[i]))
        for i, after in zip(tests, [*tests[1:], None]):
            seconds = self.limit + 10 * self.times[i] + COMPILING * compiles
            signal.setitimer(signal.ITIMER_PROF, seconds)  # the end of endless loops
            if not self.passes(i, after):
                return self.items[i].nodeid
        return ""


# ---- the command ----


def parsed(argv):
    "What the command line says."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="functions, such as tanh, 'log*', Adam.step")
    add("--modules", nargs="+", metavar="NAME", help="all functions of nn, optim, operators.shapes")
    add("--tests", nargs="+", metavar="FILE", help="by default all that test functions")
    add("--sample", type=int, metavar="N", help="try N of the changes")
    add("--seed", type=int, default=0, help="which N these are")
    add("--jobs", type=int, default=os.cpu_count(), metavar="N", help="how many at once")
    add("--limit", type=float, default=2, metavar="S", help="CPU seconds after which a test hangs")
    add("--kernels", action="store_true", help="try kernels in NumPy, instead of rules")
    add("--compiled", action="store_true", help="try kernels that numba compiles, instead of rules")
    add("--list", action="store_true", help="print the changes, and try none")
    add("--equivalent", action="store_true", help="try those listed as equivalent, instead")
    return parser.parse_args(argv)


def main(argv=None, package=ROOT / "minima"):
    "Try what the command line asks for; the exit status is 1 if a change survives."
    args, start = parsed(argv), time.monotonic()
    wanted, everything = choose(args, package)
    listed = [m for m in wanted if m.key in EQUIVALENT]
    tried = listed if args.equivalent else [m for m in wanted if m.key not in EQUIVALENT]
    if args.sample is not None and args.sample < len(tried):
        tried = random.Random(args.seed).sample(tried, args.sample)
    if args.list:
        print(*tried, sep="\n\n")
        return 0
    for name in THREADS:
        os.environ[name] = "1"
    numba, kernels = int(args.compiled), int(args.compiled or args.kernels)
    os.environ |= {"MINIMA_NUMBA": str(numba), "MINIMA_KERNELS": str(kernels)}
    outcomes = hunt(tried, package, args) if tried else {}
    counts = Counter("untried" if n is False else "survived" if n == "" else "noticed"
                     for n in outcomes.values())  # fmt: skip
    stale = sorted(EQUIVALENT.keys() - {m.key for m in everything})
    stale += [m.key for m, noticed in outcomes.items() if noticed != "" and args.equivalent]
    print(*(f"in equivalent_mutants.py, but no longer so: {key}" for key in stale), sep="\n")
    print(
        f"{len(tried)} changes to {len({(m.path, m.function) for m in tried})} functions: "
        f"{counts['noticed']} noticed, {counts['survived']} survived, "
        f"{counts['untried']} could not be made; {len(listed)} are listed as equivalent; "
        f"{time.monotonic() - start:.0f} s"
    )
    return int(bool(stale) or (counts["survived"] > 0 and not args.equivalent))


def hunt(mutants, package, args):
    "What notices each of the `mutants`."
    import pytest

    folder = package.parent / "tests"
    files = [p for p in sorted(folder.glob("test_*.py")) if p.stem[5:] not in ELSEWHERE]
    quiet = "-s -qq --no-header --no-summary --tb=native -p no:cacheprovider -p no:faulthandler"
    plugin = Hunt(package, mutants, args)
    os.chdir(package.parent)
    pytest.main([*quiet.split(), *(args.tests or map(str, files))], plugins=[plugin])
    return plugin.outcomes


if __name__ == "__main__":
    sys.exit(main())
