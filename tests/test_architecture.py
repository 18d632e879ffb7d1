"""The house rules of the code base, read from its syntax trees: direction of imports, budgets, forbidden words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("worldmodel", "renderers", "envs", "agents")
"""From left to right: a folder imports only from those before it."""

WORLDMODEL_RANK = {
    **dict.fromkeys(("files", "frame_readers", "geometry", "partial", "rig", "sampling", "shipped"), 0),
    **dict.fromkeys(("checkpoint", "lineage", "projection", "run", "scene", "networks"), 1),
    **dict.fromkeys(("dynamics", "tokens", "paint", "raster", "sumo_process", "signals", "uncertainty"), 2),
    **dict.fromkeys(("behavior", "held_out", "sumo_map", "vocabulary"), 3),
    "world": 4,
    **dict.fromkeys(("open_loop", "idm", "perspective", "sight", "sumo_world", "state_file"), 5),
    **dict.fromkeys(("camera", "sumo", "borders"), 6),
    "camera_windows": 7,
}
"""A file of worldmodel imports only files of a lower rank; `train_*` stands above all, `data` sees scene, geometry, partial."""

LONGEST_FILE, LONGEST_FUNCTION = 500, 60
MOST_ASSETS = 40 * 2**20
CLOSURE_FILES, CLOSURE_LINES = 25, 5000
LONGEST_IMPORT = 3.0
"""Seconds that `import worldloop.envs` may take."""
ONE_HOME = {
    **dict.fromkeys(("libsumo", "sumolib", "traci", "sumo", "sumo_data"), "worldmodel/sumo"),
    "diffusers": "worldmodel/camera",
    "pyarrow": ("worldmodel/data/argoverse2", "agents/rows"),
    "pettingzoo": "envs/multi",
    "stable_baselines3": "envs/stable_baselines",
    "pygame": "renderers/",
    "imageio_ffmpeg": "renderers/",
    "PIL": ("renderers/", "worldmodel/data/images"),  # pictures out, and those of recordings in
    "open3d": "renderers/scene3d",
    "matplotlib": ("worldmodel/train_", "renderers/"),
    **dict.fromkeys(("google", "google_crc32c"), "worldmodel/data/waymo_records"),
}
"""Modules that only files whose path begins so (one text or several) may import."""

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "torch.save"}
FORBIDDEN_CALLS |= {"pickle.load", "pickle.loads", "pickle.dump", "pickle.dumps", "pickle.Unpickler"}
PICKLE_HOME = "worldmodel/data/plain_pickle.py"
"""The one file that may import `pickle`, to refuse what is no plain data before anything of it runs."""
FORBIDDEN_NAMES = re.compile(r"^(utils?|helpers?|common|managers?|misc|base_.*)$")


@cache
def sources() -> dict[str, ast.Module]:
    """Syntax trees of the package by path relative to the root."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in files}


