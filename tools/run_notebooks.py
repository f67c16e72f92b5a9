"""Run notebooks, each in a process of its own, and keep what they print; or check what was kept.

    python tools/run_notebooks.py                  run all of them, write their outputs
    python tools/run_notebooks.py nbs/00_x.ipynb   run this one
    python tools/run_notebooks.py --check          write nothing, show where outputs differ
    python tools/run_notebooks.py --also slow      run cells flagged `slow`, too

Cells flagged with one of `tst_flags` in settings.ini or with `eval: false` keep the outputs that
they have, and `nbdev_export()` is never called. A notebook is written as nbdev_clean writes it.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from importlib.util import find_spec
from math import isclose
from pathlib import Path
from traceback import format_exception

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
STEADY = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", **dict.fromkeys(THREADS, "1")}
FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=e[-+]?\d))(?:e[-+]?\d+)?")
IMAGE = re.compile(r"data:image/[^\"')]+")


def notebooks(folder=ROOT / "nbs"):
    "All notebooks in reading order, without those in hidden or private places (`.x`, `_x`)."
    found = sorted(folder.rglob("*.ipynb"))
    return [p for p in found if not any(part[0] in "._" for part in p.relative_to(folder).parts)]


def run(path, check=False, also=()):
    "Run the notebook at `path`, then write it, or compare it (`check`). Returns complaints."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb

    notebook = read_nb(path)
    kept = [shown(cell) for cell in notebook.cells]
    os.chdir(path.parent)  # nbdev finds settings.ini from here, and cells their files
    sys.path.insert(0, str(ROOT))
    sys.argv = [path.name]
    shell = CaptureShell(path, mpl_format="png")
    for cell in notebook.cells:
        if runs(cell, also):
            cell.outputs = []  # execnb leaves old ones where a cell has fallen silent
            shell.cell(cell)
            if shell.exc:
                return f"{path.name}, cell {cell.id} failed:\n{trace(shell.exc)}"
    clean_nb(notebook)
    if check:
        pairs = zip(notebook.cells, kept, strict=True)
        return "".join(difference(path.name, cell, before) for cell, before in pairs)
    write_nb(notebook, path)
    return ""


def runs(cell, also=()):
    "Whether `cell` is to be executed; flags in `also` do not hold it back."
    from nbdev.config import get_config
    from nbdev.process import extract_directives

    if cell.cell_type != "code" or "nbdev_export(" in cell.source:
        return False
    flags = extract_directives(cell, remove=False)
    held_back = set(get_config().tst_flags.split()) - set(also)
    return flags.get("eval:") != ["false"] and not flags.keys() & held_back


def trace(error):
    "`error` and the way to it, from the cell on."
    start = error.__traceback__ and error.__traceback__.tb_next
    return "".join(format_exception(error.with_traceback(start)))


def shown(cell):
    "The outputs of `cell` as text; of images, only that they are there."
    parts = []
    for out in cell.get("outputs", []):
        data = out.get("data") or {out.get("name", "error"): out.get("text", out.get("traceback"))}
        for kind, value in sorted(data.items()):
            text = "(an image)" if kind.startswith("image/") else "".join(value)
            parts.append(f"[{kind}]\n{IMAGE.sub('(an image)', text)}")
    return "\n".join(parts)


def alike(a, b):
    "Whether texts agree: floats to 1 % or 1e-5, since machines differ; the rest but for spacing."
    words = [[line.split() for line in FLOAT.sub(" ~ ", t).splitlines()] for t in (a, b)]
    if words[0] != words[1]:
        return False
    pairs = zip(FLOAT.findall(a), FLOAT.findall(b), strict=True)
    return all(isclose(float(x), float(y), rel_tol=1e-2, abs_tol=1e-5) for x, y in pairs)


def difference(name, cell, kept):
    "How the fresh outputs of `cell` differ from those `kept`, as a diff, or nothing."
    fresh = shown(cell)
    lacks_torch = "torch" in cell.source and not find_spec("torch")  # then it can only say so
    if lacks_torch or alike(kept, fresh):
        return ""
    names = f"{name}, cell {cell.id}: kept", "fresh"
    lines = unified_diff(kept.splitlines(), fresh.splitlines(), *names, lineterm="")
    return "\n".join(lines) + "\n"


def execute(path, *options):
    "`run` in a process of its own, as a reader's notebook has a kernel of its own."
    command = [sys.executable, __file__, "--here", str(path), *options]
    done = subprocess.run(command, env=os.environ | STEADY, capture_output=True, encoding="utf-8")
    return done.stdout + done.stderr if done.returncode else ""


def pool():
    "Threads that each wait for one notebook."
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1))


def main():
    "Run or check what the command line names; exit status 1 if there is a complaint."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of them by default")
    parser.add_argument("--check", action="store_true", help="compare with the outputs kept")
    parser.add_argument("--also", action="append", default=[], help="run cells so flagged, too")
    parser.add_argument("--here", action="store_true", help="one notebook, in this very process")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.paths] or notebooks()
    if args.here:
        complaint = run(paths[0], args.check, args.also)
        print(complaint)
        return bool(complaint)
    options = ["--check"] * args.check + [f"--also={flag}" for flag in args.also]
    failed = False
    with pool() as threads:
        tasks = [threads.submit(execute, path, *options) for path in paths]
        for path, task in zip(paths, tasks):
            complaint = task.result()
            print(f"{'FAILED' if complaint else 'ok    '} {path.name}\n{complaint}", end="")
            failed = failed or bool(complaint)
    return failed


if __name__ == "__main__":
    sys.exit(main())
