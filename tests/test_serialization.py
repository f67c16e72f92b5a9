"Weights on disk: there and back, the official library, hostile files, accidents, PyTorch."

import builtins
import errno
import json
import os
import random
import re
import stat
import subprocess
import sys
import tracemalloc
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minima as mi
from minima import nn, serialization
from minima.autograd import Tensor
from minima.serialization import load, load_metadata, load_torch_state, save, torch_state

DTYPES = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64".split()
SHAPES = [(), (1,), (0,), (3,), (2, 3), (2, 0, 4), (1, 2, 1, 3)]


@pytest.fixture(scope="module")
def official():
    "The official library, against which we compare; without it the test is skipped."
    return pytest.importorskip("safetensors.numpy", exc_type=ImportError)


def numbers(dtype, shape=(2, 3), seed=0):
    "Random numbers of any dtype: random bits but for truth values, so NaN and inf may be there."
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    bits = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype="uint8")
    return bits.view(dtype)[..., 0]


def bits(tensors):
    "What must survive of a dict of Tensors or arrays: names, shapes, dtypes, bits."
    arrays = {name: t.array if isinstance(t, Tensor) else t for name, t in tensors.items()}
    return {
        name: (a.shape, a.dtype.name, a.astype(a.dtype.newbyteorder("<")).tobytes())
        for name, a in arrays.items()
    }


def everything():
    "Every dtype in every shape."
    return {f"{d}.{s}": numbers(d, s, seed=i) for d in DTYPES for i, s in enumerate(SHAPES)}


# ---- there and back ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(dtype, shape, tmp_path):
    state = {"x": numbers(dtype, shape)}
    save(state, tmp_path / "x.safetensors")
    back = load(tmp_path / "x.safetensors")
    assert type(back["x"]) is Tensor and bits(back) == bits(state)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
any_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype).newbyteorder("<>"[len(dtype) % 2]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)


@given(st.dictionaries(texts, any_array, max_size=5), st.dictionaries(texts, texts, max_size=3))
def test_any_round_trip(tmp_path_factory, state, metadata):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save(state, path, metadata)
    back = load(path)
    assert bits(back) == bits(state) and load_metadata(path) == metadata
    assert all(t.array.flags.writeable and t.array.flags.owndata for t in back.values())


LAYOUTS = {
    "transposed": lambda a: a.T,
    "Fortran": np.asfortranarray,
    "backwards": lambda a: a[::-1, ::-2],
    "a column": lambda a: a[:, 1],
    "broadcast": lambda a: np.broadcast_to(a[0], (5, 4)),
    "big-endian": lambda a: a.astype(">f4"),
    "big-endian, transposed": lambda a: a.astype(">f4").T,
    "unaligned": lambda a: np.frombuffer(b"-" + a.tobytes(), "<f4", offset=1).reshape(a.shape),
    "0-d of a larger one": lambda a: a[1, 2, ...],
    "read-only": lambda a: np.frombuffer(a.tobytes(), "<f4"),
    "a NumPy scalar": lambda a: a[1, 2],
    "a Tensor in training": lambda a: Tensor(a, requires_grad=True),
    "a matrix": lambda a: a.view(np.matrix),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, tmp_path):
    a = LAYOUTS[layout](np.arange(12, dtype="float32").reshape(3, 4))
    save({"x": a}, tmp_path / "x")
    back = load(tmp_path / "x")["x"].array
    expected = a.array if isinstance(a, Tensor) else np.asarray(a)
    assert back.shape == expected.shape and back.dtype == "float32"
    assert back.tolist() == expected.tolist()


def test_a_state_dict_loads_into_another_model(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Residual(nn.Linear(3, 3)))

    one, two = make(), make()
    one(Tensor(np.random.default_rng(0).normal(size=(5, 4)).astype("float32")))
    mi.save(one.state_dict(), str(tmp_path / "model"))
    two.load_state_dict(mi.load(tmp_path / "model", device="cpu"))
    assert bits(two.state_dict()) == bits(one.state_dict())


def test_metadata(tmp_path):
    save({"x": [1.0]}, tmp_path / "x", {"é": "\x00 \U0001f600", "": ""})
    assert load_metadata(tmp_path / "x") == {"é": "\x00 \U0001f600", "": ""}
    save({}, tmp_path / "x")
    assert load_metadata(tmp_path / "x") == {} == load(tmp_path / "x")


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    state, notes = everything(), {"b": "1", "a": "2"}
    save(state, tmp_path / "1", notes)
    save(dict(reversed(state.items())), tmp_path / "2", dict(reversed(notes.items())))
    data = (tmp_path / "1").read_bytes()
    assert data == (tmp_path / "2").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    for name, entry in header_of(data).items():
        if name != "__metadata__" and "bool" not in name:
            begin = entry["data_offsets"][0]
            assert begin % np.dtype(name.partition(".")[0]).itemsize == 0


