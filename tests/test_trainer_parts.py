"Time, events, batches, loggers and lints: what the Trainer is made of."

import json
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest

import minima as mi
from minima import nn, optim
from minima.nn import functional as F
from minima.trainer import (
    Accuracy,
    Algorithm,
    Callback,
    CSVLogger,
    Event,
    History,
    InMemoryLogger,
    JSONLLogger,
    ProgressBar,
    State,
    Time,
    Timestamp,
)
from minima.trainer.batches import as_metrics, given_and_wanted, parts, rows
from minima.trainer.events import run_event
from minima.trainer.lints import after_backward, before_training

# ---- time ----


@pytest.mark.parametrize("time, value, unit", [
    ("100ep", 100, "ep"), (7, 7, "ep"), (" 500 ba", 500, "ba"), ("4096sp", 4096, "sp"),
    ("0.5dur", Fraction(1, 2), "dur"), (".25ep", Fraction(1, 4), "ep"),
    ("1/3ep", Fraction(1, 3), "ep"), ("30sec", 30, "sec"), (Time("0.1dur"), Fraction(1, 10), "dur"),
])  # fmt: skip
def test_times_are_read_exactly(time, value, unit):
    assert (Time(time).value, Time(time).unit) == (value, unit)
    assert eval(repr(Time(time))).unit == unit


@pytest.mark.parametrize("time", [
    "", "ep", "3", "-1ep", "1e3ba", "3 epochs", "1.2.3ep", "1/0ep", "nan ep", 0.5, None, True, [3],
])  # fmt: skip
def test_what_is_no_time_is_refused(time):
    with pytest.raises(ValueError, match="a time is a number with a unit"):
        Time(time)


def test_times_are_compared_within_a_unit():
    assert Time("2ep") == Time(2) and Time("2ep") != Time("2ba") and Time("2ep") != "2ep"
    assert Time("2ep") < 3 and Time("2ep") <= 2 and Time("2ep") > "1.5ep" and Time("2ep") >= "2ep"
    assert Time("2ba") + "3ba" == Time("5ba") and Time("2ba") / "8ba" == 0.25
    assert len({Time("2ep"), Time(2), Time("2.0ep")}) == 1
    for compare in (Time("2ep").__lt__, Time("2ep").__add__, Time("2ep").__truediv__):
        with pytest.raises(ValueError, match="cannot compare or add epochs with batches"):
            compare("3ba")


def test_parts_of_a_training():
    assert Time("0.1dur").of("3ep") == Time("0.3ep") and Time("3ba").of(None) == Time("3ba")
    for whole in (None, "1dur"):
        with pytest.raises(ValueError, match="how long that is was not said"):
            Time("0.1dur").of(whole)


@pytest.mark.parametrize("interval, batches, due", [
    ("1ep", 3, [3, 6, 9]), ("0.5ep", 3, [2, 3, 5, 6, 8, 9]), ("1/3ep", 3, [*range(1, 10)]),
    ("2ba", 3, [2, 4, 6, 8]), ("10sp", 3, [3, 5, 8]), ("1sp", 3, [*range(1, 10)]), ("2ep", 3, [6]),
    ("0.1ep", 10, [*range(1, 31)]), ("2.5sec", 3, [3, 5, 8]),
])  # fmt: skip
def test_what_is_due_is_due_once_per_interval(interval, batches, due):
    now, found = Timestamp(epoch_batches=batches), []
    for _ in range(3 * batches):
        before, now = now, now.next_batch(4, 1.0)
        found += [now.batch] * now.passed(interval, before)
        if now.batch_in_epoch == batches:
            now = now.next_epoch()
    assert found == due


def test_timestamps_say_what_they_cannot_know():
    with pytest.raises(ValueError, match="a timestamp knows ep, ba, sp, sec; got 'dur'"):
        Timestamp().reached("1dur")
    with pytest.raises(ValueError, match="longer than nothing"):
        Timestamp().passed("0ba", Timestamp())
    assert Timestamp().reached("0ep") and not Timestamp(batch=4).reached("5ba")


