"Data sets, batches, the digits, and toy data."

import hashlib
import re
from collections import namedtuple
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima.autograd import Tensor
from minima.data import DataLoader, Dataset, TensorDataset, collate, digits, moons, spirals, xor
from minima.random import Generator, default_generator, manual_seed

DIGITS_SHA256 = "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"


class Squares(Dataset):
    "Samples that are made when they are asked for."

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        assert type(i) is int
        return {"i": i, "square": float(i * i)}


def rows(n):
    "A TensorDataset of `n` samples, each a pair that says which it is."
    return TensorDataset(np.arange(2.0 * n).reshape(n, 2), np.arange(n))


def indices(loader):
    "Which samples of `rows` the batches of `loader` hold."
    return [y.tolist() for _, y in loader]


def plain(batch):
    "A batch with lists of numbers in place of Tensors."
    if isinstance(batch, dict):
        return {k: plain(v) for k, v in batch.items()}
    if isinstance(batch, tuple | list):
        return [plain(v) for v in batch]
    return batch.tolist() if hasattr(batch, "tolist") else batch


# ---- data sets ----


def test_a_tensor_dataset_gives_rows_slices_and_choices():
    data = rows(5)
    x, y = data[3]
    assert len(data) == 5 and x.tolist() == [6.0, 7.0] and y.item() == 3
    assert [t.shape for t in data[:]] == [(5, 2), (5,)]
    assert data[[4, 0]][1].tolist() == [4, 0] and data[-1][1].item() == 4
    assert [y.item() for _, y in data] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        data[5]


def test_a_tensor_dataset_takes_tensors_arrays_and_lists_without_copying_arrays():
    array = np.zeros((2, 3), dtype="float32")
    data = TensorDataset(Tensor([1.0, 2.0]), array, [1, 2])
    assert [t.dtype.name for t in data.tensors] == ["float32", "float32", "int64"]
    assert data.tensors[1].array is array


@pytest.mark.parametrize("sizes", [(), (3, 2), (3, 3, 4)])
def test_a_tensor_dataset_needs_equal_lengths(sizes):
    with pytest.raises(ValueError, match=f"one length; got lengths {re.escape(str([*sizes]))}"):
        TensorDataset(*(np.zeros(n) for n in sizes))


def test_a_dataset_can_be_looped_over_and_says_what_it_lacks():
    assert [s["square"] for s in Squares(3)] == [0.0, 1.0, 4.0]
    with pytest.raises(NotImplementedError, match="Dataset has no __len__"):
        len(Dataset())
    with pytest.raises(NotImplementedError, match="Dataset has no __getitem__"):
        Dataset()[0]


# ---- collate ----

Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize("samples, expected, dtype", [
    ([1, 2], [1, 2], "int64"),
    ([1.5, 2], [1.5, 2.0], "float32"),
    ([True, False], [True, False], "bool"),
    ([np.float64(1), np.float64(2)], [1.0, 2.0], "float64"),
    ([np.uint8(1)], [1], "uint8"),
    ([np.zeros(2), np.ones(2)], [[0.0, 0.0], [1.0, 1.0]], "float64"),
    ([Tensor([1, 2]), Tensor([3, 4])], [[1, 2], [3, 4]], "int64"),
    ([Tensor(1.0), Tensor(2.0)], [1.0, 2.0], "float32"),
    ([np.zeros((0, 2))] * 3, [[], [], []], "float64"),
])  # fmt: skip
def test_leaves_are_stacked_in_their_dtype(samples, expected, dtype):
    batch = collate(samples)
    assert type(batch) is Tensor and batch.tolist() == expected and batch.dtype == dtype


@pytest.mark.parametrize("samples, expected", [
    ([(1, 2.0), (3, 4.0)], ([1, 3], [2.0, 4.0])),
    ([[1, 2], [3, 4], [5, 6]], [[1, 3, 5], [2, 4, 6]]),
    ([{"a": 1, "b": 2}, {"b": 4, "a": 3}], {"a": [1, 3], "b": [2, 4]}),
    ([Pair(1, 2), Pair(3, 4)], Pair([1, 3], [2, 4])),
    ([{"a": (1, [np.ones(1)])}] * 2, {"a": ([1, 1], [[[1.0], [1.0]]])}),
    ([("a", b"b"), ("c", b"d")], (["a", "c"], [b"b", b"d"])),
    ([(), ()], ()),
])  # fmt: skip
def test_nests_keep_their_make(samples, expected):
    def same(batch, expected):
        if isinstance(batch, Tensor):
            return batch.tolist() == expected
        if isinstance(batch, dict):
            return [*batch] == [*expected] and all(same(batch[k], expected[k]) for k in batch)
        if isinstance(batch, tuple | list):
            return type(batch) is type(expected) and all(map(same, batch, expected))
        return batch == expected

    assert same(collate(samples), expected)


