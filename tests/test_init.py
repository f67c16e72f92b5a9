"Tensors to begin with: every option honoured, every mistake explained, sizes as derived."

import inspect
from math import sqrt

import numpy as np
import pytest

from minima import backend, init
from minima import operators as ops
from minima.autograd import ShapeError, Tensor
from minima.backend import Backend, get_default_dtype, set_default_dtype
from minima.random import Generator, default_generator, manual_seed

# Every function that makes a Tensor: how it is called, the shape, and the dtype without options.
CONSTANT = {
    "constant": (lambda **o: init.constant(2, 3, c=4.0, **o), (2, 3), "float32"),
    "ones": (lambda **o: init.ones(2, 3, **o), (2, 3), "float32"),
    "zeros": (lambda **o: init.zeros((2, 0), **o), (2, 0), "float32"),
    "full": (lambda **o: init.full((2, 3), 4, **o), (2, 3), "int64"),
    "ones_like": (lambda **o: init.ones_like(Tensor([[1, 2]]), **o), (1, 2), "int64"),
    "zeros_like": (lambda **o: init.zeros_like(Tensor([1.0, 2.0]), **o), (2,), "float32"),
    "full_like": (lambda **o: init.full_like(Tensor([1.0, 2.0]), 7, **o), (2,), "float32"),
    "linspace": (lambda **o: init.linspace(0, 1, 4, **o), (4,), "float32"),
    "arange": (lambda **o: init.arange(4, **o), (4,), "int64"),
    "eye": (lambda **o: init.eye(2, 3, **o), (2, 3), "float32"),
    "one_hot": (lambda **o: init.one_hot(3, [[0, 2]], **o), (1, 2, 3), "float32"),
}
RANDOM = {
    "rand": (lambda **o: init.rand(2, 3, low=-1.0, **o), (2, 3), "float32"),
    "randn": (lambda **o: init.randn((2, 3), std=2.0, **o), (2, 3), "float32"),
    "randb": (lambda **o: init.randb(40, p=0.3, **o), (40,), "bool"),
    "rand_like": (lambda **o: init.rand_like(Tensor([[1.0, 2.0]]), **o), (1, 2), "float32"),
    "randn_like": (lambda **o: init.randn_like(Tensor([[1.0, 2.0]]), **o), (1, 2), "float32"),
    "randint": (lambda **o: init.randint(3, 9, (40,), **o), (40,), "int64"),
    "randperm": (lambda **o: init.randperm(40, **o), (40,), "int64"),
    "xavier_uniform": (lambda **o: init.xavier_uniform(4, 5, **o), (4, 5), "float32"),
    "xavier_normal": (lambda **o: init.xavier_normal(4, 5, 2.0, **o), (4, 5), "float32"),
    "kaiming_uniform": (lambda **o: init.kaiming_uniform(4, 5, **o), (4, 5), "float32"),
    "kaiming_normal": (lambda **o: init.kaiming_normal(4, 5, "tanh", **o), (4, 5), "float32"),
}
ALL = CONSTANT | RANDOM
WEIGHTS = ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


@pytest.fixture(autouse=True)
def undisturbed():
    "The default generator and the default dtype are afterwards as they were."
    state, dtype = default_generator.get_state(), get_default_dtype()
    yield
    default_generator.set_state(state)
    set_default_dtype(dtype)


@pytest.fixture
def elsewhere():
    "The name of a second device, which lives in NumPy, too."

    class Array(np.ndarray):
        pass

    class Elsewhere(Backend):
        def asarray(self, data, dtype=None, index=0):
            return np.array(data, dtype=dtype).view(Array)

        def to_numpy(self, array):
            return np.asarray(array)

    backend.register(Elsewhere("elsewhere", np, Array))
    yield "elsewhere:0"
    del backend._by_name["elsewhere"], backend._by_type[Array]


