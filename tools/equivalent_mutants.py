"Changes that no test in the same process can notice, nearly all since they change no number."

MINUS_ZERO = "minus zero is zero"
BOTH_HOLD = "both formulas hold around 0.5"
FOR_SPEED = "left out where it does nothing, for speed"
NO_VALUE = "the token between gates has a place in the order, and a value that nobody reads"
REMEMBERED = "computed again instead of remembered: the same, slower"
WIDE = "a bound that is far from where anything happens"
SAME_MEMORY = "memory that is used again saves time, and changes nothing"
REPLACED = "parameters that are made are replaced at once"
FEWER_BLOCKS = "no mask has 2**35 numbers"
AT_HOME = "on the CPU, NumPy's arrays are at home already"
MASKS = "NumPy multiplies by a mask as by numbers; not every library does"
WIDER = "computed in double precision, and then rounded"
AT_IMPORT = "done when the module is imported, which is before a change can be made"
CHUNKS = "pieces fit into a cache; the numbers are the same"
GROWN = "what is remembered is laid out again, with the same numbers"
ALIKE = "all in a bundle are alike"
ONE_MORE_LOOP = "another type or layout is one more loop to compile, with the same numbers"
DISCARDED = "of a rule that is read on Tensors only the pullbacks are used"

EQUIVALENT = {
    # what is the same
    "operators.elementwise.sign: xp.zeros_like(g) -> (-xp.zeros_like(g))": MINUS_ZERO,
    "operators.elementwise.floor: xp.zeros_like(g) -> (-xp.zeros_like(g))": MINUS_ZERO,
    "operators.elementwise.round: xp.zeros_like(g) -> (-xp.zeros_like(g))": MINUS_ZERO,
    "operators.further.ceil: xp.zeros_like(g) -> (-xp.zeros_like(g))": MINUS_ZERO,
    "operators.further.trunc: xp.zeros_like(g) -> (-xp.zeros_like(g))": MINUS_ZERO,
    "operators.elementwise.leaky_relu: a > 0 -> (a >= 0)": "a slope times zero is zero",
    "operators.elementwise.gelu: a > 0 -> (a >= 0)": "at 0 either half of the curve has half of 1",
    "operators.elementwise.erf: xp.minimum(z, 0.5) -> xp.minimum(z, 0.505)": BOTH_HOLD,
    "operators.elementwise.erf: z < 0.5 -> (z <= 0.5)": BOTH_HOLD,
    "operators.elementwise.erf: z < 0.5 -> z < 0.505": BOTH_HOLD,
    "operators.products._check_inner: -1 -> 0": "the last axis of a vector is its first",
    "operators.products.dropout: 1 / (1 - p) if p < 1 else 0.0 -> 1 / (1 - p) if p < 1 else 1.0":
        "at p = 1 nothing is kept that could be scaled",
    "operators.reductions._product_before: step < a.shape[-1] -> (step <= a.shape[-1])":
        "one more round multiplies by ones",
    "operators.reductions._product_before: y -> (-y)": "two of its results are multiplied",
    "operators.reductions._product_before: a -> (-a)": "there is nothing in it",
    "operators.reductions._norm: ord > 0 -> (ord >= 0)": "0 does not come here",
    "operators.reductions._norm: ord > 0 -> ord > 1": "below 1 the power is flat at 0 as it is",
    "operators.reductions._norm: xp.where(y == 0, 1, y) -> xp.where(y == 0, 2, y)":
        "what is divided by it is 0",
    "operators.reductions._norm: xp.where(a == 0, 1, ratio) -> xp.where(a == 0, 2, ratio)":
        "what is multiplied with it is 0",
    "operators.reductions.std: xp.where(y == 0, 1, 2 * y) -> xp.where(y == 0, 2, 2 * y)":
        "what is divided by it is not taken",
    "operators.reductions.var: 1.0 * _count(shape, axis) -> _count(shape, axis)":
        "an integer divides as the float does",
    "operators.reductions.var: n > 0 -> (n >= 0)": "0 divides as 0.0 does",
    "operators.shapes.permute: tuple(sorted(range(len(order)), key=order.__getitem__)) -> "
    "sorted(range(len(order)), key=order.__getitem__)": "a list of axes is as good as a tuple",
    "operators.reductions.logsumexp: xp.where(xp.isfinite(m), m, 0) -> "
    "xp.where(xp.isfinite(m), m, 1)": "any finite number may be subtracted and added again",
    "operators.shapes.transpose: zip(order, reversed(order), strict=True) -> "
    "zip(order, reversed(order))": "an order is as long as its reverse",
    "operators.shapes.transpose: strict=True -> strict=False": "an order is as long as its reverse",
    "operators.indexing._added: _put(g, *indices, key=key, shape=shape) -> g": DISCARDED,
    "operators.indexing._picked: a[key] -> a (2)": DISCARDED,
    "operators.indexing.argsort: xp.argsort(xp.reshape(a, (1,)))[0] -> "
    "(-xp.argsort(xp.reshape(a, (1,)))[0])": MINUS_ZERO,
    "operators.products.linear: asked_once(bend) -> bend": REMEMBERED,
    "nn.functional.layers.linear: activation is None -> False": FOR_SPEED,
    "nn.hooks._meet: xp.asarray(0.0) -> 0.0": NO_VALUE,
    "nn.hooks._meet: xp.asarray(0.0) -> (-xp.asarray(0.0))": NO_VALUE,
    "nn.hooks._meet: xp.asarray(0.0) -> xp.asarray(1.0)": NO_VALUE,
    "nn.hooks._pass: gate.arrive(i, g, token) -> (-gate.arrive(i, g, token))": NO_VALUE,
    "nn.hooks._going: xp.zeros_like(like) -> (-xp.zeros_like(like))": MINUS_ZERO,
    "tensors._widened: p and (lambda g, p=p: p(wide(g))) -> (lambda g, p=p: p(wide(g)))":
        "an argument without a pullback wants no gradient",
    "tensors._widened: not computes or any(is_floating(t) for t in dtypes) -> "
    "any((is_floating(t) for t in dtypes))": "a move of integers gives integers",
    "tensors._wide: is_floating(a.dtype) -> a.dtype":
        "small integers beside halves are computed with as floats in any case",
    # what is there for speed
    "operators.elementwise._erfc: _ERFC_DOUBLE if z.dtype == xp.float64 else _ERFC_SINGLE -> "
    "_ERFC_DOUBLE": "the short series is as exact in single precision",
    "operators.products.matmul: xp.expand_dims(a, axis=0) if a.ndim == 1 else a -> "
    "xp.expand_dims(a, axis=0)": "the engine sums over an axis of size 1 that is too many",
    "nn.hooks._coming: g if g.dtype == like.dtype else xp.astype(g, like.dtype) -> "
    "xp.astype(g, like.dtype)": FOR_SPEED,
    "tensors._widened: is_floating(t) and t in narrow -> is_floating(t)": FOR_SPEED,
    "nn.blockwise._slope: xp.astype(wide, z.dtype) -> wide": MASKS,
    "nn.blockwise._slope: xp.astype(z > 0, z.dtype) -> (z > 0)": MASKS,
    "nn.blockwise._runs: -2 -> 0 (2)": "what comes last is never -1",
    "nn.blockwise._pick: len(runs) -> runs": FOR_SPEED,
    "nn.blockwise._pick: a[runs[0]] if len(runs) == 1 else "
    "np.concatenate([a[:0], *(a[run] for run in runs)]) -> "
    "np.concatenate([a[:0], *(a[run] for run in runs)])": FOR_SPEED,
    "operators.products.linear: x if x.ndim == 2 else xp.reshape(x, (-1, weight.shape[0])) -> "
    "xp.reshape(x, (-1, weight.shape[0]))": FOR_SPEED,
    "operators.products.linear: g if g.ndim == 2 else xp.reshape(g, (-1, weight.shape[1])) -> "
    "xp.reshape(g, (-1, weight.shape[1]))": FOR_SPEED,
    "operators.shapes.to: as_dtype(dtype) -> dtype":
        "noticed in a process of its own, where bfloat16 is missing; changes do not reach there",
    "operators.shapes.to: copy and a is start -> copy": "a copy of what is new already",
    "operators.indexing._added: indices -> True": "adding to zeros is writing, only slower",
    "operators.indexing._added: xp.reshape(g, z[places].shape) if len(places) < len(key) else g -> "
    "xp.reshape(g, z[places].shape)": FOR_SPEED,
    "operators.indexing._added: len(places) < len(key) -> (len(places) <= len(key))": FOR_SPEED,
    "optim.clipping._norm: xp.astype(a != 0, a.dtype) -> a != 0": "a sum of booleans is a count",
    "optim.clipping._norm: kind == 1 -> False": "the general formula gives the same, slower",
    "optim.clipping._norm: kind == 2 -> False": "the general formula gives the same, slower",
    # nn.fused and its like
    "algorithms.fused_layernorm._fused: FusedLayer(old.normalized_shape, old.eps, "
    "elementwise_affine=False) -> FusedLayer(old.normalized_shape, old.eps)": REPLACED,
    "algorithms.fused_layernorm._fused: elementwise_affine=False -> elementwise_affine=True":
        REPLACED,
    "nn.functional.fused._draw: x.device.put(np.array(pair, dtype=np.uint64)) -> "
    "np.array(pair, dtype=np.uint64)": AT_HOME,
    "nn.functional.fused._mask: ops.zeros_like(x) -> ops.ones_like(x)": "one is finite, too",
    "nn.fused.FusedLayerNorm.forward: t is None or len(sizes) == 1 -> (t is None)": FOR_SPEED,
    "nn.fused.FusedLayerNorm.forward: len(sizes) -> sizes": FOR_SPEED,
    "nn.fused.FusedLayerNorm.forward: len(sizes) -> sizes (3)": FOR_SPEED,
    "nn.fused.FusedLayerNorm.forward: len(sizes) -> sizes (4)": FOR_SPEED,
    "nn.fused.FusedLayerNorm.forward: x if len(sizes) == 1 else ops.reshape(x, shape) -> "
    "ops.reshape(x, shape)": FOR_SPEED,
    "nn.fused.FusedLayerNorm.forward: y if len(sizes) == 1 else ops.reshape(y, x.shape) -> "
    "ops.reshape(y, x.shape)": FOR_SPEED,
    "nn.fused.FusedDropoutLayerNorm.__init__: LayerNorm(dim, eps, elementwise_affine, "
    "device=device, dtype=dtype) -> LayerNorm(dim, eps, elementwise_affine, dtype=dtype)": AT_HOME,
    # operators.fused
    "operators.fused._parts: xp.astype(keep, a.dtype) -> keep": MASKS,
    "operators.fused._Gate.open: xp.asarray(0.0) -> (-xp.asarray(0.0))": NO_VALUE,
    "operators.fused._Gate.open: xp.asarray(0.0) -> 0.0": NO_VALUE,
    "operators.fused._Gate.open: xp.asarray(0.0) -> xp.asarray(1.0)": NO_VALUE,
    "operators.fused.rows_parts: lru_cache(lambda dtype: dtype.isnative and dtype.name in dtypes) "
    "-> (lambda dtype: dtype.isnative and dtype.name in dtypes)": REMEMBERED,
    "operators.fused._is_plain: flags.carray if hasattr(flags, \"carray\") else flags.c_contiguous "
    "-> flags.carray": AT_HOME,
    "operators.fused._is_plain: flags.carray if hasattr(flags, \"carray\") else flags.c_contiguous "
    "-> flags.c_contiguous": ONE_MORE_LOOP,
    "operators.fused.register_parts: _norm_and_sum.kernel(backend)(both) -> "
    "(False and _norm_and_sum.kernel(backend)(both))": AT_IMPORT,
    "operators.fused.rows_parts: last[0] -> last": REMEMBERED,
    "operators.fused.rows_parts: last[0] -> last[1]": REMEMBERED,
    "operators.fused.rows_parts: last[1] -> last": REMEMBERED,
    "operators.fused.rows_parts: last[1] -> last[2]": REMEMBERED,
    "operators.fused.dropout_mask: -n // 8 -> -n": "more blocks than are needed",
    "operators.fused.dropout_mask: blocks & _LOW -> blocks": FEWER_BLOCKS,
    "operators.fused.dropout_mask: blocks >> 32 -> blocks >> 33": FEWER_BLOCKS,
    "operators.fused._parts: 1 / (1 - p) if p < 1 else 0.0 -> 1 / (1 - p) if p < 1 else 1.0":
        "at p = 1 nothing is kept that could be scaled",
    "operators.fused._factors: 1 / (1 - p) if p < 1 else 0 -> 1 / (1 - p) if p < 1 else 1":
        "at p = 1 nothing is kept that could be scaled",
    "operators.fused._factors: out.dtype.type(1 / (1 - p) if p < 1 else 0) -> "
    "(1 / (1 - p) if p < 1 else 0)": "a wider product is rounded to the same number",
    "operators.fused._behind: token -> g": NO_VALUE,
    "operators.fused._behind: token -> (-token)": NO_VALUE,
    "operators.fused.rows_parts: draw is None or p == 0 -> (draw is None)": FOR_SPEED,
    "operators.fused.rows_parts: last[0] is not g or last[1] is not h or i not in last[2] -> True":
        REMEMBERED,
    "operators.fused._pieces: max(1, _BLOCK // x.shape[1]) -> max(2, _BLOCK // x.shape[1])":
        SAME_MEMORY,
    "operators.fused._pieces: _BLOCK // x.shape[1] -> _BLOCK": SAME_MEMORY,
    "operators.fused._pieces: max(1, _BLOCK // x.shape[1]) -> 1": SAME_MEMORY,
    "operators.fused._factors: np.multiply(keep, out.dtype.type(1 / (1 - p) if p < 1 else 0), "
    "out=out) -> np.multiply(keep, out.dtype.type(1 / (1 - p) if p < 1 else 0))": SAME_MEMORY,
    "operators.fused._total: np.multiply(x[rows], factors, out=out) -> "
    "np.multiply(x[rows], factors)": SAME_MEMORY,
    "operators.fused._total: np.add(a, residual[rows], out=out) -> np.add(a, residual[rows])":
        SAME_MEMORY,
    "operators.fused._forward: x[pieces[0]] -> x": SAME_MEMORY,
    "operators.fused._forward: np.sqrt(s, out=s) -> np.sqrt(s)": SAME_MEMORY,
    "operators.fused._backward: None if residual is None else np.empty_like(x) -> np.empty_like(x)":
        SAME_MEMORY,
    "operators.fused._backward: x[pieces[0]] -> x": SAME_MEMORY,
    "operators.fused._backward: _total(x, residual, rows, factors, n) if z is None else z[rows] -> "
    "_total(x, residual, rows, factors, n)": REMEMBERED,
    "algorithms.clipping._clip_units: p.dtype.itemsize < 4 -> (p.dtype.itemsize <= 4)":
        "float32 becomes float32",
    "algorithms.clipping._clip_units: p.dtype.itemsize < 4 -> p.dtype.itemsize < 5":
        "float32 becomes float32",
    "algorithms.stochastic_depth.StochasticResidual.forward: x.device.put(kept) -> kept": AT_HOME,
    "algorithms.stochastic_depth.StochasticResidual.forward: x.device.put(places) -> places":
        AT_HOME,
    "algorithms.stochastic_depth.StochasticResidual.forward: y[:1] -> y":
        "more zeros than are needed",
    "algorithms.stochastic_depth.StochasticResidual.forward: :1 -> :": "more zeros than are needed",
    "algorithms.stochastic_depth.StochasticResidual.forward: :1 -> :2":
        "more zeros than are needed",
    "kernels.rows._normal_cdf: a > 0 -> (a >= 0)": "at 0 either half of the curve has half of 1",
    "kernels.rows.gelu: x[:_PIECE] -> x": SAME_MEMORY,
    "kernels.rows.gelu: :_PIECE -> :": SAME_MEMORY,
    "kernels.rows.softmax: np.maximum.reduce(a, axis=None) < 60 -> "
    "(np.maximum.reduce(a, axis=None) <= 60)": WIDE,
    "kernels.rows.softmax: np.maximum.reduce(a, axis=None) < 60 -> "
    "np.maximum.reduce(a, axis=None) < 61": WIDE,
    "kernels.rows.softmax: total.min() > 1e-3 -> (total.min() >= 0.001)": WIDE,
    "kernels.rows.softmax: total.min() > 1e-3 -> total.min() > 0.00101": WIDE,
    "kernels.rows.softmax: ops.softmax.rule(xp, a, axis=axis) -> ops.softmax.rule(xp, a) (2)":
        "the axis is the last here, which is the rule's own choice",
    "kernels.rows.softmax: max(1, _ROWS // x.shape[1]) -> 1": SAME_MEMORY,
    "kernels.rows.softmax: max(1, _ROWS // x.shape[1]) -> max(2, _ROWS // x.shape[1])": SAME_MEMORY,
    "kernels.rows.softmax: _ROWS // x.shape[1] -> _ROWS": SAME_MEMORY,
    "kernels.rows.normalize: x.ndim - count -> (-count)": "without a last axis the rule is read",
    "kernels.rows._by_columns: asked_once(lambda g: (np.dot(ones, g), "
    "np.einsum(\"ij,ij->j\", g, c))) -> (lambda g: (np.dot(ones, g), "
    "np.einsum('ij,ij->j', g, c)))": REMEMBERED,
    "kernels.rows.normalize: max(1, _ROWS // dim) -> 1": SAME_MEMORY,
    "kernels.rows.normalize: max(1, _ROWS // dim) -> max(2, _ROWS // dim)": SAME_MEMORY,
    "kernels.rows.normalize: _ROWS // dim -> _ROWS": SAME_MEMORY,
    "kernels.rows.normalize: asked_once(lambda g: g.reshape(-1, dim)) -> "
    "(lambda g: g.reshape(-1, dim))": REMEMBERED,
    # optim.flat
    "optim.flat.Bundle.__init__: params[0] -> params[1]": ALIKE,
    "optim.flat.Bundle._remember: self.states[0] -> self.states[1]": ALIKE,
    "optim.flat.Bundle.is_whole: p.grad.array is p._home or _fits(p) -> _fits(p)": FOR_SPEED,
    "optim.flat.Bundle.step: self.backend.follow(self.flat) -> "
    "(False and self.backend.follow(self.flat))": AT_HOME,
    "optim.flat.Bundle.step: self.backend.follow(self.flat) -> self.flat": AT_HOME,
    "optim.flat.Bundle.step: kernels is not None and kernels.find(self.backend.name) -> "
    "(kernels is not None)": CHUNKS,
    "optim.flat.Bundle.step: kernels.find(self.backend.name) -> self.backend.name": CHUNKS,
    "optim.flat.Bundle.step: self.whole if compiled else self.chunks -> self.whole": CHUNKS,
    "optim.flat.Bundle.step: len(after[-1]) != len(arrays) + len(self.numbers) -> True": GROWN,
    "optim.flat.Bundle.step: len(after[-1]) -> after[-1]": GROWN,
    "optim.flat.Bundle.step: after[-1] -> after (2)": GROWN,
    "optim.flat.Bundle.step: -1 -> 0 (2)": ALIKE,
    "optim.flat.Bundle.step: -1 -> 0 (3)": ALIKE,
    "optim.flat.Bundle.step: len(arrays) + len(self.numbers) -> "
    "(len(arrays) - len(self.numbers))": GROWN,
    "optim.flat.Bundle.step: len(arrays) + len(self.numbers) -> len(arrays)": GROWN,
    "optim.flat.Bundle.step: len(arrays) + len(self.numbers) -> len(self.numbers)": GROWN,
    "optim.flat.Bundle.step: self.numbers -> True": FOR_SPEED,
    "optim.flat.Bundle._gather: p.grad.array is not p._home -> True": FOR_SPEED,
    "optim.flat.Bundle._gather: not strays -> False": FOR_SPEED,
    "optim.flat.Bundle._grow: -1 -> 0": ALIKE,
    "optim.flat.Bundle._grow: self._remember() -> (False and self._remember())":
        "the bundle is not whole, and made again",
    "optim.flat.Bundles.step: _bundled(ready) if len(ready) > 1 else () -> _bundled(ready)":
        FOR_SPEED,
    "optim.flat.Bundles.step: len(ready) > 1 -> (len(ready) >= 1)": FOR_SPEED,
    # what numba compiles
    "kernels.optim._adam_loop: most >= square -> (most > square)": "of equals, either",
    "kernels.optim._line: a is None or a.ndim == 1 -> (a is None)": FOR_SPEED,
    "kernels.optim.adam: _plain(g, p.dtype) -> g": ONE_MORE_LOOP,
    "kernels.optim.adam: 1.0 * weight_decay -> weight_decay": ONE_MORE_LOOP,
    "kernels.optim.adam: 1.0 * beta1 -> beta1": ONE_MORE_LOOP,
    "kernels.optim.adam: 1.0 * beta2 -> beta2": ONE_MORE_LOOP,
    "kernels.optim.sgd: _plain(g, p.dtype) -> g": ONE_MORE_LOOP,
    "kernels.optim.sgd: 1.0 * weight_decay -> weight_decay": ONE_MORE_LOOP,
    "kernels.optim.sgd: 1.0 * momentum -> momentum": ONE_MORE_LOOP,
    "kernels.optim.sgd: bool(nesterov) -> nesterov": ONE_MORE_LOOP,
    "kernels.optim.sgd: 1.0 * lr -> lr": ONE_MORE_LOOP,
    "kernels.norms._backward: len(x) if residual is not None else 1 -> "
    "len(x) if residual is not None else 2": SAME_MEMORY,
    "kernels.cpu._peak_of: word(words[j] ^ ((words[j] >> last) & but_sign)) -> "
    "(words[j] ^ words[j] >> last & but_sign)": "in a wider word, the same number",
    "kernels.cpu._exp_of: real(1.5 * 2**bits) -> (1.5 * 2 ** bits)": WIDER,
    "kernels.cpu._exp_of: real(0) -> 0": WIDER,
    "kernels.cpu._dropout: x.dtype.type(0) -> 0": WIDER,
    "kernels.cpu.total_of: x.dtype.type(0) -> 0": WIDER,
    "kernels.cpu.leaky_relu: float(negative_slope) -> negative_slope": ONE_MORE_LOOP,
    "kernels.cpu._kernel: op.kernel(\"cpu\")(function) -> function":
        AT_IMPORT,
    "kernels.cpu.tanh: xp.tanh(a, out=xp.empty_like(a)) -> xp.tanh(a)":
        "the engine makes an array of a scalar",
    "kernels.norms._forward_rows: x.dtype.type(0) -> 0": WIDER,
    "kernels.norms._forward_rows: max(total / dim - (rest / dim) ** 2, zero) -> "
    "(total / dim - (rest / dim) ** 2)": "no more than a rounding is below zero, and eps is more",
    "kernels.norms._row: a.astype(a.dtype, order=\"C\") -> a.astype(a.dtype)":
        "a row of numbers has one order",
    "kernels.norms._forward_rows: x.shape[1] // 8 -> x.shape[1]": SAME_MEMORY,
    "kernels.norms._forward_rows: x.dtype.type(eps) -> eps": WIDER,
    "kernels.norms._fill: out.dtype.type(0) -> 0": WIDER,
    "kernels.norms._backward_rows: least > 0 -> (least >= 0) (2)": FOR_SPEED,
    # GPUs
    "kernels.launches.bend: rows > 1 -> rows > 2": "how threads lie, which changes no number",
    "gpu.cublas.Cublas.matmul: a.dtype if a.dtype == b.dtype else "
    "numpy_backend.xp.result_type(a.dtype, b.dtype) -> "
    "numpy_backend.xp.result_type(a.dtype, b.dtype)": FOR_SPEED,
    "gpu.library.Cuda._on: nullcontext() if index == self._current() else "
    "self.cupy.cuda.Device(index) -> self.cupy.cuda.Device(index)": FOR_SPEED,
    "gpu.library.Cuda._asarray: as_dtype(dtype) -> dtype":
        "NumPy knows `bfloat16` by its name as soon as ml_dtypes was imported",
    "gpu.library.Namespace.__getattr__: setattr(self, name, found) -> "
    "(False and setattr(self, name, found))": FOR_SPEED,
    "gpu.library.Namespace.__getattr__: setattr(self, name, found) -> self": FOR_SPEED,
    "gpu.graphs._Before.__init__: s.name == \"grad\" and isinstance(s.holder, Tensor) -> "
    "(s.name == 'grad')": "what else is called grad may be looked at likewise",
    "gpu.library.Door.pinned: max(numbers.nbytes, 1) -> numbers.nbytes":
        "a pretended card can pin nothing, too",
}  # fmt: skip