# ---- events ----


class Noted(Algorithm):
    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def match(self, event, state):
        return event is not Event.FIT_START

    def apply(self, event, state):
        self.notes.append(self.name)


class Heard(Callback):
    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def batch_start(self, state):
        self.notes.append(self.name)

    fit_start = batch_end = after_load = batch_start


@pytest.mark.parametrize("event, order", [
    (Event.BATCH_START, "abcde"), (Event.BATCH_END, "badce"), (Event.AFTER_LOAD, "badce"),
    (Event.FIT_START, "cde"), (Event.EVAL_END, "ba"),
])  # fmt: skip
def test_algorithms_first_and_backwards_where_things_end(event, order):
    notes = []
    state = State(None, algorithms=[Noted("a", notes), Noted("b", notes)])
    state.callbacks, state.loggers = [Heard("c", notes), Heard("d", notes)], [Heard("e", notes)]
    run_event(event, state)
    assert "".join(notes) == order


def test_fourteen_events_and_a_method_for_each():
    assert len(Event) == 14
    assert [*Event] == [name for name in vars(Callback) if name[0] != "_"]
    for event in Event:
        getattr(Callback(), event)(None)


def test_bare_algorithms_say_what_they_lack():
    for lacking in (lambda: Algorithm().match(None, None), lambda: Algorithm().apply(None, None)):
        with pytest.raises(NotImplementedError, match="Algorithm has no"):
            lacking()


# ---- batches ----

X, Y = mi.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), mi.tensor([0, 1, 0])


@pytest.mark.parametrize("batch, given, wanted", [
    ((X, Y), (X,), Y), ([X, X, Y], (X, X), Y), (X, (X,), X), ((X,), (X,), X), ([Y], (Y,), Y),
])  # fmt: skip
def test_what_is_wanted_comes_last(batch, given, wanted):
    found = given_and_wanted(batch)
    assert [*map(id, found[0])] == [*map(id, given)] and found[1] is wanted


@pytest.mark.parametrize("batch", [(X, mi.tensor([1, 2])), "text", (), mi.tensor(3.0)])
def test_batches_without_a_number_of_rows_are_refused(batch):
    with pytest.raises(ValueError, match="one row per sample"):
        rows(batch)


@pytest.mark.parametrize("n, sizes", [(1, [3]), (2, [1, 2]), (3, [1, 1, 1]), (7, [1, 1, 1])])
def test_parts_are_nearly_equal_and_none_is_empty(n, sizes):
    found = parts((X, Y), n)
    assert [rows(part) for part, _ in found] == sizes
    assert [share for _, share in found] == pytest.approx([size / 3 for size in sizes])
    assert sum((part[1].tolist() for part, _ in found), []) == Y.tolist()


def test_metrics_weigh_by_rows_and_have_names():
    accuracy = Accuracy()
    assert str(accuracy.compute()) == "nan"
    accuracy.update(mi.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]), mi.tensor([0, 0, 1]))
    accuracy.update(mi.tensor([[2.0, 1.0]]), mi.tensor([1]))
    assert accuracy.compute() == 0.75
    assert [*as_metrics([F.mse_loss, accuracy])] == ["mse_loss", "accuracy"]
    with pytest.raises(TypeError, match="a metric is a function of outputs and targets; got 3"):
        as_metrics([3])


# ---- loggers ----


def test_histories_are_rectangular():
    history = History()
    for row in ({"epoch": 1, "a": 1.0}, {"epoch": 2, "b": 2.0}, {"epoch": 3, "a": 3.0}):
        history.add(row)
    assert history == {"epoch": [1, 2, 3], "a": [1.0, None, 3.0], "b": [None, 2.0, None]}
    assert history.count() == 3 and History().count() == 0
    assert history.row(1) == {"epoch": 2, "b": 2.0}
    assert "<td>3.0000</td>" in history._repr_html_()


