"A Trainer that captures its passes does all that one does that does not, bit for bit, or says why."

import os
import signal
import warnings

import numpy as np
import pytest
import test_methods_resume as methods
import test_trainer_resume as trainings
from test_methods_resume import METHODS
from test_trainer_resume import OPTIMIZERS, last

from programs import skip_unless_fused
import minima as mi
from minima import algorithms, nn, optim
from minima.__main__ import main
from minima.data import DataLoader, TensorDataset
from minima.trainer import Callback, InMemoryLogger, NaNStop, Trainer

PASSES, STEP, ANSWER = range(3)
REFUSED = {  # methods with which the passes run as they are, and why
    "stochastic depth, by sample": "drawing random numbers this way",
    "label smoothing": "LabelSmoothing acts in the middle of it, at AFTER_FORWARD",
    "mixup": "MixUp acts in the middle of it, at AFTER_FORWARD",
    "mixup of losses": "MixUp acts in the middle of it, at AFTER_FORWARD",
}


def captures(trainer):
    "The captured functions of `trainer`."
    return trainer._passes._functions()


def told(caught):
    "What was said about capture."
    return [str(w.message) for w in caught if "captured" in str(w.message)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_in_the_same_bits(method, tmp_path):
    straight = methods.make(method, tmp_path / "as it is", 0)
    straight.fit()
    captured = methods.make(method, tmp_path / "captured", 0, capture=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        captured.fit()
    assert last(tmp_path / "captured") == last(tmp_path / "as it is")
    assert captured.history == straight.history
    if method in REFUSED:
        (line,) = told(caught)
        assert line.startswith("forward_and_back is not captured: ") and REFUSED[method] in line
    else:
        assert not told(caught) and captures(captured)[PASSES].recordings > 0
    assert captures(captured)[STEP].recordings > 0 < captures(captured)[ANSWER].recordings


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that fork on this system")
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_it_goes_on_bit_for_bit(method, tmp_path, monkeypatch):
    straight = methods.make(method, tmp_path / "straight", 0)
    straight.fit()
    plainly = methods.make
    monkeypatch.setattr(methods, "make", lambda *a, **k: plainly(*a, **k, capture=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        methods.die(method, tmp_path / "killed", 0, 9)  # in the middle of an epoch
        methods.die(method, tmp_path / "killed", 5, 13)
        resumed = methods.make(method, tmp_path / "killed", 9)
        resumed.fit()
    assert last(tmp_path / "killed") == last(tmp_path / "straight")
    assert resumed.history == straight.history


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("batches", [5, 23])
def test_optimizers_schedules_and_loaders_resume_bit_for_bit(kind, batches, tmp_path):
    straight = trainings.make(tmp_path / "straight", 0, kind, autoresume=False)
    straight.fit()
    trainings.make(tmp_path / "cut", 0, kind, capture=True, max_duration="4ep").fit(f"{batches}ba")
    for path in trainings.in_folder(tmp_path / "cut"):
        if not path.stem.endswith(f"-ba{batches - 1}"):
            path.unlink()
    resumed = trainings.make(tmp_path / "cut", 9, kind, capture=True)
    assert resumed.state.timestamp.batch == batches - 1
    resumed.fit()
    assert last(tmp_path / "cut") == last(tmp_path / "straight")
    assert resumed.history == straight.history and captures(resumed)[STEP].recordings > 0


# ---- a small training ----


def network():
    "A small classifier, always the same."
    mi.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def make(model=None, **settings):
    "A training of four epochs with six batches each, of which the last is smaller."
    x = np.random.default_rng(0).normal(size=(46, 4)).astype("float32")
    data = TensorDataset(x, x.argmax(axis=1) % 3)
    model = model or network()
    settings = dict(max_duration="4ep", capture=True) | settings
    return Trainer(
        model, DataLoader(data, 8), DataLoader(data, 16), progress_bar=False, lint=False,
        optimizers=optim.Adam(model.parameters(), lr=0.01), **settings,
    )  # fmt: skip


def bits(trainer):
    "All that the model of `trainer` saves."
    return [t.numpy().tobytes() for t in trainer.state.model.state_dict().values()]


def both(change=lambda trainer: None, make_model=network, **settings):
    "Train as it is and captured, with `change` in the middle; compare; returns the captured one."
    pair = []
    for captured in (False, True):
        logger = InMemoryLogger()
        trainer = make(make_model(), capture=captured, loggers=logger, **settings)
        trainer.fit("2ep")
        change(trainer)
        trainer.fit("2ep")
        pair.append((trainer, logger))
    (plain, wrote), (other, noted) = pair
    assert bits(plain) == bits(other) and plain.history == other.history
    assert wrote.data == noted.data
    assert plain.eval() == other.eval()
    test = plain.state.eval_dataloader
    assert np.array_equal(plain.predict(test).numpy(), other.predict(test).numpy())
    return other


def recordings(trainer):
    "How often the passes, the step and the answers were recorded."
    return [captured.recordings for captured in captures(trainer)]


def test_a_smaller_last_batch_is_recorded_anew_and_nothing_twice():
    trainer = both()
    passes, step, answer = recordings(trainer)
    assert (passes, answer) == (2, 2) and step <= 4
    before = recordings(trainer)
    trainer.fit("4ep")
    assert recordings(trainer) == before


@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_are_accumulated(parts):
    assert both(grad_accumulation=parts).state.timestamp.batch == 24


def test_a_schedule_for_each_batch_needs_no_recording():
    def schedule(optimizer):
        return optim.OneCycleLR(optimizer, 0.05, total_steps=24)  # rates, and betas

    assert recordings(both(schedulers=schedule))[STEP] <= 4


def reload(trainer):
    state = {path: t.clone() * 0.5 for path, t in trainer.state.model.state_dict().items()}
    trainer.state.model.load_state_dict(state)


def cast(trainer):
    trainer.state.model.double()
    trainer.state.optimizers[0].state.clear()
    for loader in (trainer.state.train_dataloader, trainer.state.eval_dataloader):
        x, y = loader.dataset.tensors
        loader.dataset.tensors = x.double(), y


def operate(trainer):
    algorithms.replace(trainer.state.model, nn.ReLU, lambda old: nn.Tanh())


def add_dropout(trainer):
    model = trainer.state.model
    trainer.state.model = nn.Sequential(*model[:2], nn.Dropout(0.5), model[3])


def freeze(trainer):
    trainer.state.model[0].requires_grad_(False)


def statistics(trainer):
    trainer.state.model[1].momentum = 0.5


def another_loss(trainer):
    trainer.state.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.3)


def another_optimizer(trainer):
    trainer.state.optimizers = [optim.SGD(trainer.state.model.parameters(), 0.1, momentum=0.9)]


@pytest.mark.parametrize("change", [
    reload, cast, operate, add_dropout, freeze, statistics, another_loss, another_optimizer,
])  # fmt: skip
def test_what_is_changed_between_two_fits_counts(change):
    mi.manual_seed(0)
    seeds = iter([0, 0])

    def changed(trainer):
        mi.manual_seed(next(seeds))
        change(trainer)

    both(changed)


class Sentences(nn.Module):
    "A model of two inputs, with a loss of its own."

    def __init__(self):
        mi.manual_seed(0)
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, words, weights):
        return {"scores": self.head((self.embedding(words) * weights).mean(1))}

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs["scores"], targets)


@pytest.mark.parametrize("form", [tuple, list])
def test_batches_of_several_parts_and_outputs_in_a_nest(form):
    rng, ends = np.random.default_rng(0), []
    words, labels = rng.integers(0, 5, (4, 6, 3)), rng.integers(0, 2, (4, 6))
    batches = [
        form([mi.Tensor(w), mi.Tensor(rng.normal(size=(6, 3, 1)).astype("float32")), mi.Tensor(y)])
        for w, y in zip(words, labels)
    ]
    for captured in (False, True):
        settings = dict(progress_bar=False, lint=False, capture=captured)
        model = Sentences()
        adam = optim.Adam(model.parameters())
        trainer = Trainer(model, batches, batches, 4, optimizers=adam, **settings)
        trainer.fit()
        ends.append((bits(trainer), trainer.history))
    assert ends[0] == ends[1] and min(recordings(trainer)) == 1


@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (x, x), lambda x: {"pixels": x}])
def test_batches_of_one_part(batch):
    class Copier(nn.Module):
        def __init__(self):
            mi.manual_seed(0)
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x["pixels"] if isinstance(x, dict) else x)

        def loss(self, y, x):
            return ((y - (x["pixels"] if isinstance(x, dict) else x)) ** 2).mean()

    x, ends = np.random.default_rng(0).normal(size=(4, 8, 3)).astype("float32"), []
    for captured in (False, True):
        settings = dict(progress_bar=False, lint=False, capture=captured, max_duration=3)
        model = Copier()
        adam = optim.Adam(model.parameters())
        trainer = Trainer(model, [batch(mi.Tensor(a)) for a in x], optimizers=adam, **settings)
        trainer.fit()
        ends.append(bits(trainer))
    assert ends[0] == ends[1] and recordings(trainer)[PASSES] == 1 <= recordings(trainer)[STEP]


