"""Compile every CUDA kernel for GPUs that need not be here, and print what the compiler says of it.

python tools/compile_kernels.py            the table: registers, spills, loads of 16 bytes
python tools/compile_kernels.py norm rows  only these files

Needs nvcc on the PATH or, without it, NVRTC and its headers, which come with
`pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl`. It needs no GPU. With nvdisasm
(`pip install nvidia-cuda-nvdisasm`) it also counts what the norms take for a number.
"""

import ctypes
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from minima.kernels.launches import KERNELS, instances, source

ARCHITECTURES = "sm_80", "sm_90"  # A100; H100 and H200
OPTIONS = "-std=c++17", "-ftz=true"  # CuPy adds the second: numbers below 2**-126 are 0


class Facts(NamedTuple):
    "What is known of a compiled kernel."

    registers: int  # for each thread
    spilled: int  # bytes on the stack: what found no register
    packs: int  # instructions that load or store 16 bytes
    halves: int  # instructions that load or store 2 bytes


def mangled(name):
    "The name of an instance as the compiler writes it, up to its arguments."
    kernel, _, words = name.rstrip(">").partition("<")
    if not words:
        return f"_Z{len(kernel)}{kernel}"
    spelled = {"float": "f", "true": "Lb1E", "false": "Lb0E"}
    parts = [
        spelled.get(word) or (f"Li{word}E" if word.isdigit() else f"{len(word)}{word}")
        for word in words.split(", ")
    ]
    return f"_Z{len(kernel)}{kernel}I{''.join(parts)}Ev"


def with_nvcc(code, architecture):
    "What ptxas says of `code`, its PTX, and what a GPU gets."
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernels.cu")
        file.write_text(code, encoding="utf-8")
        how = f"-arch={architecture} -cubin -Xptxas -v --keep --keep-dir {folder}"
        command = ["nvcc", *how.split(), *OPTIONS, str(file), "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed:\n{done.stderr[:4000]}")
        cubin = Path(folder, "kernels.cubin").read_bytes()
        return done.stderr, Path(folder, "kernels.ptx").read_text(), cubin


def nvrtc():
    "Where the NVRTC of the package index lies: its library and its headers; None if nowhere."
    for place in getattr(find_spec("nvidia"), "submodule_search_locations", None) or ():
        for library in sorted(Path(place).glob("*/lib/libnvrtc.so.*")):
            headers = sorted({str(h.parent) for h in Path(place).glob("*/include/cuda_fp16.h")})
            if headers:
                return str(library), headers[0]
    return None


def with_nvrtc(code, architecture):
    "The same by NVRTC."
    library, headers = nvrtc()
    lib, program, size = ctypes.CDLL(library), ctypes.c_void_p(), ctypes.c_size_t()

    def told(kind):
        getattr(lib, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{kind}")(program, buffer)
        return buffer.raw

    lib.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    how = [f"-arch={architecture}", *OPTIONS, f"-I{headers}", "--ptxas-options=-v"]
    options = (ctypes.c_char_p * len(how))(*[o.encode() for o in how])
    failed = lib.nvrtcCompileProgram(program, len(how), options)
    log = told("ProgramLog").rstrip(b"\0").decode()
    if failed:
        raise RuntimeError(f"NVRTC failed:\n{log[:4000]}")
    return log, told("PTX").rstrip(b"\0").decode(), told("CUBIN")


def compiler():
    "The function that compiles here, or None."
    return with_nvcc if shutil.which("nvcc") else with_nvrtc if nvrtc() else None


def with_all(code, names):
    "`code`, and something for which a compiler makes the instances called `names`."
    return code + "".join(f"__device__ auto keep{i} = {name};\n" for i, name in enumerate(names))


def compiled(file, architecture):
    "The Facts of each instance of the kernels in `file`."
    names = instances(files=(file,))
    log, ptx, _ = compiler()(with_all(source(file), names), architecture)
    said, text = {}, {}
    for entry in re.split(r"Compiling entry function '", log)[1:]:
        numbers = re.search(r"(\d+) bytes stack.*?(\d+) bytes spill.*?Used (\d+) reg", entry, re.S)
        said[entry.partition("'")[0]] = [int(n) for n in numbers.groups()]
    for entry in re.split(r"\.entry ", ptx)[1:]:
        text[re.match(r"\w+", entry)[0]] = entry
    facts = {}
    for name in names:
        (found,) = [entry for entry in said if entry.startswith(mangled(name))]
        stack, spilled, registers = said[found]
        packs, halves = (
            len(re.findall(rf"(?:ld|st)\.global[.\w]*?\.{width}", text[found]))
            for width in (r"v4\.[fub]32", "[ub]16")
        )
        facts[name] = Facts(registers, stack + spilled, packs, halves)
    return facts


# ---- what a thread does for a number ----

GIVEN = {  # to a norm with dropout: what makes branches, of which a thread goes only one way
    "norm_forward": ["draw", "weight", "bias", "!residual", "!z"],
    "norm_backward": ["draw", "weight", "partial", "!residual", "!h", "!is_sum", "!dz"],
}


def disassembler():
    "Where nvdisasm is, or None."
    places = getattr(find_spec("nvidia"), "submodule_search_locations", None) or ()
    found = [str(at) for place in places for at in Path(place).glob("*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or next(iter(found), None)


def length(lines):
    "How many instructions are in the longest loop; without one, how many come before the end."
    lines = lines[: next(i for i, line in enumerate(lines) if " EXIT" in line)]
    where = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith(".L")}
    back = [(re.search(r"@!?U?P.*BRA `\((.*)\)", line), i) for i, line in enumerate(lines)]
    loops = [lines[where[m[1]] : i] for m, i in back if m and where.get(m[1], i) < i]
    return sum("/*" in line for line in max(loops, key=len, default=lines))


def counted(architecture="sm_90"):
    "Instructions for each number of a row, in norms whose threads all have all their numbers."
    names = [name for name in instances(files=("norm",)) if "true" in name]
    code = source("norm")
    for kernel, given in GIVEN.items():  # what the compiler is promised, it need not ask
        promises = "".join(f"  __builtin_assume({one});\n" for one in given)
        code = re.sub(rf"( {kernel}\([^{{]*{{\n)", rf"\1{promises}", code)
    _, _, cubin = compiler()(with_all(code, names), architecture)
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernels.cubin")
        file.write_bytes(cubin)
        command = [disassembler(), "-c", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = {}
    for name in names:
        (body,) = re.findall(
            rf"^\.text\.{mangled(name)}\w*:\n(.*?)(?=^\.text|\Z)", text, re.S | re.M
        )
        lines = [line.strip() for line in body.splitlines()]
        held = int(name.split(", ")[1])
        counts[name] = length(lines) / held
    return counts


def main(files):
    "Print the table."
    if compiler() is None:
        sys.exit("there is neither nvcc nor NVRTC here")
    print(f"{'':52}{'registers':>16}{'spilled':>10}{'packs':>7}")
    print(f"{'':52}{'/'.join(ARCHITECTURES):>16}{'bytes':>10}")
    for file in files or KERNELS:
        tables = [compiled(file, architecture) for architecture in ARCHITECTURES]
        for name in tables[0]:
            each = [table[name] for table in tables]
            registers = "/".join(str(facts.registers) for facts in each)
            spilled = sum(facts.spilled for facts in each)
            print(f"{name:52}{registers:>16}{spilled:>10}{each[0].packs:>7}")
    if disassembler() and "norm" in (files or KERNELS):
        print("\ninstructions for each number on an H100, with dropout, weight and bias:")
        for name, count in counted().items():
            print(f"{name:52}{count:>16.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