@pytest.mark.parametrize("samples, error, message", [
    ([None, None], TypeError, "batch of NoneType; give DataLoader a collate_fn"),
    ([{1}, {2}], TypeError, "batch of set"),
    ([(1, 2), (1,)], ValueError, "not all have 2 parts"),
    ([{"a": 1}, {"b": 1}], ValueError, r"not all have the keys \['a'\]"),
    ([np.zeros(2), np.zeros(3)], ValueError, r"\(2,\).*\(3,\)|shape|dimensions"),
])  # fmt: skip
def test_samples_that_do_not_go_together_are_told(samples, error, message):
    with pytest.raises(error, match=message):
        collate(samples)


def test_a_collate_fn_is_called_with_the_list_of_samples():
    seen = []
    loader = DataLoader(rows(3), batch_size=2, collate_fn=lambda samples: seen.append(samples) or 7)
    assert list(loader) == [7, 7]
    assert [type(samples) for samples in seen] == [list, list]
    assert [len(samples) for samples in seen] == [2, 1] and seen[1][0][1].item() == 2


def test_batches_are_those_of_torch(torch):
    samples = [(np.full(3, i), {"a": i, "b": [i / 2, f"no. {i}"]}) for i in range(7)]
    order = [6, 0, 5, 1, 4, 2, 2]
    for settings in (dict(batch_size=3), dict(batch_size=2, drop_last=True)):
        settings["sampler"] = order
        ours = DataLoader(samples, **settings)
        theirs = torch.utils.data.DataLoader(samples, **settings)
        assert len(ours) == len(theirs)
        assert [plain(batch) for batch in ours] == [plain(batch) for batch in theirs]


# ---- sizes ----


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n, batch_size, drop_last, sizes", [
    (6, 3, False, [3, 3]),
    (6, 3, True, [3, 3]),
    (7, 3, False, [3, 3, 1]),
    (7, 3, True, [3, 3]),
    (2, 5, False, [2]),
    (2, 5, True, []),
    (1, 1, True, [1]),
    (4, np.int64(3), False, [3, 1]),
])  # fmt: skip
@pytest.mark.parametrize("make", [rows, Squares, range])
def test_batches_have_the_size_asked_for(make, n, batch_size, drop_last, sizes, shuffle):
    def size(batch):
        batch = [*batch.values()] if isinstance(batch, dict) else batch
        return len(batch if isinstance(batch, Tensor) else batch[0])

    loader = DataLoader(make(n), batch_size, shuffle, drop_last=drop_last)
    assert [size(batch) for batch in loader] == sizes and len(loader) == len(sizes)


