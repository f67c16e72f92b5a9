"The house is in order. Each check is a function that lists faults, and is shown to find one."

import ast
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.util import find_spec, resolve_name
from operator import attrgetter
from pathlib import Path
from types import FunctionType, ModuleType

import numpy
import pytest
from run_notebooks import notebooks, shown

ROOT = Path(__file__).resolve().parent.parent

# A module imports only from modules above it. `minima` is the package's own __init__.py.
ORDER = """
    backend tensors autograd.tape autograd.reverse
    operators.elementwise operators.reductions operators.shapes operators.indexing
    operators.products operators.further random operators.fused operators kernels
    autograd.functional autograd.checkpointing autograd.anomaly autograd
    testing.gradients init
    nn.module nn.functional.layers nn.functional.losses nn.functional.fused nn.functional nn.hooks
    nn.containers nn.layers nn.normalization nn.dropout nn.fused nn.gyro nn.blockwise nn.losses
    nn.summary nn
    optim.flat optim.optimizers optim.adaptive optim.clipping optim.schedules optim.policies optim
    testing.conformance testing.emulator testing
    data.datasets data.samplers data.loading data.collections data
    serialization
    trainer.time trainer.events trainer.batches trainer.loggers trainer.checkpoints trainer.lints
    trainer.trainer trainer.callbacks trainer algorithms.surgery algorithms* functional
    kernels.* capture.recorded capture.tape capture.recorder capture.slots capture.runs
    capture.fusion capture.plan capture.replays capture
    testing.mock gpu.cards gpu.cublas gpu.library gpu.graphs gpu visualize
    minima __main__
""".split()

AT_MODULE_LEVEL = {"numpy", "tqdm", "minima", *sys.stdlib_module_names}
NEVER_WITH_MINIMA = {"torch", "numba", "cupy", "matplotlib", "IPython"}
FACTS = {"shape", "ndim", "dtype", "size"}  # what a rule may ask an array for
MOST_CODE_LINES = 300
MOST_BYTES = 200_000
FLEETING = re.compile(r"\d%\|.*|\d(?:it/s|s/it)|Wall time.*|/(?:home|root|tmp|Users)/\S*")


def report(faults):
    "Fail with all `faults`, one per line, if there are any."
    if text := "\n".join(faults):
        pytest.fail(text, pytrace=False)


def modules():
    "Every module of the package, by dotted name, with its path."
    paths = [p for p in sorted((ROOT / "minima").rglob("*.py")) if p.name != "_modidx.py"]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
    return {n.removesuffix(".__init__"): p for n, p in zip(names, paths, strict=True)}


def packages():
    "The names of those modules that are packages."
    return {name for name, path in modules().items() if path.stem == "__init__"}


def sources():
    "The text of every module of the package, by dotted name."
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


# ---- layers ----


def place(name):
    "The place of module `name` in ORDER, or None."
    name = name.removeprefix("minima.")
    return next((i for i, door in enumerate(ORDER) if fnmatchcase(name, door)), None)


def imports(source, module, is_package=False, inside_functions=True):
    "All that `source` imports, as (line, dotted name)."

    def nodes(parent):
        for node in ast.iter_child_nodes(parent):
            if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node
                yield from nodes(node)

    package = module if is_package else module.rpartition(".")[0]
    for node in nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward_only(source, module, is_package=False):
    "Faults of `module` against ORDER."
    here = place(module)
    if here is None:
        yield f"{module} has no place: add it to ORDER in tests/test_house.py"
        return
    for line, name in imports(source, module, is_package):
        if name.split(".")[0] == "minima":
            while place(name) is None:  # the name of a thing: the module that holds it
                name = name.rpartition(".")[0]
            if place(name) > here:
                yield f"{module}, line {line}: imports {name}, which comes after it"


def test_modules_import_only_from_modules_above_them():
    found = [upward_only(source, name, name in packages()) for name, source in sources().items()]
    report(fault for faults in found for fault in faults)


