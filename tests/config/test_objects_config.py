"""The section `objects`: each mistake names its key."""

import pytest

from mirror.config.model import load
from mirror.errors import ConfigurationError


def loaded(directory, text):
    path = directory / "mirror.yaml"
    path.write_text(text)
    return load(path).objects


def test_defaults(tmp_path):
    assert not loaded(tmp_path, "").is_enabled
    objects = loaded(tmp_path, "objects: {url: 's3://bucket', endpoint: 'https://s3.example'}")
    assert objects.is_enabled
    assert (objects.region, objects.write, objects.min_size, objects.max_rate) == ("auto", "owner", 0, 200 << 20)
    assert (objects.max_size, objects.redirect.networks, objects.redirect.url_ttl) == (20 << 40, (), 600)


def test_off_without_quotes(tmp_path):
    """YAML reads it as false."""
    assert loaded(tmp_path, "objects: {url: 's3://bucket', region: eu-central-1, write: off}").write == "off"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("url: 'http://bucket'", "objects.url: must be a URL like s3://bucket"),
        ("url: 's3://'", "objects.url"),
        ("url: 's3://x'", "objects.url"),
        ("url: 's3://key:secret@bucket'", "objects.url"),
        ("url: 's3://bucket?x=1'", "objects.url"),
        ("url: 's3://bucket/a//b'", "objects.url: has a prefix that is no path"),
        ("url: 's3://bucket/a/../b'", "objects.url: has a prefix that is no path"),
        ("url: 's3://bucket/a/./b'", "objects.url: has a prefix that is no path"),
        ("url: 's3://bucket/a b'", "objects.url: has a prefix that is no path"),
        ("url: 's3://bucket'", "objects: region is required without endpoint"),
        ("endpoint: 'https://s3.example'", "objects: url is required"),
        ("redirect: {networks: [10.0.0.0/8]}", "objects: url is required"),
        ("{url: 's3://bucket', endpoint: 's3.example'}", "objects.endpoint"),
        ("{url: 's3://bucket', endpoint: 'https://id:key@s3.example'}", "objects.endpoint: must not contain credentials"),
        ("{url: 's3://bucket', endpoint: 'https://s3.example/bucket'}", "objects.endpoint"),
        ("{url: 's3://bucket', endpoint: 'https://s3.example:99999'}", "objects.endpoint"),
        ("{url: 's3://bucket', write: all}", "objects.write"),
        ("{url: 's3://bucket', max_rate: 1KiB}", "objects.max_rate: is less than"),
        ("{url: 's3://bucket', max_size: 20}", "objects.max_size: is less than 1GiB"),
        ("{url: 's3://bucket', max_size: -1}", "objects.max_size"),
        ("{url: 's3://bucket', redirect: {networks: [10.0.0.0/33]}}", "objects.redirect.networks"),
        ("{url: 's3://bucket', redirect: {url_ttl: 5s}}", "objects.redirect.url_ttl"),
        ("{url: 's3://bucket', redirect: {url_ttl: 1d}}", "objects.redirect.url_ttl"),
        ("{url: 's3://bucket', redirect: {min_size: big}}", "objects.redirect.min_size"),
        ("{url: 's3://bucket', access_key_file: /nowhere}", "objects.access_key_file"),
        ("{url: 's3://bucket', ca_file: /dev/null}", "objects.ca_file"),
        ("{url: 's3://bucket', zone: eu}", "objects.zone"),
    ],
)
def test_mistakes(section, said, tmp_path):
    text = section if section.startswith("{") else f"{{{section}}}"
    with pytest.raises(ConfigurationError) as error:
        loaded(tmp_path, f"objects: {text}")
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_key_file_has_two_lines(tmp_path):
    file = tmp_path / "key"
    file.write_text("only-an-id\n")
    with pytest.raises(ConfigurationError, match=r"objects\.access_key_file: .*two lines"):
        loaded(tmp_path, f"objects: {{url: 's3://bucket', access_key_file: {file}}}")
