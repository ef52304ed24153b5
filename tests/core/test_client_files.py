"""A file that exists keeps what it says, or is left alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.client_files import MARKER, ConfigFile, Merge, Unmergeable, combine

URL = "http://mirror.test:5000"
DAEMON = ConfigFile("/etc/docker/daemon.json", json.dumps({"registry-mirrors": [URL]}, indent=2) + "\n", Merge.DAEMON_JSON)
OWN = ConfigFile("/etc/own.conf", f"{MARKER}\nnew = 1\n", Merge.OWN_FILE)
MAIN = ConfigFile("/etc/main.toml", "a = 1\nb = 2\n", Merge.CREATE)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text().filter(lambda key: key != "registry-mirrors"), VALUES),
    st.lists(st.text(max_size=5)),
    st.integers(1, 8),
)
def test_other_keys_stay(settings, mirrors, indent):
    """Whatever else a daemon.json says, it says afterwards, in the same order; the other mirrors come after this one."""
    existing = json.dumps({**settings, "registry-mirrors": mirrors}, indent=indent)
    merged = json.loads(combine(DAEMON, existing))
    assert list(merged) == [*settings, "registry-mirrors"]
    assert {**merged, "registry-mirrors": None} == {**settings, "registry-mirrors": None}
    assert merged["registry-mirrors"] == [URL, *mirrors]


def test_indentation_stays():
    assert combine(DAEMON, '{\n\t"debug": true\n}\n') == f'{{\n\t"debug": true,\n\t"registry-mirrors": [\n\t\t"{URL}"\n\t]\n}}\n'


@pytest.mark.parametrize("file", [DAEMON, OWN, MAIN], ids=lambda file: file.merge.name)
@pytest.mark.parametrize("existing", [None, "", " \n"])
def test_nothing_there(file, existing):
    assert combine(file, existing) == file.text


@pytest.mark.parametrize(
    ("file", "existing"),
    [
        (DAEMON, f'{{"registry-mirrors": ["http://first", "{URL}/"], "debug": true}}'),
        (OWN, f"# by hand\n{OWN.text}\n# more\n"),
        (MAIN, "a = 1   \n\n# a comment\nb = 2"),
    ],
)
def test_already_there(file, existing):
    """A file that says it already stays as it is, byte for byte."""
    assert combine(file, existing) == existing


def test_own_file_is_replaced():
    assert combine(OWN, f"{MARKER}\nold = 1\n") == OWN.text


@pytest.mark.parametrize(
    ("file", "existing", "why"),
    [
        (DAEMON, "{", "no JSON"),
        (DAEMON, "// comment\n{}", "no JSON"),
        (DAEMON, "[" * 100_000, "no JSON"),
        (DAEMON, "[]", "no JSON object"),
        (DAEMON, '{"registry-mirrors": "http://m"}', "list of URLs"),
        (DAEMON, '{"registry-mirrors": null}', "list of URLs"),
        (DAEMON, '{"debug": true, "debug": false}', "'debug' stands there twice"),
        (DAEMON, "\ufeff{}", "byte order mark"),
        (DAEMON, f"# comment\n{DAEMON.text}", "no JSON"),
        (DAEMON, '{"a": NaN}', "no number"),
        (DAEMON, '{"a": 1e999}', "no number"),
        (DAEMON, '{"a": "\\ud800"}', "cannot be written again"),
        (OWN, "old = 1\n", "by hand"),
        (MAIN, "a = 1\n", "by hand"),
        (MAIN, f"{MARKER}\na = 1\n", "by hand"),
    ],
)
def test_refused(file, existing, why):
    """What cannot be read, or belongs to somebody else, is never rewritten."""
    with pytest.raises(Unmergeable, match=why):
        combine(file, existing)
