"Devices, the registry, plug-ins, and a second library whose arrays are nothing like NumPy's."

import copy
import operator
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_operators import ROWS, SMOOTH, numbers

from minima import backend
from minima import operators as ops
from minima.autograd import Tensor, grad, op
from minima.backend import (
    Backend,
    Device,
    backend_of,
    cpu,
    cuda,
    get_backend,
    get_default_dtype,
    register,
    set_default_dtype,
)

ROOT = Path(__file__).resolve().parent.parent

# ---- a second library: its arrays are boxes, and it works with nothing else ----


def unboxed(x):
    "What is in a box, or in a sequence of boxes. An array of another library is refused."
    if isinstance(x, np.ndarray):
        raise TypeError("an ndarray among boxes")
    if isinstance(x, (tuple, list)):
        return type(x)(map(unboxed, x))
    return x.inside if isinstance(x, Box) else x


def boxed(x):
    if isinstance(x, tuple):
        return tuple(map(boxed, x))
    return Box(x) if isinstance(x, (np.ndarray, np.generic)) else x


class Box:
    "An array that can do what the array API asks of one, has no methods, and is no NumPy array."

    __array_ufunc__ = None

    def __init__(self, inside):
        self.inside = np.asarray(inside)

    shape = property(lambda self: self.inside.shape)
    ndim = property(lambda self: self.inside.ndim)
    size = property(lambda self: self.inside.size)
    dtype = property(lambda self: self.inside.dtype)

    def __array__(self, *args, **kwargs):
        raise TypeError("a box does not become an ndarray by itself")

    def __getitem__(self, key):
        return boxed(self.inside[unboxed(key)])

    def __setitem__(self, key, value):
        self.inside[unboxed(key)] = unboxed(value)


def _give(name):
    function = getattr(operator, name)
    method = f"__{name.strip('_')}__"  # of `and_`, `__and__`
    setattr(Box, method, lambda *boxes: boxed(function(*map(unboxed, boxes))))


def _give_reflected(name):
    function = getattr(operator, name)
    setattr(Box, f"__r{name}__", lambda a, b: boxed(function(unboxed(b), unboxed(a))))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "pow"):
    _give(_name)
    _give_reflected(_name)
for _name in ("neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge", "iadd"):
    _give(_name)
for _name in ("and_", "or_", "xor", "rshift"):
    _give(_name)
Box.__hash__ = None


class Boxes:
    "The namespace: NumPy's functions, for boxes."

    __name__ = "boxes"

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def function(*args, **kwargs):
            out = found(*map(unboxed, args), **{k: unboxed(v) for k, v in kwargs.items()})
            return boxed(out)

        return function


class BoxBackend(Backend):
    def device_count(self):
        return 2

    def asarray(self, data, dtype=None, index=0):
        data = data.inside if isinstance(data, Box) else data
        return Box(np.asarray(data, dtype=dtype))

    def to_numpy(self, array):
        return array.inside

    def add_at(self, array, key, values):
        np.add.at(array.inside, unboxed(key), unboxed(values))

    def copy(self, array):
        return Box(array.inside.copy())

    def check_indices(self, array, size):
        super().check_indices(array.inside, size)


@pytest.fixture(scope="module")
def box():
    found = register(BoxBackend("box", Boxes(), Box))
    yield found
    del backend._by_name["box"], backend._by_type[Box]


ALL = {"argvalues": ROWS, "ids": lambda row: row.name}


def one_case(row):
    "The last shapes and settings of a row, and its arrays."
    shapes, settings = row.cases()[-1]
    return row.ours_with(settings), numbers(row.make, shapes)


@pytest.mark.parametrize("row", **ALL)
def test_every_operator_works_on_a_library_that_is_not_numpy(row, box):
    f, arrays = one_case(row)
    here, there = ([Tensor(a, device=d) for a in arrays] for d in ("cpu", "box"))
    for t in here + there:
        t.requires_grad = t.dtype.kind == "f"
    with backend.kernels_off():  # which only one of the two has
        expected, y = f(*here), f(*there)
    assert type(y.array) is Box and y.device == "box:0" and y.dtype == expected.dtype
    np.testing.assert_array_equal(y.tolist(), expected.tolist())
    assert y.requires_grad == expected.requires_grad
    if y.requires_grad:
        (cotangent,) = numbers(lambda rng, shape: rng.normal(size=shape), [y.shape])
        expected.backward(cotangent)
        y.backward(Tensor(cotangent, device="box"))
        for a, b in zip(here, there):
            if a.grad is not None:
                assert type(b.grad.array) is Box and b.grad.dtype == b.dtype
                np.testing.assert_allclose(b.grad.tolist(), a.grad.tolist(), rtol=1e-12)


