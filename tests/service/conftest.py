"""Fixtures for tests of what runs the mirror."""

import logging

import pytest
import structlog


@pytest.fixture
def restored():
    """Leaves logging as it was for the tests that follow."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level
