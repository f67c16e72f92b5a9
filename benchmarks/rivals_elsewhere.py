"The training step of a plain perceptron with Adam in other frameworks, each if it is installed."

import numpy as np

RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


def start(sizes):
    "Weights and biases of all layers, in a list."
    rng = np.random.default_rng(0)
    shapes = [s for pair in zip(sizes, sizes[1:]) for s in (pair, (1, pair[1]))]
    return [rng.normal(scale=0.1, size=s).astype("float32") for s in shapes]


def scores(lib, parameters, x):
    "What the perceptron makes of `x`, by the functions of `lib`."
    *hidden, (w, b) = zip(parameters[::2], parameters[1::2])
    for weight, bias in hidden:
        x = lib.maximum(x @ weight + bias, 0)
    return x @ w + b


def loss_of(lib, parameters, x, y):
    "The cross-entropy."
    z = scores(lib, parameters, x)
    z = z - lib.max(z, axis=1, keepdims=True)
    log_p = z - lib.log(lib.sum(lib.exp(z), axis=1, keepdims=True))
    return -lib.mean(log_p[np.arange(len(y)), y])


def updated(lib, p, g, m, v, t):
    "A step of Adam, out of place."
    m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
    root = lib.sqrt(v / (1 - BETA2**t)) + EPS
    return p - RATE / (1 - BETA1**t) * m / root, m, v


def jax(sizes, x, y):
    "JAX, the whole step compiled by jit."
    import jax as library
    import jax.numpy as jnp

    @library.jit
    def step(memory, t):
        p, m, v = zip(*memory)
        value, g = library.value_and_grad(lambda p: loss_of(jnp, p, x, y))([*p])
        return [updated(jnp, *row, t) for row in zip(p, g, m, v)], value

    memory, t = [(p, p * 0, p * 0) for p in map(jnp.asarray, start(sizes))], 0

    def run():
        nonlocal memory, t
        t += 1
        memory, value = step(memory, float(t))
        return value.block_until_ready()

    run()
    return {"jax.jit": run}


def autograd(sizes, x, y):
    "HIPS autograd."
    import autograd.numpy as anp
    from autograd import value_and_grad

    back = value_and_grad(lambda p: loss_of(anp, p, x, y))
    memory, t = [(p, p * 0, p * 0) for p in start(sizes)], 0

    def run():
        nonlocal memory, t
        t += 1
        p, m, v = zip(*memory)
        value, g = back([*p])
        memory = [updated(np, *row, t) for row in zip(p, g, m, v)]
        return value

    return {"HIPS autograd": run}


def tinygrad(sizes, x, y):
    "tinygrad, the step compiled by TinyJit."
    from tinygrad import Tensor, TinyJit
    from tinygrad.nn.optim import Adam

    p = [Tensor(a) for a in start(sizes)]  # each is a parameter, as all are
    x, y, adam = Tensor(x), Tensor(y.astype("int32")), Adam(p, lr=RATE)

    @TinyJit
    def step():
        with Tensor.train():
            out = x
            for i in range(0, len(p), 2):
                out = out @ p[i] + p[i + 1]
                out = out.relu() if i < len(p) - 2 else out
            loss = out.sparse_categorical_crossentropy(y)
            adam.zero_grad()
            loss.backward()
            adam.step()
            return loss.realize()

    for _ in range(3):
        step()
    return {"tinygrad": lambda: step().item()}