def test_the_tables_name_every_function():
    assert {*ALL, "calculate_gain"} == {*init.__all__}


# ---- options ----


@pytest.mark.parametrize("name", ALL)
def test_shape_and_dtype_without_options(name):
    make, shape, dtype = ALL[name]
    t = make()
    assert isinstance(t, Tensor) and t.shape == shape and t.dtype == dtype and t.device == "cpu"
    assert not t.requires_grad and t.is_leaf


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", np.float64])
def test_dtype_is_honoured(name, dtype):
    assert ALL[name][0](dtype=dtype).dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_device_is_honoured(name, elsewhere):
    options = {"generator": Generator(3)} if name in RANDOM else {}
    there = ALL[name][0](device=elsewhere, **options)
    options = {"generator": Generator(3)} if name in RANDOM else {}
    here = ALL[name][0](device="cpu", **options)
    assert there.device == elsewhere and here.device == "cpu"
    assert there.dtype == here.dtype and there.tolist() == here.tolist()


@pytest.mark.parametrize("name", ALL)
def test_requires_grad_is_honoured(name):
    t = ALL[name][0](requires_grad=True, dtype="float32")
    assert t.requires_grad and t.is_leaf
    (ops.exp(t) * 2.0).sum().backward()
    assert t.grad.shape == t.shape
    assert not ALL[name][0](requires_grad=False, dtype="float32").requires_grad


@pytest.mark.parametrize("name", WEIGHTS)
def test_xavier_and_kaiming_do_not_drop_their_options(name, elsewhere):
    t = getattr(init, name)(3, 4, device=elsewhere, dtype="float64", requires_grad=True)
    assert (t.device, t.dtype, t.requires_grad) == (elsewhere, "float64", True)


@pytest.mark.parametrize("name", ALL)
def test_unknown_options_are_refused_and_not_swallowed(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'gizmo'"):
        ALL[name][0](gizmo=1)
    kinds = [p.kind for p in inspect.signature(getattr(init, name)).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.parametrize("name", ["constant", "ones", "zeros", "eye", "one_hot", *RANDOM])
def test_the_default_dtype_is_the_default(name):
    set_default_dtype("float64")
    make, _, dtype = ALL[name]
    assert make().dtype == ("float64" if dtype == "float32" else dtype)


@pytest.mark.parametrize("name", ["full", "arange", "zeros_like", "randb"])
def test_whole_numbers_and_truth_values_cannot_require_gradients(name):
    with pytest.raises(RuntimeError, match="floating point"):
        ALL[name][0](requires_grad=True, dtype="bool" if name == "randb" else "int64")


# ---- random numbers ----


@pytest.mark.parametrize("name", RANDOM)
def test_random_tensors_repeat_with_their_seed_and_take_one_draw(name):
    make = RANDOM[name][0]
    g = Generator(1)
    first, second = make(generator=g), make(generator=g)
    assert g.get_state() == {"seed": 1, "offset": 2}
    assert first.tolist() != second.tolist()
    assert make(generator=g.manual_seed(1)).tolist() == first.tolist()
    manual_seed(1)
    assert make().tolist() == first.tolist() and make().tolist() == second.tolist()


@pytest.mark.parametrize("name", RANDOM)
def test_random_tensors_come_from_a_generator_and_not_from_numpys_global_state(name):
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    manual_seed(1)
    RANDOM[name][0](generator=Generator(2))
    assert default_generator.get_state() == {"seed": 1, "offset": 0}
    RANDOM[name][0]()
    assert default_generator.get_state() == {"seed": 1, "offset": 1}
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]) and before["pos"] == after["pos"]


@pytest.mark.parametrize("name, draw", [("rand", Generator.uniform), ("randn", Generator.normal)])
def test_random_tensors_are_sampled_in_their_dtype_and_not_cast(name, draw):
    make = getattr(init, name)
    made = {d: make(50, dtype=d, generator=Generator(0)).numpy() for d in ("float32", "float64")}
    for dtype, numbers in made.items():
        assert np.array_equal(numbers, draw(Generator(0), 50, dtype=dtype))
    assert not np.array_equal(made["float32"], made["float64"].astype("float32"))


