"""Compile every CUDA kernel for GPUs that need not be here, and print what the compiler says of it.

python tools/compile_kernels.py            the table: registers, spills, loads of 16 bytes
python tools/compile_kernels.py norm rows  only these files

Needs nvcc on the PATH or, without it, NVRTC and its headers, which come with
`pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl`. It needs no GPU.
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
    "What ptxas says of `code`, and its PTX."
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernels.cu")
        file.write_text(code, encoding="utf-8")
        how = f"-arch={architecture} -cubin -Xptxas -v --keep --keep-dir {folder}"
        command = ["nvcc", *how.split(), *OPTIONS, str(file), "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed:\n{done.stderr[:4000]}")
        return done.stderr, Path(folder, "kernels.ptx").read_text()


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

    def text(kind):
        getattr(lib, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{kind}")(program, buffer)
        return buffer.value.decode()

    lib.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    how = [f"-arch={architecture}", *OPTIONS, f"-I{headers}", "--ptxas-options=-v"]
    options = (ctypes.c_char_p * len(how))(*[o.encode() for o in how])
    failed = lib.nvrtcCompileProgram(program, len(how), options)
    log = text("ProgramLog")
    if failed:
        raise RuntimeError(f"NVRTC failed:\n{log[:4000]}")
    return log, text("PTX")


def compiler():
    "The function that compiles here, or None."
    return with_nvcc if shutil.which("nvcc") else with_nvrtc if nvrtc() else None


def compiled(file, architecture):
    "The Facts of each instance of the kernels in `file`."
    names = instances(files=(file,))
    wanted = "".join(f"__device__ auto keep{i} = {name};\n" for i, name in enumerate(names))
    log, ptx = compiler()(source(file) + wanted, architecture)
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


if __name__ == "__main__":
    main(sys.argv[1:])
