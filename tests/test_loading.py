"Batches: collated, in order, loaded ahead by a thread, and from the middle of an epoch."

import gc
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, UserDict, UserList, defaultdict, namedtuple
from contextlib import suppress
from itertools import islice
from pathlib import Path
from traceback import extract_tb
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima.autograd import Tensor, is_grad_enabled, no_grad
from minima.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    collate,
    convert,
    loading,
)
from minima.random import Generator, default_generator, manual_seed

ROOT = Path(__file__).resolve().parent.parent


def helpers():
    "The threads that load ahead."
    return [thread for thread in threading.enumerate() if thread.name == "minima prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    "Whatever a test does with loaders, no thread outlives it."
    yield
    assert helpers() == []


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
    ([{}, {}], {}),
    ([range(2), range(1, 3)], [[0, 1], [1, 2]]),
    ([np.str_("a"), np.str_("b")], ["a", "b"]),
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
    ([np.array(["a"])] * 2, TypeError, "batch of ndarray"),
    ([], ValueError, "at least one sample, and got none"),
    ([(1, 2), (1,)], ValueError, "not all have 2 parts"),
    ([{"a": 1}, {"b": 1}], ValueError, r"not all have the keys \['a'\]"),
    ([np.zeros(2), np.zeros(3)], ValueError, r"\(2,\).*\(3,\)|shape|dimensions"),
])  # fmt: skip
def test_samples_that_do_not_go_together_are_told(samples, error, message):
    with pytest.raises(error, match=message):
        collate(samples)


class Named(list):
    "A list that has more to it than its parts."


class Frozen(UserList):
    "A sequence of which no copy can be written into."

    __copy__ = None


NESTS = [
    (1, np.ones(2), "a"),
    [np.float32(1), {"a": [1, (2.5, "b")]}],
    Pair(np.zeros(1), 2),
    OrderedDict(b=1, a=np.ones(1)),
    defaultdict(list, a=1.5),
    MappingProxyType({"a": 1}),
    UserDict(a=[1, 2]),
    UserList([1, np.ones(1)]),
    Named([1, 2]),
    range(3),
    {"a": {"b": {"c": (np.ones((2, 2)), [True])}}},
    "text",
    b"bytes",
    np.arange(3),
    7,
]


def make_of(batch):
    "The types in a batch; of tuples PyTorch makes lists, and the Tensors are those of a library."
    if type(batch) is tuple:
        return "list", [make_of(v) for v in batch]
    if isinstance(batch, dict | UserDict | MappingProxyType):
        return type(batch).__name__, {k: make_of(v) for k, v in batch.items()}
    if isinstance(batch, tuple | list | UserList):
        return type(batch).__name__, [make_of(v) for v in batch]
    return (type(batch).__name__, batch.tolist()) if hasattr(batch, "tolist") else batch


@pytest.mark.parametrize("sample", NESTS, ids=lambda sample: type(sample).__name__)
def test_collated_and_converted_nests_have_the_make_of_torchs(torch, sample):
    theirs = torch.utils.data
    assert make_of(collate([sample, sample])) == make_of(theirs.default_collate([sample, sample]))
    assert make_of(convert(sample)) == make_of(theirs.default_convert(sample))


def test_nests_that_are_more_than_their_parts_stay_so():
    named = Named([1, 2])
    named.source = "here"
    batch = collate([named, named])
    assert batch.source == "here" and batch[1].tolist() == [2, 2] and named == [1, 2]
    batch = collate([defaultdict(list, a=1)] * 2)
    assert batch["b"] == [] and batch["a"].tolist() == [1, 1]


def test_converting_leaves_what_is_no_array():
    thing = object()
    x = Tensor([1.0])
    assert convert(thing) is thing and convert(x) is x and convert(2.5) == 2.5
    assert convert(np.array(["a"])).tolist() == ["a"] and convert(None) is None


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


