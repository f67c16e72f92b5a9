"What the README says is so: its code runs and prints what it shows, its commands and links work."

import contextlib
import io
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^<!-- command: (\w+) -->\n```sh\n(.*?)\n```$", re.M | re.S)


def unequal(text):
    "Run the `python` blocks of `text`, top to bottom; those that print other than the block after."
    blocks = FENCE.findall(text)
    names = {"__name__": "__main__"}
    for (language, code), (after, expected) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, "README.md", "exec"), names)
            if after in ("text", "output") and out.getvalue() != expected:
                yield f"{code}\nprints\n{out.getvalue()}\nand the text has\n{expected}"


def test_python_blocks_print_what_is_shown():
    assert "```python" in README
    assert not [*unequal(README)]


def test_the_block_check_finds():
    good = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\nprints\n```text\n1\n```\n"
    assert not [*unequal(good)]
    assert len([*unequal(good.replace("print(x)", "print(x + 1)"))]) == 1
    with pytest.raises(ZeroDivisionError):
        [*unequal("```python\n1 / 0\n```\n")]


def test_commands_are_marked_and_chained():
    commands = COMMAND.findall(README)
    assert [name for name, _ in commands] == ["demo", "test"]
    for name, command in commands:
        assert not re.search(r"[;|\n]", command), f"{name}: chain with &&, so that failures stop it"
    assert dict(commands)["test"].split(" && ")[-1] == "pytest"


def test_extras_in_commands_exist():
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    extras = [name for found in re.findall(r"\.\[([\w,]+)\]", README) for name in found.split(",")]
    assert extras and all(f"{name}_requirements" in settings["DEFAULT"] for name in extras)


@pytest.mark.parametrize("words", [["--help"], []], ids=["help", "demo"])
def test_the_demo_command_works(words):
    demo = dict(COMMAND.findall(README))["demo"].split(" && ")[-1]
    assert demo == "python -m minima"
    subprocess.run([sys.executable, *demo.split()[1:], *words], cwd=ROOT, check=True)


def broken_links(text, folder):
    "Links in the Markdown `text` to files that are not there, seen from `folder`."
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if ":" not in link]
    return [link for link in links if not (folder / link).exists()]


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/decisions.md"]
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    assert not broken_links(path.read_text(encoding="utf-8"), path.parent)


def test_the_link_check_finds():
    text = "[a](setup.py) [b](https://example.org/x) [c](nowhere.md#there) [d](#here)"
    assert broken_links(text, ROOT) == ["nowhere.md"]
