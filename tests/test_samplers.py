"Samplers: which samples, how often, in which order; and that chance is what it should be."

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minima.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from minima.random import Generator, default_generator, manual_seed

RANDOM = {
    "random": lambda g: RandomSampler(range(9), generator=g),
    "replacement": lambda g: RandomSampler(range(9), True, generator=g),
    "fewer": lambda g: RandomSampler(range(9), num_samples=4, generator=g),
    "more": lambda g: RandomSampler(range(9), num_samples=25, generator=g),
    "subset": lambda g: SubsetRandomSampler([8, 1, 3, 7, 5], g),
    "weighted": lambda g: WeightedRandomSampler(np.arange(9), 12, generator=g),
    "weighted, once": lambda g: WeightedRandomSampler(np.arange(9), 6, False, g),
    "batches": lambda g: BatchSampler(RandomSampler(range(9), generator=g), 2),
}


def chi_square(counts, expected):
    "How far `counts` are from what was `expected`, in its standard deviations."
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


# ---- what always holds ----


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_an_order_follows_from_the_state_of_the_generator(make):
    generator = Generator(5)
    sampler = make(generator)
    state = generator.get_state()
    first, second = list(sampler), list(sampler)
    assert first != second and len(first) == len(sampler)
    generator.set_state(state)
    assert [list(sampler), list(sampler)] == [first, second]
    assert list(make(Generator(5))) == first != list(make(Generator(6)))


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_indices_are_python_ints(make):
    for i in make(Generator(0)):
        assert type(i) is int or all(type(j) is int for j in i)


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_a_loop_draws_when_it_begins_and_not_on_the_way(make):
    generator = Generator(0)
    loop = iter(make(generator))
    state = generator.get_state()
    assert state["offset"] > 0
    list(loop)
    assert generator.get_state() == state


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_the_default_generator_draws_if_no_other_does(make):
    own = list(make(Generator(7)))
    before = default_generator.get_state()
    list(make(Generator(0)))
    assert default_generator.get_state() == before
    sampler = make(None)
    manual_seed(7)
    assert list(sampler) == own


# ---- each sample once ----


def test_in_order():
    assert list(SequentialSampler("abc")) == [0, 1, 2] and len(SequentialSampler("abc")) == 3


@given(st.integers(1, 30), st.integers(1, 100), st.integers(0, 2**32))
def test_by_chance_every_sample_comes_as_often_as_any_other(n, num_samples, seed):
    counts = Counter(RandomSampler(range(n), num_samples=num_samples, generator=Generator(seed)))
    assert counts.total() == num_samples and set(counts) <= set(range(n))
    assert max(counts.values()) - min(counts[i] for i in range(n)) <= 1


def test_more_samples_than_there_are_come_in_rounds():
    order = list(RandomSampler(range(4), num_samples=10, generator=Generator(0)))
    assert sorted(order[:4]) == sorted(order[4:8]) == [0, 1, 2, 3] and len(set(order[8:])) == 2


def test_a_subset_comes_whole():
    assert sorted(SubsetRandomSampler("acb", Generator(0))) == ["a", "b", "c"]
    assert list(SubsetRandomSampler([], Generator(0))) == []


@pytest.mark.parametrize("make", [
    lambda g: RandomSampler(range(4), generator=g),
    lambda g: SubsetRandomSampler(range(4), g),
    lambda g: WeightedRandomSampler([0.5] * 4, 4, False, g),
], ids=["random", "subset", "weighted"])  # fmt: skip
def test_all_orders_are_equally_likely(make):
    sampler = make(Generator(11))
    counts = Counter(tuple(sampler) for _ in range(4800))
    assert abs(chi_square([counts[p] for p in permutations(range(4))], [200] * 24)) < 4


def test_a_data_set_may_grow():
    data = [1, 2]
    sampler = RandomSampler(data, generator=Generator(0))
    data.append(3)
    assert len(sampler) == 3 and sorted(sampler) == [0, 1, 2]


