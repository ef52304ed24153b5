"""Draws the packages of the mirror from their imports.

`python -m tests.support.rooms` updates the picture in ARCHITECTURE.md. With `--check` it fails if the picture is not current, or
if the document names a file that does not exist.
"""

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- rooms: made by `make rooms` -->\n", "<!-- end of rooms -->\n"
_WIDTH = 118


def packages():
    """The packages of the mirror with the packages that each imports."""
    folders = {path.parent.name: path.parent for path in (ROOT / "mirror").glob("*/__init__.py")}
    return {
        name: {target for file in folder.glob("*.py") for target in _targets(file)} & set(folders) - {name}
        for name, folder in folders.items()
    }


def picture():
    """The packages as boxes in rows; a package imports only from rows below its own."""
    imports = packages()
    rows = {}
    for name in sorted(imports):
        rows.setdefault(level(name, imports), []).append(name)
    lines = []
    for _, names in sorted(rows.items(), reverse=True):
        lines += _row(names, imports)
    return "```text\n" + "\n".join(lines) + "\n```\n"


def document():
    """ARCHITECTURE.md with the present picture."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + picture() + "\n" + END + after


def missing():
    """The files that ARCHITECTURE.md names and that do not exist."""
    named = set(re.findall(r"`([\w/]+\.py)`", DOCUMENT.read_text()))
    return sorted(name for name in named if not any((ROOT / folder / name).exists() for folder in ("mirror", "tests", ".")))


def _targets(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "mirror" and len(parts) > 1:
                yield parts[1]


def level(name, imports):
    """The row of a package, counted from the bottom."""
    return 1 + max((level(other, imports) for other in imports[name]), default=0)


def _direct(name, imports):
    """The imported packages that no other imported package imports."""
    return sorted(one for one in imports[name] if not any(one in _reach(other, imports) for other in imports[name] - {one}))


def _reach(name, imports):
    return imports[name].union(*(_reach(other, imports) for other in imports[name]))


def _row(names, imports):
    width = (_WIDTH - 2 * (len(names) - 1)) // len(names)
    cells = [_cell(name, _direct(name, imports), width - 4) for name in names]
    height = max(map(len, cells))
    edges = ["┌" + f" {name} ".center(width - 2, "─") + "┐" for name in names]
    inner = ["  ".join(f"│ {cell[i] if i < len(cell) else '':<{width - 4}} │" for cell in cells) for i in range(height)]
    return ["  ".join(edges), *inner, "  ".join("└" + "─" * (width - 2) + "┘" for _ in names)]


def _cell(name, direct, width):
    doc = ast.get_docstring(ast.parse((ROOT / "mirror" / name / "__init__.py").read_text())) or ""
    summary = textwrap.wrap(doc.partition("\n\n")[0], width)
    return summary + (textwrap.wrap("↓ " + ", ".join(direct), width) if direct else [])


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        DOCUMENT.write_text(document())
    elif document() != DOCUMENT.read_text():
        sys.exit("ARCHITECTURE.md: `make rooms` updates the picture")
    elif missing():
        sys.exit(f"ARCHITECTURE.md names files that do not exist: {', '.join(missing())}")
