"What all tests share: one thread, repeatable examples, and PyTorch as the oracle."

import os
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from run_notebooks import THREADS

for name in THREADS:  # before anything imports NumPy
    os.environ.setdefault(name, "1")

import numpy as np
import pytest
from hypothesis import settings

try:
    import torch as oracle
except ImportError:
    oracle = None
else:
    oracle.set_num_threads(1)

settings.register_profile("minima", deadline=None, derandomize=True, database=None)
settings.load_profile("minima")


def pytest_configure():
    "Without PyTorch a user's comparisons are skipped; where it is required, nothing runs."
    if oracle is None and os.environ.get("MINIMA_REQUIRE_TORCH") == "1":
        raise pytest.UsageError(
            "MINIMA_REQUIRE_TORCH=1, but torch cannot be imported: pip install -e '.[dev]'"
        )


def pytest_sessionstart(session):
    "Say which NumPy computes, and how: the last digits of results depend on it."
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    core = os.environ.get("OPENBLAS_CORETYPE", "unset")
    torch_version = oracle.__version__ if oracle else "not installed"
    compiled = find_spec("numba") and os.environ.get("MINIMA_NUMBA") != "0"
    session.config.get_terminal_writer().line(
        f"numpy {np.__version__} on {blas}, OPENBLAS_CORETYPE {core}, torch {torch_version}, "
        f"kernels {'compiled by numba' if compiled else 'in NumPy alone'}"
    )


@pytest.fixture(scope="session")
def torch():
    "PyTorch, against which we compare; without it the test is skipped."
    if oracle is None:
        pytest.skip("torch is not installed, so there is nothing to compare with")
    return oracle


@pytest.fixture
def gpu_script(monkeypatch):
    "benchmarks/gpu.py as a module."
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("MINIMA_NUMBA", os.environ.get("MINIMA_NUMBA", "1"))  # which it sets
    spec = spec_from_file_location("gpu_script", folder / "gpu.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