def test_bfloat16(official, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state = {"x": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16), "y": numbers("float32")}
    save(state, tmp_path / "x")
    back = load(tmp_path / "x")
    assert bits(back) == bits(state) and back["x"].dtype == ml_dtypes.bfloat16
    raw = {e["name"]: e for e in entries_by_the_official_library(tmp_path / "x")}
    assert raw["x"]["dtype"] == "BF16" and raw["x"]["shape"] == [2, 3]


def test_bfloat16_without_ml_dtypes_is_a_clear_error(monkeypatch, tmp_path):
    (tmp_path / "x").write_bytes(forge({"x": entry("BF16", [1], 0, 2)}, b"\0\0"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match="pip install ml_dtypes"):
        load(tmp_path / "x")


# ---- the official library ----


def entries_by_the_official_library(path):
    "What the official library's own parser reads in the header of a file."
    from safetensors import deserialize

    return [{"name": name, **found} for name, found in deserialize(path.read_bytes())]


def header_of(data):
    "The header of a file, as it stands there."
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_the_official_library_reads_ours(official, tmp_path):
    save(everything(), tmp_path / "ours", {"by": "us"})
    assert bits(official.load_file(tmp_path / "ours")) == bits(everything())


def test_we_read_the_official_librarys(official, tmp_path):
    official.save_file(everything(), tmp_path / "theirs", metadata={"by": "them"})
    assert bits(load(tmp_path / "theirs")) == bits(everything())
    assert load_metadata(tmp_path / "theirs") == {"by": "them"}
    official.save_file(everything(), tmp_path / "theirs")
    assert bits(load(tmp_path / "theirs")) == bits(everything())
    assert load_metadata(tmp_path / "theirs") == {}


@pytest.mark.parametrize(
    "state", [everything(), {}, {'"\\\n\x01\x7f é\U0001f600': numbers("float32")}, {"": np.ones(3)}]
)
def test_both_write_the_same_bytes(official, state, tmp_path):
    save(state, tmp_path / "ours")
    ours = (tmp_path / "ours").read_bytes()
    assert ours == official.save(state, metadata=header_of(ours)["__metadata__"])


def test_our_checksum_in_metadata_that_went_through_another_library(official, tmp_path):
    save({"x": np.ones(3)}, tmp_path / "x", {"by": "us"})
    notes = header_of((tmp_path / "x").read_bytes())["__metadata__"]
    assert len(notes) == 2
    save({"x": np.zeros(3)}, tmp_path / "x", notes)  # a fresh one takes its place
    assert load(tmp_path / "x")["x"].tolist() == [0, 0, 0]
    for order in (notes, dict(reversed(notes.items()))):
        official.save_file({"x": np.ones(3)}, tmp_path / "x", metadata=order)
        assert load(tmp_path / "x")["x"].tolist() == [1, 1, 1]
    official.save_file({"x": np.zeros(3)}, tmp_path / "x", metadata=notes)
    with pytest.raises(ValueError, match="changed by another program"):
        load(tmp_path / "x")


# ---- hostile files ----


def forge(header, data=b"", length=None):
    "A file with this header, sound or not."
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype, shape, begin, end):
    "A header's entry for one tensor."
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def one(*args, data=b"", **more):
    "A file with one tensor, `x`."
    return forge({"x": {**entry(*args), **more}}, data)


