"What fails in the middle of training: it is said whose it was, and fit() goes on from there."

import os
import random
import signal
import sys

import numpy as np
import pytest
from test_trainer_resume import at_call, contents, essence, last
from test_trainer_resume import make as make_drawing

import minima as mi
from minima import nn, optim
from minima.data import DataLoader, TensorDataset
from minima.trainer import (
    Algorithm,
    Callback,
    CSVLogger,
    Event,
    InMemoryLogger,
    JSONLLogger,
    LRFinder,
    Mean,
    Timestamp,
    Trainer,
)
from minima.trainer.checkpoints import in_folder, load_tree


class Boom(Exception):
    "What nobody expects."


class Bomb:
    "Counts, and raises the `n`th time; what comes later is fine."

    def __init__(self, n):
        self.n = n

    def __call__(self, *arguments, **settings):
        self.n -= 1
        if self.n == 0:
            raise Boom("by test")


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def make(folder=None, parts=1, n=20, **settings):
    "Three epochs of three batches, without draws, so that each batch can be done again."
    mi.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    x = np.random.default_rng(0).normal(size=(n, 4)).astype("float32")
    data = TensorDataset(x, (x.sum(axis=1) > 0).astype("int64"))
    model = settings.pop("model", network)()
    optimizer = settings.pop("optimizer", optim.SGD)
    settings = {
        "optimizers": optimizer(model.parameters(), lr=0.1, momentum=0.9),
        "schedulers": [
            lambda o: optim.ExponentialLR(o, 0.9),
            lambda o: optim.ReduceLROnPlateau(o, patience=0),
        ],
        "scheduler_interval": "2ba",
        "train_dataloader": DataLoader(data, 8),
        "eval_dataloader": DataLoader(data, 16),
    } | settings
    return Trainer(
        model, max_duration=3, grad_accumulation=parts, save_folder=folder, lint=False,
        save_interval="2ba", eval_interval="4ba", progress_bar=False, **settings,
    )  # fmt: skip


def bits(model):
    return [t.numpy().tobytes() for t in model.state_dict().values()]


