"""The README keeps its word: its Python runs, its commands parse, its tree is the tree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import tyro
from worldloop.agents.cli import COMMANDS, find_command
from worldloop.agents.policy import load_policy

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", README)


def command_lines() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("worldloop ")]


def absent(code: str) -> list[str]:
    """Distributions that are not installed, of the extras that a block names in its first line: `# needs the extra sb3`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.match(r"# needs the extras? ([\w, ]+)\n", code)
    missing = []
    for requirement in [entry for extra in re.findall(r"\w+", named[1]) for entry in extras[extra]] if named else []:
        name = re.split(r"[<>=~!]", requirement)[0]
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, tmp_path: Path) -> None:
    if missing := absent(code):
        pytest.skip(f"not installed: {', '.join(missing)}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", command_lines())
def test_commands_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    name = find_command(words)
    assert name is not None
    tyro.cli(COMMANDS[name].load()[0], args=words[len(name.split()) :])


def test_every_command_is_shown() -> None:
    shown = {find_command(shlex.split(line, comments=True)[1:]) for line in command_lines()}
    assert shown == set(COMMANDS)


def test_the_driver_of_the_readme_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in blocks("python") if "class Careful" in block]
    (tmp_path / "readme_driver.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    load_policy("readme_driver:Careful")


def test_the_tree_is_the_tree() -> None:
    (tree,) = blocks("text")
    shown, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name.rstrip("/")]
        shown.add("/".join(folders))
        assert len(line.split(maxsplit=1)) == 2, f"{name} has no phrase"
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("worldmodel", "renderers", "envs", "agents")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert {name for name in shown if name.endswith(".py")} == files


def test_two_commands_come_first() -> None:
    first, second = blocks("bash")[:2]
    assert len(first.splitlines()) == len(second.splitlines()) == 1
    assert first.rstrip().endswith(".venv/bin/worldloop demo")
    assert ".venv/bin/pytest" in second


def test_pictures_and_linked_files_are_there() -> None:
    for place in re.findall(r"\]\(([^)#]+)\)", README):
        assert place.startswith("https://") or (ROOT / place).is_file(), place


def test_every_measured_table_is_there() -> None:
    found = re.findall(r"(?ms)^<!-- ([\w ]+): written by `worldloop [\w ]+` -->\n(.*?)^<!-- end of the \1 -->$", README)
    assert len(found) == README.count("<!-- end of the")
    assert [name for name, table in found if "\n|---" not in table and "\n| ---" not in table] == []
