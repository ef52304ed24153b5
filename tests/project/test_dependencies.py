"""What the project says that it needs is what it imports, and what was tested is what gets installed."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
RUNTIME = PROJECT["project"]["dependencies"]
DEVELOPMENT = PROJECT["project"]["optional-dependencies"]["dev"]
EXTRAS = [one for extra, group in PROJECT["project"]["optional-dependencies"].items() if extra != "dev" for one in group]
# Run, or loaded by what is run, but not imported.
TOOLS = {
    "moto",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "mypy",
    "import-linter",
    "types-pyyaml",
    "types-aiofiles",
}
# Imported by an extra's library, with some releases of Python only.
INDIRECT = {"async-timeout"}
OURS = {"mirror", "tests", "bench"}
# Part of Python in later releases than the one that tests run with; before them a requirement with a marker stands for it.
LATER = {"compression"}


def normal(name):
    """The name of a distribution as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def pins():
    """The pinned release of each distribution."""
    return {normal(name): release for name, release in re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS, re.MULTILINE)}


def imported(*folders):
    """The distributions that Python files import from."""
    modules = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    origins, extras = packages_distributions(), names(EXTRAS)
    found = [{normal(one) for one in origins[module]} for module in modules - sys.stdlib_module_names - OURS - LATER]
    # Several distributions may share a package; of those, the ones that are required.
    return {one for group in found for one in (group & extras or group)}


def test_what_the_mirror_imports():
    """It is the dependencies and the extras, no more and no less."""
    assert imported("mirror") == (names(RUNTIME) | names(EXTRAS)) - INDIRECT


def test_optional_libraries_are_not_imported():
    """A mirror without their feature neither needs nor imports them."""
    extras = names(EXTRAS)
    libraries = {module for module, origins in packages_distributions().items() if {normal(one) for one in origins} & extras}
    program = "import sys, mirror.cli, mirror.service.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    modules = done.stdout.split()

    assert not {module.partition(".")[0] for module in modules} & libraries
    assert not [module for module in modules if module.startswith(("mirror.cluster", "mirror.objects"))]


def test_what_tests_and_benchmarks_import():
    """It is the dependencies, and those for development, of which the rest are tools."""
    ours = imported("tests", "bench") - names(RUNTIME) - names(EXTRAS)
    assert ours | TOOLS == names(DEVELOPMENT)
    assert not ours & TOOLS


@pytest.mark.parametrize("requirement", [*RUNTIME, *EXTRAS, *DEVELOPMENT])
def test_floors_were_tested(requirement):
    """The oldest release that is allowed is the one that tests run with."""
    name, floor = re.sub(r"\[[^]]*\]|;.*", "", requirement).split(">=")
    assert pins()[normal(name)] == floor


def test_build_back_end_is_pinned():
    """The build uses the release whose hashes are known."""
    (requirement,) = PROJECT["build-system"]["requires"]
    name, release = requirement.split("==")
    assert pins()[name] == release


def test_constraints_are_complete():
    """Every release has hashes, and nothing says where it comes from."""
    entries = re.split(r"^(?=\w)", re.sub(r"^\s*#.*\n", "", CONSTRAINTS, flags=re.MULTILINE), flags=re.MULTILINE)
    assert len(entries) - 1 == len(pins())
    pinned = re.compile(r"[\w.-]+==\S+( ; [^\\\n]+)?( \\\n +--hash=sha256:[0-9a-f]{64})+\n*")
    assert [entry for entry in entries[1:] if not pinned.fullmatch(entry)] == []
    assert "://" not in CONSTRAINTS