@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
def test_second_derivatives_stay_in_the_library(row, box):
    f, arrays = one_case(row)
    results = []
    for device in ("cpu", "box"):
        leaves = [Tensor(a, device=device) for a in arrays]
        for t in leaves:
            t.requires_grad = t.dtype.kind == "f"
        wanted, y = [t for t in leaves if t.requires_grad], f(*leaves)
        if not y.requires_grad:
            return
        weights = Tensor(np.linspace(1, 2, y.size).reshape(y.shape), device=device)
        first = grad(y, wanted, weights, create_graph=True)
        total = sum((g * g).sum() for g in first)
        second = grad(total, wanted, allow_unused=True) if total.requires_grad else []
        assert all(g is None or g.device == leaves[0].device for g in second)
        results.append([g if g is None else g.tolist() for g in second])
    for a, b in zip(*results):
        assert (a is None) == (b is None)
        np.testing.assert_allclose(b or 0, a or 0, rtol=1e-9, atol=1e-12)


def test_a_tensor_goes_there_and_back_with_its_gradient(box):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    there = x.to("box")
    back = (there * there).to("cpu")
    (back * 3).sum().backward()
    assert (there.device, back.device, x.grad.device) == ("box:0", "cpu", "cpu")
    assert type(x.grad.array) is np.ndarray and x.grad.tolist() == [6.0, 12.0]
    assert x.to("cpu") is x and there.to(Device("box:0")) is there


def test_a_gradient_that_crosses_once_keeps_its_sign_and_its_size(box):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    x.to("box").backward(Tensor([3.0, -4.0]).to("box"))
    assert x.grad.device == "cpu" and x.grad.tolist() == [3.0, -4.0]
    assert x.to("cpu:0") is x.to("float64") is x.to("cpu", "float64") is x


def test_second_derivatives_cross_devices(box):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    (first,) = grad((x.to("box") ** 3).to("cpu").sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x)
    assert first.tolist() == [3.0, 12.0] and second.tolist() == [6.0, 12.0]


def test_to_takes_a_device_a_dtype_or_both(box):
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.to("box", "float64")
    assert (y.device, y.dtype) == ("box:0", "float64")
    assert x.to(dtype="float64").dtype == x.to("float64").dtype == x.to(np.float64).dtype
    assert x.to(device="box").dtype == "float32"
    y.sum().backward()
    assert x.grad.dtype == "float32" and x.grad.device == "cpu"
    like = Tensor([0.0], device="box", dtype="float64")
    found = Tensor([1.5, 2.0]).to(like)
    assert (found.device, found.dtype, found.tolist()) == ("box:0", "float64", [1.5, 2.0])


def test_leaves_are_made_and_read_on_a_device(box):
    x = Tensor([[1.0, 2.0]], device="box", requires_grad=True)
    (x * [3.0, 4.0] + np.float64(1.0) - 2).sum().backward()
    assert type(x.array) is Box and x.grad.tolist() == [[3.0, 4.0]]
    assert x.detach().numpy().tolist() == [[1.0, 2.0]] and x.sum().item() == 3.0
    assert repr(x) == "minima.Tensor(\n[[1. 2.]], device='box:0', requires_grad=True)"
    assert Tensor(x.array).device == "box:0" and x.device.backend is box
    x.sum().backward()
    assert x.grad.tolist() == [[4.0, 5.0]]


MIXED = {
    "multiply": (lambda a, b: a * b, "multiply"),
    "multiply by an ndarray": (lambda a, b: b * a.numpy(), "multiply"),
    "an ndarray times": (lambda a, b: a.numpy() * b, "multiply"),
    "matmul": (lambda a, b: a @ b, "matmul"),
    "where": (lambda a, b: ops.where(a > 0, a, b), "where"),
    "concat": (lambda a, b: ops.concat([a, b]), "concat"),
    "linear": (lambda a, b: ops.linear(a, b, a), "linear"),
    "an index": (lambda a, b: b[a > 0], "getitem"),
}


@pytest.mark.parametrize("f, name", MIXED.values(), ids=MIXED)
def test_mixing_devices_names_the_operation_and_both(f, name, box):
    a, b = Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2)), device="box")
    with pytest.raises(RuntimeError, match=rf"{name} got arrays on box:0 and cpu.*\.to\("):
        f(a, b)


