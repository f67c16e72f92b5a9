"""Gyro dropout beside dropout and no dropout: is the trained network more accurate? Over seeds.

Lee et al. (MLSys 2022) report that gyro dropout is better than ordinary dropout in all of their
experiments, by up to 1.93 points of accuracy. Here is that comparison, made fair and small:

- For each seed all methods have the same initial weights, the same images in the same order, the
  same number of steps, and the same learning rates: Adam, with a rate that falls to a tenth after
  40 and after 80 of 100 parts of the training, as in the authors' code.
- The rate is chosen once for each data set: that with which *ordinary dropout* was best on images
  held out of the training part, in runs with seeds of their own. All other methods use it, too.
  If this favours one method, then ordinary dropout. p is 0.5, the authors'; the same runs are made
  with 0.2, to see whether ordinary dropout would rather have that.
- Then training has all of the training part. The test part is used once, after the last step.
- What is kept is how many test images each run has right, so everything else can be computed
  again. Intervals are Student's, 95 %, over seeds. Since seeds share what is random, methods are
  compared by the mean of the differences per seed, with its own interval. The test images are the
  same for all seeds: intervals speak of training, not of other images.

Besides, for the first seed: how good are single subnetworks, and the mean of several answers?

What is kept in benchmarks/results was made by

    python benchmarks/gyro_accuracy.py --out FILE --data digits digits-200 fashion-6000
    python benchmarks/gyro_accuracy.py --out FILE --data fashion --sigma 256 --tau 16

It takes long, and goes on where it was if it was interrupted: what is in FILE is not computed
again. `--data digits --seeds 3 --epochs 10` gives an impression in less than a minute.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy is imported

import argparse
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import inf, pi
from pathlib import Path

import numpy as np

from minima import nn
from minima.algorithms import gyro_lens
from minima.autograd import no_grad
from minima.data import DataLoader, TensorDataset, digits, fashion_mnist
from minima.optim import Adam, MultiStepLR
from minima.random import Generator, manual_seed

P = 0.5  # the probability that a neuron is dropped; the authors'
ANOTHER = 0.2  # only to see whether ordinary dropout would rather have it
CHOICE = 1000  # the first of the seeds with which to choose
MEMBERS = 32  # how many subnetworks to look at


@dataclass
class Task:
    "Data, a network, and how long to train it."

    data: str  # "digits" or "fashion"
    images: int  # how many to train with; each seed has its own, if these are not all
    sizes: tuple  # of the layers
    batch: int
    epochs: int
    seeds: int
    rates: tuple  # to choose from
    choices: int  # how many seeds for each rate and p


HIGH, USUAL = (1e-3, 3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 1e-2)
TASKS = {
    "digits": Task("digits", 1433, (64, 256, 256, 10), 48, 60, 20, HIGH, 5),
    "digits-200": Task("digits", 200, (64, 256, 256, 10), 48, 60, 20, HIGH, 2),
    "fashion-6000": Task("fashion", 6000, (784, 256, 256, 10), 256, 40, 5, USUAL, 1),
    "fashion": Task("fashion", 60000, (784, 256, 256, 10), 256, 8, 5, USUAL, 1),
}


# ---- data ----


@cache
def part(data, split, dtype="float32"):
    "Images and labels of a part, as Tensors."
    x, y = (digits if data == "digits" else fashion_mnist)(split).tensors
    return x.to(dtype=dtype), y


def drawn(images, seed, first, last=None):
    "Of the `images`, a pair of Tensors, in an order drawn by `seed`, those from `first` to `last`."
    x, y = images
    order = np.asarray(Generator(seed).permutation(len(y)))[first:last]
    return x[order], y[order]


# ---- training ----


def methods(sigmas, taus):
    "None, dropout, and gyro dropout in both orders, by name: `(sigma, tau, order)` for the latter."
    crowds = {f"gyro {sigma}/{tau}": (sigma, tau) for sigma, tau in zip(sigmas, taus, strict=True)}
    gyro = {
        f"{name} {order}": (*crowd, order)
        for name, crowd in crowds.items()
        for order in ("random", "balanced")
    }
    return {"none": None, "dropout": None} | gyro


def network(task, method, crowd, p, iterations, seed):
    "An untrained network. Its weights depend on `seed` alone."
    manual_seed(3 * seed)
    linears = [nn.Linear(a, b) for a, b in pairwise(task.sizes)]
    masks = Generator(3 * seed + 1)
    if crowd:
        sigma, tau, order = crowd
        schedule = nn.GyroSchedule(iterations, 1, sigma, tau, order=order, generator=masks)
    layers = linears[:1]
    for linear in linears[1:]:
        layers.append(nn.ReLU())
        if crowd:
            layers.append(nn.GyroDropout(p=p, schedule=schedule, generator=masks))
        elif method == "dropout":
            layers.append(nn.Dropout(p, masks))
        layers.append(linear)
    return nn.Sequential(*layers)


def train(task, method, crowd, seed, images, rate, p):
    "A network, trained with `images`."
    data = TensorDataset(*images)
    order = Generator(3 * seed + 2)
    loader = DataLoader(data, task.batch, shuffle=True, generator=order)
    iterations = len(loader) * task.epochs
    model = network(task, method, crowd, p, iterations, seed).to(dtype=images[0].dtype)
    optimizer, loss_fn = Adam(model.parameters(), lr=rate), nn.CrossEntropyLoss()
    falls = MultiStepLR(optimizer, [iterations * 2 // 5, iterations * 4 // 5], gamma=0.1)
    for _ in range(task.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
            falls.step()
    return model.eval()


def right(model, images):
    "How many of `images` the model labels as they are labelled."
    with no_grad():
        return int((model(images[0]).argmax(1) == images[1]).sum().item())


# ---- statistics ----


def t_quantile(df, level=0.95):
    "The number between whose negative and itself Student's t with `df` degrees of freedom lies."
    # With t = sqrt(df) tan(a), the density of t is proportional to cos(a) ** (df - 1).
    a = np.linspace(0, pi / 2, 200_001)
    middles = (a[1:] + a[:-1]) / 2
    area = np.concatenate([[0], np.cumsum(np.cos(middles) ** (df - 1))])
    return np.sqrt(df) * np.tan(np.interp(level * area[-1], area, a))


def interval(values, level=0.95):
    "The mean of `values`, and by how much it may be off: Student's interval is mean +- that."
    values, n = np.asarray(values, dtype=float), len(values)
    if n == 1:
        return values.mean(), inf
    return values.mean(), t_quantile(n - 1, level) * values.std(ddof=1) / np.sqrt(n)


def pairs(names):
    "What to subtract from what: each method's name with that of dropout, and with none."
    others = [name for name in names if name not in ("none", "dropout")]
    return [(a, b) for b in ("dropout", "none") for a in ("dropout", *others) if a != b]


def accuracies(result):
    "For each method the accuracies in percent, an array with one for each seed."
    return {name: np.array(n) * 100 / result["tested"] for name, n in result["right"].items()}


def columns(result):
    "How wide the first column of a table is."
    return max(map(len, result["right"])) + 12


def report(name, result):
    "What was done, the accuracies, and their paired differences, as text."
    percent, width = accuracies(result), columns(result)
    seeds = max(map(len, percent.values()))
    lines = [
        f"{name}: {'-'.join(map(str, result['sizes']))}, {result['images']} images, "
        f"{result['epochs']} epochs of batches of {result['batch']}, {seeds} seeds",
        f"p={P}, and rate {chosen(result)}, "
        f"with which dropout was best on {result['validated']} images held out",
        "accuracy in %, mean and 95 % interval",
    ]
    for method, values in percent.items():
        mean, half = interval(values)
        lines.append(f"  {method:{width}}{mean:6.2f} +- {half:.2f}")
    lines.append("paired differences in points, mean and 95 % interval")
    for a, b in pairs(percent):
        mean, half = interval(percent[a] - percent[b])
        lines.append(f"  {f'{a} - {b}':{width}}{mean:+6.2f} +- {half:.2f}")
    return "\n".join(lines)


def seen(result):
    "What the lens saw, as text."
    width = columns(result) + 2
    lines = [f"{'seed 0':{width}}one alone  two disagree  mean of answers  full network"]
    for method, found in result["lens"].items():
        numbers = (found[key] for key in ("one", "disagree", "together", "full"))
        lines.append("  {:{}}{:7.2f}{:14.2f}{:17.2f}{:14.2f}".format(method, width - 2, *numbers))
    return "\n".join(lines)


# ---- the grid ----


def chosen(result):
    "The rate with which dropout was best on images held out; of equals the first."
    own = [entry for entry in result["choice"] if entry["p"] == P]
    return max(own, key=lambda entry: sum(entry["right"]))["rate"]


def choose(task, result, keep):
    "Train with dropout for each rate and p, and validate; what `result` has is not done again."
    train_part, held = part(task.data, "train"), result["validated"]
    rest = drawn(train_part, CHOICE, 0, -held)
    held_out = drawn(train_part, CHOICE, -held)
    for entry in result["choice"]:
        for seed in range(CHOICE + len(entry["right"]), CHOICE + task.choices):
            images = drawn(rest, seed, 0, task.images)
            model = train(task, "dropout", None, seed, images, entry["rate"], entry["p"])
            entry["right"].append(right(model, held_out))
            keep()


def compare(task, crowds, result, keep):
    "Train with each method and seed, and test; what `result` has is not done again."
    rate = chosen(result)
    for seed in range(task.seeds):
        images = drawn(part(task.data, "train"), seed, 0, task.images)
        for name, crowd in crowds.items():
            counts = result["right"].setdefault(name, [])
            if len(counts) > seed:
                continue
            model = train(task, name, crowd, seed, images, rate, P)
            counts.append(right(model, part(task.data, "test")))
            if seed == 0 and name != "none":
                result["lens"][name] = look(task, crowds, name, model)
            keep()


def look(task, crowds, name, model):
    "Accuracies of subnetworks of a trained `model`, of their mean, and of all of it, in percent."
    iterations = -(-task.images // task.batch) * task.epochs
    crowd = crowds[name] or (MEMBERS, 1, "balanced")  # any masks will do for a dropout without
    lens = network(task, name, crowd, P, iterations, 0).to(dtype=model[0].weight.dtype)
    for old, new in zip(model, lens, strict=True):
        if isinstance(old, nn.Linear):
            new.load_state_dict(old.state_dict())
    schedule = lens[2].schedule
    trained = {k for t in range(0, iterations, schedule.period) for k in schedule.chosen(t)}
    found = gyro_lens(lens, [part(task.data, "test")], sorted(trained)[:MEMBERS])
    off = found.disagreement[np.triu_indices(len(found.numbers), 1)]
    quantities = {
        "one": 100 * found.accuracies.mean(),
        "disagree": 100 * off.mean() if len(off) else 0.0,
        "together": 100 * found.ensemble,
        "full": 100 * found.full,
    }
    kept = {key: round(float(value), 2) for key, value in quantities.items()}
    return {"members": len(found.numbers)} | kept


def start(task):
    "A result with nothing in it yet."
    settings = {key: getattr(task, key) for key in ("data", "images", "sizes", "batch", "epochs")}
    train, test = (len(part(task.data, split)[1]) for split in ("train", "test"))
    choice = [dict(rate=rate, p=p, right=[]) for p in (ANOTHER, P) for rate in task.rates]
    counts = dict(validated=train // 6, choice=choice, tested=test, right={}, lens={})
    return settings | dict(images=min(task.images, train), sizes=[*task.sizes]) | counts


def run(name, task, crowds, path=None):
    "The whole comparison for one task, kept in the file `path` after each training; the result."
    results = json.loads(path.read_text()) if path and path.exists() else {}
    empty = start(task)
    result = results.setdefault(name, empty)
    for key in ("images", "sizes", "batch", "epochs"):
        if result[key] != empty[key]:
            raise SystemExit(f"{path} has {name} with {key}={result[key]}: choose another --out")

    def keep():
        if path:
            text = re.sub(
                r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), json.dumps(results, indent=1)
            )
            fresh = path.with_suffix(".new")
            fresh.write_text(text + "\n")
            fresh.replace(path)  # so that an interruption leaves one or the other

    choose(task, result, keep)
    compare(task, crowds, result, keep)
    return result


def main(*args):
    "Read the command line, run, and print tables."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=TASKS, default=[*TASKS], metavar="NAME",
                        help=f"of {', '.join(TASKS)}; all by default")  # fmt: skip
    parser.add_argument("--seeds", type=int, help="how many; each data set has its own default")
    parser.add_argument("--epochs", type=int, help="how many; each data set has its own default")
    parser.add_argument("--sigma", type=int, nargs="+", default=[256, 64], help="subnetworks")
    parser.add_argument("--tau", type=int, nargs="+", default=[16, 4], help="of these at a time")
    parser.add_argument(
        "--out", type=Path, help="a JSON file to keep results in, and to go on from"
    )
    options = parser.parse_args(args or None)
    given = {key: getattr(options, key) for key in ("seeds", "epochs")}
    given = {key: value for key, value in given.items() if value}
    for name in options.data:
        task = replace(TASKS[name], **given)
        result = run(name, task, methods(options.sigma, options.tau), options.out)
        print(report(name, result), seen(result), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