def test_without_batches_samples_come_one_by_one():
    loader = DataLoader(rows(3), batch_size=None)
    assert len(loader) == 3 and [(x.tolist(), y.item()) for x, y in loader] == [
        ([0.0, 1.0], 0), ([2.0, 3.0], 1), ([4.0, 5.0], 2)
    ]  # fmt: skip
    assert [*DataLoader(["a", 7, None], None)] == ["a", 7, None]
    loader = DataLoader(
        rows(3), None, True, generator=Generator(0), collate_fn=lambda s: s[1].item()
    )
    assert sorted(loader) == [0, 1, 2]
    loader = DataLoader(rows(5), None, sampler=BatchSampler(range(5), 2))
    assert indices(loader) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("batches", [[[0, 3], [1], [2, 2, 2]], BatchSampler([4, 2, 0], 2)])
def test_a_batch_sampler_decides_about_batches(batches):
    loader = DataLoader(rows(5), batch_sampler=batches)
    assert len(loader) == len(batches) and indices(loader) == indices(loader) == [*batches]


@pytest.mark.parametrize("shuffle, kind", [(False, SequentialSampler), (True, RandomSampler)])
def test_a_loader_shows_its_samplers(shuffle, kind):
    loader = DataLoader(rows(3), 2, shuffle, drop_last=True)
    assert type(loader.sampler) is kind and loader.batch_sampler.sampler is loader.sampler
    assert loader.batch_sampler.batch_size == loader.batch_size == 2
    assert loader.batch_sampler.drop_last and DataLoader(rows(3), None).batch_size is None
    assert DataLoader(rows(3), batch_sampler=[[0]]).batch_size is None
    with pytest.raises(AttributeError):
        loader.batch_size = 3  # too late


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


@pytest.mark.parametrize("make", [
    lambda data: Subset(data, [5, 0, -1, 3, 3]),
    lambda data: Subset(Subset(data, [5, 0, -1, 3, 3]), [4, 0, 1]),
    lambda data: Subset(list(data), [5, 0, 3]),
    lambda data: Subset(data, [5, 0]) + Subset(data, [1]),
], ids=["part", "part of a part", "part of a list", "row"])  # fmt: skip
def test_parts_are_loaded_as_sample_by_sample(make):
    data = make(rows(6))
    expected = [y.item() for _, y in data]
    (batch,) = DataLoader(data, 10)
    assert type(batch) is tuple and batch[1].tolist() == expected
    assert batch[0].tolist() == [[2.0 * i, 2.0 * i + 1] for i in expected]