def test_a_kernel_is_read_on_its_own_backend_only(box):
    @op
    def double(xp, a):
        return a + a, lambda g: g + g

    @double.kernel("box")
    def by_box(xp, a):
        return a * 20, lambda g: g * 20

    for device, factor in (("cpu", 2), ("box", 20)):
        x = Tensor([1.0], device=device, requires_grad=True)
        double(x).backward([1.0])
        assert double(x).tolist() == x.grad.tolist() == [factor]


# ---- devices by name ----


def test_a_device_is_its_name():
    assert Device() == cpu() == "cpu" == Device("cpu:0") == str(Device("cpu"))
    assert Device("cuda") == cuda() == "cuda:0" == Device("cuda:00") != cuda(1)
    assert (cuda(1).type, cuda(1).index) == ("cuda", 1) and Device(cuda(1)) == "cuda:1"
    assert {Device("cuda"): 1}["cuda:0"] == 1
    for copied in (copy.deepcopy(cuda(1)), pickle.loads(pickle.dumps(cuda(1)))):
        assert (copied, copied.type, copied.index) == ("cuda:1", "cuda", 1)


@pytest.mark.parametrize("name", ["", ":", ":0", "cuda:", "cuda:x", "cuda:-1", "cuda:1.5"])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(RuntimeError, match="a device is named like 'cpu' or 'cuda:1'"):
        Device(name)


def test_an_unknown_device_is_refused_at_its_first_use_with_the_names_that_exist():
    Device("abacus")
    for use in (
        lambda: Tensor([1.0], device="abacus"),
        lambda: Tensor([1.0]).to("abacus"),
        lambda: get_backend("abacus"),
    ):
        with pytest.raises(RuntimeError, match="unknown device 'abacus'.*cpu"):
            use()


def test_a_device_that_the_machine_lacks_is_refused(box):
    assert Tensor([1.0], device="box:1").tolist() == [1.0]
    for name in ("cpu:1", "box:2"):
        with pytest.raises(RuntimeError, match=f"no device '{name}'"):
            Tensor([1.0], device=name)


# ---- the registry ----


def test_the_cpu_is_numpy():
    found = get_backend("cpu")
    assert found is backend_of(np.zeros(1)) is Device("cpu").backend
    assert found.xp.exp is np.exp and found.device_of(np.zeros(1)) == "cpu"
    assert found.to_numpy(a := np.zeros(1)) is a and found.asarray(a) is a
    assert "cpu" in repr(found)


def test_a_name_is_registered_once(box):
    assert register(box) is box
    with pytest.raises(ValueError, match="a backend named 'box' already"):
        register(Backend("box", np, list))
    assert get_backend("box") is box


def test_an_array_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="no backend knows arrays of type 'list'"):
        backend_of([1.0])


@pytest.mark.parametrize("index, ok", [([0, 2], True), ([3], False), ([0, -1], False), ([], True)])
def test_indices_out_of_range_are_found(index, ok):
    array = np.array(index, dtype="int64")
    if ok:
        get_backend("cpu").check_indices(array, 3)
    else:
        with pytest.raises(IndexError, match=rf"index {index[-1]} is out of range.*0 to 2"):
            get_backend("cpu").check_indices(array, 3)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "U3"])
def test_the_default_dtype_is_a_float(dtype):
    before = get_default_dtype()
    with pytest.raises(TypeError, match="floating"):
        set_default_dtype(dtype)
    assert get_default_dtype() == before == "float32"


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1), (0, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "int8", "bool"])
def test_the_functions_of_the_cpu_are_numpys(dtype, keepdims, axis):
    a = (np.random.default_rng(0).normal(size=(3, 4, 5)) * 3).astype(dtype)
    for name in ("sum", "max", "min", "mean"):
        f, g = getattr(get_backend("cpu").xp, name), getattr(np, name)
        ours, numpys = f(a, axis=axis, keepdims=keepdims), g(a, axis=axis, keepdims=keepdims)
        assert ours.dtype == numpys.dtype and ours.shape == numpys.shape
        np.testing.assert_allclose(ours, numpys, rtol=1e-6)
    for to in ("float64", "int64", "bool"):
        ours, numpys = get_backend("cpu").xp.astype(a, to), np.astype(a, np.dtype(to))
        np.testing.assert_array_equal(ours, numpys, strict=True)
        assert not np.shares_memory(ours, a)


# ---- plug-ins ----

PLUG_IN = """
import numpy as np
from minima.backend import Backend

class Array(np.ndarray):
    pass

class Ours(Backend):
    def asarray(self, data, dtype=None, index=0):
        return np.asarray(data, dtype=dtype).view(Array)

    def to_numpy(self, array):
        return array.view(np.ndarray)

found = Ours("plugged", np, Array)
"""