@pytest.mark.parametrize(
    "source, module, is_package, faults",
    [
        ("from minima.backend import Device", "minima.autograd", False, 0),
        ("from minima.autograd import Tensor", "minima.backend", False, 1),
        ("from .autograd import Tensor", "minima.backend", False, 1),
        ("from . import autograd", "minima.backend", False, 1),
        ("def f():\n    import minima.optim", "minima.backend", False, 1),
        ("from minima import Tensor", "minima.optim", False, 1),
        ("from ..autograd import Tensor", "minima.nn.module", False, 0),
        ("from .layers import Linear", "minima.nn.module", False, 1),
        ("from .layers import Linear", "minima.nn", True, 0),
        ("from .gyro import Gyro", "minima.algorithms", True, 0),
        ("from .optim import SGD", "minima", True, 0),
        ("import minima as mi", "minima.__main__", False, 0),
        ("", "minima.new", False, 1),
        ("", "minima.nn.new", False, 1),
    ],
)
def test_the_layer_check_finds(source, module, is_package, faults):
    assert len([*upward_only(source, module, is_package)]) == faults


def exported_module(notebook):
    "The module that `notebook` exports, or None."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if found := re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(cell["source"]), re.M):
            return f"minima.{found[1]}".removesuffix(".__init__")


def misnumbered(pages):
    "Faults in the numbering of `pages`, which are (file name, module or None) in reading order."
    numbers = [name[:2] for name, _ in pages]
    for name, _ in pages:
        if not re.match(r"\d\d_", name) or numbers.count(name[:2]) > 1:
            yield f"{name}: begin it with a number of its own, such as 07_"
    places = [(place(module), name) for name, module in pages if module]
    for (before, first), (after, second) in zip(places, places[1:]):
        if None not in (before, after) and before > after:
            yield f"{first} comes before {second}, but ORDER has them the other way round"


def test_notebooks_are_numbered_in_the_order_of_their_modules():
    report(misnumbered([(path.name, exported_module(path)) for path in notebooks()]))


def test_the_numbering_check_finds():
    good = [("00_a.ipynb", "minima.backend"), ("01_b.ipynb", None), ("02_c.ipynb", "minima.nn")]
    assert not [*misnumbered(good)]
    assert len([*misnumbered([("00_a.ipynb", "minima.nn"), ("01_b.ipynb", "minima.init")])]) == 1
    assert len([*misnumbered([("00_a.ipynb", None), ("00_b.ipynb", None)])]) == 2
    assert len([*misnumbered([("index.ipynb", None)])]) == 1


# ---- imports ----


def foreign(source, module, is_package=False):
    "What `source` imports at module level that is neither Python's, NumPy's, tqdm's nor ours."
    allowed = AT_MODULE_LEVEL | ({"numba"} if module.startswith("minima.kernels.") else set())
    for line, name in imports(source, module, is_package, inside_functions=False):
        if name.split(".")[0] not in allowed:
            yield f"{module}, line {line}: import {name} inside the function that needs it"


def loaded_by(statement, names):
    "Which of `names` a fresh Python has loaded after `statement`."
    program = f"import sys; {statement}; print(*({set(names)!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split())


def test_modules_import_only_numpy_and_tqdm():
    found = [foreign(source, name, name in packages()) for name, source in sources().items()]
    report(fault for faults in found for fault in faults)


def test_importing_minima_loads_no_heavy_library():
    assert not loaded_by("import minima", NEVER_WITH_MINIMA)


def test_the_import_checks_find():
    for source in ("import torch", "try:\n    from numba import njit\nexcept E: pass"):
        assert len([*foreign(source, "minima.x")]) == 1
    for source in ("import numpy.linalg, os", "from .a import b", "def f():\n    import torch"):
        assert not [*foreign(source, "minima.x")]
    assert not [*foreign("import numba", "minima.kernels.x")]
    assert loaded_by("import json", {"json", "torch"}) == {b"json"}


# ---- length ----


def prose(tree):
    "The docstrings in `tree`, and what is assigned to `__doc__`, as nodes."
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            yield node.body[0]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__doc__":
            yield node.value


def code_lines(source):
    "How many lines of `source` hold code, not counting docstrings, comments and blank lines."
    docstrings = {(node.lineno, node.col_offset) for node in prose(ast.parse(source))}
    free = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in free | {tokenize.ENDMARKER} and token.start not in docstrings:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def test_no_module_is_too_long():
    lengths = {name: code_lines(source) for name, source in sources().items()}
    report(
        f"{name} has {length} lines of code, more than {MOST_CODE_LINES}: split it"
        for name, length in lengths.items()
        if length > MOST_CODE_LINES
    )