def test_the_shortcut_is_taken_for_parts_and_not_for_what_alters_them():
    asked = []

    class Part(Subset):
        def __getitem__(self, i):
            asked.append(i)
            return super().__getitem__(i)

    assert indices(DataLoader(Part(rows(4), [3, 1]), 2)) == [[3, 1]] and asked == [0, 1]
    assert indices(DataLoader(Subset(Part(rows(4), [3, 1]), [1, 0]), 2)) == [[1, 3]]
    assert asked == [0, 1, 1, 0]

    class Counted(Tensor):
        __slots__ = ()

        def __getitem__(self, i):
            asked.append(i)
            return super().__getitem__(i)

    data = TensorDataset(Counted(np.arange(4)))
    asked.clear()
    assert [y.tolist() for (y,) in DataLoader(Subset(data, [3, 1]), 2)] == [[3, 1]]
    assert [i.tolist() for i in asked] == [[3, 1]]


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
    (lambda: DataLoader([]), ValueError, "empty list"),
    (lambda: DataLoader(TensorDataset(np.zeros((0, 3)))), ValueError, "empty TensorDataset"),
    (lambda: DataLoader(iter([1])), TypeError, "length and indexing; list_iterator has not"),
    (lambda: DataLoader({1, 2}), TypeError, "length and indexing; set has not"),
    (lambda: DataLoader(rows(3), shuffle=True, sampler=[0]), ValueError, "excludes shuffle"),
    (lambda: DataLoader(rows(3), 1, [0, 1]), TypeError, r"shuffle.*\[0, 1\].*sampler"),
    (lambda: DataLoader(rows(3), sampler=iter([0])), TypeError, "list_iterator cannot: pass"),
    (lambda: DataLoader(rows(3), sampler=3), TypeError, "int cannot: pass a list"),
    (lambda: DataLoader(rows(3), generator=0), TypeError, "a Generator, such as .*; got 0"),
    (lambda: DataLoader(rows(3), num_workers=2), ValueError, "num_workers=2.*prefetch=2 keeps"),
    (lambda: DataLoader(rows(3), num_workers=None), ValueError, "num_workers=None"),
    (lambda: DataLoader(rows(3), prefetch=-1), ValueError, "prefetch.*at least 0; got -1"),
    (lambda: DataLoader(rows(3), prefetch=True), ValueError, "prefetch.*got True"),
    (lambda: DataLoader(rows(3), prefetch=1.0), ValueError, "prefetch.*got 1.0"),
    (lambda: DataLoader(rows(3), batch_sampler=iter([[0]])), TypeError, "a batch_sampler is"),
    (lambda: DataLoader(rows(3), 2, batch_sampler=[[0]]), ValueError, "decides everything"),
    (lambda: DataLoader(rows(3), shuffle=True, batch_sampler=[[0]]), ValueError, "everything"),
    (lambda: DataLoader(rows(3), sampler=[0], batch_sampler=[[0]]), ValueError, "everything"),
    (lambda: DataLoader(rows(3), drop_last=True, batch_sampler=[[0]]), ValueError, "everything"),
    (lambda: DataLoader(rows(3), None, drop_last=True), ValueError, "drop_last=True needs batches"),
    (lambda: next(iter(DataLoader(rows(3), batch_sampler=[[]]))), ValueError, "at least one"),
    (lambda: next(iter(DataLoader(rows(3), sampler=[3]))), IndexError, "3"),
])  # fmt: skip
def test_what_no_loader_can_be_made_of_is_told(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- loading ahead ----

LOADERS = {
    "in order": lambda g: dict(batch_size=3),
    "shuffled": lambda g: dict(batch_size=3, shuffle=True, generator=g),
    "drop_last": lambda g: dict(batch_size=3, shuffle=True, generator=g, drop_last=True),
    "one by one": lambda g: dict(batch_size=None, shuffle=True, generator=g),
    "replacement": lambda g: dict(batch_size=4, sampler=RandomSampler(range(10), True, 14, g)),
    "rounds": lambda g: dict(batch_size=4, sampler=RandomSampler(range(10), False, 25, g)),
    "subset": lambda g: dict(sampler=SubsetRandomSampler([9, 2, 4], g)),
    "weighted": lambda g: dict(batch_size=2, sampler=WeightedRandomSampler(range(10), 9, True, g)),
    "weighted, once": lambda g: dict(sampler=WeightedRandomSampler(range(10), 5, False, g)),
    "list": lambda g: dict(batch_size=2, sampler=[3, 1, 4, 1, 5]),
    "batches": lambda g: dict(batch_sampler=BatchSampler(RandomSampler(range(10), generator=g), 4)),
}
every_loader = pytest.mark.parametrize("settings", LOADERS.values(), ids=LOADERS)


@every_loader
@pytest.mark.parametrize("n", [1, 2, 50])
def test_loading_ahead_changes_neither_batches_nor_draws(settings, n):
    def epochs(prefetch):
        generator = Generator(4)
        loader = DataLoader(rows(10), prefetch=prefetch, **settings(generator))
        return [(plain([*loader]), generator.get_state()) for _ in range(3)]

    assert epochs(n) == epochs(0)


def test_loading_ahead_asks_for_the_same_samples_in_the_same_order():
    def asked(prefetch):
        coins = Generator(1)
        drawn = []

        class Jittered(Dataset):
            def __len__(self):
                return 7

            def __getitem__(self, i):
                drawn.append((i, int(coins.integers(0, 1000, ()))))
                return drawn[-1]

        loader = DataLoader(Jittered(), 2, True, generator=Generator(0), prefetch=prefetch)
        return [plain([*loader]) for _ in range(2)], drawn

    assert asked(0) == asked(3)


@pytest.mark.parametrize("n", [1, 3])
def test_no_more_is_loaded_ahead_than_there_is_room_for(n):
    asked, enough = [], threading.Semaphore(0)

    class Watched(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            asked.append(i)
            enough.release()
            return i

    loop = iter(DataLoader(Watched()))
    assert next(loop).tolist() == [0] and asked == [0] and helpers() == []  # nothing, unless asked
    asked.clear()
    assert enough.acquire(timeout=20)
    loop = iter(DataLoader(Watched(), prefetch=n))
    assert asked == [] and helpers() == []  # a loop that nobody has begun
    for k in range(1, 6):
        assert next(loop).tolist() == [k - 1]
        for _ in range(n + 1 if k == 1 else 1):
            assert enough.acquire(timeout=20)
        assert asked == [*range(k + n)] and not enough.acquire(timeout=0.01)
    (thread,) = helpers()
    loop.close()
    assert not thread.is_alive() and asked == [*range(5 + n)]


class Failing(Dataset):
    "Eight samples, of which number 5 is an error."

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 5:
            raise self.error  # here
        return i


ahead = pytest.mark.parametrize("prefetch", [0, 1, 2, 9])


@ahead
def test_an_error_comes_where_its_batch_would_have_with_its_traceback_and_place(prefetch):
    loader, got = DataLoader(Failing(OSError("torn")), 2, prefetch=prefetch), []
    loop = iter(loader)
    with pytest.raises(OSError, match="torn") as caught:
        for batch in loop:
            got.append(batch.tolist())
    assert got == [[0, 1], [2, 3]] and next(loop, None) is None and helpers() == []
    assert extract_tb(caught.tb)[-1].line == "raise self.error  # here"
    sample, batch = caught.value.__notes__
    assert "sample 5 of the data set" in sample and "batch 2 of an epoch" in batch


@ahead
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_is_raised_is_raised_in_the_loop(prefetch, error):
    with pytest.raises(error):
        list(DataLoader(Failing(error()), 2, prefetch=prefetch))


@ahead
def test_a_stray_stop_iteration_does_not_end_an_epoch(prefetch):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(DataLoader(Failing(StopIteration()), 2, prefetch=prefetch))
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(DataLoader(Failing(StopIteration()), None, prefetch=prefetch))


@ahead
def test_errors_of_collating_name_the_batch_and_without_batches_the_sample_is_one(prefetch):
    samples = [1, 2, 3, None]
    with pytest.raises(TypeError, match="NoneType") as caught:
        list(DataLoader(samples, sampler=[0, 3], prefetch=prefetch))
    assert caught.value.__notes__ == ["This was for batch 1 of an epoch, counted from 0."]
    with pytest.raises(IndexError) as caught:
        list(DataLoader(rows(3), sampler=[0, 1, 9], prefetch=prefetch))
    assert "batch 2" in caught.value.__notes__[-1]
    with pytest.raises(OSError) as caught:
        list(DataLoader(Failing(OSError), None, sampler=[0, 5], prefetch=prefetch))
    assert "sample 5" in caught.value.__notes__[0] and "batch 1" in caught.value.__notes__[1]


@ahead
def test_leaving_a_loop_ends_its_thread(prefetch):
    loader = DataLoader(rows(50), prefetch=prefetch)
    for _ in loader:
        break
    assert helpers() == []
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0  # noqa: B018
    assert helpers() == []
    loop = iter(loader)
    next(loop)
    assert len(helpers()) == bool(prefetch)
    del loop
    assert helpers() == []

    def first():
        for _, y in loader:
            return y.item()

    assert first() == 0 and helpers() == []
    (a, *_), *_ = zip(loader, range(3))
    assert helpers() == []


@ahead
def test_loops_in_loops_and_side_by_side(prefetch):
    loader = DataLoader(rows(4), 2, True, generator=Generator(0), prefetch=prefetch)
    plainly = DataLoader(rows(4), 2, True, generator=Generator(0))
    pairs, expected = (
        [(a[1].tolist(), b[1].tolist()) for a in each for b in each] for each in (loader, plainly)
    )
    assert pairs == expected and len(pairs) == 4
    assert [a[1].tolist() for a, _ in zip(loader, loader)] != []
    for _ in loader:
        for _ in loader:
            break
    assert helpers() == []


def test_the_thread_has_the_context_of_the_loop():
    class Recording(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return is_grad_enabled()

    for prefetch in (0, 2):
        loader = DataLoader(Recording(), 3, prefetch=prefetch)
        assert next(iter(loader)).tolist() == [True] * 3
        with no_grad():
            assert next(iter(loader)).tolist() == [False] * 3


def test_gradients_pass_through_batches_that_were_loaded_ahead():
    data = TensorDataset(Tensor([1.0, 2.0, 3.0], requires_grad=True))
    for (x,) in DataLoader(data, 2, prefetch=2):
        (x * x).sum().backward()
    assert data.tensors[0].grad.tolist() == [2.0, 4.0, 6.0]


@pytest.fixture
def ctrl_c():
    "SIGINT raises KeyboardInterrupt, even in a process that was started in the background."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@ahead
def test_ctrl_c_gets_through(prefetch, ctrl_c):
    main, got = threading.main_thread().ident, []

    class Interrupting(Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, i):
            if i == 3:
                signal.pthread_kill(main, signal.SIGINT)
            return i

    with pytest.raises(KeyboardInterrupt):
        for x in DataLoader(Interrupting(), prefetch=prefetch):
            got += x.tolist()
    assert got == [*range(len(got))] and len(got) < 1000
    for thread in helpers():  # whoever waited for the thread does so no longer
        thread.join(20)


def test_ctrl_c_does_not_wait_for_a_thread_that_takes_too_long(monkeypatch):
    go_on = threading.Event()

    class Interrupted(loading.SimpleQueue):
        def get(self):
            if len(got) == 3:
                raise KeyboardInterrupt
            return super().get()

    class Slow(Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            assert i != 3 or go_on.wait(60)
            return i

    monkeypatch.setattr(loading, "SimpleQueue", Interrupted)
    got = []
    with pytest.raises(KeyboardInterrupt):
        for x in DataLoader(Slow(), prefetch=2):
            got += x.tolist()
    (thread,) = helpers()  # still at it
    go_on.set()
    thread.join(20)
    assert got == [0, 1, 2] and not thread.is_alive()


def test_nothing_is_held_once_a_loop_has_been_left():
    class Batch:
        pass

    refs = []

    def made(samples):
        refs.append(weakref.ref(batch := Batch()))
        return batch

    gc.disable()
    try:
        for samples in (range(9), Failing(OSError)):
            for stop in (4, 99):
                loader = DataLoader(samples, prefetch=2, collate_fn=made)
                with suppress(OSError):
                    for batch in islice(loader, stop):
                        assert type(batch) is Batch
                del batch, loader
                assert len(refs) >= 4 and all(ref() is None for ref in refs)
                refs.clear()
    finally:
        gc.enable()


def test_a_loop_may_be_collected_by_its_own_thread():
    class Knot:
        pass

    class Collecting(Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, i):
            if i == 1:
                assert dropped.wait(20)
                gc.collect()
            return i

    dropped = threading.Event()
    gc.disable()
    try:
        knot = Knot()
        knot.knot, knot.loop = knot, iter(DataLoader(Collecting(), prefetch=1))
        next(knot.loop)
        (thread,) = helpers()
        del knot
        dropped.set()
        thread.join(20)
        assert not thread.is_alive()
    finally:
        gc.enable()


def test_a_program_ends_though_a_loop_has_not():
    program = """
from minima.data import DataLoader
loop = iter(DataLoader(range(1000), prefetch=3))
class Knot: pass
knot = Knot()
knot.knot, knot.loop = knot, loop
print(next(loop).item())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout.split() == [b"0"] and done.stderr == b""


# ---- from the middle of an epoch ----


def batches_of(loader, epochs=1):
    "The batches of some epochs, as lists of which samples."
    return [plain(batch[1]) for _ in range(epochs) for batch in loader]


@every_loader
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 2])
def test_a_loader_goes_on_with_the_batches_that_were_left(settings, before, after):
    def make(seed, prefetch):
        return DataLoader(rows(10), prefetch=prefetch, **settings(Generator(seed)))

    loader, seen, states = make(0, before), [], [json.dumps(make(0, 0).state_dict())]
    for _ in range(2):
        for batch in loader:
            seen.append(plain(batch[1]))
            states.append(json.dumps(loader.state_dict()))
    seen += batches_of(loader)
    for k, state in enumerate(states):
        resumed = make(99, after)
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state  # nothing has happened yet
        ended = (k - 1) // len(loader) if k else 0  # the last batch does not end an epoch
        assert batches_of(resumed, 3 - ended) == seen[k:]


@ahead
def test_between_epochs_the_state_is_that_of_a_beginning(prefetch):
    loader = DataLoader(rows(5), 2, True, generator=Generator(0), prefetch=prefetch)
    fresh = loader.state_dict()
    assert fresh == {"generator": {"seed": 0, "offset": 0}, "epoch": None}
    batches_of(loader)
    assert loader.state_dict() == {"generator": {"seed": 0, "offset": 1}, "epoch": None}
    loop = iter(loader)
    assert loader.state_dict()["epoch"]["batches"] == 0
    next(loop)
    assert loader.state_dict()["epoch"]["batches"] == 1
    loader.load_state_dict(fresh)
    assert loader.state_dict() == fresh
    assert batches_of(loader) == batches_of(DataLoader(rows(5), 2, True, generator=Generator(0)))


@ahead
def test_a_loop_that_was_left_can_be_taken_up_and_a_new_one_begins_anew(prefetch):
    def make():
        return DataLoader(rows(9), 2, True, generator=Generator(3), prefetch=prefetch)

    whole = batches_of(make(), 2)
    loader = make()
    for _, y in loader:
        if plain(y) == whole[1]:
            break
    state = loader.state_dict()
    assert batches_of(loader) == whole[5:]  # the next loop is the next epoch
    loader.load_state_dict(state)
    assert batches_of(loader) == whole[2:5] and batches_of(loader) == whole[5:]
    loader.load_state_dict(state)
    loader.load_state_dict(state)
    next(iter(loader))
    again = loader.state_dict()
    assert again["epoch"]["batches"] == 3
    loader.load_state_dict(again)
    assert batches_of(loader, 2) == whole[3:]


def test_the_state_is_that_of_the_loop_begun_last():
    loader = DataLoader(rows(6), 2)
    outer = iter(loader)
    next(outer)
    inner = iter(loader)
    assert loader.state_dict()["epoch"]["batches"] == 0
    next(inner), next(inner), next(outer)
    assert loader.state_dict()["epoch"]["batches"] == 2
    list(outer)
    assert loader.state_dict()["epoch"]["batches"] == 2
    list(inner)
    assert loader.state_dict()["epoch"] is None


@pytest.mark.parametrize("prefetch", [0, 3])
def test_draws_from_a_shared_generator_go_on_as_well(prefetch):
    def step(y):
        return plain(y), default_generator.uniform(2).tolist()  # dropout, say

    def make():
        return DataLoader(rows(8), 2, shuffle=True, prefetch=prefetch)

    manual_seed(5)
    loader, steps, states = make(), [], []
    for _ in range(3):
        for _, y in loader:
            steps.append(step(y))
            states.append(loader.state_dict())
    for k in (1, 4, 7):
        manual_seed(77)
        loader = make()
        loader.load_state_dict(states[k - 1])
        rest = [step(y) for _ in range(3 - (k - 1) // 4) for _, y in loader]
        assert rest == steps[k:]


def test_the_state_is_small_however_large_the_data_set():
    loader = DataLoader(range(100_000), 7, True, generator=Generator(2**64 - 1))
    next(iter(loader))
    assert len(json.dumps(loader.state_dict())) < 250


def test_an_error_leaves_a_state_to_try_again_from():
    loader = DataLoader(Failing(OSError), 2, sampler=[1, 2, 3, 5, 4, 6], prefetch=2)
    with pytest.raises(OSError):
        list(loader)
    assert loader.state_dict()["epoch"]["batches"] == 1
    resumed = DataLoader(range(8), 2, sampler=[1, 2, 3, 5, 4, 6])
    resumed.load_state_dict(loader.state_dict())
    assert plain([*resumed]) == [[3, 5], [4, 6]]


class Own:
    "A sampler that draws from `source`, which it keeps by some name."

    def __init__(self, source, name="generator"):
        setattr(self, name, source)
        self.draw = source.permutation

    def __len__(self):
        return 6

    def __iter__(self):
        return iter(self.draw(6).tolist())


def test_a_sampler_of_ones_own_takes_part_if_it_shows_its_generator():
    def run(seed, state=None):
        loader = DataLoader(rows(6), sampler=Own(Generator(seed)))
        if state:
            loader.load_state_dict(state)
        loop = iter(loader)
        first = [plain(y) for _, y in islice(loop, 2)]
        state = loader.state_dict()
        return first, state, [plain(y) for _, y in loop], batches_of(loader)

    _, state, rest, following = run(0)
    resumed = run(1, state)
    assert [*resumed[0], *resumed[2]] == rest and resumed[3] == following


STEADY = dict(batch_size=2, shuffle=True)


@pytest.mark.parametrize("other, message", [
    (lambda: DataLoader(rows(7), **STEADY), "another order"),
    (lambda: DataLoader(rows(6), 3, True), "another order"),
    (lambda: DataLoader(rows(6), sampler=RandomSampler(range(6), True), batch_size=2), "another"),
    (lambda: DataLoader(rows(6), 2), "draws its orders, and here is one that does"),
    (lambda: DataLoader(rows(6), 2, sampler=Own(Generator(0), "hidden")), "here is one that does"),
])  # fmt: skip
def test_another_order_is_refused_and_nothing_has_happened(other, message):
    loader = DataLoader(rows(6), generator=Generator(0), **STEADY)
    next(iter(loader))
    state, target = loader.state_dict(), other()
    manual_seed(3)
    before = default_generator.get_state(), target.state_dict()
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(state)
    assert (default_generator.get_state(), target.state_dict()) == before


def test_chance_that_a_sampler_hides_is_noticed():
    def make(seed):
        return DataLoader(rows(6), sampler=Own(np.random.default_rng(seed)))

    loader = make(0)
    next(iter(loader))
    with pytest.raises(ValueError, match="keeps the Generator that it draws from as .generator"):
        make(1).load_state_dict(loader.state_dict())


GOOD = {"generator": {"seed": 0, "offset": 1}, "epoch": None}
EPOCH = {"generator": {"seed": 0, "offset": 0}, "batches": 1, "checksum": 0}


@pytest.mark.parametrize("state, error, message", [
    (None, TypeError, r"dict from state_dict\(\); got a NoneType"),
    ([1], TypeError, "got a list"),
    ({}, ValueError, r"keys \['epoch', 'generator'\]; got \[\]"),
    (GOOD | {"more": 1}, ValueError, "'more'"),
    (GOOD | {"generator": None}, ValueError, "of one that does not draw, and here is a"),
    (GOOD | {"generator": 5}, TypeError, "a state is a dict from get_state"),
    (GOOD | {"generator": {"seed": 0}}, ValueError, "'seed' and 'offset'"),
    (GOOD | {"epoch": 3}, TypeError, "got a int"),
    (GOOD | {"epoch": {}}, ValueError, r"got \[\]"),
    (GOOD | {"epoch": 0}, TypeError, "got a int"),
    (GOOD | {"epoch": {"batches": 1}}, ValueError, r"\['batches', 'checksum', 'generator'\]"),
    (GOOD | {"epoch": EPOCH}, ValueError, "another order"),
    (GOOD | {"epoch": EPOCH | {"generator": None}}, ValueError, "of one that does not draw"),
    (GOOD | {"epoch": EPOCH | {"generator": {}}}, ValueError, "'seed' and 'offset'"),
])  # fmt: skip
def test_what_is_no_state_is_told_and_changes_nothing(state, error, message):
    generator = Generator(7)
    loader = DataLoader(rows(4), 2, True, generator=generator)
    with pytest.raises(error, match=message):
        loader.load_state_dict(state)
    assert generator.get_state() == {"seed": 7, "offset": 0}
    assert loader.state_dict()["epoch"] is None


@pytest.mark.parametrize("batches", [-1, 4, 1.5, None, "1"])
def test_a_number_of_batches_that_cannot_be_is_told(batches):
    loader = DataLoader(rows(6), 2)
    next(iter(loader))
    state = loader.state_dict()
    state["epoch"]["batches"] = batches
    with pytest.raises(ValueError, match="an epoch has 3 batches; got"):
        DataLoader(rows(6), 2).load_state_dict(state)


# ---- beside PyTorch ----


@pytest.mark.parametrize("settings", [
    dict(batch_size=0),
    dict(batch_size=None, drop_last=True),
    dict(shuffle=True, sampler=[0]),
    dict(batch_sampler=[[0]], batch_size=2),
    dict(batch_sampler=[[0]], shuffle=True),
    dict(batch_sampler=[[0]], sampler=[0]),
    dict(batch_sampler=[[0]], drop_last=True),
    dict(num_workers=-1),
])  # fmt: skip
def test_what_pytorch_refuses_is_refused(torch, settings):
    for kind in (DataLoader, torch.utils.data.DataLoader):
        with pytest.raises(ValueError):
            kind(range(3), **settings)


@pytest.mark.parametrize("settings", [
    dict(batch_size=None),
    dict(batch_size=3, num_workers=0),
    dict(batch_sampler=[[4, 0], [1]]),
    dict(batch_size=2, sampler=[4, 0, 1], drop_last=True),
])  # fmt: skip
@pytest.mark.parametrize("make", [
    lambda tensor: [tensor([[i, 2 * i]]) for i in range(5)],
    lambda tensor: tensor([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]),
], ids=["list", "rows"])  # fmt: skip
def test_batches_of_every_kind_are_those_of_torch(torch, settings, make):
    pairs = (DataLoader, Tensor), (torch.utils.data.DataLoader, torch.tensor)
    ours, theirs = (kind(make(tensor), **settings) for kind, tensor in pairs)
    assert len(ours) == len(theirs) and plain([*ours]) == plain([*theirs])


# ---- what was once wrong elsewhere ----


def test_samples_are_collated_without_torch_and_by_default():
    ((batch,),) = DataLoader([(np.ones(2),), (np.zeros(2),)], batch_size=2)
    assert type(batch) is Tensor and batch.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_a_loader_does_not_shuffle_unless_asked():
    assert indices(DataLoader(rows(9), 9)) == [[*range(9)]]


def test_a_loader_has_a_length():
    assert len(DataLoader(rows(10), 4)) == 3


def test_a_dataset_need_not_understand_lists_of_indices():
    ((batch),) = DataLoader(Squares(3), batch_size=3)  # it asserts that it is asked for ints
    assert plain(batch) == {"i": [0, 1, 2], "square": [0.0, 1.0, 4.0]}
