"""How well the name of a repository matches the text of a search."""

from typing import Final

_LIBRARY: Final = "library/"


def search_text(term: str) -> str:
    """Return what is searched for, in lower case and without the prefix of Docker Hub's official images."""
    return term.strip().lower().removeprefix(_LIBRARY)


def distance(name: str, text: str) -> int:
    """Return how far a repository's path is from a text of `search_text`: 0 is the name itself, 3 contains it somewhere."""
    bare = name.lower().removeprefix(_LIBRARY)
    last = bare.rpartition("/")[2]
    if text == bare:
        return 0
    if text == last:
        return 1
    return 2 if bare.startswith(text) or last.startswith(text) else 3
