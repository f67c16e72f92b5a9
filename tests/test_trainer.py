"The Trainer: fit, eval, predict, and what may go wrong."

import signal
import threading
import warnings

import numpy as np
import pytest

import minima as mi
from minima import nn, optim
from minima.data import DataLoader, TensorDataset
from minima.trainer import Algorithm, Event, InMemoryLogger, Trainer


def batches(n=20, size=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return DataLoader(TensorDataset(x, (x.sum(axis=1) > 0).astype("int64")), batch_size=size)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def make(*args, model=None, quiet=True, **settings):
    model = network() if model is None else model
    settings.setdefault("optimizers", optim.SGD(model.parameters(), lr=0.1))
    return Trainer(model, *args, progress_bar=not quiet, **settings)


def bits(model):
    return [t.numpy().tobytes() for t in model.state_dict().values()]


class Recorder:
    "A callback that notes every event, and the timestamp."

    def __init__(self):
        self.notes = []

    def __getattr__(self, name):
        if name not in [*Event]:
            raise AttributeError(name)
        return lambda state: self.notes.append((name, state.timestamp.batch))


class At:
    "A callback that does something after a batch."

    def __init__(self, batch, act, event="batch_end"):
        self.batch, self.act = batch, act
        setattr(self, event, self._meet)

    def _meet(self, state):
        if state.timestamp.batch == self.batch:
            self.act(state)


# ---- the loop ----


def test_it_does_what_the_four_lines_do():
    mi.manual_seed(0)
    model, loss_fn = network(), nn.CrossEntropyLoss()
    other = network()
    other.load_state_dict(model.state_dict())
    make(batches(), max_duration=3, model=model).fit()
    optimizer = optim.SGD(other.parameters(), lr=0.1)
    for _ in range(3):
        for x, y in batches():
            optimizer.zero_grad()
            loss_fn(other(x), y).backward()
            optimizer.step()
    assert bits(model) == bits(other)


def test_events_come_in_their_order():
    seen = Recorder()
    make(batches(), batches(8), 1, callbacks=seen, grad_accumulation=2).fit()
    step = ["before_forward", "after_forward", "after_loss"] * 2 + ["after_backward"]
    expected = ["init", "fit_start", "epoch_start"]
    for _ in range(3):
        expected += ["batch_start", *step, "batch_end"]
    assert [name for name, _ in seen.notes] == [*expected, "eval_end", "epoch_end", "fit_end"]
    assert [n for name, n in seen.notes if name == "batch_end"] == [1, 2, 3]


@pytest.mark.parametrize("duration, batch, epochs", [
    ("2ep", 6, [1, 2]), ("4ba", 4, [1, 1.3333]), ("20sp", 3, [1]), ("17sp", 3, [1]), (1, 3, [1]),
    ("1.5ep", 5, [1, 1.6667]), ("0sec", 0, []),
])  # fmt: skip
def test_it_ends_when_it_shall(duration, batch, epochs):
    trainer = make(batches(), batches(8), duration)
    trainer.fit()
    assert trainer.state.timestamp.batch == batch and trainer.history.get("epoch", []) == epochs
    if batch:
        assert trainer.history["eval_loss"][-1] is not None
    trainer.fit()  # it has come that far already
    assert trainer.state.timestamp.batch == batch


def test_fit_switches_to_training_mode():
    model, modes = network(), []
    note = At(0, lambda state: modes.append([m.training for m in model.modules()]), "after_loss")
    model.eval()
    make(batches(), max_duration=1, model=model, callbacks=note).fit()
    assert modes == [[True] * 4]


def test_fit_goes_on_from_the_middle_of_an_epoch():
    mi.manual_seed(0)
    model, other = network(), network()
    other.load_state_dict(model.state_dict())
    for loader in (batches, lambda: [*batches()]):
        whole = make(loader(), max_duration="5ba", model=model)
        whole.fit()
        parts = make(loader(), max_duration="2ba", model=other)
        parts.fit()
        parts.fit("2ba")
        parts.fit("1ba")
        assert bits(model) == bits(other)
        assert whole.history["loss"] == [parts.history["loss"][i] for i in (1, 3)]


def test_fit_for_longer():
    trainer = make(batches())
    with pytest.raises(ValueError, match="how long"):
        trainer.fit()
    trainer.fit("1ep")
    trainer.fit("0.5dur")
    assert trainer.state.timestamp.batch == 5 and str(trainer.state.max_duration) == "1.5ep"


@pytest.mark.parametrize("interval, evaluated", [
    ("1ep", [3, 6]), ("2ep", [6]), ("2ba", [2, 4, 6]), ("0.5dur", [3, 6]), ("10ep", [6]),
])  # fmt: skip
def test_evaluations_are_made_when_they_are_due(interval, evaluated):
    logger = InMemoryLogger()
    trainer = make(batches(), batches(8), 2, loggers=logger, eval_interval=interval)
    trainer.fit()
    assert [batch for batch, _ in logger.data["eval_accuracy"]] == evaluated
    assert [batch for batch, _ in logger.data["loss"]] == [1, 2, 3, 4, 5, 6]
    assert trainer.history["epoch"] == [1, 2]


def test_the_history_has_means_over_rows():
    model = network()
    frozen = optim.SGD(model.parameters(), lr=0.0)
    trainer = make(batches(), max_duration=1, optimizers=frozen, model=model)
    trainer.fit()
    assert trainer.history["loss"] == [pytest.approx(trainer.eval(batches())["loss"])]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n", [2, 3, 100])
def test_accumulated_gradients_are_those_of_the_whole_batch(n, reduction):
    mi.manual_seed(0)
    model = network().double()
    data = [(x.double(), y) for x, y in batches()]
    gradients = []
    settings = {"loss_fn": nn.CrossEntropyLoss(reduction=reduction), "max_duration": 1}
    for k in (1, n):
        frozen = optim.SGD(model.parameters(), lr=0.0)
        trainer = make(data, model=model, grad_accumulation=k, optimizers=frozen, **settings)
        trainer.fit()
        gradients.append([p.grad.numpy() for p in model.parameters()])
    for whole, parts in zip(*gradients):
        np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-15)