def walk_with_function(node: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield every node that can run, with the name of the function around it."""
    yield node, function
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    for child in ast.iter_child_nodes(node):
        yield from walk_with_function(child, function)


def own_file(parts: list[str]) -> str | None:
    """The file of a module of ours, None if there is none (the name is then an attribute)."""
    stem = "/".join(parts)
    return next((name for name in (f"{stem}.py", f"{stem}/__init__.py") if name in sources()), None)


@cache
def imports(path: str) -> list[tuple[str, str, str]]:
    """What a file imports: (file of ours or "", top-level name of a foreign module or "", function around the import)."""
    found: list[tuple[str, str, str]] = []
    for node, function in walk_with_function(sources()[path]):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            level = 0
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            level = node.level
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if level:
                name = [*Path(path).parts[: len(Path(path).parts) - level], *name]
            elif name[0] == "worldloop":
                name = name[1:]
            else:
                found.append(("", name[0], function))
                continue
            target = own_file(name) or own_file(name[:-1])
            assert target, f"{path} imports {'.'.join(name)}, which is not there"
            found.append((target, "", function))
    return found


def rank(path: str) -> int:
    stem = Path(path).stem
    if path.startswith("worldmodel/data/"):
        return 2
    if stem == "__init__":
        return -1
    if stem.startswith("train_"):
        return 10
    return WORLDMODEL_RANK[stem]


@pytest.mark.parametrize("path", sources())
def test_imports_go_left(path: str) -> None:
    for target, _, function in imports(path):
        if not target:
            continue
        mine, theirs = FOLDERS.index(path.split("/")[0]), FOLDERS.index(target.split("/")[0])
        assert theirs <= mine, f"{path} imports {target}: only {' <- '.join(FOLDERS)}"
        if (path.split("/")[0], target.split("/")[0]) == ("envs", "renderers"):
            assert function == "render", f"{path} imports {target} outside of render()"
        if mine == theirs == 0 and target != path:
            if path.startswith("worldmodel/data/"):
                allowed = ("worldmodel/data/", *(f"worldmodel/{name}.py" for name in ("scene", "geometry", "partial")))
                assert target.startswith(allowed), f"{path} imports {target}: data sees scene, geometry and partial alone"
            else:
                assert rank(target) < rank(path), f"{path} imports {target}, which does not stand below it"


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(path: str, trail: tuple[str, ...]) -> None:
        assert path not in trail, f"import cycle: {' -> '.join([*trail, path])}"
        if path not in done:
            for target, _, _ in imports(path):
                if target and target != path:
                    visit(target, (*trail, path))
            done.add(path)

    for path in sources():
        visit(path, ())


def test_closed_loop_fits_in_a_head() -> None:
    """All that `import worldloop.agents.rollout` loads; pictures and SUMO are imported where they are asked for."""
    reached, todo = set(), ["agents/rollout.py"]
    while todo:
        path = todo.pop()
        if path not in reached:
            reached.add(path)
            todo += [target for target, _, function in imports(path) if target and not function]
            package = f"{Path(path).parent}/__init__.py"
            todo += [package] if package in sources() else []
    lines = sum(len((ROOT / path).read_text().splitlines()) for path in reached)
    assert len(reached) <= CLOSURE_FILES, f"{len(reached)} files: {sorted(reached)}"
    assert lines <= CLOSURE_LINES, f"{lines} lines in {len(reached)} files"


def test_the_environments_are_imported_quickly() -> None:
    """Processor time, so that what else the machine does does not count."""
    code = f"import time, worldloop.envs; taken = time.process_time(); assert taken <= {LONGEST_IMPORT}, f'{{taken:.1f}} s'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sources())
def test_files_and_functions_are_short(path: str) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{path}: {lines} lines"
    for node in ast.walk(sources()[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{path}: {node.name} takes {length} lines"


@pytest.mark.parametrize("path", sources())
def test_forbidden_words(path: str) -> None:
    assert not FORBIDDEN_NAMES.match(Path(path).stem), f"{path}: a file is named by what it is"
    for _, module, _ in imports(path):
        assert module not in FORBIDDEN_MODULES or (module, path) == ("pickle", PICKLE_HOME), f"{path} imports {module}"
    for node in ast.walk(sources()[path]):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            last = node.body[-1]
            reraised = isinstance(last, ast.Raise) and (last.exc is None or ast.unparse(last.cause or last) == node.name)
            broad = re.search(r"\b(BaseException|Exception|everything)\b", caught)
            assert reraised or not broad, f"{path}:{node.lineno} catches {caught} and raises neither it nor another one from it"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"{path}:{node.lineno} calls {ast.unparse(node.func)}"
            assert not any(k.arg == "shell" for k in node.keywords), f"{path}:{node.lineno} passes shell="


@pytest.mark.parametrize("path", sources())
def test_no_unfinished_code(path: str) -> None:
    text = (ROOT / path).read_text()
    found = re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", text)
    assert not found, f"{path} holds {found and found[0]}"


def declared_dependencies() -> dict[str, list[str]]:
    """Names of the distributions that pyproject.toml declares, by extra ("" for the needed ones)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {group: [re.split(r"[\[<>=~! ]", entry)[0].lower() for entry in entries] for group, entries in groups.items()}


def test_every_foreign_module_is_declared_and_has_its_home() -> None:
    declared = {name.replace("-", "_") for names in declared_dependencies().values() for name in names}
    for path in sources():
        for _, module, _ in imports(path):
            if not module or module in sys.stdlib_module_names:
                continue
            package = dict.fromkeys(("sumo", "sumolib", "traci", "sumo_data"), "eclipse_sumo")
            package |= {"google": "protobuf", "PIL": "pillow"}
            assert package.get(module, module).lower() in declared, f"{path} imports {module}, which pyproject.toml does not name"
            home = ONE_HOME.get(module, "")
            assert path.startswith(home), f"{path} imports {module}, which belongs into {home}*"


def test_every_dependency_is_justified_and_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for entry in re.findall(r"(?m)^    (\"[A-Za-z0-9_.\[\]-]+(?:[<>=!~][^\"]*)?\",.*)$", text):
        name = re.split(r"[\[<>=~!\"]", entry[1:])[0].lower()
        if name.startswith("worldloop"):
            continue
        assert "  # " in entry, f"pyproject.toml: {name} stands there without a reason"
        assert name in pinned, f"constraints.txt does not pin {name}"


def test_pyproject_maps_every_folder() -> None:
    mapped = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values())
    found = {str(Path(path).parent) for path in sources()} | {"assets"}
    assert mapped == found


def test_types_are_shipped() -> None:
    """A namespace holds no marker of its own (PEP 561): every package in it has one, which counts for what lies below."""
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
        assert "py.typed" in shipped[f"worldloop.{folder}"]


def test_assets_are_small() -> None:
    size = sum(path.stat().st_size for path in (ROOT / "assets").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size <= MOST_ASSETS, f"assets/ holds {size / 2**20:.1f} MiB"