@pytest.fixture
def plugged(tmp_path):
    "A function that runs Python where a package that offers a backend is installed."
    (tmp_path / "plug_in.py").write_text(PLUG_IN)
    info = tmp_path / "plug_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    offers = "[minima.backends]\nplugged = plug_in:found\nbroken = no_such_module:found\n"
    (info / "entry_points.txt").write_text(offers)

    def run(program):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    return run


def test_a_plug_in_is_found_by_name_and_imported_at_its_first_use(plugged):
    program = """
import sys
from minima.backend import Device, get_backend
from minima.operators import Tensor
device = Device("plugged")
assert "plug_in" not in sys.modules
x = Tensor([1.0, 2.0], device=device)
assert "plug_in" in sys.modules and get_backend("plugged") is sys.modules["plug_in"].found
assert type((x * x).array).__name__ == "Array" and (x * x).tolist() == [1.0, 4.0]
try:
    get_backend("nowhere")
except RuntimeError as error:
    print(error)
"""
    found = plugged(program)
    assert "broken, cpu" in found and found.strip().endswith("plugged")  # minima's own between them


def test_a_plug_in_is_found_by_the_type_of_its_arrays(plugged):
    program = """
import numpy as np
from minima.operators import Tensor
import minima.backend as backend
try:
    backend.get_backend("broken")
except ImportError as error:
    print(error.name)
del backend._by_name["cpu"]
found = backend._plug_ins()
del found["broken"]
backend._plug_ins = lambda: found
import plug_in
x = np.ones(2).view(plug_in.Array)
print(backend.backend_of(x).name, Tensor(x).device)
"""
    assert plugged(program).split() == ["no_such_module", "plugged", "plugged:0"]


# ---- kernels ----


def kernel_module(folder, text):
    "A module of that text that can be imported, and is new."
    (folder / "some_kernels.py").write_text(text)
    return "some_kernels"


@pytest.fixture
def doubling(monkeypatch, tmp_path):
    "An op, and the way to say where its kernel is found."
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_kernels", raising=False)
    sys.modules["doubling_op"] = module = type(sys)("doubling_op")

    @op
    def double(xp, a):
        return a * 2, lambda g: g * 2

    module.double = double

    def found_in(text, compiled=False):
        double.kernel("cpu", kernel_module(tmp_path, text), compiled)

    yield double, found_in
    del sys.modules["doubling_op"]


KERNEL = """
from doubling_op import double
@double.kernel("cpu")
def twice(xp, a):
    return a * 2 + 100, lambda g: g * 200
"""


def test_a_kernel_is_imported_when_its_op_is_first_read_and_can_be_switched_off(doubling):
    double, found_in = doubling
    found_in(KERNEL)
    assert "some_kernels" not in sys.modules
    x = Tensor([1.0], requires_grad=True)
    assert double(x).tolist() == [102.0] and "some_kernels" in sys.modules
    with backend.kernels_off():
        assert double(x).tolist() == [2.0]
        with backend.kernels_off():
            pass
        assert double(x).tolist() == [2.0]
    y = double(x)
    y.backward()
    assert y.tolist() == [102.0] and x.grad.tolist() == [200.0]
    x.grad = None
    double(x).backward(create_graph=True)  # reads the rule
    assert x.grad.tolist() == [2.0]


def test_kernels_off_ends_with_an_error_too(doubling):
    double, found_in = doubling
    found_in(KERNEL)
    with pytest.raises(KeyError), backend.kernels_off():
        raise KeyError
    assert double(Tensor([1.0])).tolist() == [102.0]


def test_without_the_library_of_a_kernel_the_rule_is_read(doubling):
    double, found_in = doubling
    found_in("import no_such_library")
    assert double(Tensor([1.0])).tolist() == [2.0]


def test_kernels_that_cannot_be_imported_for_another_reason_are_named(doubling):
    double, found_in = doubling
    found_in("from minima import no_such_thing")
    with pytest.warns(UserWarning, match="no kernels of some_kernels, since cannot import name"):
        assert double(Tensor([1.0])).tolist() == [2.0]


def test_without_compiled_kernels_their_modules_are_not_imported(doubling, monkeypatch):
    double, found_in = doubling
    monkeypatch.setattr(backend.Kernels, "compiled", False)
    found_in(KERNEL, compiled=True)
    assert double(Tensor([1.0])).tolist() == [2.0] and "some_kernels" not in sys.modules
