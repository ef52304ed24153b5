"""The documentation: links lead somewhere, each page is found from the README, and what it names exists."""

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
import yaml

from mirror.cli import app
from tests.support.families import FAMILIES, PROCESS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_SUFFIX = {"counter": "_total", "gauge": "", "histogram": ""}


def name(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))


def links(page):
    """The targets of its links to files of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page):
    """The fragments of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """Each file is there, and has the heading."""
    wrong = []
    for link in links(page):
        path, _, fragment = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_found_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert [name(page) for page in ROOT.glob("docs/**/*.md") if page not in linked] == []


def test_metrics():
    """The table has each family with its labels, and no other."""
    rows = [row.split("|")[1:3] for row in re.findall(r"^\| `.*", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)]
    described = {family: labels for names, labels in rows for family in re.findall(r"`(\w+)`", names)}
    expected = {family + _SUFFIX[kind]: labels for family, (kind, labels) in FAMILIES.items()}
    process = {family + _SUFFIX[kind] for family, kind in PROCESS.items()}
    assert described.keys() - process == expected.keys()
    assert {family: [one for one in labels if f"`{one}`" not in described[family]] for family, labels in expected.items()} == {
        family: [] for family in expected
    }


def commands():
    """Each line of code that runs the mirror's command."""
    for page in PAGES:
        for line in re.findall(r"^ {4}(?:.*(?<=[\s/]))?registry-mirror ([a-z].*)$", page.read_text(), re.MULTILINE):
            yield name(page), line
        for line in re.findall(r"`registry-mirror ([a-z][^`]*)`", page.read_text()):
            yield name(page), line


def test_commands_exist():
    """A command that is shown exists, and has the options that are shown."""
    known = typer.main.get_command(app).commands
    wrong, seen = [], set()
    for page, line in commands():
        words = shlex.split(line, comments=True)
        if words[0] not in known:
            wrong.append((page, line))
            continue
        seen.add(words[0])
        options = {opt for one in known[words[0]].params for opt in one.opts}
        # A lone hyphen is the standard input.
        wrong += [(page, word) for word in words if re.match("-.", word) and word.partition("=")[0] not in options]
    assert wrong == []
    assert seen == known.keys()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_examples_of_the_configuration_are_yaml(page):
    """A block of code that begins with a section of mirror.yaml is accepted as YAML, with keys that mirror.yaml has."""
    sections = set(re.findall(r"^#?([a-z_]+):", (ROOT / "mirror.yaml").read_text(), re.MULTILINE))
    blocks = re.findall(r"(?:^ {4}.*\n(?:^\n(?= {4}))?)+", page.read_text(), re.MULTILINE)
    for block in blocks:
        text = re.sub(r"^ {4}", "", block, flags=re.MULTILINE)
        if re.match(r"([a-z_]+):( |\n)", text) and re.match(r"[a-z_]+", text)[0] in sections:
            assert yaml.safe_load(text).keys() <= sections