def test_histories_are_drawn():
    pytest.importorskip("matplotlib").use("agg")
    history = History()
    history.add({"epoch": 1, "loss": 1.0})
    history.add({"epoch": 2, "loss": 0.5, "eval_accuracy": 0.9})
    axes = history.plot().axes
    assert [[line.get_label() for line in ax.lines] for ax in axes] == [["loss"], ["eval_accuracy"]]
    assert axes[1].lines[0].get_xdata() == [2] and len(History().plot().axes) == 1


def moments(*batches):
    return [Timestamp(epoch=1, batch=batch, sample=4 * batch) for batch in batches]


@pytest.mark.parametrize("make", [JSONLLogger, CSVLogger])
def test_files_go_on_where_training_does(make, tmp_path):
    path = tmp_path / "log"

    def read():
        lines = path.read_text().splitlines()
        if make is JSONLLogger:
            return [(line["batch"], line["loss"]) for line in map(json.loads, lines)]
        assert lines[0] == "epoch,batch,sample,name,value"
        return [(int(b), float(v)) for _, b, _, name, v in (line.split(",") for line in lines[1:])]

    def log(logger, tag, *batches):
        for now in moments(*batches):
            logger.log(now, {"loss": now.batch + tag})

    first = make(path)
    log(first, 0.0, 1, 2, 3)
    first.close()
    log(first, 0.0, 4)  # open again, by the same
    with path.open("a") as file:
        file.write('{"epoch": 1, "ba' if make is JSONLLogger else "1,5,20,loss,")  # killed
    assert first.close() is None and first.close() is None
    second = make(path)
    second.after_load(State(None, timestamp=moments(3)[0]))
    log(second, 0.5, 4)
    assert read() == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5)]
    third = make(path)
    log(third, 0.25, 1)
    assert read() == [(1, 1.25)]


def test_memory_keeps_every_number():
    logger = InMemoryLogger()
    state = State(None, loggers=[logger, ProgressBar()])
    for state.timestamp in moments(1, 2):
        state.log({"loss": 0.5, "lr": 0.1})
    assert logger.data == {"loss": [(1, 0.5), (2, 0.5)], "lr": [(1, 0.1), (2, 0.1)]}


def shown_by(progress, epochs=2):
    state = State(None, history=History(), max_duration=Time("10ep"), metrics={"eval_loss": 0.25})
    state.timestamp = Timestamp(epoch_batches=3)
    progress.fit_start(state)
    for _ in range(epochs):
        for _ in range(3):
            progress.batch_start(state)
            state.timestamp, state.loss = state.timestamp.next_batch(8, 0.5), 0.125
            progress.batch_end(state)
        state.timestamp = state.timestamp.next_epoch()
        state.history.add({"epoch": state.timestamp.epoch, "loss": 12345.0, "n": 1e-7})
        progress.epoch_end(state)
    progress.fit_end(state)
    return state.history


def test_progress_is_a_bar_and_a_line_per_epoch(capsys):
    shown_by(ProgressBar())
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "epoch  1/10   loss 1.234e+04   n 1e-07", "epoch  2/10   loss 1.234e+04   n 1e-07"
    ]  # fmt: skip
    assert "epoch 2" in err
    shown_by(ProgressBar(bar=False), 1)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err == ""


def test_the_bar_tells_loss_metrics_and_speed():
    progress, state = ProgressBar(), State(None, metrics={"eval_loss": 0.25}, loss=0.125)
    state.timestamp = Timestamp(epoch=1, batch=4, epoch_batches=3, batch_in_epoch=1)
    progress.batch_start(state)
    state.timestamp = state.timestamp.next_batch(8, 0.5)
    progress.batch_end(state)
    bar = progress.bar
    progress.close()
    assert (bar.desc.strip(": "), bar.n, bar.total) == ("epoch 2", 2, 3)
    assert bar.postfix == "loss 0.1250, eval_loss 0.2500, 16 samples/s" and progress.bar is None


