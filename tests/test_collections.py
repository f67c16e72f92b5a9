"The digits, Fashion-MNIST, toy data, and a text."

import gzip
import hashlib
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima.autograd import Tensor
from minima.data import (
    Characters,
    DataLoader,
    TensorDataset,
    collections,
    digits,
    fashion_mnist,
    moons,
    read_idx,
    spirals,
    topics,
    windows,
    xor,
)
from minima.random import Generator, default_generator

DIGITS_SHA256 = "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"


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


# ---- the IDX format ----


def idx(array, kind):
    "`array` in the IDX format; `kind` is the number of its type."
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


@pytest.mark.parametrize("kind, dtype", [
    (8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")
])  # fmt: skip
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0,), (2, 0, 3)])
def test_idx_files_of_every_type_are_read(kind, dtype, shape):
    rng = np.random.default_rng(0)
    array = rng.integers(-100 * (kind != 8), 100, shape).astype(dtype)
    found = read_idx(idx(array, kind))
    assert found.dtype == dtype and found.shape == shape and np.array_equal(found, array)


GOOD = idx(np.arange(6, dtype="u1").reshape(2, 3), 8)


@pytest.mark.parametrize("content, message", [
    (GOOD[:-1], r"17 bytes cannot have the shape \(2, 3\)"),
    (GOOD + b"x", "19 bytes"),
    (GOOD[:11], r"11 bytes"),
    (GOOD[:7], "7 bytes"),
    (GOOD[:4], "4 bytes"),
    (GOOD[:3], "begins with"),
    (b"", "begins with b''"),
    (b"\1" + GOOD[1:], "begins with"),
    (b"\0\1" + GOOD[2:], "begins with"),
    (GOOD[:2] + b"\x0a" + GOOD[3:], "begins with"),
    (GOOD[:4] + b"\xff" * 8 + GOOD[12:], "18 bytes cannot"),
    (GOOD[:3] + b"\xff" + GOOD[4:], "18 bytes cannot"),
])  # fmt: skip
def test_what_contradicts_itself_is_no_idx_file(content, message):
    with pytest.raises(ValueError, match=f"no IDX file: .*{message}"):
        read_idx(content)


@given(st.binary(max_size=40), st.integers(0, 20))
def test_any_bytes_are_an_array_or_refused(content, flaw):
    for sample in (content, bytes(GOOD[:flaw]) + content):
        try:
            array = read_idx(sample)
        except ValueError:
            continue
        assert len(sample) == 4 + 4 * array.ndim + array.nbytes


# ---- Fashion-MNIST ----

KINDS = "images-idx3-ubyte", "labels-idx1-ubyte"
NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in KINDS]