def test_the_length_check_counts_code_only():
    assert code_lines('"""A module.\n\nMore."""\n\n# a comment\nx = 1\n') == 1
    assert code_lines('def f():\n    "What f does."\n\n    return 1\n') == 2
    assert code_lines("def f(): 'doc'; return 1\n") == 1
    assert code_lines("'''a'''\nx = '''b\nc'''  # d\n") == 2
    assert code_lines("__doc__ = '''\na\nb'''\n") == 1


# ---- docstrings ----


def undocumented(module):
    "The public names of `module`, and of the classes it defines, that have no docstring."
    described = FunctionType | property | classmethod | staticmethod | cached_property
    public = [name for name in vars(module) if name[0] != "_"]
    for name in getattr(module, "__all__", public):
        thing = getattr(module, name)
        if not callable(thing) or not str(thing.__module__).startswith("minima"):
            continue
        if not thing.__doc__ or thing.__doc__.startswith(f"{name}("):  # as dataclasses write it
            yield f"{module.__name__}.{name} has no docstring"
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if member[0] != "_" and isinstance(value, described):
                line = [vars(base)[member] for base in thing.__mro__ if member in vars(base)]
                if not any(value.__doc__ for value in line):  # who overrides inherits
                    yield f"{module.__name__}.{name}.{member} has no docstring"


def test_every_public_name_has_a_docstring():
    names = [name for name in modules() if name != "minima.__main__"]
    report(fault for name in names for fault in undocumented(importlib.import_module(name)))


def test_the_docstring_check_finds():
    module = ModuleType("minima.sample")
    source = """
        from dataclasses import dataclass
        limit = 3
        def f(): pass
        def g(): "Does nothing."
        def _h(): pass
        class A:
            "A class."
            def run(self): pass
            def stop(self): "Stop."
            @property
            def size(self): pass
        class B(A):
            "Another."
            def stop(self): pass
        @dataclass
        class C: x: int
    """
    exec(inspect.cleandoc(source), vars(module))
    faults = [fault.split()[0].removeprefix("minima.sample.") for fault in undocumented(module)]
    assert faults == ["f", "A.run", "A.size", "C"]


# ---- notebooks and what they export ----


def files(root):
    "The modules and the notebooks under `root`, with what they hold."
    found = [*(root / "minima").rglob("*.py"), *notebooks(root / "nbs")]
    return {path.relative_to(root): path.read_bytes() for path in found}


def regenerate(root, target):
    "Make under `target` what nbdev makes of the notebooks and the hand-written files of `root`."
    target.mkdir()
    shutil.copy(root / "settings.ini", target)
    shutil.copytree(root / "nbs", target / "nbs")
    for path in (root / "minima").rglob("__*__.py"):
        if not re.search("^# AUTOGENERATED!", path.read_text(encoding="utf-8"), re.M):
            copy = target / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    program = "import nbdev.clean, nbdev; nbdev.clean.nbdev_clean(); nbdev.nbdev_export()"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev would export nothing
    subprocess.run([sys.executable, "-c", program], cwd=target, env=env, check=True)


def out_of_sync(root, target):
    "The files under `root` that are not what nbdev makes of its notebooks (made under `target`)."
    regenerate(root, target)
    here, there = files(root), files(target)
    for path in sorted(here.keys() | there.keys()):
        if path not in there:
            yield f"{path}: no notebook exports it; delete it, or bring its notebook back"
        elif here.get(path) != there[path]:
            yield f"{path}: not what the notebooks say; edit the notebook, then `make export`"


def test_exported_code_is_in_sync_and_has_no_orphans(tmp_path):
    report(out_of_sync(ROOT, tmp_path / "made"))