def test_schedules_step_when_they_are_due():
    rates = []
    model = network()
    sgd = optim.SGD(model.parameters(), lr=1.0)
    note = At(None, None)
    note.batch_end = lambda state: rates.append(sgd.param_groups[0]["lr"])
    make(batches(), max_duration=2, model=model, optimizers=sgd, callbacks=note,
         schedulers=optim.ExponentialLR(sgd, 0.5)).fit()  # fmt: skip
    assert rates == [1.0] * 3 + [0.5] * 3
    rates.clear()
    make(batches(), max_duration=2, model=model, optimizers=sgd, callbacks=note,
         schedulers=lambda o: optim.OneCycleLR(o, 1.0, total_steps=6)).fit()  # fmt: skip
    assert len(set(rates)) == 6
    rates.clear()
    sgd.param_groups[0]["lr"] = 1.0
    stairs = [lambda o: optim.StepLR(o, 1, 0.5)]
    make(batches(), max_duration="4ba", model=model, optimizers=sgd, callbacks=note,
         schedulers=stairs, scheduler_interval="2ba").fit()  # fmt: skip
    assert rates[:2] == [rates[0]] * 2 and rates[2:] == [rates[0] / 2] * 2


def test_a_plateau_is_shown_the_evaluation():
    model = network()
    sgd, seen = optim.SGD(model.parameters(), lr=0.1), []
    schedule = optim.ReduceLROnPlateau(sgd)
    schedule.step = seen.append
    trainer = make(batches(), batches(8), 2, model=model, optimizers=sgd, schedulers=schedule)
    trainer.fit()
    assert seen == trainer.history["eval_loss"]


def test_one_thing_is_given_and_wanted():
    x = mi.randn(8, 4)
    model = nn.Linear(4, 4)
    trainer = make([x], max_duration=1, model=model, loss_fn=nn.MSELoss())
    trainer.fit()
    assert trainer.history["loss"][0] > 0 and trainer.predict([x]).shape == (8, 4)


# ---- defaults ----


def test_the_shortest_call_runs_and_says_what_it_takes(capsys):
    model = network()
    trainer = Trainer(model, batches(), batches(8), max_duration="2ep")
    trainer.fit()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Trainer: no optimizers given, so AdamW(lr=0.001)" and len(out) == 3
    assert out[2].startswith("epoch 2/2   loss ") and "eval_accuracy" in out[2]
    assert type(trainer.state.optimizers[0]) is optim.AdamW
    assert type(trainer.state.loss_fn) is nn.CrossEntropyLoss


def test_a_model_may_bring_its_loss():
    class Own(nn.Sequential):
        def loss(self, outputs, targets):
            return ((outputs - targets) ** 2).mean()

    model = Own(nn.Linear(4, 1))
    trainer = make([(mi.randn(8, 4), mi.randn(8, 1))], max_duration=1, model=model)
    trainer.fit()
    assert set(trainer.eval([(mi.randn(8, 4), mi.randn(8, 1))])) == {"loss"}


def test_several_inputs_and_devices_by_name():
    class Sum(nn.Module):
        def __init__(self):
            self.linear = nn.Linear(4, 2)

        def forward(self, a, b):
            return self.linear(a + b)

    x = mi.randn(8, 4)
    data = [(x, x, mi.tensor([0, 1] * 4))]
    model = Sum()
    trainer = make(data, data, 1, model=model, device="cpu", seed=3)
    trainer.fit()
    assert trainer.predict(data).shape == (8, 2) and trainer.history["eval_accuracy"]


# ---- evaluation ----


def test_an_evaluation_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[1].eval()
    trainer = make(None, batches(), model=model)
    before = bits(model)
    first, again = trainer.eval(), trainer.eval(batches())
    assert first == again and bits(model) == before
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    outputs = trainer.predict(batches())
    assert outputs.shape == (20, 2) and not outputs.requires_grad
    x, _ = next(iter(batches()))
    np.testing.assert_array_equal(outputs.numpy()[:8], trainer.predict(x).numpy())
    with pytest.raises(ValueError, match="pass a dataloader"):
        make(batches()).eval()