SPREAD_OUT = ["rand", "randn", "randb", "ones", "zeros", "constant"]


@pytest.mark.parametrize("name", SPREAD_OUT)
def test_a_shape_is_a_tuple_or_spread_out(name):
    make = getattr(init, name)
    shapes = {make(*a).shape for a in [(2, 3), ((2, 3),), ([2, 3],), (np.int64(2), 3)]}
    assert shapes == {(2, 3)}
    assert make(4).shape == make((4,)).shape == (4,)
    assert make().shape == make(()).shape == () and make(0, 2).shape == (0, 2)


def test_rand_and_randn_have_their_limits_mean_and_std():
    x = init.rand(300, 400, low=-2.0, high=1.0, generator=Generator(0)).numpy().astype(float)
    assert -2 <= x.min() < -1.999 and 0.999 < x.max() < 1
    assert abs(x.mean() + 0.5) < 4 * 3 / 12**0.5 / x.size**0.5
    z = init.randn(300, 400, mean=3.0, std=0.1, generator=Generator(0)).numpy().astype(float)
    assert abs(z.mean() - 3) < 4 * 0.1 / z.size**0.5 and abs(z.std() / 0.1 - 1) < 0.01


def test_randb_is_true_with_probability_p():
    for p in (0.1, 0.5, 0.9):
        t = init.randb(400, 500, p=p, generator=Generator(0)).numpy()
        assert abs(t.mean() - p) < 4 * (p * (1 - p) / t.size) ** 0.5
    assert init.randb(100_000, p=1.0).numpy().all() and not init.randb(100_000, p=0.0).numpy().any()
    assert init.randb(3, 4, p=1.0, dtype="float32").tolist() == [[1.0] * 4] * 3


def test_randb_with_p_zero_is_never_true_not_even_for_the_least_number():
    class Least(Generator):
        def uniform(self, shape, dtype):
            return np.zeros(shape, dtype)

    assert not init.randb(3, p=0.0, generator=Least()).numpy().any()


# ---- constants ----


def test_constants_have_their_values():
    assert init.constant(2, 2, c=-1.5).tolist() == [[-1.5] * 2] * 2
    assert init.ones(3).tolist() == [1.0] * 3 and init.zeros(3).tolist() == [0.0] * 3
    assert init.ones_like(np.zeros((1, 2))).tolist() == [[1.0, 1.0]]
    assert init.zeros_like([5, 6]).tolist() == [0, 0]
    assert init.ones(2, dtype="int64").tolist() == [1, 1]


def test_likes_take_dtype_and_device_from_the_tensor(elsewhere):
    like = Tensor(np.ones((2, 1), "float64"), device=elsewhere, requires_grad=True)
    for make in (init.ones_like, init.zeros_like):
        t = make(like)
        assert (t.shape, t.dtype, t.device) == ((2, 1), "float64", elsewhere)
        assert not t.requires_grad
        t = make(like, device="cpu", dtype="float32")
        assert (t.dtype, t.device) == ("float32", "cpu")


@pytest.mark.parametrize(
    "name, args",
    [
        ("full", ((2, 3), 7)),
        ("full", ((2,), 0.5)),
        ("full", ((), True)),
        ("arange", (5,)),
        ("arange", (0,)),
        ("arange", (2, 11, 3)),
        ("arange", (5, -3, -2)),
        ("arange", (3, 3)),
        ("arange", (0.0, 1.0, 0.25)),
        ("arange", (2.5,)),
        ("eye", (3,)),
        ("eye", (2, 4)),
        ("eye", (4, 0)),
        ("ones", (2, 3)),
        ("zeros", ((4,),)),
    ],
)
def test_constants_beside_pytorch(torch, name, args):
    ours, theirs = getattr(init, name)(*args), getattr(torch, name)(*args)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    assert np.array_equal(ours.numpy(), theirs.numpy())