def test_the_sync_check_finds(tmp_path):
    kept = {"metadata": {}, "outputs": [], "execution_count": None, "cell_type": "code"}
    lines = ["#| default_exp sample", "#| export\nx = 1"]
    cells = [kept | {"id": str(i), "source": [line]} for i, line in enumerate(lines)]
    page = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "source" / "nbs").mkdir(parents=True)
    (tmp_path / "source" / "nbs" / "00_sample.ipynb").write_text(json.dumps(page))
    (tmp_path / "source" / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    root = tmp_path / "root"
    regenerate(tmp_path / "source", root)
    assert not [*out_of_sync(root, tmp_path / "first")]

    sample = root / "minima" / "sample.py"
    (root / "minima" / "orphan.py").write_text(sample.read_text())
    sample.write_text(sample.read_text().replace("x = 1", "x = 2"))
    page = root / "nbs" / "00_sample.ipynb"
    page.write_text(page.read_text().replace('"execution_count": null', '"execution_count": 7'))
    faults = [fault.split(":")[0] for fault in out_of_sync(root, tmp_path / "second")]
    assert faults == ["minima/orphan.py", "minima/sample.py", "nbs/00_sample.ipynb"]


def page_faults(path):
    "What is wrong with the notebook at `path` as a page that people read."
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    ids = [cell.get("id") for cell in cells]
    words = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    if not words or not re.match(r"# \S.*\n+> \S", words[0]):
        yield f"{path.name}: begin it with `# title` and `> subtitle`, in one cell"
    if None in ids or len(set(ids)) < len(ids):
        yield f"{path.name}: a cell without an id of its own; `make export` adds missing ones"
    if len(text.encode()) > MOST_BYTES:
        yield f"{path.name}: above {MOST_BYTES} bytes; smaller pictures, or fewer?"
    for cell in cells:
        for found in FLEETING.findall(shown(cell)):
            yield f"{path.name}, cell {cell.get('id')}: output that will not repeat: {found}"


def test_notebooks_are_readable_pages():
    report(fault for path in notebooks() for fault in page_faults(path))


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        ({"source": ["# Title\n", "no subtitle"]}, "title"),
        ({"source": ["> subtitle"]}, "title"),
        ({"id": "b"}, "id"),
        ({"id": None}, "id"),
        ({"source": ["# Title\n", "\n", "> subtitle\n", "x" * MOST_BYTES]}, "bytes"),
        ({"text": ["  7%|7  | 3/40 [00:01<00:20]"]}, "7%|"),
        ({"text": ["Wall time: 3 ms"]}, "Wall time"),
        ({"text": ["File /home/x.py, line 3"]}, "/home/x.py"),
    ],
)
def test_the_page_check_finds(change, fault, tmp_path):
    first = {"cell_type": "markdown", "id": "a", "source": ["# Title\n", "\n", "> subtitle"]}
    out = {"output_type": "stream", "name": "stdout", "text": change.pop("text", ["fine"])}
    second = {"cell_type": "code", "id": "b", "source": [], "outputs": [out]}
    path = tmp_path / "00_sample.ipynb"
    path.write_text(json.dumps({"cells": [first | change, second]}))
    found = [*page_faults(path)]
    assert len(found) == 1 and fault in found[0] if fault else not found


# ---- rules know only xp ----


def decorators(function):
    "The names of the decorators of `function`: of `@tanh.kernel('cpu')`, `kernel`."
    plain = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return {ast.unparse(d).rpartition(".")[2] for d in plain}


def rules(source):
    "The functions in `source` that are an op's, or are handed `xp`; not the kernels."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and "kernel" not in decorators(node):
            if "op" in decorators(node) or [a.arg for a in node.args.args[:1]] == ["xp"]:
                yield node


def broken_rules(source):
    "Where a rule in `source` knows more than `xp`, or does what not every reading of it can do."
    methods = {name for name in dir(numpy.ndarray) if name[0] != "_"} - FACTS
    for rule in rules(source):
        inner = [n for n in ast.walk(rule) if isinstance(n, ast.FunctionDef | ast.Lambda)]
        arrays = {a.arg for n in inner for a in (*n.args.args, n.args.vararg) if a} - {"xp"}
        for node in ast.walk(rule):
            match node:
                case ast.Name(id="np" | "numpy" | "cp" | "cupy" as name):
                    fault = f"names {name}: use xp"
                case ast.Attribute(attr=name) if name in methods and not path_in_xp(node):
                    fault = f"asks a value for .{name}: call a function of xp"
                case ast.BinOp(op=ast.MatMult()) | ast.AugAssign(op=ast.MatMult()):
                    fault = "multiplies with @: write xp.matmul"
                case ast.AugAssign(target=ast.Name(id=name)) if name in arrays:
                    fault = f"changes its argument {name}"
                case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()) if name in arrays:
                    fault = f"writes into its argument {name}"
                case _:
                    continue
            yield f"rule {rule.name}, line {node.lineno}: {fault}"