# ---- those who look on ----


class Story(Callback):
    "Writes down what there is at each moment."

    def __init__(self):
        self.lines = []

    def after_forward(self, state):
        self.lines.append(("outputs", state.outputs.detach().numpy().tobytes()))

    def after_loss(self, state):
        self.lines.append(("loss", state.loss.item(), state.loss.dtype.name))

    def after_backward(self, state):
        grads = [p.grad.numpy().tobytes() for p in state.model.parameters()]
        self.lines.append(("gradients", state.loss, grads))

    def batch_end(self, state):
        weights = [p.detach().numpy().tobytes() for p in state.model.parameters()]
        self.lines.append(("weights", state.timestamp.batch, weights))


def test_those_who_look_on_see_the_same():
    stories = Story(), Story()
    for story, captured in zip(stories, (False, True)):
        trainer = make(capture=captured, callbacks=story)
        trainer.fit()
    assert stories[0].lines == stories[1].lines and min(recordings(trainer)) > 0


def test_a_loss_that_is_no_number_ends_training_before_the_step():
    ends = []
    for captured in (False, True):

        class Poison:
            def batch_start(self, state):
                if state.timestamp.batch == 13:
                    state.batch[0].array[0, 0] = np.nan

        trainer = make(capture=captured, callbacks=[Poison(), NaNStop()])
        trainer.fit()
        ends.append((trainer.state.stop_reason, trainer.state.timestamp.batch, bits(trainer)))
    assert ends[0] == ends[1] and ends[0][1] == 13 and "the batch has such" in ends[0][0]


