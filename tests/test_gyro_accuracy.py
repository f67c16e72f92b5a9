"The comparison of gyro dropout with dropout: its statistics are right, and its pairs are pairs."

import json
import re
from math import inf, isclose
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gyro_accuracy as claim

TINY = claim.Task("digits", 60, (64, 12, 12, 10), 20, 2, 2, (1e-2, 1e-3), 1)
CROWDS = claim.methods([8], [2])
KEPT = Path(claim.__file__).parent / "results" / "gyro_accuracy.json"

# ---- statistics ----


@pytest.mark.parametrize("df", [1, 2, 4, 9, 19, 200])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_quantiles_are_students(df, level):
    stats = pytest.importorskip("scipy.stats")
    assert isclose(claim.t_quantile(df, level), stats.t.ppf((1 + level) / 2, df), rel_tol=1e-6)


def test_intervals_are_students():
    mean, half = claim.interval([1, 2, 3, 4, 5])
    assert mean == 3 and isclose(half, 2.776445 * (2.5 / 5) ** 0.5, rel_tol=1e-6)  # by tables
    assert claim.interval([7]) == (7, inf)


def test_intervals_of_differences_are_those_of_a_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(size=(2, 7))
    mean, half = claim.interval(values[0] - values[1], 0.9)
    theirs = stats.ttest_rel(*values).confidence_interval(0.9)
    assert np.allclose((mean - half, mean + half), theirs, rtol=1e-6)


def made_up():
    "A result in which gyro dropout has 2 of 200 more right than dropout, whatever the seed."
    right = {"none": [100, 140, 120], "dropout": [110, 150, 130], "gyro": [112, 152, 132]}
    totals = {(1e-2, 0.2): [9, 9], (1e-3, 0.5): [7, 6], (3e-3, 0.5): [8, 5], (1e-2, 0.5): [4, 4]}
    choice = [dict(rate=rate, p=p, right=n) for (rate, p), n in totals.items()]
    settings = dict(sizes=[2, 3], images=9, epochs=1, batch=3, validated=10, tested=200)
    return settings | dict(choice=choice, right=right, lens={})


def test_differences_are_paired_by_seed():
    lines = claim.report("some", made_up()).splitlines()
    rows = {re.split(r"\s{2,}", line.strip())[0]: line.split()[-3:] for line in lines}
    assert rows["gyro - dropout"] == ["+1.00", "+-", "0.00"]
    assert rows["dropout - none"] == ["+5.00", "+-", "0.00"]
    assert rows["gyro - none"] == ["+6.00", "+-", "0.00"]
    mean, half = claim.interval([55, 75, 65])
    assert rows["dropout"] == [f"{mean:.2f}", "+-", f"{half:.2f}"] and half > 20


def test_the_rate_is_that_which_is_best_at_the_usual_p_and_of_equals_the_first():
    assert claim.P == 0.5 and claim.chosen(made_up()) == 1e-3


# ---- fairness ----


def arrays(model):
    return [value.numpy() for key, value in model.state_dict().items() if "weight" in key]


def test_seeds_fix_initial_weights_for_all_methods():
    def begun(name, seed):
        return arrays(claim.network(TINY, name, CROWDS[name], 0.5, 6, seed))

    for name in CROWDS:
        assert all(map(np.array_equal, begun(name, 3), begun("none", 3)))
        assert not any(map(np.array_equal, begun(name, 3), begun("none", 4)))


def test_methods_that_drop_nothing_are_one():
    "Without masks nothing is left that could differ: weights, images, order and rates are shared."
    images = claim.drawn(claim.part("digits", "train"), 5, 0, 60)
    trained = {
        name: arrays(claim.train(TINY, name, crowd, 5, images, 1e-2, 0.0))
        for name, crowd in CROWDS.items()
    }
    for weights in trained.values():
        assert all(map(np.array_equal, weights, trained["none"]))
    dropped = arrays(claim.train(TINY, "dropout", None, 5, images, 1e-2, 0.5))
    assert not any(map(np.array_equal, dropped, trained["none"]))


def test_each_method_is_what_its_name_says():
    kinds = {"none": "ReLU", "dropout": "Dropout"}
    for name, crowd in CROWDS.items():
        model = claim.network(TINY, name, crowd, 0.3, 6, 0)
        drop = model[2 if crowd or name == "dropout" else 1]
        assert type(drop).__name__ == kinds.get(name, "GyroDropout")
        if crowd:
            schedule = drop.schedule
            assert drop.p == 0.3 and model[5].schedule is schedule and schedule.iterations == 6
            assert (schedule.sigma, schedule.tau, schedule.order) == (8, 2, name.split()[-1])