U = entry("U8", [4], 0, 4)
UJ = json.dumps(U).encode()
HOSTILE = {
    # the frame
    "empty": (b"", "ends 8 bytes too early"),
    "half a length": (b"\0\0\0", "ends 5 bytes too early"),
    "no header": (bytes(8), "not JSON"),
    "header longer than the file": (forge({}, length=3), "claims 3 bytes"),
    "header of 8 EB": (forge({}, length=2**63), "claims 9223372036854775808 bytes"),
    "header of 2**64 - 1": (forge({}, length=2**64 - 1), "claims"),
    "a zip file": (b"PK\x03\x04 and so on", "claims"),
    # the text
    "not UTF-8": (forge(b'{"\xff": 1}'), "not JSON in UTF-8"),
    "UTF-16": (forge('{"x": 1}'.encode("utf-16")), "not JSON in UTF-8"),
    "a byte-order mark": (forge(b"\xef\xbb\xbf{}"), "not JSON"),
    "cut JSON": (forge(b'{"x": {"dtype"'), "not JSON"),
    "more than JSON": (forge(b"{} {}"), "not JSON"),
    "NUL in JSON": (forge(b"{}\0"), "not JSON"),
    "half a character": (forge(b'{"\\ud800": %b}' % UJ, b"1234"), "Unicode"),
    "a list": (forge([]), "no JSON object"),
    "a number": (forge(b"1"), "no JSON object"),
    "deep lists": (forge(b"[" * 100_000), "nested too deeply"),
    "deep objects": (forge(b'{"x":' * 50_000), "nested too deeply"),
    "deep in an entry": (forge(b'{"x":' + b"[" * 9999 + b"]" * 9999 + b"}"), "nested too deeply"),
    "a long number": (forge(b'{"x": ' + b"9" * 5000 + b"}"), "digits"),
    "twice the same name": (forge(b'{"x": %b, "x": %b}' % (UJ, UJ), b"1234"), "'x' twice"),
    "twice, with an escape": (forge(b'{"x": %b, "\\u0078": %b}' % (UJ, UJ), b"1234"), "'x' twice"),
    "twice the same key": (forge(b'{"x": {"dtype": "U8", "dtype": "I8"}}'), "'dtype' twice"),
    "twice metadata": (forge(b'{"__metadata__": {}, "__metadata__": {}}'), "twice"),
    # the metadata
    "metadata null": (forge({"__metadata__": None}), "strings by strings"),
    "metadata with a number": (forge({"__metadata__": {"a": 1}}), "strings by strings"),
    "metadata a list": (forge({"__metadata__": ["a"]}), "strings by strings"),
    "a wrong checksum": (forge({"__metadata__": {"minima.crc32": "?"}}), "checksum"),
    "a nameless one": (forge({"__metadata__": {"a": "minima.crc32=0"}}), "checksum"),
    # one entry
    "a number for a tensor": (forge({"x": 1}), "tensor 'x': expected dtype"),
    "null for a tensor": (forge({"x": None}), "tensor 'x': expected dtype"),
    "a list for a tensor": (forge({"x": ["dtype", "shape", "data_offsets"]}), "'x': expected"),
    "no dtype": (forge({"x": {"shape": [0], "data_offsets": [0, 0]}}), "'x': expected dtype"),
    "something else": (one("U8", [0], 0, 0, more=1), "'x': expected dtype"),
    "an unknown dtype": (one("F31", [0], 0, 0), "'x': unknown dtype 'F31'"),
    "a NumPy dtype": (one("float32", [0], 0, 0), "unknown dtype"),
    "an object dtype": (one("O", [1], 0, 8, data=bytes(8)), "unknown dtype"),
    "a dtype in lower case": (one("f32", [0], 0, 0), "unknown dtype"),
    "a dtype that is a list": (one(["F32"], [0], 0, 0), "unknown dtype"),
    "a dtype that is a number": (one(32, [0], 0, 0), "unknown dtype"),
    "a shape that is a number": (one("U8", 4, 0, 4, data=b"1234"), "'x': a shape is"),
    "a shape that is an object": (one("U8", {"4": 4}, 0, 4, data=b"1234"), "a shape is"),
    "a shape that is text": (one("U8", "4", 0, 4, data=b"1234"), "a shape is"),
    "a negative size": (one("U8", [-4], 0, 4, data=b"1234"), "a shape is"),
    "two negative sizes": (one("U8", [-2, -2], 0, 4, data=b"1234"), "a shape is"),
    "a size of minus one": (one("U8", [2, -1], 0, 4, data=b"1234"), "a shape is"),
    "a size that is a float": (one("U8", [4.0], 0, 4, data=b"1234"), "a shape is"),
    "a size that is true": (one("U8", [True], 0, 1, data=b"1"), "a shape is"),
    "a size that is NaN": (one("U8", [float("nan")], 0, 1, data=b"1"), "a shape is"),
    "a size that is infinite": (forge(b'{"x": {"dtype": "U8", "shape": [1e999]}}'), "expected"),
    "a size that is null": (one("U8", [None], 0, 1, data=b"1"), "a shape is"),
    "65 axes": (one("U8", [1] * 65, 0, 1, data=b"1"), "at most 64"),
    "a hundred axes": (one("U8", [10**18] * 100, 0, 1, data=b"1"), "at most 64"),
    "a size of 2**63": (one("U8", [2**63], 0, 0), "a shape is"),
    "a product that wraps to 0": (one("U8", [2**32, 2**32], 0, 0), "no array can have"),
    "a product that wraps to 4": (one("F32", [2**62 + 1], 0, 4, data=b"1234"), "no array can"),
    "nothing, but huge": (one("U8", [0, 2**62, 4], 0, 0), "no array can have"),
    "terabytes, claimed": (one("F32", [2**40], 0, 2**42), "'x': ends at byte 4398046511104 of 0"),
    "terabytes, not in offsets": (one("F32", [2**40], 0, 4, data=b"1234"), "takes 4398046511104"),
    "a wrong sum": (one("F32", [2], 0, 4, data=b"1234"), "takes 8 bytes, but"),
    "a sum for another dtype": (one("F64", [1], 0, 4, data=b"1234"), "takes 8 bytes, but"),
    # offsets
    "one offset": (one("U8", [4], 0, 4, data_offsets=[4], data=b"1234"), "data_offsets are"),
    "three offsets": (one("U8", [4], 0, 4, data_offsets=[0, 2, 4], data=b"1234"), "offsets are"),
    "offsets that are null": (one("U8", [4], 0, 4, data_offsets=None, data=b"1"), "offsets are"),
    "offsets that are floats": (one("U8", [4], 0.0, 4.0, data=b"1234"), "data_offsets are"),
    "offsets that are text": (one("U8", [4], "0", "4", data=b"1234"), "data_offsets are"),
    "a negative offset": (one("U8", [4], -4, 0, data=b"1234"), "data_offsets are"),
    "offsets back to front": (one("U8", [4], 4, 0, data=b"1234"), "data_offsets are"),
    "offsets past 2**63": (one("U8", [4], 2**64, 2**64 + 4, data=b"1234"), "data_offsets are"),
    "outside": (one("U8", [4], 4, 8, data=b"1234"), "'x': leaves a gap"),
    "past the end": (one("U8", [5], 0, 5, data=b"1234"), "'x': ends at byte 5 of 4"),
    # all of them together
    "an overlap": (forge({"x": U, "y": entry("U8", [4], 2, 6)}, b"123456"), "'y': overlaps"),
    "twice the same data": (forge({"x": U, "y": U}, b"1234"), "'y': overlaps"),
    "empty, in the middle": (forge({"x": U, "y": entry("U8", [0], 2, 2)}, b"1234"), "'y': overl"),
    "a gap": (forge({"x": U, "y": entry("U8", [1], 5, 6)}, b"123456"), "'y': leaves a gap"),
    "a gap in front": (one("U8", [3], 1, 4, data=b"1234"), "'x': leaves a gap"),
    "a stowaway": (forge({"x": U}, b"1234 and more"), "what is the rest"),
    "only a stowaway": (forge({}, b"!"), "what is the rest"),
    "cut off": (forge({"x": U}, b"123"), "'x': ends at byte 4 of 3"),
    # the numbers
    "true, false, and else": (one("BOOL", [3], 0, 3, data=b"\0\1\2"), "'x': a truth value"),
}


