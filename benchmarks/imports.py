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
    statements = {"numpy": "import numpy", "minima": "import minima", "torch": "import torch", "nothing": "pass"}
    times = {name: [] for name in statements}
    with TemporaryDirectory() as cache:
        settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        settings["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(ROUNDS + 1):
            for name, statement in statements.items():
                start = perf_counter()
                subprocess.run([sys.executable, "-c", statement], env=settings, check=True)
                times[name].append((perf_counter() - start) * 1e6)
    medians = {name: median(values[1:]) for name, values in times.items()}  # the first round compiles
    report("import", medians)
    ratio = medians["minima"] / medians["numpy"]
    print(f"\n  import minima takes {ratio:.2f} times what import numpy takes (goal: at most 1.6)")


if __name__ == "__main__":
    main()