def survives(trainer, whose, straight, error=Boom):
    "fit() fails, saying `whose` fault it is, and when; the next one ends where `straight` did."
    with pytest.raises(error) as caught:
        trainer.fit()
    notes = " ".join(caught.value.__notes__)
    assert whose in notes and "This was in epoch " in notes and "fit() goes on from" in notes
    assert all(module.training for module in trainer.state.model.modules())
    assert all(p.requires_grad for p in trainer.state.model.parameters()) and mi.is_grad_enabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.fit()
    assert bits(trainer.state.model) == bits(straight.state.model)
    assert trainer.history == straight.history
    assert trainer.state.timestamp.batch == 9 and trainer.state.timestamp.epoch == 3
    schedules = [t.state.schedulers[0].state_dict() for t in (trainer, straight)]
    assert schedules[0] == schedules[1]
    if trainer._folder.path is not None:
        assert last(trainer._folder.path) == last(straight._folder.path)
        assert [p.name for p in in_folder(trainer._folder.path)] == [
            p.name for p in in_folder(straight._folder.path)
        ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "By number of parts: training that nothing has disturbed."
    found = {n: make(tmp_path_factory.mktemp("straight"), n) for n in (1, 2)}
    for trainer in found.values():
        trainer.fit()
    return found


# ---- those who look on ----


def callback(event, bomb):
    class Breaks(Callback):
        pass

    setattr(Breaks, event, bomb)
    return {"callbacks": [Breaks()]}


def algorithm(event, bomb):
    class Breaks(Algorithm):
        def match(self, now, state):
            return now == event

        def apply(self, now, state):
            bomb()

    return {"algorithms": [Breaks()]}


def matching(event, bomb):
    class Breaks(Algorithm):
        def match(self, now, state):
            if now == event:
                bomb()

    return {"algorithms": [Breaks()]}


def logger(event, bomb):
    class Breaks(InMemoryLogger):
        pass

    setattr(Breaks, event, bomb)
    return {"loggers": [Breaks()]}


WHILE_FITTING = [event for event in Event if event not in ("init", "before_load", "after_load")]


@pytest.mark.parametrize("kind", [callback, algorithm, matching, logger])
@pytest.mark.parametrize("event", WHILE_FITTING)
def test_whoever_fails_at_whatever_event(event, kind, straight, tmp_path):
    for n in [1] if event in ("fit_start", "fit_end") else [1, 3]:
        parts = 2 if event == "after_loss" else 1
        trainer = make(tmp_path / str(n), parts, **kind(event, Bomb(n)))
        survives(trainer, f"This was Breaks at {event.name}, in epoch ", straight[parts])


@pytest.mark.parametrize("event", ["batch_end", "eval_end", "epoch_end"])
def test_an_event_is_told_once_and_what_is_due_is_done_once(event, straight):
    heard, done = [], []
    notes = type("Notes", (), {event: lambda self, state: heard.append(state.timestamp.batch)})()
    trainer = make(**callback(event, Bomb(2)))
    trainer.state.callbacks.append(notes)  # at the end of things the first to be told
    evaluate = trainer.eval
    trainer.eval = lambda: done.append(trainer.state.timestamp.batch) or evaluate()
    survives(trainer, f"This was Breaks at {event.upper()}", straight[1])
    batches = {"batch_end": [*range(1, 10)], "eval_end": [4, 8, 9], "epoch_end": [3, 6, 9]}
    assert heard == batches[event] and done == [4, 8, 9]


@pytest.mark.parametrize("kind", [callback, algorithm, logger])
def test_whoever_fails_before_training(kind, tmp_path):
    with pytest.raises(Boom) as caught:
        make(**kind("init", Bomb(1)))
    assert caught.value.__notes__ == ["This was Breaks at INIT, in epoch 1, batch 1."]
    first = make(tmp_path)
    first.fit("4ba")
    for event in ("before_load", "after_load"):
        trainer = make(**kind(event, Bomb(1)))
        with pytest.raises(Boom) as caught:
            trainer.load_checkpoint(tmp_path)
        assert f"This was Breaks at {event.upper()}" in caught.value.__notes__[0]
        trainer.load_checkpoint(tmp_path)
        assert bits(trainer.state.model) == bits(first.state.model)
        trainer.fit()
        assert trainer.state.timestamp.batch == 9


@pytest.mark.parametrize("n", range(1, 13))
def test_a_logger_that_cannot_write(n, straight, tmp_path):
    survives(make(tmp_path, **logger("log", Bomb(n))), "This was Breaks, logging ", straight[1])


def test_a_logger_that_a_callback_calls():
    class Tells:
        def batch_end(self, state):
            state.log({"mine": 1.0})

    with pytest.raises(Boom) as caught:
        make(callbacks=Tells(), **logger("log", Bomb(2))).fit()
    first, second, third = caught.value.__notes__
    assert first == "This was Breaks, logging mine."
    assert second.startswith("This was Tells at BATCH_END, in epoch 1") and "fit()" in third


def test_all_are_closed_even_if_one_cannot_be():
    closed = []

    class Closes:
        def __init__(self, name):
            self.close = lambda: closed.append(name) or (name == 2 and Bomb(1)())

    trainer = make(callbacks=[Closes(1), Closes(2)], loggers=InMemoryLogger())
    trainer.state.callbacks.append(Closes(3))
    with pytest.raises(Boom):
        trainer.fit()
    assert sorted(closed) == [1, 2, 3] and trainer.state.timestamp.batch == 9


# ---- those who are asked ----


class Wrapped(nn.Module):
    "A model that may break."

    def __init__(self, bomb):
        self.inside, self.bomb = network(), bomb

    def forward(self, x):
        self.bomb()
        return self.inside(x)


@pytest.mark.parametrize("n", range(1, 13))
def test_a_model_that_breaks_in_training_or_evaluation(n, straight):
    survives(make(model=lambda: Wrapped(Bomb(n))), "", straight[1])


@pytest.mark.parametrize("n", range(1, 13))
def test_a_loss_that_breaks_in_training_or_evaluation(n, straight):
    bomb = Bomb(n)
    loss_fn = lambda outputs, targets: bomb() or nn.CrossEntropyLoss()(outputs, targets)
    whose = (
        "This was the metric 'loss'. This was in an evaluation." if n in (5, 6, 11, 12) else None
    )
    survives(make(loss_fn=loss_fn), whose or "This was the loss function.", straight[1])


@pytest.mark.parametrize("method", ["reset", "update", "compute"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_metric_that_breaks(method, n, straight):
    class Own(Mean):
        pass

    bomb, original = Bomb(n + (method == "reset")), getattr(Mean, method)
    setattr(Own, method, lambda self, *given: bomb() or original(self, *given))
    trainer = make(metrics={"mine": Own(lambda outputs, targets: 0.5)})
    plain = make(metrics={"mine": lambda outputs, targets: 0.5})
    plain.fit()
    survives(trainer, "This was the metric 'mine'. This was in an evaluation.", plain)


@pytest.mark.parametrize("which", ["train_dataloader", "eval_dataloader"])
@pytest.mark.parametrize("n", [1, 9, 17, 25])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_data_set_that_breaks(which, n, prefetch, straight):
    class Rows(list):
        bomb = Bomb(n)

        def __getitem__(self, i):
            return self.bomb() or super().__getitem__(i)

    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    rows = Rows(zip(x, (x.sum(axis=1) > 0).astype("int64")))
    size = 8 if which == "train_dataloader" else 16
    trainer = make(**{which: DataLoader(rows, size, prefetch=prefetch)})
    survives(trainer, "of the data set", straight[1])


def test_a_loader_of_ones_own_that_breaks(straight):
    class Loader(list):
        bomb = Bomb(5)

        def __iter__(self):
            return (self.bomb() or batch for batch in super().__iter__())

    batches = Loader([*make().state.train_dataloader])
    survives(make(train_dataloader=batches), "", straight[1])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_an_optimizer_that_breaks_before_it_steps(n, straight):
    class Breaks(optim.SGD):
        bomb = Bomb(n)

        def step(self, closure=None):
            self.bomb()
            super().step()

    survives(make(optimizer=Breaks), "", straight[1])


def test_a_schedule_that_breaks_is_stepped_later_and_so_are_the_others(tmp_path):
    bomb = Bomb(3)
    schedules = [
        lambda o: optim.LambdaLR(o, lambda k: bomb() or 0.5**k),
        lambda o: optim.ExponentialLR(o, 1.0),
    ]
    trainer = make(tmp_path, schedulers=schedules)
    with pytest.raises(Boom) as caught:
        trainer.fit()
    assert "fit() goes on from there" in caught.value.__notes__[-1]
    assert [s.last_epoch for s in trainer.state.schedulers] == [1, 1]
    assert len(in_folder(tmp_path)) == 1
    trainer.fit("0ba")
    assert [s.last_epoch for s in trainer.state.schedulers] == [2, 2]
    assert len(in_folder(tmp_path)) == 2


def test_eval_and_predict_leave_the_modes_as_they_were():
    for door in ("eval", "predict"):
        trainer = make(model=lambda: Wrapped(Bomb(2)))
        trainer.state.model.inside[1].eval()
        with pytest.raises(Boom):
            getattr(trainer, door)(trainer.state.eval_dataloader)
        modes = [module.training for module in trainer.state.model.modules()]
        assert modes == [True, True, True, False, True] and mi.is_grad_enabled()


def test_a_search_for_a_rate_that_breaks_puts_everything_back():
    trainer = make(schedulers=None, callbacks=LRFinder(batches=8), model=lambda: Wrapped(Bomb(6)))
    before = bits(trainer.state.model), trainer.state.optimizers[0].param_groups[0]["lr"]
    with pytest.raises(Boom):
        trainer.fit()
    after = bits(trainer.state.model), trainer.state.optimizers[0].param_groups[0]["lr"]
    assert before == after and trainer.state.optimizers[0].state == {}
    trainer.fit()
    assert bits(trainer.state.model) == before[0]


# ---- Ctrl-C ----


class Press:
    "A callback that lets Ctrl-C be pressed `times` times, at the `n`th call of a function."

    def __init__(self, n, times):
        self.n, self.times = n, times

    def fit_start(self, state):
        if self.n:
            at_call(self.n, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(self.times)])
            self.n = 0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "Training with draws of all kinds, undisturbed; and how many functions it calls."
    make_drawing(tmp_path_factory.mktemp("first"), 0).fit()  # kernels are imported at first use
    folder = tmp_path_factory.mktemp("drawn")
    trainer, counted = make_drawing(folder, 0), []

    class Count:
        def fit_start(self, state):
            counted.append(at_call(0, None))

    trainer.state.callbacks.append(Count())
    trainer.fit()
    sys.setprofile(None)
    return folder, next(counted[0])


@pytest.mark.parametrize("seed", range(12))
def test_ctrl_c_at_any_moment_changes_nothing(seed, drawn, tmp_path):
    folder, calls = drawn
    trainer = make_drawing(tmp_path, 0)
    n = random.Random(seed).randrange(1, calls)
    trainer.state.callbacks.append(Press(n, 1))
    try:
        trainer.fit()
    except KeyboardInterrupt:  # if it was over already
        assert trainer.state.timestamp.epoch == 4
    finally:
        sys.setprofile(None)
    assert all(module.training for module in trainer.state.model.modules())
    trainer.fit()
    found, expected = last(tmp_path), last(folder)
    for tree in (found, expected):  # there is a row for the part of an epoch
        tree.pop("history")
    assert found == expected


@pytest.mark.parametrize("seed", range(12))
def test_a_second_ctrl_c_at_any_moment_leaves_a_model_to_go_on_with(seed, drawn, tmp_path):
    trainer = make_drawing(tmp_path, 0)
    trainer.state.callbacks.append(Press(random.Random(seed).randrange(1, drawn[1] - 500), 2))
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    finally:
        sys.setprofile(None)
    assert all(module.training for module in trainer.state.model.modules())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and mi.is_grad_enabled()
    assert not [*tmp_path.glob(".*")] and all(load_tree(path) for path in in_folder(tmp_path))
    trainer.fit()
    assert trainer.state.timestamp.epoch == 4
    assert all(np.isfinite(t.numpy()).all() for t in trainer.state.model.state_dict().values())


def twice(*arguments, **settings):
    "Ctrl-C, and once more."
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_twice_in_an_evaluation(straight, tmp_path):
    presses = [1]
    trainer = make(
        tmp_path,
        metrics={"m": lambda outputs, targets: (presses and presses.pop() and twice()) or 0.5},
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert all(module.training for module in trainer.state.model.modules())
    trainer.fit()
    assert bits(trainer.state.model) == bits(straight[1].state.model)
    assert trainer.history["eval_m"] == [None, 0.5, 0.5] and not presses


def test_ctrl_c_twice_in_a_save(straight, tmp_path, monkeypatch):
    trainer, original, calls = make(tmp_path), os.fsync, []

    def fsync(descriptor):
        calls.append(contents(tmp_path))
        if len(calls) == 2:
            twice()
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert [*contents(tmp_path)] == ["ep0-ba2.safetensors"] and len(calls[1]) == 2
    trainer.fit()
    assert last(tmp_path) == last(straight[1]._folder.path)
    names = [[path.name for path in in_folder(f)] for f in (tmp_path, straight[1]._folder.path)]
    assert names[0] == names[1]


def test_ctrl_c_in_the_last_save_lets_it_finish(tmp_path, monkeypatch):
    trainer, original = make(tmp_path, save_overwrite=True), os.fsync
    trainer.save_interval = mi.trainer.Time("100ep")
    monkeypatch.setattr(os, "fsync", lambda fd: signal.raise_signal(signal.SIGINT) or original(fd))
    trainer.fit()
    assert [path.name for path in in_folder(tmp_path)] == ["ep3-ba9.safetensors"]


# ---- loaders that lie, logs that break off ----


@pytest.mark.parametrize("which", ["train_dataloader", "eval_dataloader"])
def test_loaders_without_batches_are_refused(which):
    empty = DataLoader(
        TensorDataset(np.ones((3, 4), "float32"), np.zeros(3, int)), 8, drop_last=True
    )
    for loader in ([], empty):
        with pytest.raises(ValueError, match=f"{which} has no batches"):
            make(**{which: loader})


@pytest.mark.parametrize("said, steps", [(5, 9), (3, 9), (2, 9)])
def test_a_loader_may_end_before_or_after_it_says(said, steps):
    class Loader(list):
        def __len__(self):
            return said

    batches = Loader([*make().state.train_dataloader])
    trainer = make(train_dataloader=batches)
    trainer.fit("3ep")
    assert trainer.state.timestamp.epoch >= 3 and trainer.history["epoch"][-1] >= 3


@pytest.mark.parametrize("kind", [CSVLogger, JSONLLogger])
def test_half_a_line_is_not_kept(kind, tmp_path):
    path, log = tmp_path / "log", kind(tmp_path / "log")
    for batch in (1, 2):
        log.log(Timestamp(batch=batch), {"loss": 0.5})
    whole = path.read_text()
    with path.open("a") as file:
        file.write(whole.splitlines()[-1][:9])
    log.close()
    log.log(Timestamp(batch=3), {"loss": 0.25})
    lines = path.read_text().splitlines()
    assert lines[:-1] == whole.splitlines() and "0.25" in lines[-1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
@pytest.mark.parametrize("kind", [CSVLogger, JSONLLogger])
def test_a_log_on_a_full_disk_goes_on_when_there_is_room(kind, straight, tmp_path):
    class Fill:
        def batch_start(self, state):
            if state.timestamp.batch == 4 and log._file.name != "/dev/full" and not failed:
                failed.append(log._file)
                log._file = open("/dev/full", "w")

    failed, log = [], kind(tmp_path / "log")
    survives(make(loggers=log, callbacks=Fill()), "", straight[1], OSError)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "loss" in line]
    plain = kind(tmp_path / "plain")
    make(loggers=plain).fit()
    missing = set((tmp_path / "plain").read_text().splitlines()) - set(lines)
    assert sum("loss" in line for line in missing) == 1  # the number that did not fit


def test_the_comparison_would_notice(straight):
    other = make()
    other.fit("8ba")
    assert bits(other.state.model) != bits(straight[1].state.model)
    assert essence({"a": mi.ones(2)}) != essence({"a": mi.zeros(2)})
