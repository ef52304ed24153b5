"""The manual page has the commands and the options that there are, and is installed."""

import tomllib

import typer

from mirror.cli import app
from tests.support import man


def test_page_is_current():
    assert man.page() == man.PAGE.read_text(), "`make man` brings it up to date"


def test_every_command_and_option():
    """Also if the generator left something out."""
    sections = man.PAGE.read_text().split("\n.Ss ")
    described = {section.partition("\n")[0]: section for section in sections[1:]}
    commands = typer.main.get_command(app).commands
    assert described.keys() == commands.keys()
    for name, command in commands.items():
        options = [opt for one in command.params for opt in one.opts if opt.startswith("--") and opt != "--help"]
        assert [opt for opt in options if f"Fl {opt.removeprefix('-')}" not in described[name]] == []


def test_installed_by_the_wheel():
    project = tomllib.loads((man.ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["data-files"] == {"share/man/man1": [str(man.PAGE.relative_to(man.ROOT))]}