def write(folder, names=NAMES):
    "Small files of Fashion-MNIST's names in `folder`. Returns what is in them, by name."
    rng, contents = np.random.default_rng(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shape = (5 if "train" in name else 3, *(28, 28) * ("images" in name))
        contents[name] = idx(rng.integers(0, 256 if len(shape) > 1 else 10, shape).astype("u1"), 8)
        (folder / f"{name}.gz").write_bytes(gzip.compress(contents[name]))
    return contents


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "A machine without Fashion-MNIST; what is put in the folder returned is taken for it."
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("MINIMA_DATA", raising=False)
    usual, system = collections._USUAL_PLACES
    assert system == "/usr/share/datasets"
    monkeypatch.setattr(collections, "_USUAL_PLACES", (usual, str(tmp_path / "system")))
    sums = {name: hashlib.sha256(c).hexdigest() for name, c in write(tmp_path / "made").items()}
    monkeypatch.setattr(collections, "_FASHION_SHA256", sums)
    return tmp_path


@pytest.mark.parametrize("place", [
    "system/fashion-mnist",
    "home/.cache/minima",
    "home/.cache/minima/fashion-mnist",
    "variable",
    "variable/fashion-mnist",
    "root",
    "root/fashion-mnist",
])  # fmt: skip
def test_fashion_mnist_is_found_and_read(nowhere, monkeypatch, place):
    contents = write(nowhere / place)
    root = None
    if place.startswith("variable"):
        monkeypatch.setenv("MINIMA_DATA", str(nowhere / "variable"))
    if place.startswith("root"):
        root = nowhere / "root"
    for split, names in (("train", NAMES[:2]), ("test", NAMES[2:])):
        data = fashion_mnist(split, root)
        images, labels = (read_idx(contents[name]) for name in names)
        x, y = data[:]
        assert isinstance(data, TensorDataset) and (x.dtype, y.dtype) == ("float32", "int64")
        assert np.array_equal(x.array, images.reshape(-1, 784).astype("float32") / np.float32(255))
        assert np.array_equal(y.array, labels)
    whole = fashion_mnist(root=str(root) if root else None)
    assert len(whole) == 8 and whole[:][1].tolist()[5:] == y.tolist()
    assert len(whole.classes) == 10 and whole.classes[9] == "Ankle boot"


def test_the_variable_comes_before_the_other_places_and_root_excludes_them(nowhere, monkeypatch):
    write(nowhere / "system/fashion-mnist")
    monkeypatch.setenv("MINIMA_DATA", str(nowhere / "variable"))
    assert len(fashion_mnist("test")) == 3  # a variable that leads nowhere does no harm
    (nowhere / "variable").mkdir()
    (nowhere / "variable/t10k-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="variable/t10k-labels.*is damaged"):
        fashion_mnist("test")
    with pytest.raises(FileNotFoundError):
        fashion_mnist("test", nowhere / "home")


def test_an_empty_variable_is_none(nowhere, monkeypatch):
    write(nowhere)
    monkeypatch.chdir(nowhere)
    monkeypatch.setenv("MINIMA_DATA", "")
    with pytest.raises(FileNotFoundError):
        fashion_mnist("test")


def test_without_the_files_three_ways_to_get_them_are_told(nowhere, monkeypatch):
    monkeypatch.setenv("MINIMA_DATA", str(nowhere / "variable"))
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist()
    text = str(caught.value)
    places = ("variable", "home/.cache/minima", "system")
    assert all(str(nowhere / place) in text for place in places)
    ways = "apt-get install dataset-fashion-mnist", "~/.cache/minima/fashion-mnist", "MINIMA_DATA"
    assert all(way in text for way in ways)
    assert "train-images-idx3-ubyte.gz" in text


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_needed_by_its_split_only(nowhere, name):
    write(nowhere / "root")
    (nowhere / "root" / f"{name}.gz").unlink()
    split, other = ("train", "test") if "train" in name else ("test", "train")
    with pytest.raises(FileNotFoundError, match=f"no {name}.gz in .*root"):
        fashion_mnist(split, nowhere / "root")
    assert len(fashion_mnist(other, nowhere / "root"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage, message", [
    (lambda packed: packed[:-9], "damaged"),
    (lambda packed: packed[:5], "damaged"),
    (lambda packed: b"", "not Fashion-MNIST's"),
    (lambda packed: packed[:12] + bytes([packed[12] ^ 255]) + packed[13:], "damaged"),
    (lambda packed: gzip.decompress(packed), "damaged"),
    (lambda packed: gzip.compress(gzip.decompress(packed)[:-1] + b"\xfe"), "not Fashion-MNIST's"),
])  # fmt: skip
def test_a_damaged_file_is_refused_and_named(nowhere, name, damage, message):
    write(nowhere / "root")
    path = nowhere / "root" / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.gz is {message}"):
        fashion_mnist(root=nowhere / "root")


def test_the_same_content_may_be_compressed_in_another_way(nowhere):
    contents = write(nowhere / "root")
    before = fashion_mnist("test", nowhere / "root")[:][0].tolist()
    for name, content in contents.items():
        (nowhere / "root" / f"{name}.gz").write_bytes(
            gzip.compress(content, 1) + gzip.compress(b"")
        )
    assert fashion_mnist("test", nowhere / "root")[:][0].tolist() == before


def test_fashion_mnist_has_no_other_splits():
    with pytest.raises(ValueError, match="'train', 'test' or None for all; got 'valid'"):
        fashion_mnist("valid")


@pytest.fixture(scope="module")
def clothes():
    "The real test part of Fashion-MNIST, or a skipped test."
    try:
        return fashion_mnist("test")
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine: apt-get install dataset-fashion-mnist")


def test_the_real_fashion_mnist_is_as_published(clothes):
    x, y = clothes[:]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((10_000, 784), "float32", (10_000,), "int64")
    assert np.bincount(y.array).tolist() == [1000] * 10
    assert x.array.min() == 0 and x.array.max() == 1
    assert x.array.mean(dtype=float) == pytest.approx(0.2868, abs=1e-3)
    train = fashion_mnist("train")[:]
    assert np.bincount(train[1].array).tolist() == [6000] * 10
    assert train[0].array.mean(dtype=float) == pytest.approx(0.2860, abs=1e-4)
    assert train[0].array.std(dtype=float) == pytest.approx(0.3530, abs=1e-4)


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


def test_a_generator_of_ones_own_is_all_that_toy_data_draw_from():
    before, own = default_generator.get_state(), Generator(1)
    for toy in (spirals, moons, xor):
        toy(10, generator=own)
    assert default_generator.get_state() == before
    assert own.get_state() == {"seed": 1, "offset": 3}


# ---- a text ----


def test_topics_are_the_help_texts_of_this_python():
    from pydoc_data.topics import topics as texts

    text = topics()
    assert type(text) is str and all(part in text for part in texts.values())
    assert text == topics() and len(text) > 200_000 and "lambda" in text


@given(st.text())
def test_characters_are_translated_there_and_back(text):
    vocabulary = Characters(text)
    numbers = vocabulary.encode(text)
    assert type(numbers) is Tensor and numbers.dtype == "int64" and numbers.shape == (len(text),)
    assert vocabulary.decode(numbers) == text
    assert len(vocabulary) == len(set(text)) == len(vocabulary.characters)
    assert [*vocabulary.characters] == sorted(set(text))


def test_numbers_may_come_as_a_list_an_array_or_a_tensor():
    vocabulary = Characters("cab")
    for numbers in ([0, 2], np.array([0, 2]), Tensor([0, 2]), np.array([0, 2], dtype="uint8")):
        assert vocabulary.decode(numbers) == "ac"
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize("call, error, message", [
    (lambda v: v.encode("abx"), ValueError, "'x', at 2, is not in the vocabulary"),
    (lambda v: v.decode([0, 3]), ValueError, r"numbers 0 to 2; got \[0, 3\]"),
    (lambda v: v.decode([-1]), ValueError, "numbers 0 to 2"),
    (lambda v: v.decode([0.5]), TypeError, "float"),
])  # fmt: skip
def test_what_is_in_no_vocabulary_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call(Characters("abc"))


@given(st.integers(2, 40), st.data())
def test_windows_are_all_there_are_and_what_comes_next(n, data):
    length, step = data.draw(st.integers(1, n - 1)), data.draw(st.integers(1, 10))
    tokens = np.random.default_rng(n).integers(0, 9, n)
    samples = windows(tokens, length, step)
    starts = range(0, n - length, step)
    assert isinstance(samples, TensorDataset) and len(samples) == len(starts)
    for start, (x, y) in zip(starts, samples, strict=True):
        assert x.tolist() == tokens[start : start + length].tolist()
        assert y.tolist() == tokens[start + 1 : start + 1 + length].tolist()


def test_windows_share_memory_and_batches_do_not():
    tokens = np.arange(100)
    samples = windows(Tensor(tokens), 10)
    assert all(np.shares_memory(t.array, tokens) for t in samples.tensors)
    for x, y in DataLoader(samples, 4, prefetch=1):
        x.array[...], y.array[...] = -1, -1
    assert tokens.tolist() == [*range(100)]


@pytest.mark.parametrize("settings", [
    ([1, 2], 2), ([], 1), ([1, 2, 3], 0), ([[1, 2], [3, 4]], 1), ([1, 2, 3], 1, 0)
])  # fmt: skip
def test_windows_that_do_not_fit_are_told(settings):
    with pytest.raises(ValueError, match="more than length >= 1 tokens, and step >= 1; got"):
        windows(*settings)
