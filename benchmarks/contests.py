"""What is measured: contests, in each of which rivals do the same work from the same numbers.

A contest is made by a function without arguments, listed in `CONTESTS` by the name of its row. The
first of its rivals is the one that the others are compared with. `work` says how many operations
on floats one call takes, or how many bytes it cannot avoid to move, so that times can be compared
with what the machine can do.
"""

import copy
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from models import layers, step_of

import minima as mi
from minima import nn, optim
from minima.serialization import torch_state


@dataclass
class Contest:
    "Rivals by name, and what one call of them amounts to."

    rivals: dict
    work: dict = field(default_factory=dict)  # "flop" or "byte": how many in a call
    calls: int = 200  # in a round
    goals: dict = field(default_factory=dict)  # by name of a reference: without numba, and with
    captured: dict = field(default_factory=dict)  # the same for the captured step
    anew: object = None  # makes another captured step, to see what capturing it costs


# ---- single operations ----


def product():
    "`a * b` on 64 floats, recorded."
    x, y = np.random.default_rng(0).normal(size=(2, 64)).astype("float32")
    a, b = (mi.Tensor(v, requires_grad=True) for v in (x, y))
    p, q = (torch.tensor(v, requires_grad=True) for v in (x, y))
    rivals = {"torch": lambda: p * q, "minima": lambda: a * b, "numpy": lambda: x * y}
    return Contest(rivals, calls=2000, goals={"torch": (1.4, None)})


def chain(length=20):
    "A chain of products on 64 floats, forward and backward."
    x, y = np.random.default_rng(0).normal(size=(2, 64)).astype("float32")
    ones = np.ones(64, "float32")
    fused = {"minima, captured": None, "minima, captured, not fused": False}

    def forward_backward(start, factor, cotangent):
        def run():
            out = start
            for _ in range(length):
                out = out * factor
            start.grad = factor.grad = None
            out.backward(cotangent)

        return run

    def by_hand():
        out = [x]
        for _ in range(length):
            out.append(out[-1] * y)
        g, dy = ones, 0.0
        for value in reversed(out[:-1]):
            dy = dy + g * value
            g = g * y

    theirs = [torch.tensor(v, requires_grad=i < 2) for i, v in enumerate((x, y, ones))]
    ours = [mi.Tensor(v, requires_grad=i < 2) for i, v in enumerate((x, y, ones))]
    rivals = {"torch": forward_backward(*theirs), "minima": forward_backward(*ours)}
    anew = lambda fuse=None: mi.capture(forward_backward(*ours), fuse=fuse)
    if length < 200:
        rivals |= {name: anew(fuse) for name, fuse in fused.items()}
    rivals["numpy"] = by_hand
    calls, goals = max(1, 4000 // length), {"torch": (2.1, None)}
    return Contest(rivals, {}, calls, goals, {"torch": (6, None)}, anew)


# ---- training steps ----


def on_one_batch(model, optimizer, loss_fn, x, y):
    "A training step, always on the same batch."
    step = step_of(model, optimizer, loss_fn)
    return lambda: step(x, y)


def twins(make, x, y):
    "Training steps, by name, of models that `make(library)` makes, from the same weights."
    mi.manual_seed(0)
    ours = make(nn)
    adam = optim.Adam(ours.parameters())
    loss_fn = nn.CrossEntropyLoss()
    steps = {"minima": on_one_batch(ours, adam, loss_fn, mi.Tensor(x), mi.Tensor(y))}

    def captured(fuse=None):
        "The same step, captured."
        again = copy.deepcopy(ours)
        adam, loss_fn = optim.Adam(again.parameters()), nn.CrossEntropyLoss()
        step = on_one_batch(again, adam, loss_fn, mi.Tensor(x), mi.Tensor(y))
        return mi.capture(step, fuse=fuse)

    steps |= {"minima, captured": captured(), "minima, captured, not fused": captured(False)}
    state = {k: torch.tensor(np.asarray(v)) for k, v in torch_state(ours).items()}
    for name, options in (("torch", {}), ("torch, fused", {"fused": True}),
                          ("torch, foreach", {"foreach": True})):  # fmt: skip
        theirs = make(torch.nn)
        theirs.load_state_dict(state)
        adam = torch.optim.Adam(theirs.parameters(), **options)
        loss_fn = torch.nn.CrossEntropyLoss()
        steps[name] = on_one_batch(theirs, adam, loss_fn, torch.tensor(x), torch.tensor(y))
    order = ["torch", "torch, fused", "torch, foreach", *(k for k in steps if "minima" in k)]
    return {name: steps[name] for name in order}, captured


def by_hand(sizes, x, y):
    "The step of a plain perceptron in NumPy: the control."
    rng = np.random.default_rng(0)
    w = [rng.normal(scale=0.1, size=s).astype("float32") for s in zip(sizes, sizes[1:])]
    b = [np.zeros((1, n), "float32") for n in sizes[1:]]
    memory = [(p, np.zeros_like(p), np.zeros_like(p)) for p in (*w, *b)]
    target, t = np.eye(sizes[-1], dtype="float32")[y], 0

    def step():
        nonlocal t
        hidden = [x]
        for weight, bias in zip(w, b):
            hidden.append(np.maximum(hidden[-1] @ weight + bias, 0))
        z = hidden[-2] @ w[-1] + b[-1]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss = -np.log((p * target).sum(axis=1)).mean()
        g, dw, db = (p - target) / len(x), [], []
        for i in reversed(range(len(w))):
            dw.insert(0, hidden[i].T @ g)
            db.insert(0, g.sum(axis=0, keepdims=True))
            g = (g @ w[i].T) * (hidden[i] > 0) if i else None
        t += 1
        for (q, m, v), g in zip(memory, (*dw, *db)):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            q -= 1e-3 / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return loss

    return step


def perceptron(sizes, batch, norm=False, dropout=0.0, goals=None, captured=None):
    "A training step of a perceptron with Adam."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, sizes[0])).astype("float32")
    y = rng.integers(0, sizes[-1], batch)
    rivals, anew = twins(lambda library: layers(library, sizes, norm, dropout), x, y)
    if not dropout:
        check_alike(rivals)
    if not norm and not dropout:
        rivals["numpy"] = by_hand(sizes, x, y)
        rivals |= others(sizes, x, y)
    flop = batch * (sum(6 * n * m for n, m in zip(sizes, sizes[1:])) - 2 * sizes[0] * sizes[1])
    calls = int(np.clip(2e8 / flop, 4, 200))
    return Contest(rivals, {"flop": flop}, calls, goals or {}, captured or {}, anew)