def path_in_xp(node):
    "What `node` looks up in `xp`: `linalg.norm` of `xp.linalg.norm`; None if it does not."
    found = isinstance(node, ast.Attribute) and re.fullmatch(r"xp\.([\w.]+)", ast.unparse(node))
    return found[1] if found else None


def names_of_xp(source):
    "What the rules in `source` look up in `xp`."
    return {path_in_xp(node) for rule in rules(source) for node in ast.walk(rule)} - {None}


def missing(names, library):
    "Those of `names` that `library` does not have."
    for name in sorted(names):
        try:
            attrgetter(name)(library)
        except AttributeError:
            yield f"{library.__name__} has no {name}, which rules use"


def sources_of_rules():
    "The text of every module, by dotted name, but for those that hold nothing but kernels."
    found = sources().items()
    return {name: text for name, text in found if not name.startswith("minima.kernels.")}


def test_rules_know_only_xp():
    faults = {name: broken_rules(source) for name, source in sources_of_rules().items()}
    report(f"{name}, {fault}" for name, found in faults.items() for fault in found)


@pytest.mark.parametrize("library", ["numpy", "cupy", "minima.operators"])
def test_every_name_that_rules_use_exists_in(library):
    if library == "cupy" and not find_spec("cupy"):
        pytest.skip("cupy is not installed, so its names cannot be looked up")
    names = set().union(*(names_of_xp(source) for source in sources_of_rules().values()))
    report(missing(names, importlib.import_module(library)))


@pytest.mark.parametrize(
    "body, fault",
    [
        ("return xp.sum(a, axis=axis), lambda g: xp.broadcast_to(g, a.shape)", None),
        ("return xp.linalg.norm(a) / prod(a.shape) + math.pi, lambda g: g * b.ndim", None),
        ("axis += a.ndim; return softmax.on(xp, a, axis=axis)", None),
        ("n = [0]; n[0] = 1; n.append(2); return a", None),
        ("return np.pi * a", "np"),
        ("return a.sum(axis=0)", ".sum"),
        ("return xp.exp(a).mean()", ".mean"),
        ("return a.T", ".T"),
        ("return a @ b", "@"),
        ("a += 1; return a", "changes its argument a"),
        ("a[0] = 1; return a", "writes into its argument a"),
        ("b[b > 0] *= 2; return b", "writes into its argument b"),
        ("def back(g):\n        g[0] = 0\n        return g\n    return a, back", "argument g"),
    ],
)
def test_the_rule_check_finds(body, fault):
    source = f"@op\ndef f(xp, a, b, *, axis=None):\n    {body}\n"
    found = [*broken_rules(source)]
    assert any(fault in f for f in found) if fault else not found
    assert [*broken_rules(source.replace("@op", "@other"))] == found  # helpers of rules count, too
    assert not [*broken_rules(source.replace("@op", "@f.kernel('cpu')"))]


def test_the_check_of_names_finds():
    source = "@op\ndef f(xp, a):\n    return xp.tanh(a), lambda g: xp.linalg.normal(g)\nxp.no\n"
    assert names_of_xp(source) == {"tanh", "linalg", "linalg.normal"}
    (fault,) = missing(names_of_xp(source), numpy)
    assert "linalg.normal" in fault


# ---- lint ----


def ruff(*args, source=None):
    "What ruff says about the repository, or about `source`."
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", *args]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def test_ruff_is_content():
    if complaint := ruff("."):
        pytest.fail(complaint, pytrace=False)


def test_ruff_is_not_always_content():
    assert "F401" in ruff("-", "--stdin-filename=minima/sample.py", source="import os\n")
    assert "E501" in ruff("-", "--stdin-filename=tests/sample.py", source=f"x = {'1' * 100}\n")
