"The command line: what it prints, and how it ends."

import re
from pathlib import Path

import numpy as np
import pytest

from minima import init
from minima.__main__ import JOBS, draw, main
from minima.data import digits, fashion_mnist


def accuracy(text):
    "The last accuracy that `text` tells."
    return float(re.findall(r"test accuracy +([\d.]+)%", text)[-1])


def test_digits_are_what_it_learns_unless_told_otherwise(capsys):
    status = main(["--epochs", "1"])
    text = capsys.readouterr().out
    assert text.startswith("1433 pictures to learn from, 364 to be tested on;")
    assert status == 1 and 60 < accuracy(text) < 95  # one epoch is too little
    assert main(["--data", "digits", "--epochs", "1"]) == 1
    assert capsys.readouterr().out == text


def test_fashion_is_learned_in_a_few_epochs(capsys):
    try:
        fashion_mnist("test")
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine: apt-get install dataset-fashion-mnist")
    status = main(["--data", "fashion", "--epochs", "2"])
    text = capsys.readouterr().out
    assert text.startswith("60000 pictures to learn from, 10000 to be tested on;")
    assert status == 0 and accuracy(text) > 85
    assert any(f"{name}\n" in text or f"{name}  " in text for name in fashion_mnist("test").classes)


@pytest.mark.parametrize("error, message", [
    (None, "Fashion-MNIST is not here"),
    (ValueError("x.gz is damaged"), "x.gz is damaged"),
    (PermissionError("not for you"), "not for you"),
])  # fmt: skip
def test_without_data_it_says_so_and_ends_with_2(error, message, monkeypatch, capsys):
    def read_bytes(self):
        raise error

    monkeypatch.setattr(Path, "is_file", lambda self: error is not None)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert main(["--data", "fashion"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and "Traceback" not in err


@pytest.mark.parametrize("words", [["--data", "mnist"], ["--epochs", "0"], ["--device", "tpu"]])
def test_a_command_line_that_cannot_be_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err


def test_jobs_fit_their_data():
    for load, name in ((digits, "digits"), (fashion_mnist, "fashion")):
        assert JOBS[name].load is load
    assert JOBS["digits"].pixels == digits("test")[0][0].size


@pytest.mark.parametrize("side, shown, height, width", [
    (8, 4, 8, 16), (16, 2, 16, 32), (28, 2, 14, 28), (2, 5, 2, 4)
])  # fmt: skip
def test_pictures_are_drawn_side_by_side_within_80_columns(side, shown, height, width):
    lines = draw(init.ones((5, side * side)), "abcde").split("\n")
    assert len(lines) == height + 1
    assert lines[:-1] == ["  ".join(["@" * width] * shown)] * height
    assert lines[-1].split() == [*"abcde"[:shown]]
    assert max(map(len, lines)) <= 80


def test_pictures_are_the_right_way_up():
    image = np.zeros((28, 28), dtype="float32")
    image[:6, :3], image[27, 27] = 1, 1
    rows = draw(init.ones((1, 784)) * image.reshape(1, -1), ["x"]).split("\n")
    assert [row[:4] for row in rows[:4]] == ["@@@ ", "@@@ ", "@@@ ", "    "]
    assert rows[13][26:] == " =" and rows[14].strip() == "x"
