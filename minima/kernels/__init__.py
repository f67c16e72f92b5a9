"""Kernels: operations done at once, for one kind of device.

This file says which operations of `minima.operators` have kernels for the CPU and for GPUs, and in
which modules; it is written by hand. A module is imported when one of its operations is first wanted,
never by `import minima`. Of two kernels the later one is used, and where numba is missing the first
kind is left.
"""

from minima import operators as ops

IN_NUMPY = {
    "in_place": (ops.linear, ops.cross_entropy),
    "rows": (ops.linear, ops.gelu, ops.softmax, ops.normalize),
}
COMPILED = {
    "cpu": (
        ops.cross_entropy,
        ops.leaky_relu,
        ops.log_softmax,
        ops.relu,
        ops.sigmoid,
        ops.silu,
        ops.softmax,
        ops.tanh,
    ),
    "linear": (ops.gelu, ops.linear),
    "norms": (ops.normalize,),
}
ON_A_GPU = (
    ops.cross_entropy,
    ops.gelu,
    ops.linear,
    ops.log_softmax,
    ops.normalize,
    ops.relu,
    ops.sigmoid,
    ops.silu,
    ops.softmax,
    ops.surprise,
    ops.tanh,
)

for operation in ON_A_GPU:
    operation.kernel("cuda", "minima.kernels.cuda", compiled=False)
for table, compiled in ((IN_NUMPY, False), (COMPILED, True)):
    for home, operations in table.items():
        for operation in operations:
            operation.kernel("cpu", f"minima.kernels.{home}", compiled=compiled)
