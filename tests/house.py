"""The house in words: every folder's rooms, floor by floor, as the imports stand; fails when it grows or leans.

    python -m tests.house [--rooms]

A room is a module or folder directly under `tilelab` (or `benchmarks`, one room seen from the top); it stands one floor
above the highest that it imports.  The order that rooms are meant to have is declared in pyproject.toml and checked by
`lint-imports`; here are the limits of the whole, and that nothing runs in a circle, in any folder.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter

import grimp

ROOMS, FLOORS = 22, 9
PACKAGES = ("tilelab", "benchmarks")

Imports = Mapping[str, Set[str]]


def read_imports() -> Imports:
    """What each module imports of ours, wherever in it the import stands."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def rooms_of(folder: str, imports: Imports) -> dict[str, set[str]]:
    """The rooms of a folder, each with those that it imports."""

    def room(module: str) -> str:
        return module[len(folder) + 1 :].partition(".")[0]

    inside = [module for module in imports if module.startswith(folder + ".")]
    found: dict[str, set[str]] = {room(module): set() for module in inside}
    for module in inside:
        found[room(module)] |= {room(other) for other in imports[module] if other.startswith(folder + ".")}
    return {name: below - {name} for name, below in found.items()}


def floors_of(rooms: Mapping[str, Set[str]]) -> dict[str, int]:
    """The floor of each room; raises `CycleError` where they run in a circle."""
    floors: dict[str, int] = {}
    for name in TopologicalSorter(rooms).static_order():
        floors[name] = 1 + max((floors[below] for below in rooms[name]), default=0)
    return floors


def whole_house(imports: Imports) -> dict[str, set[str]]:
    """The rooms at the top: those of `tilelab`, its face, and the benchmarks as one."""
    rooms = rooms_of("tilelab", imports) | {"__init__": set(), "benchmarks": set()}
    for module, below in imports.items():
        package, _, inside = module.partition(".")
        above = "benchmarks" if package == "benchmarks" else inside.partition(".")[0] or "__init__"
        rooms[above] |= {(other + ".__init__").split(".")[1] for other in below if other.startswith("tilelab")}
    return {name: below - {name} for name, below in rooms.items()}


def main() -> int:
    """Print the house; 1 when it is larger than agreed or has a circle."""
    imports = read_imports()
    rooms, circles = whole_house(imports), []
    floors: dict[str, int] = {}
    for folder in sorted({module.rpartition(".")[0] for module in imports if "." in module}):
        try:
            found = floors_of(rooms_of(folder, imports) if folder != "tilelab" else rooms)
        except CycleError as error:
            circles.append(f"{folder}: {' -> '.join(error.args[1])}")
            continue
        if folder == "tilelab":
            floors = found
        if folder == "tilelab" or "--rooms" in sys.argv:
            print(folder)
            by_floor = defaultdict(list)
            for name, floor in found.items():
                by_floor[floor].append(name)
            for floor in sorted(by_floor, reverse=True):
                print(f"  {floor:>2}  {' | '.join(sorted(by_floor[floor]))}")
    height = max(floors.values(), default=0)
    upward = sum(floors.get(below, 0) >= floors.get(name, 99) for name, under in rooms.items() for below in under)
    print(f"{len(rooms)} rooms (at most {ROOMS}), {height} floors (at most {FLOORS}), {upward} imports that run up, "
          f"{len(circles)} circles")  # fmt: skip
    for circle in circles:
        print(f"circle in {circle}")
    return int(len(rooms) > ROOMS or height > FLOORS or upward > 0 or bool(circles))


if __name__ == "__main__":
    sys.exit(main())