@pytest.mark.parametrize("replacement", [False, True])
def test_of_nothing_nothing_comes(replacement):
    assert list(RandomSampler([], replacement)) == []
    with pytest.raises(ValueError, match="cannot draw 2 samples from an empty data set"):
        list(RandomSampler([], replacement, 2))


# ---- with replacement, and by weight ----


def test_with_replacement_all_are_equally_likely_and_do_not_know_of_each_other():
    order = np.array(list(RandomSampler(range(5), True, 20_000, Generator(1))))
    assert abs(chi_square(np.bincount(order, minlength=5), [4000] * 5)) < 4
    pairs = np.bincount(order[:-1] * 5 + order[1:], minlength=25)
    assert abs(chi_square(pairs, [19_999 / 25] * 25)) < 4


@pytest.mark.parametrize("weights", [
    [1, 2, 3, 4],
    [0.001, 0.002, 0.001],
    [1e300, 3e300],
    [1e-300, 3e-300],
    np.array([5, 1, 1], dtype="uint8"),
    (1.0,) * 20,
])  # fmt: skip
def test_with_replacement_counts_are_as_the_weights(weights):
    n, sampler = 20_000, WeightedRandomSampler(weights, 20_000, generator=Generator(2))
    expected = np.asarray(weights, float) / np.asarray(weights, float).sum() * n
    assert abs(chi_square(np.bincount([*sampler], minlength=len(weights)), expected)) < 4


def test_by_weight_draws_do_not_know_of_each_other():
    order = np.array([*WeightedRandomSampler([1, 2, 1], 20_000, generator=Generator(3))])
    pairs = np.bincount(order[:-1] * 3 + order[1:], minlength=9)
    share = np.array([1, 2, 1]) / 4
    assert abs(chi_square(pairs, np.outer(share, share).ravel() * 19_999)) < 4


@pytest.mark.parametrize("replacement", [True, False])
def test_what_weighs_nothing_never_comes(replacement):
    weights = np.array([0, 0, 3, 0, 1, 2, 0, 0.0])
    for seed in range(200):
        order = [*WeightedRandomSampler(weights, 3, replacement, Generator(seed))]
        assert (weights[order] > 0).all()
        assert replacement or sorted(order) == [2, 4, 5]


@pytest.mark.parametrize("dart", [0.0, np.nextafter(7.0, 0)])
def test_darts_at_the_very_ends_hit_something(dart, monkeypatch):
    generator = Generator(0)
    monkeypatch.setattr(Generator, "uniform", lambda self, n, low, high, dtype: np.full(n, dart))
    (i,) = WeightedRandomSampler([0, 3, 0, 4, 0], 1, generator=generator)
    assert i == (1 if dart == 0 else 3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_without_replacement_orders_are_those_of_one_draw_after_another(k):
    weights, rounds = np.array([1.0, 0, 2, 5, 0.5]), 8000
    sampler = WeightedRandomSampler(weights, k, False, Generator(4))
    counts = Counter(tuple(sampler) for _ in range(rounds))
    orders = [*permutations([0, 2, 3, 4], k)]
    expected = []
    for order in orders:
        left, likely = weights.sum(), 1.0
        for i in order:
            likely, left = likely * weights[i] / left, left - weights[i]
        expected.append(likely * rounds)
    assert counts.total() == sum(counts[order] for order in orders)
    assert sum(expected) == pytest.approx(rounds)
    assert abs(chi_square([counts[order] for order in orders], expected)) < 4


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20).filter(any), st.data())
def test_without_replacement_nothing_comes_twice(weights, data):
    k = data.draw(st.integers(1, np.count_nonzero(weights)))
    order = [*WeightedRandomSampler(weights, k, False, Generator(k))]
    assert len(set(order)) == k == len(order) and all(weights[i] > 0 for i in order)


