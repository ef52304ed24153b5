"""Plain lists: one image per line, `#` begins a comment."""

from __future__ import annotations

import re

from mirror.image_lists.findings import Findings, shown

_COMMENT = re.compile(r"(?:^|\s)#.*")


def read(text: str, findings: Findings) -> None:
    """Find the images of a plain list; their tags may be globs, as in `sync.images`."""
    for number, line in enumerate(text.splitlines(), 1):
        words = _COMMENT.sub("", line).split()
        if len(words) > 1:
            findings.mistake(number, f"one image per line, not {shown(line.strip())}")
        elif words:
            findings.add_selector(number, words[0])