# ---- one-hot ----


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 4],
        3,
        [[1], [2]],
        np.arange(4, dtype="uint8"),
        np.arange(5)[::-2],
        np.zeros((0, 2), dtype="int64"),
    ],
    ids=["list", "int", "nested", "uint8", "strided", "empty"],
)
def test_one_hot_beside_pytorch(torch, labels):
    theirs = torch.nn.functional.one_hot(torch.tensor(np.array(labels, dtype="int64")), 5).numpy()
    for given in (labels, np.array(labels), Tensor(labels)):
        ours = init.one_hot(5, given)
        assert ours.dtype == "float32" and np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize(
    "n, labels, error, words",
    [
        (4, [0, 4], IndexError, "4 is out of range"),
        (4, [0, -1], IndexError, "-1 is out of range"),
        (0, [0], IndexError, "0 is out of range"),
        (4, [0.0, 1.0], TypeError, "integer labels; these are float32"),
        (4, [True], TypeError, "integer labels; these are bool"),
        (-2, [0], ShapeError, "negative size"),
        (2.0, [0], TypeError, "int"),
        ([0, 1], 2, TypeError, "int"),
    ],
)
def test_one_hot_explains_bad_labels(n, labels, error, words):
    with pytest.raises(error, match=words):
        init.one_hot(n, labels)


def test_one_hot_stays_where_the_labels_are(elsewhere):
    labels = Tensor([1, 0], device=elsewhere)
    assert init.one_hot(2, labels).device == elsewhere
    assert init.one_hot(2, labels, device="cpu").device == "cpu"


# ---- weights ----


@pytest.mark.parametrize("name, param", [*((n, None) for n in init._GAINS), ("leaky_relu", None)])
def test_gains_are_pytorchs(torch, name, param):
    assert init.calculate_gain(name, param) == torch.nn.init.calculate_gain(name, param)


@pytest.mark.parametrize("slope", [0, 0.2, 1, -0.5])
def test_the_gain_of_leaky_relu_depends_on_its_slope(torch, slope):
    ours, theirs = init.calculate_gain, torch.nn.init.calculate_gain
    assert ours("leaky_relu", slope) == theirs("leaky_relu", slope)


FANS = 300, 500
STDS = [
    ("xavier_uniform", {}, sqrt(2 / 800), sqrt(3)),
    ("xavier_uniform", {"gain": 3.0}, 3 * sqrt(2 / 800), sqrt(3)),
    ("xavier_normal", {}, sqrt(2 / 800), None),
    ("xavier_normal", {"gain": 0.5}, 0.5 * sqrt(2 / 800), None),
    ("kaiming_uniform", {}, sqrt(2 / 300), sqrt(3)),
    ("kaiming_uniform", {"nonlinearity": "linear"}, sqrt(1 / 300), sqrt(3)),
    ("kaiming_uniform", {"nonlinearity": "leaky_relu", "param": 1}, sqrt(1 / 300), sqrt(3)),
    ("kaiming_normal", {}, sqrt(2 / 300), None),
    ("kaiming_normal", {"nonlinearity": "tanh"}, 5 / 3 * sqrt(1 / 300), None),
]