def check_alike(rivals, steps=20):
    "Raise AssertionError unless all train alike."
    for _ in range(steps):
        losses = {name: float(step().detach()) for name, step in rivals.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-3, losses


def others(sizes, x, y):
    "The step in other frameworks, if they are installed."
    found = {}
    for name in ("jax", "autograd", "tinygrad"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import rivals_elsewhere

                found |= getattr(rivals_elsewhere, name)(sizes, x, y)
        except ImportError:
            pass
        except RuntimeError as error:  # installed, but something that it needs is not
            warnings.warn(f"{name} cannot run here: {error}", stacklevel=2)
    return found


def attention(library):
    "A block of a transformer, 128 wide, with 4 heads, in either library: plain operations."
    width, heads = 128, 4
    lib = torch if library is torch.nn else mi

    class Block(library.Module):
        def __init__(self):
            super().__init__()
            self.before, self.three = library.LayerNorm(width), library.Linear(width, 3 * width)
            self.out, self.behind = library.Linear(width, width), library.LayerNorm(width)
            self.wide, self.gelu = library.Linear(width, 4 * width), library.GELU()
            self.back = library.Linear(4 * width, width)

        def forward(self, x):
            batch, time, _ = x.shape
            split = self.three(self.before(x)).reshape(batch, time, 3, heads, width // heads)
            q, k, v = (split[:, :, i] for i in range(3))
            q, v = (a.permute((0, 2, 1, 3)) for a in (q, v))
            scores = q @ k.permute((0, 2, 3, 1)) * (width // heads) ** -0.5
            mixed = lib.softmax(scores, -1) @ v
            x = x + self.out(mixed.permute((0, 2, 1, 3)).reshape(batch, time, width))
            return x + self.back(self.gelu(self.wide(self.behind(x))))

    class Classifier(library.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = Block(), library.Linear(width, 10)

        def forward(self, x):
            return self.head(self.block(x).mean(1))

    return Classifier()


def transformer():
    "A training step of a transformer block, batch 8, 64 tokens."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 64, 128)).astype("float32")
    rivals, anew = twins(attention, x, rng.integers(0, 10, 8))
    check_alike(rivals)
    flop = 6 * 8 * 64 * (12 * 128**2 + 2 * 64 * 128)
    goals, captured = {"torch, fastest": (1.05, 1.2)}, {"torch, fastest": (1.15, 1.25)}
    return Contest(rivals, {"flop": flop}, 4, goals, captured, anew)


# ---- dropout and layer norm ----


def there_and_back(layer, x, g):
    "A layer forward and backward, for gradients of its input and its parameters."
    parameters = [*layer.parameters()]

    def run():
        x.grad = None
        for p in parameters:
            p.grad = None
        layer(x).backward(g)

    return run


def norm(shape, dropout, goals):
    "Layer norm behind dropout, forward and backward, in one layer or (in PyTorch) two."
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, *shape)).astype("float32")
    theirs, ours = torch.nn.LayerNorm(shape[-1]), nn.LayerNorm(shape[-1])
    if dropout:
        theirs = torch.nn.Sequential(torch.nn.Dropout(dropout), theirs)
        ours = nn.FusedDropoutLayerNorm(shape[-1], dropout=dropout)
    rivals = {
        "torch": there_and_back(theirs, torch.tensor(x, requires_grad=True), torch.tensor(g)),
        "minima": there_and_back(ours, mi.Tensor(x, requires_grad=True), mi.Tensor(g)),
    }
    calls = int(np.clip(2e6 / x.size, 1, 100))
    return Contest(rivals, {"byte": 20 * x.size}, calls, {"torch": goals})


SHAPES = [(32, 512), (128, 512), (1024, 1024), (8192, 1024), (4096, 4096)]

CONTESTS = {
    "a * b, 64 floats": product,
    "a chain of 20, forward and backward": chain,
    "digits 64-64-10, batch 32": lambda: perceptron(
        (64, 64, 10), 32, goals={"torch": (4, 7), "torch, fastest": (2.5, 4.5)},
        captured={"torch": (6, 10), "torch, fastest": (4, 6)},
    ),
    "784-128-10, batch 64": lambda: perceptron(
        (784, 128, 10), 64, goals={"torch, fastest": (1.15, 1.5)},
        captured={"torch, fastest": (1.2, 1.7)},
    ),
    "784-512-512-10, batch 128, LayerNorm, dropout": lambda: perceptron(
        (784, 512, 512, 10), 128, True, 0.1, goals={"torch, fastest": (1.1, 1.4)},
        captured={"torch, fastest": (1.15, 1.5)},
    ),
    "transformer block, 8 x 64 x 128": transformer,
} | {
    f"dropout + LayerNorm {r} x {c}": lambda r=r, c=c: norm(
        (r, c), 0.1, (1.7 if r * c <= 2**20 else 3.5, 4.5)
    )
    for r, c in SHAPES
} | {
    f"LayerNorm {r} x {c}": lambda r=r, c=c: norm((r, c), 0.0, (None, 1.4)) for r, c in SHAPES
}  # fmt: skip

GROWTH = {
    "a chain, by its length": {n: lambda n=n: chain(n) for n in (1, 10, 100, 1000, 10000)},
    "a step of n-n-10, batch 32, by n": {
        n: lambda n=n: perceptron((n, n, 10), 32) for n in (16, 64, 256, 1024)
    },
    "a step of 64 wide layers, batch 32, by their number": {
        n: lambda n=n: perceptron((*[64] * n, 10), 32) for n in (2, 4, 8, 16)
    },
    "a step of 256-256-10, by the batch": {
        n: lambda n=n: perceptron((256, 256, 10), n) for n in (1, 8, 64, 512)
    },
}
