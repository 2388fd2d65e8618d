"""Rooms of the packages and the imports between them: ``python -m tests.architecture`` prints both, and any circle.

A *module* is a file; a *room* of a package is a file or folder at its top level, without ``__init__`` and ``__main__``.
Every import counts, also those below ``TYPE_CHECKING`` and within functions.
"""

import ast
import functools
from pathlib import Path

from tests.helpers.paths import REPOSITORY

PACKAGES = ("gadgets", "recon_core")
_NO_ROOMS = ("__init__", "__main__")


def modules(root: Path = REPOSITORY) -> dict[str, Path]:
    """Path of every module of the packages by its dotted name; a package goes by its own name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(root: Path = REPOSITORY) -> dict[str, set[str]]:
    """Modules of the packages that each module imports by name."""
    known = modules(root)
    found = {}
    for module, path in known.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(module, path, node)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    targets.add(inner if inner in known else base)
        found[module] = {target for target in targets if target in known} - {module}
    return found


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".") + ["__init__"] * (path.stem == "__init__")
    return ".".join([*parts[: -node.level], *([node.module] if node.module else [])])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other: strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            group = sorted(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def room_of(module: str) -> str:
    """Room of a module, as ``package.room``; the package alone for its ``__init__`` and ``__main__``."""
    package, *rest = module.split(".")
    return f"{package}.{rest[0]}" if rest and rest[0] not in _NO_ROOMS else package


def rooms(package: str, root: Path = REPOSITORY) -> list[str]:
    """Names of the rooms of a package."""
    return sorted(
        {
            room.partition(".")[2]
            for module in modules(root)
            if "." in (room := room_of(module)) and room.startswith(f"{package}.")
        }
    )


def room_imports(package: str, graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Ordered pairs of different rooms of a package of which the first imports the second."""
    prefix = f"{package}."
    pairs = {(room_of(module), room_of(target)) for module, targets in graph.items() for target in targets}
    return {
        (one.removeprefix(prefix), other.removeprefix(prefix))
        for one, other in pairs
        if one != other and one.startswith(prefix) and other.startswith(prefix)
    }


def main() -> None:
    """Print rooms, imports between rooms and circles."""
    graph = imports()
    for package in PACKAGES:
        pairs = room_imports(package, graph)
        names = rooms(package)
        print(f"{package}: {len(names)} rooms, {len(pairs)} imports between them")
        for name in names:
            print(f"  {name:<14} imports {', '.join(sorted(target for one, target in pairs if one == name)) or 'none'}")
        for group in circles({name: {other for one, other in pairs if one == name} for name in names}):
            print(f"  rooms that import each other: {', '.join(group)}")
    found = circles(graph)
    print(f"{len(graph)} modules, {len(found)} import circles")
    for group in found:
        print(f"  {' <-> '.join(group)}")


if __name__ == "__main__":
    main()