@given(st.integers(1, 50), st.integers(1, 60), st.booleans(), st.integers(0, 2**32))
def test_every_sample_comes_exactly_once(n, batch_size, drop_last, seed):
    loader = DataLoader(rows(n), batch_size, True, drop_last=drop_last, generator=Generator(seed))
    batches = indices(loader)
    seen = [i for batch in batches for i in batch]
    assert len(batches) == len(loader) and len(set(seen)) == len(seen)
    assert len(seen) == (n // batch_size * batch_size if drop_last else n)
    for x, y in loader:  # what belongs together stays together
        assert x.tolist() == [[2.0 * i, 2.0 * i + 1] for i in y.tolist()]


def test_without_shuffling_the_order_is_that_of_the_data():
    assert indices(DataLoader(rows(5), 2)) == [[0, 1], [2, 3], [4]]
    assert indices(DataLoader(rows(2))) == [[0], [1]]


# ---- order ----


def test_the_same_seed_gives_the_same_orders_and_each_epoch_its_own():
    def epochs(seed):
        loader = DataLoader(rows(20), 6, shuffle=True, generator=Generator(seed))
        return [indices(loader) for _ in range(3)]

    first = epochs(0)
    assert first == epochs(0) and first != epochs(1)
    assert first[0] != first[1] != first[2] != first[0]


def test_a_generator_of_ones_own_leaves_the_default_one_alone():
    manual_seed(0)
    before, own = default_generator.get_state(), Generator(1)
    list(DataLoader(rows(5), shuffle=True, generator=own))
    for toy in (spirals, moons, xor):
        toy(10, generator=own)
    assert default_generator.get_state() == before and own.get_state() != Generator(1).get_state()


def test_without_a_generator_the_default_one_draws():
    own = indices(DataLoader(rows(20), 20, shuffle=True, generator=Generator(5)))
    loader = DataLoader(rows(20), 20, shuffle=True)
    manual_seed(5)
    assert indices(loader) == own
    before = default_generator.get_state()
    indices(DataLoader(rows(20), 20))  # in order: nothing is drawn
    assert default_generator.get_state() == before


def test_an_epoch_can_be_repeated_from_the_state_before_it():
    generator = Generator(3)
    loader = DataLoader(rows(10), 5, shuffle=True, generator=generator)
    indices(loader)
    state = generator.get_state()
    epoch = indices(loader)
    generator.set_state(state)
    assert indices(loader) == epoch


def test_two_iterators_of_one_loader_are_independent():
    loader = DataLoader(rows(6), 2)
    a, b = iter(loader), iter(loader)
    assert [next(a)[1].tolist(), next(a)[1].tolist()] == [[0, 1], [2, 3]]
    assert next(b)[1].tolist() == [0, 1] and next(a)[1].tolist() == [4, 5]
    assert next(a, None) is None and len(list(b)) == 2
    shuffled = DataLoader(rows(6), 2, shuffle=True, generator=Generator(0))
    pairs = [(x[1].tolist(), y[1].tolist()) for x in shuffled for y in shuffled]
    assert len(pairs) == 9
    outer = [pairs[i][0] for i in (0, 3, 6)]
    assert sorted(sum(outer, [])) == [*range(6)]
    for i in (0, 3, 6):
        assert sorted(sum((y for _, y in pairs[i : i + 3]), [])) == [*range(6)]


def test_the_order_is_drawn_when_a_loop_begins():
    a, b = (DataLoader(rows(9), 9, shuffle=True, generator=Generator(0)) for _ in range(2))
    first, second = iter(a), iter(a)
    later, sooner = indices(second), indices(first)
    assert [sooner, later] == [indices(b), indices(b)]


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_a_sampler_decides_which_samples_come(make):
    loader = DataLoader(rows(5), 2, sampler=make([4, 4, 0]))
    assert len(loader) == 2 and indices(loader) == indices(loader) == [[4, 4], [0]]


# ---- the shortcut for Tensors ----


@pytest.mark.parametrize("settings", [{}, {"shuffle": True}, {"sampler": [3, 1, 1]}])
def test_the_shortcut_gives_what_the_long_way_gives(settings):
    rng = np.random.default_rng(0)
    data = TensorDataset(rng.normal(size=(5, 2, 3)), rng.normal(size=5).astype("f4"), np.arange(5))
    batches = [
        list(DataLoader(data, 2, generator=Generator(0), collate_fn=collate_fn, **settings))
        for collate_fn in (None, lambda samples: collate(samples))
    ]
    for short, long in zip(*batches, strict=True):
        assert type(short) is type(long) is tuple
        for a, b in zip(short, long, strict=True):
            assert a.dtype == b.dtype and a.tolist() == b.tolist()


def test_a_subclass_that_alters_samples_is_asked_for_each():
    class Altered(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return (x, y) if y.item() % 2 else (x, -y)  # a choice for each

    assert indices(DataLoader(Altered(*rows(5).tensors), 4)) == [[0, 1, -2, 3], [-4]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_writing_into_a_batch_leaves_the_data_alone(shuffle):
    data = rows(4)
    for x, y in DataLoader(data, 2, shuffle):
        x.array[...], y.array[...] = -1, -1
    assert data.tensors[1].tolist() == [0, 1, 2, 3] and (data.tensors[0].array >= 0).all()


def test_gradients_pass_through_a_batch():
    data = TensorDataset(Tensor([1.0, 2.0, 3.0], requires_grad=True))
    for collate_fn in (None, lambda samples: collate(samples)):
        data.tensors[0].grad = None
        ((x,),) = DataLoader(data, 2, sampler=[2, 0], collate_fn=collate_fn)
        (x * Tensor([5.0, 7.0])).sum().backward()
        assert data.tensors[0].grad.tolist() == [7.0, 0.0, 5.0]


# ---- what can be told early ----


@pytest.mark.parametrize("make, error, message", [
    (lambda: DataLoader(rows(3), 0), ValueError, "batch_size.*positive integer.*got 0"),
    (lambda: DataLoader(rows(3), -1), ValueError, "batch_size.*got -1"),
    (lambda: DataLoader(rows(3), 2.0), ValueError, "batch_size.*got 2.0"),
    (lambda: DataLoader(rows(3), True), ValueError, "batch_size.*got True"),
    (lambda: DataLoader(rows(3), None), ValueError, "batch_size.*got None"),
    (lambda: DataLoader([]), ValueError, "empty list"),
    (lambda: DataLoader(TensorDataset(np.zeros((0, 3)))), ValueError, "empty TensorDataset"),
    (lambda: DataLoader(iter([1])), TypeError, "length and indexing; list_iterator has not"),
    (lambda: DataLoader(rows(3), shuffle=True, sampler=[0]), ValueError, "excludes shuffle"),
    (lambda: DataLoader(rows(3), 1, [0, 1]), TypeError, r"shuffle.*\[0, 1\].*sampler"),
    (lambda: DataLoader(rows(3), sampler=iter([0])), TypeError, "list_iterator cannot: pass"),
    (lambda: DataLoader(rows(3), sampler=3), TypeError, "int cannot: pass a list"),
    (lambda: DataLoader(rows(3), generator=0), TypeError, "a Generator, such as .*; got 0"),
    (lambda: DataLoader(rows(3), num_workers=2), TypeError, "num_workers"),
    (lambda: DataLoader(rows(3), batch_sampler=[[0]]), TypeError, "batch_sampler"),
    (lambda: next(iter(DataLoader(rows(3), sampler=[3]))), IndexError, "3"),
    (lambda: digits("training"), ValueError, "'train', 'test' or None.*'training'"),
])  # fmt: skip
def test_what_no_loader_can_be_made_of_is_told(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- digits ----


def test_the_digits_file_is_the_one_that_was_credited():
    content = files("minima").joinpath("datasets/digits.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == DIGITS_SHA256 and len(content) < 60_000


def test_digits_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets")
    x, y = digits()[:]
    original = sklearn.load_digits()
    assert np.array_equal(x.array * 16, original.data) and np.array_equal(y.array, original.target)


@pytest.mark.parametrize("split, counts", [
    (None, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
    ("train", [142, 145, 141, 146, 144, 145, 144, 143, 139, 144]),
    ("test", [36, 37, 36, 37, 37, 37, 37, 36, 35, 36]),
])  # fmt: skip
def test_digits_have_these_sizes_dtypes_and_counts(split, counts):
    data = digits(split)
    x, y = data[:]
    n = sum(counts)
    assert isinstance(data, TensorDataset) and len(data) == n
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((n, 64), "float32", (n,), "int64")
    assert x.array.min() == 0 and x.array.max() == 1 and not (x.requires_grad or y.requires_grad)
    assert np.bincount(y.array).tolist() == counts


def test_the_split_is_fixed_and_parts_the_digits_without_overlap():
    (x, y), (x_train, _), (x_test, y_test) = (digits(split)[:] for split in (None, "train", "test"))
    whole, train, test = ({row.tobytes() for row in t.array} for t in (x, x_train, x_test))
    assert len(whole) == 1797  # no image comes twice, so sets can tell
    assert not train & test and train | test == whole
    expected = np.zeros(1797, dtype=bool)
    for digit in range(10):
        expected[np.flatnonzero(y.array == digit)[::5]] = True
    assert np.array_equal(x_test.array, x.array[expected])
    assert np.array_equal(y_test.array, y.array[expected])


def test_each_call_gives_digits_of_its_own():
    digits("test").tensors[0].array[...] = 9
    assert digits("test").tensors[0].array.max() == 1


# ---- toy data ----


@pytest.mark.parametrize("n", [1, 2, 5, 30, 101])
@pytest.mark.parametrize("toy, classes", [
    (spirals, 3),
    (lambda n, **settings: spirals(n, 5, **settings), 5),
    (moons, 2),
    (xor, 2),
], ids=["spirals", "five spirals", "moons", "xor"])  # fmt: skip
def test_toy_data_are_exact_balanced_and_repeatable(toy, classes, n):
    data = toy(n, generator=Generator(0))
    x, y = data[:]
    assert isinstance(data, TensorDataset) and len(data) == n
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((n, 2), "float32", (n,), "int64")
    counts = np.bincount(y.array, minlength=classes)
    assert len(counts) == classes and counts.max() - counts.min() <= 1
    assert np.isfinite(x.array).all()
    assert np.array_equal(x.array, toy(n, generator=Generator(0))[:][0].array)
    assert not np.array_equal(x.array, toy(n, generator=Generator(1))[:][0].array)


def nearest(x, y, points):
    "The classes of `points`, each that of the nearest row of `x`."
    return y[((points[:, None] - x[None]) ** 2).sum(-1).argmin(1)]


@pytest.mark.parametrize("toy", [spirals, moons, xor])
def test_toy_data_can_be_learned_but_not_by_a_straight_line(toy):
    data = (toy(600, generator=Generator(seed)) for seed in (0, 1))
    (x, y), (other, truth) = ([t.array for t in part[:]] for part in data)
    assert (nearest(x, y, other) == truth).mean() > 0.95
    ones, targets = np.ones((600, 1)), np.eye(y.max() + 1)[y]
    linear = np.linalg.lstsq(np.hstack([x, ones]), targets, rcond=None)[0]
    assert ((np.hstack([other, ones]) @ linear).argmax(1) == truth).mean() < 0.92


def test_without_noise_toy_points_lie_where_they_should():
    x, y = (t.array for t in xor(4, noise=0)[:])
    assert x.tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]] and y.tolist() == [0, 1, 1, 0]
    x, y = (t.array for t in moons(50, noise=0)[:])
    centres, up = np.array([[0, 0], [1, 0.5]])[y], np.array([1, -1])[y]
    np.testing.assert_allclose(np.hypot(*(x - centres).T), 1, rtol=1e-6)
    assert ((x - centres)[:, 1] * up > 0).all()
    x, y = (t.array for t in spirals(99, noise=0)[:])
    radius = np.hypot(*x.T)
    for arm in range(3):
        assert (np.diff(radius[y == arm]) > 0).all() and 0.9 < radius[y == arm].max() < 1
    turn = np.exp(2j * np.pi / 3)
    z = x[:, 0] + 1j * x[:, 1]
    np.testing.assert_allclose(z[y == 0] * turn, z[y == 1], atol=1e-6)


def test_noise_is_as_large_as_asked():
    still, noisy = (xor(4000, noise, Generator(0))[:][0].array for noise in (0, 0.5))
    assert (noisy - still).std() == pytest.approx(0.5, rel=0.05)
    still, noisy = (moons(4000, noise, Generator(0))[:][0].array for noise in (0, 0.5))
    assert (noisy - still).std() == pytest.approx(0.5, rel=0.05)
    still, noisy = (spirals(4000, 3, noise, Generator(0))[:][0].array for noise in (0, 0.5))
    angle = np.angle((noisy @ [1, 1j]) / (still @ [1, 1j]))
    assert angle.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("make, error", [
    (lambda: moons(0), ValueError),
    (lambda: xor(-1), ValueError),
    (lambda: spirals(10, classes=0), ValueError),
    (lambda: moons(10, noise=-0.1), ValueError),
    (lambda: spirals(10, noise=float("nan")), ValueError),
    (lambda: xor(2.5), TypeError),
    (lambda: xor(10, generator=1), TypeError),
])  # fmt: skip
def test_senseless_toy_data_are_refused(make, error):
    with pytest.raises(error):
        make()


# ---- what was once wrong elsewhere ----


def test_samples_are_collated_without_torch_and_by_default():
    ((batch,),) = DataLoader([(np.ones(2),), (np.zeros(2),)], batch_size=2)
    assert type(batch) is Tensor and batch.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_a_loader_does_not_shuffle_unless_asked():
    assert DataLoader(rows(3)).shuffle is False


def test_a_loader_has_a_length():
    assert len(DataLoader(rows(10), 4)) == 3


def test_a_dataset_need_not_understand_lists_of_indices():
    ((batch),) = DataLoader(Squares(3), batch_size=3)  # it asserts that it is asked for ints
    assert plain(batch) == {"i": [0, 1, 2], "square": [0.0, 1.0, 4.0]}
