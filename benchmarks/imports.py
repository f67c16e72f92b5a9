"How long `import minima` takes, against `import numpy` and `import torch`, each in a fresh Python."

from rivals import environment, report  # isort: skip - sets the number of threads

import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

ROUNDS = 15


def main():
    "Start Pythons in turns, with compiled modules at hand, and print the ratios."
    environment()
    times = {name: [] for name in ("numpy", "minima", "torch", "sys")}
    with TemporaryDirectory() as cache:
        settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        settings["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(ROUNDS + 1):
            for name, taken in times.items():
                start = perf_counter()
                subprocess.run([sys.executable, "-c", f"import {name}"], env=settings, check=True)
                taken.append((perf_counter() - start) * 1e6)
    medians = {name: median(taken[1:]) for name, taken in times.items()}  # the first compiles
    report("import", medians)
    ratio = medians["minima"] / medians["numpy"]
    print(f"\n  import minima takes {ratio:.2f} times what import numpy takes (goal: at most 1.6)")


if __name__ == "__main__":
    main()