def test_a_callback_that_changes_what_is_over_is_told_so():
    class Penalty(Callback):
        def after_loss(self, state):
            state.loss = state.loss * 2

    trainer = make(callbacks=Penalty())
    with pytest.raises(RuntimeError, match="replaced at AFTER_LOSS.*let an Algorithm do it"):
        trainer.fit()


def test_ctrl_c_ends_between_two_steps_and_training_goes_on(capsys):
    class Impatient:
        def batch_end(self, state):
            if state.timestamp.batch in (3, 9):
                signal.raise_signal(signal.SIGINT)

    straight, trainer = make(capture=False), make(callbacks=Impatient())
    straight.fit()
    for batch in (3, 9, 24):
        trainer.fit()
        assert trainer.state.timestamp.batch == batch
    assert bits(trainer) == bits(straight) and "Ctrl-C" in capsys.readouterr().out


def test_a_second_ctrl_c_in_the_middle_of_a_recording_leaves_the_model_whole():
    calls = []

    class Interrupted(nn.Module):
        def __init__(self):
            self.inner = network()

        def forward(self, x):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return self.inner(x)

    trainer = make(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert all(type(t.array) is np.ndarray for t in trainer.state.model.state_dict().values())
    trainer.fit()
    assert trainer.state.timestamp.batch == 24 and recordings(trainer)[PASSES] == 2


def test_an_error_of_a_callback_loses_nothing():
    class Breaks(Callback):
        def after_backward(self, state):
            if state.timestamp.batch == 8 and not hasattr(self, "done"):
                self.done = True
                raise OSError("mine")

    ends = []
    for captured in (False, True):
        trainer = make(capture=captured, callbacks=Breaks())
        with pytest.raises(OSError, match="mine") as caught:
            trainer.fit()
        trainer.fit()
        ends.append((caught.value.__notes__, bits(trainer)))
    assert ends[0] == ends[1]


def test_a_wrong_label_is_the_same_error_in_each_replay():
    trainer = make()
    trainer.fit("2ep")
    trainer.state.train_dataloader.dataset.tensors[1].array[40] = 7
    for _ in range(2):
        with pytest.raises(IndexError, match="out of range"):
            trainer.fit("1ep")


# ---- what is not captured ----


class Curious(nn.Module):
    "A model that looks at a value."

    def __init__(self):
        self.inner = network()

    def forward(self, x):
        y = self.inner(x)
        return y * 2 if y.detach().array[0, 0] > 1e9 else y


def test_what_looks_at_values_runs_as_it_is_and_says_so_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = both(make_model=Curious)
    lines = told(caught)
    assert [line.partition(" is not")[0] for line in lines] == ["forward_and_back", "answer"]
    for line in lines:
        assert "reading a value" in line and "in forward: return y * 2 if y.detach()" in line
        assert "\n" not in line
    assert recordings(trainer)[PASSES] == 0 < recordings(trainer)[STEP]


class Louder(algorithms.LabelSmoothing):
    "An algorithm that changes the loss."

    def match(self, event, state):
        return event == "after_loss"

    def apply(self, event, state):
        state.loss = state.loss * 2


def test_an_algorithm_in_between_is_named_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = both(algorithms=Louder())
    assert told(caught) == [
        "forward_and_back is not captured: Louder acts in the middle of it, at AFTER_LOSS"
    ]
    assert recordings(trainer)[PASSES] == 0 < min(recordings(trainer)[STEP:])


def test_without_capture_nothing_is():
    trainer = make(capture=False)
    trainer.fit()
    assert not any(hasattr(function, "plans") for function in captures(trainer))


def test_the_command_line_says_the_same_with_it(capsys):
    assert main(["--epochs", "2"]) == main(["--epochs", "2", "--capture"])
    text = capsys.readouterr().out
    half = len(text) // 2
    assert text[:half] == text[half:]


def test_fused_it_learns_the_same_up_to_rounding():
    skip_unless_fused()
    plain, fused = make(capture=False), make(capture="fused")
    plain.fit(), fused.fit()
    for a, b in zip(plain.state.model.parameters(), fused.state.model.parameters()):
        assert np.allclose(a.array, b.array, rtol=1e-3, atol=1e-5)
    assert min(recordings(fused)) > 0
    with pytest.raises(ValueError, match="capture is False, True or 'fused'; got 'loops'"):
        make(capture="loops")
