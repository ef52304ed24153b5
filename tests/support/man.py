"""Makes man/registry-mirror.1 from the options of the command line, and compares it: `python -m tests.support.man [--check]`."""

import enum
import re
import sys
import textwrap
from pathlib import Path

import typer

from mirror.cli import app

ROOT = Path(__file__).parents[2]
TEMPLATE, PAGE = ROOT / "man/registry-mirror.1.in", ROOT / "man/registry-mirror.1"
_WIDTH = 78
_VALUES = {"config": "file", "token-file": "file"}
# Each command has it.
_GENERAL = "--help"


def page():
    """The page as it should be."""
    commands = typer.main.get_command(app).commands
    found = {
        "@SYNOPSIS@": _lines(_synopsis(name, command) for name, command in commands.items()),
        "@COMMANDS@": _lines(_described(name, command) for name, command in commands.items()),
    }
    text = TEMPLATE.read_text()
    for mark, lines in found.items():
        text = text.replace(mark, lines)
    return text


def options(command):
    """The options and arguments of a command, arguments last."""
    shown = [one for one in command.params if not one.opts or one.opts[0] != _GENERAL]
    return sorted(shown, key=lambda one: one.param_type_name == "argument")


def _synopsis(name, command):
    arguments = [one for one in options(command) if one.param_type_name == "argument"]
    yield f".Nm\n.Cm {name}"
    if any(one.param_type_name == "option" for one in options(command)):
        yield ".Op Ar options"
    for one in arguments:
        shown = f"Ar {one.name}{' ...' if one.nargs != 1 or getattr(one, 'multiple', False) else ''}"
        yield f".{shown}" if one.required else f".Op {shown}"


def _described(name, command):
    yield f".Ss {name}"
    yield _prose(command.help)
    if options(command):
        yield ".Bl -tag -width Ds"
        for one in options(command):
            yield f".It {_item(one)}"
            yield _prose(_help(one))
        yield ".El"


def _item(one):
    if one.param_type_name == "argument":
        return f"Ar {one.name}"
    value = "" if one.is_flag else f" Ar {_value(one)}"
    return " , ".join(f"Fl {opt.removeprefix('-')}" for opt in sorted(one.opts, key=len)) + value


def _value(one):
    annotation = one.type_descriptor.annotation
    is_choice = isinstance(annotation, type) and issubclass(annotation, enum.Enum)
    return (
        " | ".join(choice.value for choice in annotation)
        if is_choice
        else _VALUES.get(name := one.opts[0].removeprefix("--"), name)
    )


def _help(one):
    default = one.default
    shown = default is not None and not callable(default) and not isinstance(default, (bool, list, tuple)) and default != ""
    return f"{one.help} The default is {getattr(default, 'value', default)}." if shown else one.help


def _prose(text):
    """Text as the language of the page: a sentence a line, and nothing that begins like a macro."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n|\f", text or "")]
    return "\n.Pp\n".join("\n".join(map(_plain, _sentences(part))) for part in paragraphs if part)


def _sentences(text):
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)


def _plain(line):
    line = line.replace("\\", "\\e").replace("`", "").replace("…", "...")
    wrapped = textwrap.wrap(line, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{part}" if part.startswith((".", "'")) else part for part in wrapped)


def _lines(parts):
    return "\n".join(line for part in parts for line in part)


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif page() != PAGE.read_text():
        sys.exit("man/registry-mirror.1: `make man` brings it up to date with the options of the commands")
