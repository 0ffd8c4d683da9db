"""The house: imports run downward and in no circle, and private modules stay in their rooms."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"pyro_ext": 1, "inference": 2, "models": 3, "tutorials": 4}
# The command looks at every floor and the checks of kernels run them: nothing imports either.
MAY_LOOK_UP = re.compile(r"pyro_ext\.(cli|testing)(\.|$)")


def name_of(path: Path) -> str:
    """Import name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "pyro_ext" else ("pyro_ext", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for folder in FLOORS
    for path in (ROOT / folder).rglob("*.py")
    if folder != "pyro_ext" or path.relative_to(ROOT).parts[1] not in FLOORS  # links
}


def room_of(name: str) -> str:
    """The folder of a module; each of the few files right in ``pyro_ext`` is one of its own."""
    folder = str(MODULES[name].parent.relative_to(ROOT))
    return name if folder == "pyro_ext" else folder


def floor_of(name: str) -> int:
    return FLOORS.get(name.split(".")[1] if "." in name else "", 1)


def imports_of(name: str) -> Iterator[str]:
    """Modules of the project that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [each for each in (whole, node.module) if each in MODULES][:1]
        elif isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names if alias.name in MODULES]


IMPORTS = {name: sorted(set(imports_of(name)) - {name}) for name in MODULES}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    found = networkx.strongly_connected_components(networkx.DiGraph(graph))
    return [sorted(part) for part in found if len(part) > 1]


def test_imports_run_downward() -> None:
    upward = [
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if floor_of(other) > floor_of(name) and not MAY_LOOK_UP.match(name)
    ]
    assert not upward
    assert not [
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if MAY_LOOK_UP.match(other)
        and room_of(name) != room_of(other)
        and name not in ("pyro_ext.cli.commands",)
    ]


def test_models_do_without_each_other() -> None:
    sideways = [
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if room_of(name).startswith("models/")
        and room_of(other).startswith("models/")
        and name.split(".")[2] != other.split(".")[2]
    ]
    assert not sideways


def test_nothing_imports_in_a_circle() -> None:
    assert not circles({name: set(others) for name, others in IMPORTS.items()})
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, others in IMPORTS.items():
        rooms[room_of(name)] |= {room_of(other) for other in others} - {room_of(name)}
    assert not circles(rooms)


def test_private_modules_are_imported_in_their_rooms_alone() -> None:
    foreign = [
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if any(part.startswith("_") for part in other.split(".")[2:])
        and room_of(name) != room_of(other)
    ]
    assert not foreign


# What waits at a pipe, follows a link or leaves half a file; ``pyro_ext._lib.files`` does not.
OPENING = re.compile(
    r"\bjson\.loads?\(|(?<![\w.])open\(|\.(read|write)_(text|bytes)\(|\.savefig\(|\bsafe_open\("
    r"|\b(np|torch)\.(load|save)\("
)
MAY_OPEN = {
    "pyro_ext._lib.files",
    "pyro_ext.cli.new_project",  # writes to a folder that it has made
    "pyro_ext.checkpoint.files",  # has opened what safetensors reads
    "pyro_ext.datasets._records",  # has opened what NumPy reads
    # Read what is in the package, was found to be a file, or is the compiler's.
    "pyro_ext.reproduction.cells",
    "pyro_ext.reproduction.notebooks",
    "pyro_ext.reproduction.pages",
    "pyro_ext.ratings",
    "pyro_ext.reproduction.scoreboard",
    "pyro_ext.datasets._contacts",
    "pyro_ext.potential.compilation",
    "pyro_ext.models.ensembles.mnist_networks",
}


def test_files_are_opened_in_one_place() -> None:
    found = {
        name
        for name, path in MODULES.items()
        for line in path.read_text("utf-8").splitlines()
        if floor_of(name) < FLOORS["tutorials"]
        if OPENING.search(line) and not line.lstrip().startswith((">>>", "...", "def "))
    }
    assert found == MAY_OPEN


def test_rooms_are_small_enough_to_read() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for name in MODULES:
        sizes[room_of(name)] += 1
    for pages in ("tutorials", "tutorials/papers"):  # one can read a page without the others
        del sizes[pages]
    assert not {room: size for room, size in sizes.items() if size > 22}


BANNED = (
    r"colours?|behaviours?|cent(re|red|ring)|licences?|grey|neighbours?|favour|modelling|labelled",
    r"optimis(e|es|ed|ing|ation)|normalis(e|es|ed|ing|ation)|whilst",
    r"laid down beforehand|left the finite|befell",
)


@pytest.mark.parametrize("banned", BANNED)
def test_words(banned: str) -> None:
    """American spelling and the field's words."""
    pattern = re.compile(rf"\b({banned})\b", re.IGNORECASE)
    paths = [path for path in MODULES.values()]
    paths += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    paths += (ROOT / "docs").glob("how_to/*.md")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found