def test_in_a_notebook_the_lines_are_a_table_that_grows(monkeypatch, capsys):
    updates = []

    class ZMQInteractiveShell:
        "The shell of notebooks, by name."

    handle = SimpleNamespace(update=lambda history: updates.append(history.count()))
    display = SimpleNamespace(display=lambda history, display_id: handle)
    shell = SimpleNamespace(get_ipython=ZMQInteractiveShell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    shown_by(ProgressBar(bar=False))
    assert updates == [1, 2, 2] and capsys.readouterr().out == ""


# ---- lints ----


class Holder(nn.Module):
    def __init__(self, thing):
        self.linear, self.thing = nn.Linear(2, 2), thing

    def forward(self, x):
        return self.linear(x)


def findings(model, loss_fn=F.mse_loss, optimizers=None):
    if optimizers is None:
        optimizers = [optim.SGD(model.parameters())]
    return "\n".join(before_training(model, loss_fn, optimizers))


@pytest.mark.parametrize("thing, found", [
    (mi.ones((3,)), "'thing' is a plain Tensor of shape (3,)"), ([mi.ones((2, 2))], "'thing'"),
    ({"a": mi.ones((3,))}, "'thing'"), (nn.Linear(2, 2), ""), (nn.Buffer(mi.ones((3,))), ""),
    (nn.Parameter(mi.ones((3,))), ""), (mi.tensor([1, 2]), ""), (mi.tensor(1.0), ""), (3.0, ""),
])  # fmt: skip
def test_weights_that_nobody_learns_are_found(thing, found):
    text = findings(Holder(thing))
    assert found in text if found else text == ""


def test_optimizers_of_other_models_are_found():
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    every, one = optim.SGD(model.parameters()), optim.SGD([model.weight])
    assert "no optimizer has 'bias'" in findings(model, optimizers=[one])
    both = findings(model, optimizers=[optim.SGD(other.parameters())])
    assert "'weight', 'bias'" in both and "2 of the optimizer's parameters are not" in both
    assert "two optimizers have 'weight'" in findings(model, optimizers=[every, one])
    model.bias.requires_grad_(False)
    assert findings(model, optimizers=[one]) == findings(model) == ""


@pytest.mark.parametrize("last, loss_fn, found", [
    (nn.Softmax(), nn.CrossEntropyLoss(), True), (nn.Softmax(), F.cross_entropy, True),
    (nn.Sigmoid(), nn.BCEWithLogitsLoss(), True), (nn.Softmax(), nn.NLLLoss(), False),
    (nn.LogSoftmax(), nn.CrossEntropyLoss(), False), (nn.Sigmoid(), nn.BCELoss(), False),
    (nn.Sequential(nn.Linear(3, 3), nn.Softmax()), nn.CrossEntropyLoss(), True),
])  # fmt: skip
def test_a_softmax_too_many_is_found(last, loss_fn, found):
    text = findings(nn.Sequential(nn.Linear(2, 3), last), loss_fn)
    assert ("contains one already" in text) == found and (found or text == "")


def test_biases_before_a_batch_norm_are_found():
    assert "'1.0.bias' comes straight before a batch norm" in findings(
        nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    )
    good = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU())
    assert findings(good) == ""


def test_after_the_walk_back_lost_gradients_and_eval_mode_are_found():
    model = Holder(nn.Linear(2, 2))
    model(mi.ones((3, 2))).sum().backward()
    (line,) = after_backward(model)
    assert line.startswith("'thing.weight', 'thing.bias' got no gradient")
    model.thing.requires_grad_(False)
    assert after_backward(model) == []
    model.thing.eval()
    (line,) = after_backward(model)
    assert line.startswith("'thing' in eval mode during training")