def test_by_weight_frequencies_are_those_of_torch(torch):
    weights, n = [0.1, 0.9, 0.4, 0.7, 3.0, 0.6], 20_000
    kinds = WeightedRandomSampler, torch.utils.data.WeightedRandomSampler
    generators = Generator(0), torch.Generator().manual_seed(0)
    counts = [
        np.bincount([*kind(weights, n, generator=g)], minlength=6)
        for kind, g in zip(kinds, generators, strict=True)
    ]
    sigma = np.sqrt(counts[0] + counts[1])
    assert (abs(counts[0] - counts[1]) < 4 * sigma).all()


# ---- several at a time ----


@given(st.integers(0, 30), st.integers(1, 12), st.booleans())
def test_batches_are_those_of_torch(torch, n, batch_size, drop_last):
    ours = BatchSampler(range(n), batch_size, drop_last)
    theirs = torch.utils.data.BatchSampler(range(n), batch_size, drop_last)
    assert [*ours] == [*theirs] and len(ours) == len(theirs) == len([*ours])


@pytest.mark.parametrize("order", [[3, 1, 2], (3, 1, 2), "abc", {3: 0, 1: 0, 2: 0}])
def test_batches_are_made_of_any_order(order):
    assert [*BatchSampler(order, 2)] == [[*order][:2], [*order][2:]]


def test_lengths_are_those_of_torch(torch):
    theirs = torch.utils.data
    for ours, other in [
        (RandomSampler(range(5)), theirs.RandomSampler(range(5))),
        (RandomSampler(range(5), True, 8), theirs.RandomSampler(range(5), True, 8)),
        (RandomSampler(range(5), num_samples=8), theirs.RandomSampler(range(5), num_samples=8)),
        (SubsetRandomSampler([4, 2]), theirs.SubsetRandomSampler([4, 2])),
        (WeightedRandomSampler([1, 2], 7), theirs.WeightedRandomSampler([1, 2], 7)),
    ]:
        assert len(ours) == len(other) == len([*ours]) == len([*other])


# ---- what can be told early ----


@pytest.mark.parametrize("make, error, message", [
    (lambda: RandomSampler("ab", num_samples=0), ValueError, "num_samples.*positive.*got 0"),
    (lambda: RandomSampler("ab", num_samples=2.0), ValueError, "num_samples.*got 2.0"),
    (lambda: RandomSampler("ab", num_samples=True), ValueError, "num_samples.*got True"),
    (lambda: RandomSampler("ab", generator=0), TypeError, "a Generator, such as"),
    (lambda: SubsetRandomSampler([1], 0), TypeError, "a Generator, such as"),
    (lambda: WeightedRandomSampler([1], 0), ValueError, "num_samples.*got 0"),
    (lambda: WeightedRandomSampler([1], 1, generator=0), TypeError, "a Generator, such as"),
    (lambda: WeightedRandomSampler([[1.0]], 1), ValueError, r"the shape \(1, 1\)"),
    (lambda: WeightedRandomSampler([], 1), ValueError, "not all 0"),
    (lambda: WeightedRandomSampler([0, 0], 1), ValueError, "not all 0"),
    (lambda: WeightedRandomSampler([1, -1], 1), ValueError, "at least 0"),
    (lambda: WeightedRandomSampler([1, np.nan], 1), ValueError, "finite"),
    (lambda: WeightedRandomSampler([1, np.inf], 1), ValueError, "finite"),
    (lambda: WeightedRandomSampler([1e308] * 2, 1), ValueError, "finite"),
    (lambda: WeightedRandomSampler([1, 0, 1], 3, False), ValueError, "3 samples.* from 2 whose"),
    (lambda: BatchSampler("ab", 0), ValueError, "batch_size.*got 0"),
    (lambda: BatchSampler("ab", None), ValueError, "batch_size.*got None"),
])  # fmt: skip
def test_what_no_sampler_can_be_made_of_is_told(make, error, message):
    with pytest.raises(error, match=message):
        make()
