"Packaging: every value lives in settings.ini, which nbdev reads too. Edit there, not here."

from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
name = cfg["lib_name"]
suffix = "_requirements"

setup(
    name=name,
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license_expression={"apache2": "Apache-2.0"}[cfg["license"]],
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        {"3": "Development Status :: 3 - Alpha"}[cfg["status"]],
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: cfg["package_data"].split()},
    zip_safe=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=split(cfg["requirements"]),
    extras_require={k.removesuffix(suffix): split(v) for k, v in cfg.items() if k.endswith(suffix)},
    entry_points={
        "nbdev": [f"{name}={name}._modidx:d"],
        f"{name}.backends": cfg["backends"].split(),
    },
)