def test_metrics_of_all_kinds():
    class Count:
        def reset(self):
            self.n = 0

        def update(self, outputs, targets):
            self.n += len(targets)

        def compute(self):
            return self.n

    metrics = {"rows": Count(), "gap": lambda outputs, targets: outputs.max()}
    found = make(None, batches(), metrics=metrics).eval()
    assert [*found] == ["loss", "rows", "gap"] and found["rows"] == 20


# ---- algorithms ----


def test_algorithms_change_batches_and_losses():
    class Half(Algorithm):
        def match(self, event, state):
            return event in (Event.BATCH_START, Event.AFTER_LOSS)

        def apply(self, event, state):
            if event is Event.BATCH_START:
                state.batch = state.batch[0][:2], state.batch[1][:2]
            else:
                state.loss = state.loss * 0.0

    model = network()
    before = bits(model)
    trainer = make(batches(), max_duration=1, model=model, algorithms=Half())
    trainer.fit()
    assert trainer.state.timestamp.sample == 6 and bits(model) == before


# ---- the end, before the end ----


def test_a_callback_may_end_it(capsys):
    trainer = make(batches(), batches(8), 5, callbacks=At(4, lambda state: state.stop("enough")))
    trainer.fit()
    assert trainer.state.timestamp.batch == 4
    assert capsys.readouterr().out == "Trainer: stopped in epoch 2, batch 2: enough\n"
    trainer.fit()
    assert trainer.state.timestamp.batch == 15


@pytest.mark.parametrize("event", ["after_loss", "after_backward"])
def test_a_batch_may_be_given_up_before_the_step(event):
    model = network()
    weights = []
    stop = At(1, lambda state: weights.append(bits(model)) or state.stop("bad"), event)
    trainer = make(batches(), max_duration=1, model=model, callbacks=stop)
    trainer.fit()
    assert weights == [bits(model)] and trainer.state.timestamp.batch == 1


def test_ctrl_c_ends_it_after_the_batch_at_work(capsys):
    before = signal.getsignal(signal.SIGINT)
    press = At(3, lambda state: signal.raise_signal(signal.SIGINT), "batch_start")
    trainer = make(batches(), max_duration=2, callbacks=press)
    trainer.fit()
    assert trainer.state.timestamp.batch == 4 and "Ctrl-C" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    trainer.fit()
    assert trainer.state.timestamp.batch == 6


def test_a_second_ctrl_c_ends_it_at_once():
    before = signal.getsignal(signal.SIGINT)

    def press(state):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer = make(batches(), max_duration=2, callbacks=At(1, press))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_it_runs_in_any_thread():
    trainer = make(batches(), max_duration=1)
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    thread.join()
    assert trainer.state.timestamp.batch == 3


@pytest.mark.parametrize("event, batch", [
    ("batch_start", 4), ("after_loss", 4), ("batch_end", 4), ("epoch_end", 3), ("eval_end", 3),
])  # fmt: skip
def test_an_error_in_a_callback_says_whose_it_is_and_fit_goes_on(event, batch):
    def fail(state):
        raise OSError("no more paper")

    failing = At(batch, fail, event)
    trainer = make(batches(), batches(8), 2, callbacks=failing)
    with pytest.raises(OSError, match="no more paper") as caught:
        trainer.fit()
    assert caught.value.__notes__[0].startswith(f"This was At at {event.upper()}, in epoch ")
    failing.batch = None
    trainer.fit()
    assert trainer.state.timestamp.batch == 6 and len(trainer.history["epoch"]) >= 2


def test_an_error_in_a_metric_names_it():
    trainer = make(batches(), batches(8), 1, metrics={"mine": lambda o, t: 1 / 0})
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.fit()
    assert "This was the metric 'mine'." in caught.value.__notes__
    trainer.metrics = {}
    trainer.fit()
    assert trainer.history["epoch"] == [1] and trainer.state.model.training


# ---- what cannot be meant ----


@pytest.mark.parametrize("settings, error, message", [
    ({"train_dataloader": iter([])}, TypeError, "train_dataloader should be a DataLoader"),
    ({"eval_dataloader": 3}, TypeError, "eval_dataloader should be a DataLoader"),
    ({"max_duration": "ten"}, ValueError, "a time is a number with a unit"),
    ({"max_duration": "1dur"}, ValueError, "how long that is was not said"),
    ({"grad_accumulation": 0}, ValueError, "at least 1"),
    ({"autoresume": True}, ValueError, "save_folder: name it"),
    ({"save_num_checkpoints_to_keep": 0}, ValueError, "at least 1, or -1"),
    ({"metrics": 3}, TypeError, "a metric is a function"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Trainer(network(), **settings)


def test_without_data_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match="nothing to learn from"):
        make(max_duration=1).fit()


def test_lints_warn_once():
    model = nn.Sequential(nn.Linear(4, 2), nn.Softmax())
    trainer = make(batches(), model=model)
    with pytest.warns(UserWarning, match="contains one already"):
        trainer.fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(1)
        make(batches(), model=model, lint=False).fit(1)
