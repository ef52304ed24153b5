"""ARCHITECTURE.md shows the packages as they import each other now."""

from tests.support import rooms


def test_picture_is_current():
    assert rooms.document() == rooms.DOCUMENT.read_text(), "`make rooms` updates the picture"


def test_named_files_exist():
    assert rooms.missing() == []


def test_picture_shows_every_package():
    picture = rooms.picture()
    assert all(f" {name} " in picture for name in rooms.packages())


def test_a_package_imports_only_from_rows_below():
    """Fails, by recursion, on a circle of packages."""
    imports = rooms.packages()
    for name, targets in imports.items():
        assert all(rooms.level(other, imports) < rooms.level(name, imports) for other in targets)
