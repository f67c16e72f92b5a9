"The table of a model: what it counts, beside PyTorch's counter, and that it leaves no trace."

import copy
from html.parser import HTMLParser

import numpy as np
import pytest

from minima import nn
from minima import operators as ops
from minima.autograd import Tensor, is_grad_enabled, no_grad, tape
from minima.nn.summary import Summary
from minima.random import Generator, default_generator


def zeros(*shape, dtype="float32"):
    return Tensor(np.zeros(shape), dtype=dtype)


def network(n=nn):
    return n.Sequential(
        n.Flatten(), n.Linear(12, 8), n.BatchNorm1d(8), n.ReLU(), n.Dropout(0.5), n.Linear(8, 3)
    )


# ---- what is counted ----


def test_rows_have_paths_kinds_shapes_parameters_products_and_bytes():
    table = nn.summary(network(), zeros(5, 3, 4))
    rows = [(r.path, r.kind, r.shapes, r.parameters, r.multiply_adds, r.bytes) for r in table.rows]
    assert rows == [
        ("", "Sequential", [(5, 3)], 0, 0, 0),
        ("0", "Flatten", [(5, 12)], 0, 0, 240),
        ("1", "Linear", [(5, 8)], 104, 480, 416 + 160),
        ("2", "BatchNorm1d", [(5, 8)], 16, 0, 64 + 160),
        ("3", "ReLU", [(5, 8)], 0, 0, 160),
        ("4", "Dropout", [(5, 8)], 0, 0, 0),
        ("5", "Linear", [(5, 3)], 27, 120, 108 + 60),
    ]
    assert (table.parameters, table.trainable, table.frozen) == (147, 147, 0)
    assert (table.multiply_adds, table.parameter_bytes) == (600, 147 * 4)
    assert table.output_bytes == 240 + 160 * 3 + 60
    assert table.bytes == table.parameter_bytes + table.output_bytes


def test_the_columns_add_up_to_the_totals():
    model = network()
    model[1].requires_grad_(False)
    table = model.double().summary(zeros(5, 12, dtype="float64"))
    assert table.parameters == sum(row.parameters for row in table.rows) == 147
    assert table.bytes == sum(row.bytes for row in table.rows)
    assert (table.trainable, table.frozen) == (43, 104) and table.parameter_bytes == 147 * 8


