"""The configuration file that is shipped: it documents every key, and changes nothing."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mirror.config.model import Address, Config, load

SHIPPED = Path(__file__).parents[2] / "mirror.yaml"


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("MIRROR__")]:
        monkeypatch.delenv(name)


def test_the_shipped_file_gives_the_built_in_defaults():
    """Starting with the shipped file is the same as starting with none."""
    assert load(SHIPPED) == load(None)


def test_the_shipped_file_names_every_key_and_no_other():
    """Every key that the configuration accepts stands in the file; one without a default is switched off by a `#`."""
    switched_on = re.sub(r"^( *)#(?=\S)", r"\1", SHIPPED.read_text(), flags=re.MULTILINE)
    document = yaml.safe_load(switched_on)
    document["registries"] = document["registries"]["docker.io"]

    assert sorted(_named(document)) == sorted(_known(Config()))


def _named(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _named(value, f"{prefix}{key}.")


def _known(section: BaseModel, prefix: str = "") -> Iterator[str]:
    for key in type(section).model_fields:
        yield prefix + key
        value = getattr(section, key)
        value = value["docker.io"] if key == "registries" else value
        if isinstance(value, BaseModel) and not isinstance(value, Address):
            yield from _known(value, f"{prefix}{key}.")