@pytest.fixture
def rewrite(tmp_path):
    "A function that gives `tmp_path / 'x'` other bytes, faster than by opening it."
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))

    def rewrite(data):
        os.lseek(fd, 0, os.SEEK_SET)
        os.ftruncate(fd, os.write(fd, data))

    yield rewrite
    os.close(fd)


def peak(function, *args):
    "The most memory that `function` held at one time, and what it returned or raised."
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        result = function(*args)
    except Exception as error:
        result = error
    return tracemalloc.get_traced_memory()[1] - before, result


@pytest.fixture
def counted():
    "Counts the memory that is asked for."
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("reader", [load, load_metadata])
def test_hostile_files_are_refused(case, reader, counted, tmp_path):
    data, reason = HOSTILE[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    if reader is load_metadata and case in ("a wrong checksum", "true, false, and else"):
        assert isinstance(reader(path), dict)  # these need the numbers, which it does not read
        return
    used, error = peak(reader, path)
    assert type(error) is ValueError, error
    assert str(error).startswith(f"cannot load {path}: ") and reason in str(error), error
    assert len(str(error)) < 1000 and used < 4 * len(data) + 50_000


@pytest.mark.parametrize("case", HOSTILE)
def test_what_the_official_library_refuses_is_hostile(official, case):
    "Where it is more lenient than we are, this table says so."
    lenient = {
        "metadata null": "as none",
        "a wrong checksum": "not a part of the format",
        "a nameless one": "not a part of the format",
        "something else": "ignored",
        "65 axes": "NumPy's limit",
        "nothing, but huge": "depends on the order of the sizes",
        "true, false, and else": "given to NumPy as they are",
        "twice the same name": "the last one counts",
        "twice, with an escape": "the last one counts",
    }
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(HOSTILE[case][0])
    except SafetensorError:
        assert case not in lenient
    else:
        assert case in lenient


def test_a_sound_file_costs_its_own_size(counted, tmp_path):
    state = {"x": np.zeros(10**6, "float32"), "y": np.zeros((1000, 250), "float32")}
    save({}, tmp_path / "x"), load(tmp_path / "x")  # what is imported is imported now
    used, _ = peak(save, state, tmp_path / "x")
    assert used < 100_000
    used, back = peak(load, tmp_path / "x")
    assert used < 1.02 * (tmp_path / "x").stat().st_size and bits(back) == bits(state)


def test_a_header_above_the_limit_is_neither_read_nor_written(monkeypatch, tmp_path):
    path = tmp_path / "x"
    save({"a name": np.ones(1)}, path)
    monkeypatch.setattr(serialization, "_LONGEST_HEADER", 50)
    with pytest.raises(ValueError, match="and 50 is the limit"):
        load(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="50 at most"):
        save({"another name": np.ones(1)}, path)
    assert path.read_bytes() == before


def test_spaces_and_order_in_a_header_are_free(tmp_path):
    save(everything(), tmp_path / "x", {"b": "1", "a": "2"})
    data = (tmp_path / "x").read_bytes()
    header, rest = header_of(data), data[8 + int.from_bytes(data[:8], "little") :]
    header["__metadata__"] = dict(reversed(header["__metadata__"].items()))
    text = json.dumps(dict(reversed(header.items())), indent=1)
    (tmp_path / "x").write_bytes(reframed(text, rest))
    assert bits(load(tmp_path / "x")) == bits(everything())
    x, y = entry("U8", [2], 3, 5), entry("U8", [3], 0, 3)
    (tmp_path / "x").write_bytes(forge({"x": x, "y": y}, b"12345"))
    assert load(tmp_path / "x")["y"].tolist() == list(b"123")
    (tmp_path / "x").write_bytes(forge(json.dumps({"x": x, "y": y}, indent=1).encode(), b"12345"))
    assert load(tmp_path / "x")["x"].tolist() == list(b"45")


# ---- ten thousand accidents ----


def damaged(data, chance):
    "`data` after one accident, drawn from `chance`, and the kind of it."
    length = int.from_bytes(data[:8], "little")
    kind = chance.choice(list(ACCIDENTS))
    end = len(data) if "anywhere" in kind else 8 + length
    return kind, ACCIDENTS[kind](bytearray(data), chance, end)


def flip(data, chance, end):
    "Flip one to eight bits before `end`."
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return data


def overwrite(data, chance, end):
    "Random bytes over some of those before `end`."
    start, n = chance.randrange(end), chance.randint(1, 40)
    data[start : start + n] = chance.randbytes(len(data[start : start + n]))
    return data


def cut_off(data, chance, end):
    "Only the beginning."
    return data[: chance.randrange(len(data))]


def cut_out(data, chance, end):
    "Without some bytes before `end`."
    start = chance.randrange(end)
    del data[start : start + chance.randint(1, 40)]
    return data


def insert(data, chance, end):
    "With some more bytes before `end`: random ones, or a copy of others."
    start, n = chance.randrange(end), chance.randint(1, 40)
    other = chance.randrange(len(data))
    data[start:start] = chance.choice([chance.randbytes(n), data[other : other + n]])
    return data


def claim(data, chance, end):
    "Another length of the header."
    data[:8] = chance.choice([chance.randbytes(8), chance.randrange(2 * end).to_bytes(8, "little")])
    return data


def edit(data, chance, end):
    "A header that is still a header, in which one word or number is another."
    text = data[8:end].decode()
    found = chance.choice(list(re.finditer(r"-?\d+|[\w.]+|[\[\]{},:]", text)))
    number = found[0].isdigit() and int(found[0])
    others = [str(number + n) for n in (-1, 1, 2**32, 2**63, -(2**64))] if number else []
    others += [
        "",
        " ",
        "0",
        "-1",
        "1e3",
        "null",
        '""',
        "[]",
        "{}",
        "é",
        found[0] * 2,
        f" {found[0]}",
    ]
    others += [*serialization._TYPES] if found[0] in serialization._TYPES else []
    return reframed(text[: found.start()] + chance.choice(others) + text[found.end() :], data[end:])


def rearrange(data, chance, end):
    "A header with entries that are exchanged, left out, repeated or laid out differently."
    header = json.loads(data[8:end])
    pairs = list(header.items())
    chance.shuffle(pairs)
    (a, x), (b, y) = pairs[:2]
    change = chance.randrange(6)
    if change == 0:
        header[a], header[b] = y, x
    elif change == 1:
        del header[a]
    elif change == 2:
        header[a + "'"] = x
    elif change == 3 and "__metadata__" not in (a, b):
        header[a] = x | {"data_offsets": y["data_offsets"]}
    elif change == 4:
        header = dict(pairs)
    text = json.dumps(
        header, indent=chance.choice([None, 0, 3]), ensure_ascii=chance.random() < 0.5
    )
    return reframed(text, data[end:])


def reframed(text, rest):
    "A file of this header, its length made to fit, and these data."
    text = text.encode()
    return len(text).to_bytes(8, "little") + text + rest


ACCIDENTS = {
    "flip anywhere": flip,
    "flip in the header": flip,
    "overwrite anywhere": overwrite,
    "overwrite in the header": overwrite,
    "cut off anywhere": cut_off,
    "cut out anywhere": cut_out,
    "cut out of the header": cut_out,
    "insert anywhere": insert,
    "insert into the header": insert,
    "claim": claim,
    "edit the header": edit,
    "rearrange the header": rearrange,
}


def small_state():
    "Some kilobytes in several dtypes."
    state = {"0.weight": numbers("float32", (30, 40)), "0.bias": numbers("float32", (1, 40), 1)}
    state |= {
        "é": numbers("bool", (5,)),
        "none": numbers("int16", (0, 3)),
        "n": numbers("int64", ()),
    }
    return state


def test_ten_thousand_corruptions_load_the_same_or_are_refused(counted, rewrite, tmp_path):
    save(small_state(), tmp_path / "small", {"remark": "a small file"})
    data, expected = (tmp_path / "small").read_bytes(), bits(load(tmp_path / "small"))
    same, reasons = dict.fromkeys(ACCIDENTS, 0), set()
    for seed in range(10_000):
        kind, bad = damaged(data, random.Random(seed))
        rewrite(bad)
        used, result = peak(load, tmp_path / "x")
        assert used < 4 * len(data), f"seed {seed}, {kind}: allocated {used}"
        if isinstance(result, dict):
            assert bits(result) == expected, f"seed {seed}, {kind}: loads other arrays"
            same[kind] += 1
        else:
            assert type(result) is ValueError, f"seed {seed}, {kind}: {result!r}"
            reasons.add(re.sub(r"'.*?'|\d+", "…", str(result).partition("/x: ")[2])[:40])
    assert same["rearrange the header"] > 100  # some do no harm, so this could fail
    assert len(reasons) > 20, reasons  # and harm is noticed in many places


def test_corruptions_of_a_file_without_checksum_do_no_more_than_change_it(
    official, counted, rewrite, tmp_path
):
    data, outcomes = official.save(small_state()), set()
    for seed in range(1000):
        kind, bad = damaged(data, random.Random(seed))
        rewrite(bad)
        used, result = peak(load, tmp_path / "x")
        assert used < 4 * len(data), f"seed {seed}, {kind}: allocated {used}"
        assert type(result) in (dict, ValueError), f"seed {seed}, {kind}: {result!r}"
        if type(result) is dict:
            assert bits(result) == bits(official.load(bytes(bad))), f"seed {seed}, {kind}"
        outcomes.add(type(result))
    assert outcomes == {dict, ValueError}


def test_every_single_flipped_bit_is_noticed(rewrite, tmp_path):
    save({"w": np.float32([0.01])}, tmp_path / "whole")
    data, expected = (tmp_path / "whole").read_bytes(), bits(load(tmp_path / "whole"))
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        rewrite(bad)
        try:
            assert bits(load(tmp_path / "x")) == expected, f"bit {bit}"
        except ValueError:
            pass  # refused, which is as good


# ---- all or nothing ----


class Accident(BaseException):
    "What is neither an Exception nor expected, as Ctrl-C is."


def accident(*args, **kwargs):
    raise Accident


class BreaksAfter:
    "A file that takes `n` writes."

    def __init__(self, file, n):
        self.file, self.n = file, n

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.n -= 1
        if self.n < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("there", [True, False], ids=["old file", "no old file"])
@pytest.mark.parametrize("when", ["fsync", "replace", "write 0", "write 1", "write 2"])
def test_a_failed_save_leaves_what_was_there(when, there, monkeypatch, tmp_path):
    path = tmp_path / "model"
    if there:
        save({"x": np.ones(3)}, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        if when.startswith("write"):
            opened = builtins.open
            n = int(when[-1])
            patch.setattr(builtins, "open", lambda *a, **k: BreaksAfter(opened(*a, **k), n))
        else:
            patch.setattr(os, when, accident)
        with pytest.raises((Accident, OSError)):
            save({"x": np.zeros(1000), "y": np.zeros(1000)}, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    save({"x": np.zeros(2)}, path)  # and afterwards it works
    assert load(path)["x"].tolist() == [0, 0] and len(list(tmp_path.iterdir())) == 1


# ---- what killed processes leave ----

LEFT = ".minima-0123456789abcdef.part"
NOT_OURS = [
    ".minima-0123456789abcdef.part2", "minima-0123456789abcdef.part", ".minima-.part", ".part",
    ".minima-0123456789ABCDEF.part", ".0123456789abcdef.part", "x.part",
]  # fmt: skip


def hidden(folder):
    return {path.name for path in folder.iterdir() if path.name.endswith((".part", ".part2"))}


def test_the_next_save_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path):
    for name in [LEFT, *NOT_OURS, LEFT.replace("0", "f")]:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / LEFT).write_bytes(b"half")
    save({"x": np.ones(3)}, tmp_path / "x")
    assert hidden(tmp_path) == set(NOT_OURS) and hidden(tmp_path / "below") == {LEFT}


def test_a_save_leaves_alone_what_another_one_is_writing(tmp_path):
    with serialization._replacing(tmp_path / "slow") as file:
        file.write(b"half")
        (here,) = hidden(tmp_path)
        (tmp_path / LEFT).write_bytes(b"half")
        with serialization._replacing(tmp_path / "second") as other:
            other.write(b"whole")
        save({"x": np.ones(3)}, tmp_path / "x")
        assert hidden(tmp_path) == {here, LEFT}  # nobody can say whose that one is
        file.write(b" and half")
    assert (tmp_path / "slow").read_bytes() == b"half and half"
    save({"x": np.ones(3)}, tmp_path / "x")
    assert hidden(tmp_path) == set()


def test_who_began_while_another_was_writing_is_left_alone_when_that_one_is_done(tmp_path):
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(serialization._replacing(tmp_path / "first"))
        file = second.enter_context(serialization._replacing(tmp_path / "second"))
        first.close()
        save({"x": np.ones(3)}, tmp_path / "x")
        assert len(hidden(tmp_path)) == 1
        file.write(b"whole")
    assert (tmp_path / "second").read_bytes() == b"whole" and hidden(tmp_path) == set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes to fork on this system")
def test_another_process_is_left_alone_until_it_is_dead(tmp_path):
    program = (
        "import sys, time; from minima import serialization\n"
        "with serialization._replacing(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "theirs")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        save({"x": np.ones(3)}, tmp_path / "x")
        assert len(hidden(tmp_path)) == 1
        process.kill()
    assert len(hidden(tmp_path)) == 1
    save({"x": np.ones(3)}, tmp_path / "x")
    assert hidden(tmp_path) == set() and not (tmp_path / "theirs").exists()


def refused(*arguments):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("lack", ["no module", "no locks", "a folder that cannot be listed"])
def test_without_locks_nothing_is_removed_and_all_is_saved(lack, monkeypatch, tmp_path):
    (tmp_path / LEFT).write_bytes(b"half")
    if lack == "no module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    elif lack == "no locks":
        fcntl = pytest.importorskip("fcntl")
        monkeypatch.setattr(fcntl, "flock", refused)
    else:
        monkeypatch.setattr(os, "open", refused)
    save({"x": np.ones(3)}, tmp_path / "x")
    assert load(tmp_path / "x")["x"].tolist() == [1, 1, 1] and hidden(tmp_path) == {LEFT}


def test_no_descriptor_stays_open(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no way to count descriptors on this system")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        save({"x": np.ones(3)}, tmp_path / "x")
        with pytest.raises(Accident), serialization._replacing(tmp_path / "y"):
            raise Accident
    assert len(os.listdir("/proc/self/fd")) == before and hidden(tmp_path) == set()


def test_the_data_reach_the_disk_before_the_name_does(monkeypatch, tmp_path):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(os.fstat(fd).st_size) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *a: order.append("replace") or replace(*a))
    save({"x": np.ones(3)}, tmp_path / "x")
    assert order == [(tmp_path / "x").stat().st_size, "replace"]


@pytest.mark.parametrize(
    "tensors, metadata, error",
    [
        ({1: np.ones(2)}, None, TypeError),
        ({"__metadata__": np.ones(2)}, None, TypeError),
        ({"x": np.ones(2, complex)}, None, TypeError),
        ({"x": np.array(["a"])}, None, TypeError),
        ({"x": np.array([None])}, None, TypeError),
        ({"x": np.zeros(2, [("a", "f4")])}, None, TypeError),
        ({"x": np.array("2020", "datetime64[D]")}, None, TypeError),
        ({"x": None}, None, TypeError),
        ({"\ud800": np.ones(2)}, None, ValueError),
        ({"x": np.ones(2)}, {"a": 1}, TypeError),
        ({"x": np.ones(2)}, {1: "a"}, TypeError),
        ({"x": np.ones(2)}, {"a": "minima.crc32=00000000"}, ValueError),
    ],
)
def test_what_cannot_be_saved_touches_nothing(tensors, metadata, error, tmp_path):
    save({"x": np.ones(3)}, tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(error):
        save({"good": np.ones(1)} | tensors, tmp_path / "x", metadata)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it first"):
        save({}, tmp_path / "nowhere" / "x")
    with pytest.raises(OSError):
        save({}, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "x")


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")
def test_permissions_and_links_stay(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    save({}, tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode  # not 0600
    (tmp_path / "x").chmod(0o640)
    (tmp_path / "link").symlink_to("x")
    save({"x": np.ones(2)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load(tmp_path / "x")["x"].shape == (2,)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_importing_minima_does_not_load_what_only_files_need():
    program = "import sys, minima; sys.exit('json' in sys.modules or 'ml_dtypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# ---- PyTorch ----


def ours():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 3))


def theirs(torch):
    t = torch.nn
    return t.Sequential(t.Linear(4, 4), t.BatchNorm1d(4), t.LayerNorm(4), t.Linear(4, 3))


def batch():
    return np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


def agree(torch, one, two):
    "Whether two models compute the same, in training and evaluation."
    for mode in (True, False):
        got = one.train(mode)(Tensor(batch())).detach().numpy()
        expected = two.train(mode)(torch.tensor(batch())).detach().numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.parametrize("how", ["torch tensors", "arrays", "parameters", "a file"])
def test_torchs_state_loads(torch, how, tmp_path):
    model, other = ours(), theirs(torch)
    other(torch.tensor(batch()))  # so that the running statistics are some
    state = other.state_dict()
    if how == "arrays":
        state = {name: t.numpy() for name, t in state.items()}
    elif how == "parameters":
        state |= dict(other.named_parameters())
    elif how == "a file":
        pytest.importorskip("safetensors.torch").save_file(state, tmp_path / "theirs")
        state = load(tmp_path / "theirs")
    assert load_torch_state(model, state) == ([], [])
    assert agree(torch, model, other)


@pytest.mark.parametrize("how", ["arrays", "a file"])
def test_our_state_loads_into_torch(torch, how, tmp_path):
    model, other = ours(), theirs(torch)
    model(Tensor(batch()))
    if how == "a file":
        save(torch_state(model), tmp_path / "ours")
        state = pytest.importorskip("safetensors.torch").load_file(tmp_path / "ours")
    else:
        state = {name: torch.tensor(array) for name, array in torch_state(model).items()}
    other.load_state_dict(state)
    assert agree(torch, model, other)


def test_there_and_back_changes_nothing():
    model = ours()
    before = bits(model.state_dict())
    state = {name: array.copy() for name, array in torch_state(model).items()}
    twin = ours()
    load_torch_state(twin, state)
    assert bits(twin.state_dict()) == before
    assert state["3.weight"].shape == (3, 4) and state["3.bias"].shape == (3,)


class Own(nn.Module):
    "Linears in odd places: a subclass, one without bias, in a dict; and other weights beside them."

    class Wider(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.scale = nn.Parameter(np.ones((2, 3), "float32"))

    def __init__(self):
        self.weight = nn.Parameter(np.ones((2, 3), "float32"))
        self.bias = nn.Parameter(np.ones((1, 3), "float32"))
        self.wide, self.bare = self.Wider(2, 3), nn.Linear(2, 3, bias=False)
        self.more = {"a": [nn.Linear(2, 5)]}


def test_only_the_linears_own_parameters_are_turned():
    shapes = {name: array.shape for name, array in torch_state(Own()).items()}
    assert shapes == {
        "weight": (2, 3),
        "bias": (1, 3),
        "wide.weight": (3, 2),
        "wide.bias": (3,),
        "wide.scale": (2, 3),
        "bare.weight": (3, 2),
        "more.a.0.weight": (5, 2),
        "more.a.0.bias": (5,),
    }


class Tied(nn.Module):
    "Two layers with one weight, and a third that is the first."

    def __init__(self):
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.three = self.one
        self.root = [self]  # and a way in circles


def test_tied_parameters_have_all_the_names_that_torch_gives_them(torch):
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.three = self.one

    model, other = Tied(), Theirs()
    load_torch_state(model, other.state_dict())
    np.testing.assert_array_equal(model.two.weight.array, other.two.weight.detach().numpy().T)
    assert model.two.weight is model.one.weight
    other.load_state_dict({k: torch.tensor(a) for k, a in torch_state(Tied()).items()})


def test_tied_parameters_that_differ_are_refused():
    state = {name: array.copy() for name, array in torch_state(Tied()).items()}
    state["two.weight"][0, 0] += 1
    with pytest.raises(ValueError, match="'one.weight' and 'two.weight' are one"):
        load_torch_state(Tied(), state)


def test_names_and_shapes_that_do_not_fit():
    model, state = ours(), torch_state(ours())
    before = bits(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing.*3.bias"):
        load_torch_state(model, {k: v for k, v in state.items() if k != "3.bias"})
    with pytest.raises(RuntimeError, match="Unexpected.*more"):
        load_torch_state(model, state | {"more": np.ones(1)})
    for wrong in (state["3.weight"].T, state["3.weight"][0], np.float32(1)):
        with pytest.raises(RuntimeError, match="3.weight"):
            load_torch_state(model, state | {"3.weight": wrong})
    with pytest.raises(RuntimeError, match="3.bias"):
        load_torch_state(model, state | {"3.bias": np.ones((1, 3), "float32")})
    assert bits(model.state_dict()) == before
    result = load_torch_state(model, {"0.bias": state["0.bias"], "more": np.ones(1)}, strict=False)
    assert "0.weight" in result[0] and result[1] == ["more"]
    np.testing.assert_array_equal(model[0].bias.array[0], state["0.bias"])


def test_half_precision_from_torch(torch):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model, other = ours(), theirs(torch).to(dtype)
        load_torch_state(model, other.state_dict())
        np.testing.assert_array_equal(model[0].weight.array.T, other[0].weight.detach().float())
