"Philox against published answers, masks against Philox, and generators that repeat."

import copy
import json
import pickle
import sys
from threading import Thread

import numpy as np
import pytest

from minima import random
from minima.autograd import ShapeError
from minima.backend import get_default_dtype, set_default_dtype
from minima.random import (
    Generator,
    as_shape,
    default_generator,
    fork_rng,
    keep_mask,
    manual_seed,
    philox,
    random_bits,
)

ONES = 0xFFFFFFFF
LARGEST = 2**64 - 1


def philox_of_ints(counter, key, rounds):
    "Philox 4x32 on Python ints, to compare with: Salmon et al. 2011, section 3.3."
    counter, key = list(counter), list(key)
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def element(seed, offset, i):
    "The 16 bits of one element, by the documented layout."
    block, place = divmod(i, 8)
    counter = block % 2**32, block // 2**32, offset % 2**32, offset // 2**32
    words = philox_of_ints(counter, (seed % 2**32, seed // 2**32), rounds=7)
    return words[place // 2] >> 16 * (place % 2) & 0xFFFF


# ---- Philox ----

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN_ANSWERS = [  # kat_vectors of Random123
    (7, (0, 0, 0, 0), (0, 0), "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, (ONES,) * 4, (ONES,) * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, *PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, (0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, (ONES,) * 4, (ONES,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, *PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("function", [philox, philox_of_ints])
@pytest.mark.parametrize("rounds, counter, key, answer", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(function, rounds, counter, key, answer):
    words = function(counter, key, rounds)
    assert [int(word) for word in words] == [int(word, 16) for word in answer.split()]


def test_philox_takes_seven_rounds_unless_told_otherwise():
    assert [*philox((0, 0, 0, 0), (0, 0))] == [*philox((0, 0, 0, 0), (0, 0), 7)]


@pytest.mark.parametrize("arrays", [[0], [0, 1], [2, 3], [0, 1, 2, 3]])
def test_philox_of_arrays_is_philox_of_each_and_leaves_its_arguments_alone(arrays):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2**32, (4, 37), dtype=np.uint64)
    numbers[:, 0], numbers[:, 1] = ONES, 0
    key = ONES, 0x80000001
    counter = [row.copy() if i in arrays else int(row[5]) for i, row in enumerate(numbers)]
    before = copy.deepcopy(counter)
    words = np.stack(philox(counter, key), axis=1)
    singles = [[int(c[n]) if i in arrays else c for i, c in enumerate(counter)] for n in range(37)]
    assert words.tolist() == [philox_of_ints(c, key, 7) for c in singles]
    assert all(np.array_equal(a, b) for a, b in zip(counter, before))


# ---- bits ----


@pytest.mark.parametrize("seed, offset", [(0, 0), (1, 2**40 + 3), (LARGEST, LARGEST)])
@pytest.mark.parametrize("start", [0, 5, 8 * 8192 - 3, 8 * 2**32 - 13, 8 * (2**32 + 8192) - 1])
def test_bits_have_the_documented_layout(seed, offset, start):
    bits = random_bits(seed, offset, 30, start)
    assert bits.dtype == np.uint16
    assert bits.tolist() == [element(seed, offset, start + i) for i in range(30)]


def test_fewer_bits_are_the_beginning_of_more():
    whole = random_bits(3, 4, 150_000)
    for size in (0, 1, 7, 8, 9, 1000, 65_535, 65_536, 65_537, 131_072, 149_999):
        assert np.array_equal(random_bits(3, 4, size), whole[:size]), size


def test_bits_do_not_depend_on_chunks_or_on_the_order_of_pieces(monkeypatch):
    whole = random_bits(3, 4, 10_000)
    cuts = [0, 1, 8, 100, 4093, 4099, 10_000]
    for chunk in (1, 64, 1024):
        monkeypatch.setattr(random, "_CHUNK", chunk)
        pieces = [random_bits(3, 4, b - a, a) for a, b in reversed([*zip(cuts, cuts[1:])])]
        assert np.array_equal(np.concatenate(pieces[::-1]), whole), chunk


def test_other_seeds_and_offsets_give_other_bits():
    words = [0, 1, 2**32, 2**32 + 1, 2**63]
    pairs = [random_bits(seed, offset, 64).tobytes() for seed in words for offset in words]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("seed", [0, 12345])
def test_bits_look_like_chance(seed):
    n = 2**18
    bits = random_bits(seed, 7, n)
    centred = (bits - 32767.5) / (65536 / 12**0.5)
    others = {
        "the mean": np.ones(n),
        "the next element": np.roll(centred, 1),
        "the next word": np.roll(centred, 2),
        "the next block": np.roll(centred, 8),
        "the next offset": (random_bits(seed, 8, n) - 32767.5) / (65536 / 12**0.5),
        "the next seed": (random_bits(seed + 1, 7, n) - 32767.5) / (65536 / 12**0.5),
    }
    for name, other in others.items():
        assert abs((centred * other).sum()) < 4 * n**0.5, name
    for byte in (bits >> 8, bits & 255, bits[::8] >> 8, bits[7::8] & 255):
        expected = len(byte) / 256
        chi_square = ((np.bincount(byte, minlength=256) - expected) ** 2).sum() / expected
        assert abs(chi_square - 255) < 4 * 510**0.5
    each = np.unpackbits(bits.view(np.uint8)).reshape(n, 16).sum(axis=0)
    assert (abs(each - n / 2) < 4.5 * n**0.5 / 2).all()


# ---- masks ----


def test_p_is_the_probability_of_being_dropped_not_of_being_kept():
    for p in (0.1, 0.25, 0.9):
        mask = keep_mask((400, 500), p, 0, 0)
        assert abs(mask.mean() - (1 - p)) < 4 * (p * (1 - p) / mask.size) ** 0.5


@pytest.mark.parametrize("p", [0.0, 1e-6, 1 / 65536, 0.3, 0.5, 65535 / 65536, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("shape", [(), 5, (3, 4), (2, 0, 3), [7, 1], (400, 1000)])
def test_an_element_is_kept_if_its_bits_reach_the_rounded_p(p, shape):
    mask = keep_mask(shape, p, 11, 12)
    bits = random_bits(11, 12, mask.size).astype(int)
    assert mask.dtype == bool and mask.shape == as_shape(shape)
    assert np.array_equal(mask.reshape(-1), bits >= round(p * 65536))


def test_p_zero_keeps_all_and_p_one_keeps_none():
    assert keep_mask(100_000, 0.0, 1, 2).all() and not keep_mask(100_000, 1.0, 1, 2).any()
    assert keep_mask(100_000, 0, 1, 2).all() and not keep_mask(100_000, np.float32(1), 1, 2).any()


def test_a_row_of_a_mask_can_be_made_by_itself():
    mask = keep_mask((50, 33), 0.4, 5, 6)
    assert np.array_equal(keep_mask((2, 33), 0.4, 5, 6, start=7 * 33), mask[7:9])
    assert mask.flags.c_contiguous


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: keep_mask(3, -0.1, 0, 0), ValueError, "from 0 to 1; got -0.1"),
        (lambda: keep_mask(3, 1.5, 0, 0), ValueError, "from 0 to 1; got 1.5"),
        (lambda: keep_mask(3, float("nan"), 0, 0), ValueError, "from 0 to 1; got nan"),
        (lambda: keep_mask((2, -1), 0.5, 0, 0), ShapeError, r"negative size; .* \(2, -1"),
        (lambda: keep_mask(2.0, 0.5, 0, 0), TypeError, "int or a tuple of ints; got 2.0"),
        (lambda: keep_mask(3, 0.5, -1, 0), ValueError, "seed must be at least 0"),
        (lambda: random_bits(0, 2**64, 3), ValueError, "offset must be at least 0 and less than"),
        (lambda: random_bits(0.0, 0, 3), TypeError, "seed must be an int; got 0.0"),
        (lambda: random_bits(0, 0, -3), ValueError, "must not be negative; got size=-3"),
        (lambda: random_bits(0, 0, 3, -8), ValueError, "got size=3, start=-8"),
        (lambda: random_bits(0, 0, 1.5), TypeError, "size must be an int; got 1.5"),
    ],
)
def test_bits_and_masks_explain_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


# ---- the generator's state ----

DRAWS = {
    "uniform": lambda g: g.uniform((3, 5)),
    "normal": lambda g: g.normal(7, dtype="float64"),
    "integers": lambda g: g.integers(-5, 100, 9),
    "permutation": lambda g: g.permutation(11),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    "carry",
    [
        lambda g: Generator().set_state(g.get_state()),
        lambda g: Generator(1).set_state(json.loads(json.dumps(g.get_state()))),
        lambda g: pickle.loads(pickle.dumps(g)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["state", "json", "pickle", "copy", "deepcopy"],
)
@pytest.mark.parametrize("seed", [0, LARGEST])
def test_a_state_that_is_saved_and_restored_repeats_itself_exactly(name, carry, seed):
    g = Generator(seed)
    g.normal(100)
    twin = carry(g)
    first, second = DRAWS[name](g), DRAWS[name](g)
    assert np.array_equal(DRAWS[name](twin), first) and np.array_equal(DRAWS[name](twin), second)
    assert not np.array_equal(first, second)
    assert g.get_state() == twin.get_state() == {"seed": seed, "offset": 3}


@pytest.mark.parametrize("name", DRAWS)
def test_every_draw_takes_one_offset_whatever_its_size(name):
    for size in (0, 1, 10_000):
        g = Generator(8)
        g.uniform(size)
        assert g.get_state()["offset"] == 1
        after = DRAWS[name](g)
        assert np.array_equal(after, DRAWS[name](Generator().set_state({"seed": 8, "offset": 1})))


def test_the_seed_decides():
    assert Generator(5).initial_seed() == 5
    assert np.array_equal(Generator(5).normal(9), Generator(5).normal(9))
    assert np.array_equal(Generator(5).normal(9), Generator(6).manual_seed(5).normal(9))
    assert not np.array_equal(Generator(5).normal(9), Generator(6).normal(9))
    g = Generator(5)
    g.draw()
    assert g.manual_seed(7) is g and g.draw() == (7, 0) and g.draw() == (7, 1)
    assert repr(g) == "Generator(seed=7, offset=2)"


def test_without_a_seed_no_two_generators_are_alike():
    seeds = {Generator().initial_seed() for _ in range(20)}
    assert len(seeds) == 20 and all(0 <= seed < 2**64 for seed in seeds) and max(seeds) > 2**32


def test_draws_of_one_seed_cannot_overlap():
    g = Generator(3)
    g.set_state({"seed": 3, "offset": LARGEST - 1})
    for offset in (LARGEST - 1, LARGEST):
        state = g.numpy().bit_generator.state["state"]
        assert state["counter"].tolist() == [0, 0, 0, offset] and state["key"].tolist() == [3, 0]


def test_threads_never_share_a_draw():
    g, drawn = Generator(0), []
    threads = [Thread(target=lambda: drawn.extend(g.draw() for _ in range(3000))) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(drawn) == [(0, i) for i in range(24_000)]


def test_the_whole_of_draw_happens_under_the_lock(monkeypatch):
    g, held = Generator(4), []

    class Lock:
        def __enter__(self):
            held.append(g.get_state()["offset"])

        def __exit__(self, *error):
            held.append(g.get_state()["offset"])

    monkeypatch.setattr(random, "_lock", Lock())
    g.draw()
    assert held == [0, 1]


# ---- what a generator draws ----


@pytest.fixture
def default_dtype():
    "Whatever a test makes the default dtype, afterwards it is what it was."
    before = get_default_dtype()
    yield
    set_default_dtype(before)


@pytest.mark.parametrize("draw", [Generator.uniform, Generator.normal])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_is_the_one_asked_for_or_the_default(draw, dtype, default_dtype):
    assert draw(Generator(0), 3, dtype=dtype).dtype == dtype
    assert draw(Generator(0), (), dtype=dtype).shape == ()
    set_default_dtype(dtype)
    assert draw(Generator(0), 3).dtype == dtype


def test_float32_is_sampled_directly_and_not_rounded_from_float64():
    for draw in (Generator.uniform, Generator.normal):
        single, double = (draw(Generator(0), 100, dtype=d) for d in ("float32", "float64"))
        assert not np.array_equal(single, double.astype("float32"))
    fine = Generator(0).uniform(1000, dtype="float32").astype(float) * 2**24
    assert np.array_equal(fine, fine.round())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (1.0, 2.0), (-3, -1), (100, 100.5), (0.1, 0.3)])
def test_uniform_reaches_low_and_stays_below_high(dtype, low, high):
    x = Generator(1).uniform(200_000, low, high, dtype)
    edge = np.asarray([low, high], dtype)
    assert edge[0] <= x.min() and x.max() < edge[1]
    assert abs(x.astype(float).mean() - (low + high) / 2) < 0.01 * (high - low)
    assert abs(x.astype(float).std() - (high - low) / 12**0.5) < 0.01 * (high - low)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_uniform_never_rounds_up_to_high(dtype, monkeypatch):
    class Largest:
        def random(self, shape, dtype):
            return np.full(shape, np.nextafter(np.ones((), dtype), np.zeros((), dtype)), dtype)

    monkeypatch.setattr(Generator, "numpy", lambda self: Largest())
    for low, high in [(0.0, 1.0), (1.0, 2.0), (-1.0, 0.0), (1000.0, 1001.0)]:
        assert (Generator(0).uniform(2, low, high, dtype) < high).all()


def test_uniform_is_evenly_spread():
    counts = np.bincount((Generator(2).uniform(100_000) * 100).astype(int), minlength=100)
    assert abs(((counts - 1000) ** 2).sum() / 1000 - 99) < 4 * 198**0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_has_its_mean_its_std_and_its_shape(dtype):
    x = Generator(3).normal((400, 500), mean=2.0, std=0.5, dtype=dtype).astype(float)
    z = (x - 2) / 0.5
    assert abs(z.mean()) < 4 / z.size**0.5 and abs(z.var() - 1) < 4 * (2 / z.size) ** 0.5
    for limit, inside in [(1, 0.682689), (2, 0.954500), (3, 0.997300)]:
        sigma = (inside * (1 - inside) / z.size) ** 0.5
        assert abs((abs(z) < limit).mean() - inside) < 4 * sigma
    assert (Generator(3).normal(5, mean=2.0, std=0.0) == 2).all()


def test_integers_cover_their_range_evenly():
    x = Generator(4).integers(-2, 3, (100, 500))
    assert x.dtype == np.int64 and x.shape == (100, 500)
    values, counts = np.unique(x, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert abs(((counts - 10_000) ** 2).sum() / 10_000 - 4) < 4 * 8**0.5
    assert Generator(4).integers(0, np.int64(2**40), 2).max() > 2**32


def test_permutations_are_permutations_and_all_of_them_happen():
    g = Generator(5)
    assert sorted(g.permutation(1000).tolist()) == [*range(1000)]
    assert g.permutation(0).shape == (0,) and g.permutation(5).dtype == np.int64
    assert len({tuple(g.permutation(3).tolist()) for _ in range(100)}) == 6


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda g: g.manual_seed(-1), ValueError, r"at least 0 and less than 2\*\*64; got -1"),
        (lambda g: g.manual_seed(2**64), ValueError, "less than"),
        (lambda g: g.manual_seed(0.0), TypeError, "seed must be an int; got 0.0"),
        (lambda g: g.manual_seed("7"), TypeError, "seed must be an int; got '7'"),
        (lambda g: g.manual_seed(None), TypeError, "seed must be an int; got None"),
        (lambda g: Generator(-1), ValueError, "seed must be at least 0"),
        (lambda g: g.set_state([1, 2]), TypeError, r"dict from get_state\(\); got a list"),
        (lambda g: g.set_state({"seed": 1}), ValueError, r"'seed' and 'offset'; got \['seed'\]"),
        (lambda g: g.set_state({"seed": 1, "offset": 0, "x": 0}), ValueError, "'x'"),
        (lambda g: g.set_state({"seed": 1, "offset": -1}), ValueError, "state's offset must be at"),
        (lambda g: g.set_state({"seed": 1.0, "offset": 0}), TypeError, "seed must be an int"),
        (lambda g: g.uniform((2, -1)), ShapeError, "negative size"),
        (lambda g: g.uniform(2.5), TypeError, "int or a tuple of ints; got 2.5"),
        (lambda g: g.uniform("ab"), TypeError, "int or a tuple of ints; got 'ab'"),
        (lambda g: g.uniform(2, 1.0, 0.0), ValueError, "low <= high; got low=1.0, high=0.0"),
        (lambda g: g.uniform(2, 0.0, float("inf")), ValueError, "finite"),
        (lambda g: g.uniform(2, float("nan"), 1.0), ValueError, "low=nan"),
        (lambda g: g.uniform(2, dtype="int32"), TypeError, "floating; got dtype 'int32'"),
        (lambda g: g.normal(2, dtype=bool), TypeError, "floating; got dtype 'bool'"),
        (lambda g: g.normal(2, std=-1.0), ValueError, "std >= 0; got mean=0.0, std=-1.0"),
        (lambda g: g.normal(2, mean=float("inf")), ValueError, "finite mean"),
        (lambda g: g.normal((2, 1.5)), TypeError, "tuple of ints"),
        (lambda g: g.integers(3, 3, 2), ValueError, "got low=3, high=3"),
        (lambda g: g.integers(0.5, 3, 2), TypeError, "low must be an int; got 0.5"),
        (lambda g: g.integers(0, 3, -2), ShapeError, "negative size"),
        (lambda g: g.permutation(-1), ValueError, "n >= 0; got -1"),
        (lambda g: g.permutation([1, 2]), TypeError, "n must be an int"),
    ],
)
def test_a_generator_explains_bad_arguments_and_they_use_up_nothing(call, error, words):
    g = Generator(9)
    g.draw()
    with pytest.raises(error, match=words):
        call(g)
    assert g.get_state() == {"seed": 9, "offset": 1}


def test_the_smallest_ranges_are_allowed():
    assert (Generator(0).uniform(3, 2.0, 2.0) == 2).all()
    assert (Generator(0).integers(2, 3, 4) == 2).all()


# ---- the default generator ----


@pytest.fixture
def undisturbed():
    "The default generator is afterwards as it was."
    state = default_generator.get_state()
    yield
    default_generator.set_state(state)


def test_manual_seed_seeds_the_default_generator_and_returns_it(undisturbed):
    assert manual_seed(12) is default_generator is random.default_generator
    assert default_generator.get_state() == {"seed": 12, "offset": 0}


def test_the_default_generator_goes_on_from_where_it_stood(undisturbed):
    manual_seed(5)
    default_generator.normal(3)
    state = random.get_rng_state()
    assert state == {"seed": 5, "offset": 1}
    drawn = default_generator.normal(3).tolist()
    manual_seed(6)
    assert random.set_rng_state(json.loads(json.dumps(state))) is None
    assert default_generator.normal(3).tolist() == drawn
    with pytest.raises(TypeError, match="a state is a dict"):
        random.set_rng_state(5)


def test_numpys_global_state_neither_matters_nor_changes(undisturbed):
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    manual_seed(12).normal(100)
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert np.array_equal(before["key"], after["key"]) and before["pos"] == after["pos"]


@pytest.mark.parametrize("own", [False, True])
def test_fork_rng_forgets_what_the_block_drew(own, undisturbed):
    g = Generator(1) if own else manual_seed(1)
    g.draw()
    with pytest.raises(KeyError), fork_rng(g if own else None) as forked:
        assert forked is g and g.draw() == (1, 1)
        forked.manual_seed(2).normal(10)
        raise KeyError
    assert g.get_state() == {"seed": 1, "offset": 1}
    assert own or default_generator is g


# ---- beside PyTorch ----


def test_a_generator_has_the_methods_of_pytorchs(torch):
    for g in (Generator(), torch.Generator()):
        assert g.manual_seed(2**64 - 1) is g and g.initial_seed() == 2**64 - 1
        state = g.get_state()
        g.manual_seed(0)
        g.set_state(state)
        assert g.initial_seed() == 2**64 - 1
