"Data sets, parts of them, several in a row, and splits by chance."

import re
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima.autograd import Tensor
from minima.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from minima.random import Generator, default_generator, manual_seed


class Made(Dataset):
    "Samples that are made when they are asked for, by an int."

    def __len__(self):
        return 3

    def __getitem__(self, i):
        assert type(i) is int
        return i * i


def rows(n):
    "A TensorDataset of `n` samples, each a pair that says which it is."
    return TensorDataset(np.arange(2.0 * n).reshape(n, 2), np.arange(n))


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
    assert [*Made()] == [0, 1, 4]
    with pytest.raises(NotImplementedError, match="Dataset has no __len__"):
        len(Dataset())
    with pytest.raises(NotImplementedError, match="Dataset has no __getitem__"):
        Dataset()[0]


# ---- parts ----


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda v: np.array(v, dtype="uint8")])
def test_a_subset_has_the_samples_asked_for_in_that_order(make):
    part = Subset("abcd", make([3, 0, 0]))
    assert len(part) == 3 and [*part] == ["d", "a", "a"] and part[-1] == "a"
    assert part.indices.tolist() == [3, 0, 0] and part.dataset == "abcd"
    with pytest.raises(IndexError):
        part[3]


def test_a_subset_asks_with_python_ints_and_only_when_asked():
    assert [*Subset(Made(), np.array([2, 1]))] == [4, 1]


def test_a_subset_of_tensors_takes_slices_lists_and_masks():
    part = Subset(rows(6), [5, 1, -2])
    assert part[:][1].tolist() == [5, 1, 4] and part[::-1][1].tolist() == [4, 1, 5]
    assert part[[2, 0]][1].tolist() == part[np.array([True, False, True])][1].tolist()[::-1]
    again = Subset(part, [2, 2, 0])
    assert again[:][1].tolist() == [4, 4, 5] and again[1][1].item() == 4


@pytest.mark.parametrize("indices", [[], (), np.zeros(0)])
def test_a_subset_may_be_empty(indices):
    part = Subset(rows(3), indices)
    assert len(part) == 0 and [*part] == [] and part.indices.dtype.kind == "i"


@pytest.mark.parametrize("indices, error, message", [
    ([0, 3], IndexError, "no sample 3: the data set has 3"),
    ([0, -4, 2], IndexError, "no sample -4: the data set has 3"),
    ([True, False, True], TypeError, r"got bool, of shape \(3,\). Of a mask: np.flatnonzero"),
    ([0.0, 1.0], TypeError, "got float64"),
    ([[0, 1]], TypeError, r"shape \(1, 2\)"),
    (1, TypeError, r"shape \(\)"),
])  # fmt: skip
def test_indices_that_cannot_be_are_told_at_once(indices, error, message):
    with pytest.raises(error, match=message):
        Subset(rows(3), indices)


# ---- several in a row ----


@pytest.mark.parametrize("parts", [["abc"], ["", "a", "", "", "bcd", ""], ["ab", [1, 2], "c"]])
def test_data_sets_in_a_row_are_one(parts):
    whole, expected = ConcatDataset(iter(parts)), [x for part in parts for x in part]
    assert len(whole) == len(expected) and [*whole] == expected
    assert [whole[i - len(whole)] for i in range(len(whole))] == expected
    assert whole[np.int64(0)] == expected[0]
    for i in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError, match=f"no sample {i}: the data set has {len(expected)}"):
            whole[i]


def test_plus_puts_data_sets_in_a_row():
    whole = Made() + Made()
    assert isinstance(whole, ConcatDataset) and [*whole] == [0, 1, 4, 0, 1, 4]


def test_nothing_in_a_row_and_slices_are_told():
    with pytest.raises(ValueError, match="at least one data set"):
        ConcatDataset([])
    with pytest.raises(TypeError, match="slice"):
        ConcatDataset(["ab"])[:1]


# ---- splits ----


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_split_by_lengths_has_each_sample_in_one_part(lengths, seed):
    parts = random_split(range(sum(lengths)), lengths, Generator(seed))
    assert [len(part) for part in parts] == lengths
    assert sorted(i for part in parts for i in part) == [*range(sum(lengths))]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 200))
def test_lengths_by_fractions_are_those_of_torch(torch, weights, n):
    fractions = [w / max(sum(weights), 1) for w in weights]
    assume(sum(weights) and sum(fractions) <= 1)  # else PyTorch takes them for lengths
    with warnings.catch_warnings(action="ignore"):  # it warns of empty parts
        theirs = torch.utils.data.random_split(range(n), fractions)
    assert [len(p) for p in random_split(range(n), fractions)] == [len(p) for p in theirs]


def test_a_fraction_may_be_rounded_away_or_above_one_by_rounding():
    fractions = [0.5, 0.5 + 1e-10]
    assert sum(fractions) > 1 and sum(map(len, random_split(range(100), fractions))) == 100
    assert [len(part) for part in random_split(range(1), [0.5, 0.5])] == [1, 0]
    assert [len(part) for part in random_split(range(7), [1.0])] == [7]


def test_a_split_follows_from_its_generator():
    def split(generator=None):
        return [part.indices.tolist() for part in random_split(range(50), [40, 10], generator)]

    assert split(Generator(1)) == split(Generator(1)) != split(Generator(2))
    generator = Generator(1)
    assert split(generator) != split(generator)
    manual_seed(1)
    assert split() == split(Generator(1))
    before = default_generator.get_state()
    split(Generator(0))
    assert default_generator.get_state() == before


def test_every_sample_is_as_likely_to_be_in_a_part_and_in_any_place():
    generator, n, rounds = Generator(3), 10, 2000
    counts = np.zeros((n, n))
    for _ in range(rounds):
        counts[np.arange(n), random_split(range(n), [n], generator)[0].indices] += 1
    chi_square = ((counts - rounds / n) ** 2).sum() / (rounds / n)
    assert abs(chi_square - 81) < 4 * (2 * 81) ** 0.5  # 9 x 9 degrees of freedom


@pytest.mark.parametrize("lengths, message", [
    ([5, 6], "sum to 11, but there are 10 samples"),
    ([], "sum to 0, but there are 10"),
    ([12, -2], r"\[12, -2\] sum to 10"),
    ([0.5, 0.6], r"sum to 1; got \[0.5, 0.6\]"),
    ([1.5, -0.5], "between 0 and 1"),
    ([5.0, 5.0], "between 0 and 1"),
    ([float("nan"), 1.0], "between 0 and 1"),
    ([1], "sum to 1, but there are 10"),
])  # fmt: skip
def test_lengths_that_cannot_be_are_told_and_draw_nothing(lengths, message):
    generator = Generator(0)
    with pytest.raises(ValueError, match=message):
        random_split(range(10), lengths, generator)
    assert generator.get_state()["offset"] == 0


def test_a_split_of_a_split_and_a_row_of_parts():
    train, test = random_split(rows(10), [0.8, 0.2], Generator(0))
    first, second = random_split(train, [4, 4], Generator(0))
    whole = first + second + test
    assert sorted(y.item() for _, y in whole) == [*range(10)]
    assert [len(d) for d in (first, second, test, whole)] == [4, 4, 2, 10]
