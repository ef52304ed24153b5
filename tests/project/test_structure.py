"""The shape of the code: short constructors, no protocol of one class, no callback to what a reload replaces."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mirror

ROOT = Path(mirror.__file__).parent
MAX_ARGUMENTS = 5
# Protocols that libraries implement, or a package that must not be imported where they are used; with the class behind them.
IMPLEMENTED_ELSEWHERE = {
    "Hasher": "hashlib",
    "BlobStream": "mirror.upstream.blob.UpstreamBlob",
    "Source": "mirror.cache.blobs",
}


@pytest.fixture(scope="module")
def modules() -> dict[Path, ast.Module]:
    """The tree of each module."""
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


@pytest.fixture(scope="module")
def classes(modules) -> list[tuple[Path, ast.ClassDef]]:
    """All classes, each with its module."""
    return [(path, node) for path, tree in modules.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def members(node: ast.ClassDef) -> set[str]:
    """The names of a class's methods and attributes."""
    found = set()
    for entry in ast.walk(node):
        match entry:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(entry.name)
            case ast.Name(ctx=ast.Store()):
                found.add(entry.id)
            case ast.Attribute(ctx=ast.Store()):
                found.add(entry.attr)
    return found


def is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def test_constructors_are_short(classes):
    """No constructor takes more arguments than a reader keeps in mind."""
    long = [
        f"{path}: {node.name}"
        for path, node in classes
        for entry in node.body
        if isinstance(entry, ast.FunctionDef) and entry.name == "__init__"
        if len(entry.args.posonlyargs + entry.args.args + entry.args.kwonlyargs) - 1 > MAX_ARGUMENTS
    ]
    assert not long


def test_protocols_have_two_classes(classes):
    """A protocol that one class implements hides that class from its reader."""
    names = {node: members(node) for _, node in classes}
    single = []
    for path, node in classes:
        if is_protocol(node) and node.name not in IMPLEMENTED_ELSEWHERE:
            behind = [other for _, other in classes if not is_protocol(other) and names[node] <= names[other]]
            if len(behind) < 2:
                single.append(f"{path}: {node.name}")
    assert not single


def lambdas(tree: ast.AST) -> Iterator[ast.Lambda]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Lambda))


@pytest.mark.parametrize("package", ["service", "admin", "sync", "cli", "config"])
def test_nothing_is_asked_for_the_current_one(modules, package):
    """What outlives a reload is given what it needs; no lambda looks it up in an object that a reload changes."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in modules.items()
        if path.parts[0] == package
        for node in lambdas(tree)
        if any(isinstance(name, ast.Name) and name.id == "self" for name in ast.walk(node))
    ]
    assert not found