def attention(n):
    class Attention(n.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = n.Linear(6, 4), n.Linear(6, 4, bias=False)
            self.v = n.Sequential(n.Linear(6, 5), n.Tanh())

        def forward(self, x):
            scores = self.q(x) @ self.k(x).transpose(1, 2)
            return n.Softmax(dim=-1)(scores) @ self.v(x)

    return Attention()


class Table(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.rows, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        self.text = ""

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.text)


@pytest.mark.parametrize(
    "build, shape",
    [
        (network, (5, 3, 4)),
        (network, (1, 12)),
        (lambda n: n.Linear(4, 3), (2, 7, 4)),
        (lambda n: n.Linear(4, 3, bias=False), (0, 4)),
        (attention, (2, 3, 6)),
        (lambda n: n.Sequential(*[n.Linear(3, 3)] * 4), (2, 3)),
    ],
)
def test_products_are_what_torch_counts(torch, build, shape):
    from torch.utils.flop_counter import FlopCounterMode

    theirs = build(torch.nn).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(torch.zeros(shape))
    table = build(nn).summary(zeros(*shape))
    assert 2 * table.multiply_adds == counter.get_total_flops()
    assert table.parameters == sum(p.numel() for p in theirs.parameters())


PRODUCTS = {
    "matrices": (lambda a, b: a @ b, [(3, 4), (4, 5)], 60),
    "batches": (lambda a, b: a @ b, [(2, 3, 4), (4, 5)], 120),
    "broadcast batches": (lambda a, b: a @ b, [(2, 1, 3, 4), (6, 4, 5)], 720),
    "vector and matrix": (lambda a, b: a @ b, [(4,), (4, 5)], 20),
    "matrix and vector": (lambda a, b: a @ b, [(3, 4), (4,)], 12),
    "vectors": (lambda a, b: a @ b, [(4,), (4,)], 4),
    "nothing": (lambda a, b: a @ b, [(0, 4), (4, 5)], 0),
    "dot": (ops.dot, [(4,), (4,)], 4),
    "einsum": (lambda a, b: ops.einsum("ij,jk->ik", a, b), [(3, 4), (4, 5)], 60),
    "linear": (nn.functional.linear, [(3, 4), (4, 5)], 60),
    "elementwise": (lambda a, b: a * b, [(3, 4), (3, 4)], 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_way_to_multiply_is_counted(name):
    function, shapes, expected = PRODUCTS[name]

    class Product(nn.Module):
        def forward(self, *args):
            return function(*args)

    assert nn.summary(Product(), *(zeros(*s) for s in shapes)).multiply_adds == expected


def test_products_belong_to_the_innermost_module_whatever_is_recorded():
    class Outer(nn.Module):
        def __init__(self):
            self.inner = nn.Linear(4, 4, bias=False)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.fixed = nn.Buffer(np.ones((4, 2)), dtype="float32")

        def forward(self, x, times=1):
            for _ in range(times):
                x = self.inner(x)
            with no_grad():
                return {"y": [self.frozen(x)], "z": (x @ self.fixed, "text")}

    table = Outer().summary(zeros(3, 4), times=2)
    assert [row.multiply_adds for row in table.rows] == [24, 96, 48]
    assert [row.calls for row in table.rows] == [1, 2, 1]
    assert table.rows[0].shapes == [(3, 4), (3, 2)]
    assert table.output_bytes == 4 * (2 * 12 + 12 + 6)  # both results of `inner` are counted
    assert "Linear (2 calls)" in repr(table)


def test_what_is_shared_is_counted_once():
    layer = nn.Linear(3, 3)
    table = nn.Sequential(layer, nn.Sequential(layer), nn.Identity()).summary(zeros(2, 3))
    assert [row.path for row in table.rows] == ["", "0", "1", "2"] and table.parameters == 12
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    table = tied.summary(zeros(2, 3))
    assert [row.parameters for row in table.rows] == [0, 9, 0] and table.parameter_bytes == 36


def test_an_input_that_comes_out_again_takes_no_bytes():
    assert nn.Sequential(nn.Identity(), nn.Dropout(0.5)).summary(zeros(2, 3)).bytes == 0


def test_nothing_is_recorded_and_products_of_a_module_without_hooks_are_the_roots():
    class Own(nn.Module):
        def __call__(self, x):
            assert not is_grad_enabled()
            return x @ x.T

    assert Own().summary(zeros(2, 3)).rows[0].multiply_adds == 12
    assert nn.Sequential(Own()).summary(zeros(2, 3)).rows[0].multiply_adds == 12


def test_a_module_that_is_not_called_or_returns_no_tensor():
    class Lazy(nn.Module):
        def __init__(self):
            self.spare, self.word = nn.Linear(2, 2), nn.Identity()

        def forward(self, x):
            return self.word("a word") and None

    table = Lazy().summary(zeros(1))
    assert [row.cells()[2] for row in table.rows] == ["", "not called", ""]
    assert table.parameters == 6 and table.output_bytes == 0


def test_half_precision_takes_half_the_bytes():
    whole, half = nn.Embedding(5, 4), nn.Embedding(5, 4).half()
    words = Tensor([[1, 2, 3]])
    assert whole.summary(words).bytes == 2 * half.summary(words).bytes == 4 * (20 + 12)


# ---- how it is shown ----


def test_the_text_is_a_table():
    text = str(network().summary(zeros(1000, 12)))
    lines = text.splitlines()
    assert text == repr(network().summary(zeros(1000, 12)))
    assert lines[0].split() == ["path", "kind", "output", "parameters", "multiply-adds", "bytes"]
    assert lines[4].split() == ["1", "Linear", "(1000,", "8)", "104", "96,000", "32,416"]
    assert lines[-2].split() == ["total", "147", "120,000", "156,588"]
    assert lines[-1].startswith("147 parameters are trainable, 0 frozen; of the bytes, 588 are")
    assert len({len(line) for line in lines[:-1]}) == 1


def test_the_html_is_the_same_table_and_escapes_names():
    class Less(nn.Module):
        def forward(self, x):
            return x

    Less.__name__ = "A<B>&C"
    table = nn.Sequential(Less(), nn.Linear(3, 2)).summary(zeros(4, 3))
    rows = Table(table._repr_html_()).rows
    assert rows == [[*line] for line in table._lines()] and "A<B>" not in table._repr_html_()
    assert rows[2][1] == "A<B>&C"


# ---- no trace ----


class Restless(nn.Module):
    "Does what a module should rather not do."

    def __init__(self):
        self.generator = Generator(5)
        self.calls = nn.Buffer(0)
        self.gain = nn.Parameter([2.0])

    def train(self, mode=True):
        raise AssertionError("nobody asked")

    def forward(self, x):
        self.calls[...] = self.calls + 1
        self.last = x
        self.gain.data[...] = 3.0
        self.calls.data = np.array(7)
        noise = self.generator.uniform(x.shape) + default_generator.uniform(x.shape)
        return x * self.gain + Tensor(noise, dtype="float32")


def state(model):
    "All that could have changed, and which objects it is in."
    return [
        [(id(m), m.training, {k: id(v) for k, v in vars(m).items()}) for m in model.modules()],
        [
            (id(t.array), t.tolist(), t.grad is not None and t.grad.tolist())
            for t in model.parameters()
        ],
        [(id(t.array), t.tolist()) for t in model.buffers()],
        default_generator.get_state(),
        tape._Readings.around,
    ]


def restless():
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.BatchNorm1d(3),
        nn.Dropout(0.5),
        Restless(),
        nn.Dropout(0.5, Generator(1)),
    )
    model[2].training = False
    return model


def test_a_summary_leaves_no_trace():
    model = restless()
    model[0](zeros(2, 3)).sum().backward()
    before, generator = state(model), model[3].generator.get_state()
    model.summary(zeros(2, 3))
    assert state(model) == before and model[3].generator.get_state() == generator
    assert not hasattr(model[3], "last") and model[0]._hooks is None


def test_an_error_leaves_no_trace_either():
    model = restless()
    before = state(model)
    with pytest.raises(RuntimeError, match="^Linear '0' expects 3"):
        model.summary(zeros(2, 4))
    assert state(model) == before


def test_the_rows_of_an_embedding_stay_as_long_as_they_are():
    layer = nn.Embedding(4, 3, max_norm=0.1)
    before = layer.weight.tolist()
    layer.summary(Tensor([1, 2]))
    assert layer.weight.tolist() == before


def test_hooks_that_are_there_stay_and_are_called():
    model, seen = network(), []
    model[1].register_forward_hook(lambda m, args, out: seen.append(out.shape))
    model[1].register_full_backward_hook(lambda *_: seen.append("back"))
    model.summary(zeros(2, 12))
    assert seen == [(2, 8)]
    model.eval()(zeros(2, 12)).sum().backward()
    assert seen == [(2, 8), (2, 8), "back"]


def test_a_batch_of_one_is_enough_and_training_goes_on_as_if_nothing_had_been():
    model = network()
    assert model.training and model.summary(zeros(1, 12)).rows[2].shapes == [(1, 8)]
    twin, x = copy.deepcopy(model), Tensor(np.random.default_rng(0).normal(size=(6, 12)))
    outputs = []
    for candidate, look in ((model, True), (twin, False)):
        default_generator.manual_seed(3)
        if look:
            candidate.summary(zeros(2, 12))
        outputs.append(candidate(x.to("float32")).tolist())
    assert outputs[0] == outputs[1]


def test_an_error_that_a_model_catches_does_not_shift_the_blame():
    class Careful(nn.Module):
        def __init__(self):
            self.fragile = nn.Linear(9, 9)

        def forward(self, x):
            try:
                return self.fragile(x)
            except RuntimeError:
                return x @ x.T

    table = Careful().summary(zeros(2, 3))
    assert [row.multiply_adds for row in table.rows] == [12, 0]


def test_the_function_and_the_method_are_one():
    table = nn.summary(network(), zeros(2, 12))
    assert isinstance(table, Summary) and repr(table) == repr(network().summary(zeros(2, 12)))
    assert nn.Module.summary is nn.summary