@pytest.mark.parametrize("name, options, std, limit", STDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_have_the_derived_std_and_limits(name, options, std, limit, dtype):
    w = getattr(init, name)(*FANS, **options, dtype=dtype, generator=Generator(0))
    w = w.numpy().astype(float)
    assert w.shape == FANS
    assert abs(w.mean()) < 4 * std / w.size**0.5 and abs(w.std() / std - 1) < 0.01
    if limit:
        assert 0.999 < w.max() / (limit * std) < 1 + 1e-6
        assert 0.999 < -w.min() / (limit * std) < 1 + 1e-6
    else:
        assert abs((abs(w) < std).mean() - 0.6827) < 0.005 and abs(w).max() > 4 * std


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("setting", ["default", "leaky_relu"])
def test_weights_are_distributed_as_pytorchs(torch, name, setting):
    ours, theirs = {}, {}
    if setting == "leaky_relu" and name.startswith("kaiming"):
        ours = {"nonlinearity": "leaky_relu", "param": 0.3}
        theirs = {"nonlinearity": "leaky_relu", "a": 0.3}
    elif name.startswith("kaiming"):
        theirs = {"nonlinearity": "relu"}
    elif setting == "leaky_relu":
        ours = theirs = {"gain": init.calculate_gain("leaky_relu", 0.3)}
    a = getattr(init, name)(*FANS, **ours, generator=Generator(0)).numpy()
    empty = torch.empty(*reversed(FANS))
    b = getattr(torch.nn.init, f"{name}_")(
        empty, **theirs, generator=torch.Generator().manual_seed(0)
    ).numpy()
    quantiles = np.linspace(0, 1, 21)[1:-1]
    a, b = np.quantile(a, quantiles), np.quantile(b, quantiles)
    assert np.allclose(a, b, rtol=0, atol=0.02 * a[-1])


@pytest.mark.parametrize("name", WEIGHTS)
def test_shape_overrides_the_shape_and_nothing_else(name):
    make = getattr(init, name)
    conv = make(300, 500, shape=(50, 30, 10, 10), generator=Generator(0))
    assert conv.shape == (50, 30, 10, 10)
    flat = make(300, 500, generator=Generator(0))
    assert np.array_equal(conv.numpy().reshape(-1), flat.numpy().reshape(-1))
    assert make(3, 4, shape=5).shape == (5,)


def test_kaiming_keeps_the_signal_through_relus_and_xavier_halves_its_square():
    width, depth, sizes = 256, 10, {}
    for name in ("xavier_normal", "kaiming_normal", "xavier_uniform", "kaiming_uniform"):
        g = Generator(0)
        x = init.randn(200, width, generator=g)
        for _ in range(depth):
            x = ops.relu(x @ getattr(init, name)(width, width, generator=g))
        sizes[name] = float((x**2).mean().item())
    for kind in ("normal", "uniform"):
        assert 0.5 < sizes[f"kaiming_{kind}"] < 2
        assert np.isclose(sizes[f"xavier_{kind}"] * 2**depth, sizes[f"kaiming_{kind}"], rtol=1e-4)


# ---- mistakes ----


@pytest.mark.parametrize(
    "call, error, words",
    [
        *((lambda n=n: getattr(init, n)(2, -3), ShapeError, "negative size") for n in SPREAD_OUT),
        *((lambda n=n: getattr(init, n)(2.5), TypeError, "got 2.5") for n in SPREAD_OUT),
        *((lambda n=n: getattr(init, n)((2, 3), 4), TypeError, "of ints") for n in SPREAD_OUT),
        (lambda: init.full(-1, 2.0), ShapeError, "negative size"),
        (lambda: init.eye(2, -1), ShapeError, "negative size"),
        (lambda: init.eye(1.5), TypeError, "tuple of ints"),
        (lambda: init.arange(0, 5, 0), ValueError, "no way from 0 to 5 in steps of 0"),
        (lambda: init.arange(5, 0), ValueError, "no way from 5 to 0 in steps of 1"),
        (lambda: init.rand(2, low=1.0, high=0.0), ValueError, "low=1.0, high=0.0"),
        (lambda: init.rand(2, dtype="int64"), TypeError, "floating; got dtype 'int64'"),
        (lambda: init.randn(2, std=-1.0), ValueError, "std=-1.0"),
        (lambda: init.randn(2, dtype="bool"), TypeError, "floating"),
        (lambda: init.randb(2, p=-0.1), ValueError, "from 0 to 1; got -0.1"),
        (lambda: init.randb(2, p=1.1), ValueError, "from 0 to 1; got 1.1"),
        (lambda: init.randb(2, p=float("nan")), ValueError, "from 0 to 1; got nan"),
        (lambda: init.rand(2, generator=0), TypeError, r"such as Generator\(0\); got 0"),
        (lambda: init.rand(2, device="abacus"), RuntimeError, "unknown device 'abacus'"),
        (lambda: init.calculate_gain("gelu"), ValueError, "no gain is known for 'gelu'; .*selu"),
        (lambda: init.calculate_gain("leaky_relu", "x"), ValueError, "is a number; got 'x'"),
        (lambda: init.calculate_gain("leaky_relu", True), ValueError, "is a number; got True"),
        (lambda: init.kaiming_normal(3, 4, "step"), ValueError, "no gain is known for 'step'"),
        (lambda: init.kaiming_uniform(3, 4, "step"), ValueError, "no gain is known for 'step'"),
        *((lambda n=n: getattr(init, n)(0, 3), ValueError, "got 0 in, 3 out") for n in WEIGHTS),
        *((lambda n=n: getattr(init, n)(3, -3), ValueError, "got 3 in, -3 out") for n in WEIGHTS),
        *((lambda n=n: getattr(init, n)(2.5, 3), TypeError, "of ints") for n in WEIGHTS),
        (lambda: init.xavier_normal(3, 4, gain=-1.0), ValueError, "std >= 0"),
        (lambda: init.xavier_uniform(3, 4, gain=-1.0), ValueError, "low <= high"),
    ],
)
def test_mistakes_are_explained(call, error, words):
    manual_seed(0)
    with pytest.raises(error, match=words):
        call()


# ---- like others, and in other ways ----


def test_like_another_in_shape_dtype_and_place():
    a = Tensor(np.zeros((2, 3), dtype="float16"))
    for made in (init.full_like(a, 7), init.rand_like(a), init.randn_like(a)):
        assert made.shape == a.shape and made.dtype == a.dtype
    assert init.full_like(a, 7).tolist() == [[7, 7, 7]] * 2
    assert init.full_like(a, 7, dtype="int64").dtype == "int64"
    assert init.randn_like(a, requires_grad=True, dtype="float64").requires_grad
    first, second = (init.rand_like(a, generator=Generator(3)).tolist() for _ in range(2))
    assert first == second and 0 <= min(first[0]) and max(first[0]) < 1


@pytest.mark.parametrize("way", [(0, 1, 5), (3.0, -1.0, 9), (2, 2, 3), (0, 1, 1), (0, 1, 0)])
def test_linspace_is_that_of_torch(way, torch):
    np.testing.assert_allclose(init.linspace(*way).numpy(), torch.linspace(*way).numpy(), rtol=1e-6)
    assert init.linspace(0, 1, 3, dtype="float64").dtype == "float64"
    with pytest.raises(ValueError):
        init.linspace(0, 1, -1)


def test_random_integers_and_orders_follow_from_their_generator():
    for made in (
        lambda g: init.randint(3, 7, (50,), generator=g),
        lambda g: init.randint(7, (50,), generator=g),
        lambda g: init.randperm(50, generator=g),
    ):
        first, second = made(Generator(1)), made(Generator(1))
        assert first.tolist() == second.tolist() != made(Generator(2)).tolist()
        assert first.shape == (50,) and first.dtype == "int64"
    drawn = init.randint(3, 7, (200,), generator=Generator(1)).tolist()
    assert set(drawn) == {3, 4, 5, 6}
    assert set(init.randint(2, (40,), generator=Generator(1)).tolist()) == {0, 1}
    assert sorted(init.randperm(5).tolist()) == [0, 1, 2, 3, 4]