def rows(images):
    return {row.tobytes() for row in images[0].numpy()}


def test_choosing_validates_with_images_that_it_does_not_train_with(monkeypatch):
    seen = []
    monkeypatch.setattr(claim, "train", lambda *args: seen.append((args[1], rows(args[4]))))
    monkeypatch.setattr(claim, "right", lambda model, images: seen.append(rows(images)) or 7)
    task = claim.replace(TINY, images=10_000)  # all there are
    result = claim.start(task)
    claim.choose(task, result, lambda: None)
    assert [entry["right"] for entry in result["choice"]] == [[7]] * 4
    everything, tested = (rows(claim.part("digits", split)) for split in ("train", "test"))
    for (method, used), held in zip(seen[::2], seen[1::2], strict=True):
        assert method == "dropout" and len(held) == 238 and not used & held
        assert used | held == everything and not everything & tested


def test_comparing_tests_with_the_test_part_and_the_rate_that_was_chosen(monkeypatch):
    seen = []
    monkeypatch.setattr(claim, "train", lambda *args: seen.append((rows(args[4]), args[5:])))
    monkeypatch.setattr(claim, "right", lambda model, images: seen.append(rows(images)) or 7)
    monkeypatch.setattr(claim, "look", lambda *args: {})
    result = claim.start(TINY) | dict(choice=made_up()["choice"])
    claim.compare(TINY, CROWDS, result, lambda: None)
    used = [entry[0] for entry in seen[::2]]
    assert all(entry[1] == (1e-3, 0.5) for entry in seen[::2])
    assert all(held == rows(claim.part("digits", "test")) for held in seen[1::2])
    assert used[: len(CROWDS)] == [used[0]] * len(CROWDS) and used[0] != used[-1]


def test_rates_fall_after_two_and_four_fifths(monkeypatch):
    seen, original = [], claim.MultiStepLR

    def noted(optimizer, *args, **kwargs):
        seen.append((*args, kwargs))
        return original(optimizer, *args, **kwargs)

    monkeypatch.setattr(claim, "MultiStepLR", noted)
    claim.train(TINY, "none", None, 0, claim.part("digits", "test"), 1e-2, 0.0)
    steps = 2 * -(-364 // 20)
    assert seen == [([steps * 2 // 5, steps * 4 // 5], dict(gamma=0.1))]


# ---- the grid ----


def test_it_goes_on_where_it_was(tmp_path):
    whole = claim.run("tiny", TINY, CROWDS)
    for method, seen in whole["lens"].items():
        assert isclose(seen["full"], claim.accuracies(whole)[method][0], abs_tol=0.006)
        if crowd := CROWDS[method]:
            schedule = claim.network(TINY, method, crowd, 0.5, 6, 0)[2].schedule
            assert seen["members"] == len({k for t in range(6) for k in schedule.chosen(t)})
    path = tmp_path / "results.json"
    one = claim.run("tiny", claim.replace(TINY, seeds=1), CROWDS, path)
    assert all(len(counts) == 1 for counts in one["right"].values())
    assert json.loads(path.read_text()) == {"tiny": one}
    assert claim.run("tiny", TINY, CROWDS, path) == whole
    before = path.read_bytes()
    assert claim.run("tiny", TINY, CROWDS, path) == whole and path.read_bytes() == before
    with pytest.raises(SystemExit, match="tiny with epochs=2"):
        claim.run("tiny", claim.replace(TINY, epochs=3), CROWDS, path)


def test_the_command_prints_a_table(capsys):
    claim.main("--data", "digits", "--epochs", "1", "--seeds", "1", "--sigma", "8", "--tau", "2")
    out = capsys.readouterr().out
    assert out.startswith("digits: 64-256-256-10, 1433 images, 1 epochs")
    assert "gyro 8/2 balanced - dropout" in out and "dropout - none" in out


def test_what_is_kept_is_what_the_script_makes():
    results, crowds = json.loads(KEPT.read_text()), {"fashion": ([256], [16])}
    assert results.keys() == claim.TASKS.keys() and len(KEPT.read_bytes()) < 12_000
    for name, result in results.items():
        task = claim.TASKS[name]
        for key in ("data", "images", "batch", "epochs"):
            assert result[key] == getattr(task, key)
        assert [*result["right"]] == [*claim.methods(*crowds.get(name, ([256, 64], [16, 4])))]
        assert {len(counts) for counts in result["right"].values()} == {task.seeds}
        assert {len(entry["right"]) for entry in result["choice"]} == {task.choices}
        for method, seen in result["lens"].items():
            assert isclose(seen["full"], claim.accuracies(result)[method][0], abs_tol=0.006)
