"""The configuration: what can be said, and a clear word about every mistake."""

import re
from pathlib import Path

import pytest

from mirror.config.model import Address, Config, find, load
from mirror.core.digest import Digest
from mirror.core.image_selector import ImageSelector
from mirror.core.platform import Platform
from mirror.core.versions import VersionRange
from mirror.errors import ConfigurationError

DAY = 86400.0
# Self-signed, of a key that nobody has.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUFHdWwRjr1+skZS/uXs9OTSe8IpMwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjEwMjQyMTFaGA8yMTI2MTAyODAyNDIx
MVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLTb
+sZ1Npmkn+chOUCUxQQ8vPKqRMo7+W7eIv7Mr/1ThbL/IUPdxOymVXg0SxREV694
8nVGaiTkdZX6jn1Mb22jUzBRMB0GA1UdDgQWBBTd22p704iYm99I9HoiJHW1maCR
7TAfBgNVHSMEGDAWgBTd22p704iYm99I9HoiJHW1maCR7TAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQCchGM/lh5S4ikMmnCiQEt+AmUFQ0cgkbwe
OBNxaeYxtAIgZ177cB8YxjXnpVUl8PTUGGNQRkXSybYGCxfevM6jlLU=
-----END CERTIFICATE-----
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No configuration but the test's own."""
    import os

    for name in [name for name in os.environ if name.startswith("MIRROR")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(text, name="mirror.yaml"):
    path = Path(name)
    path.write_text(text)
    return path


def problems(text):
    """The lines about a configuration that cannot be used."""
    with pytest.raises(ConfigurationError) as caught:
        load(write(text))
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def test_defaults():
    """With no file it is a mirror of Docker Hub on this host."""
    config = load(None)
    assert str(config.listen) == "127.0.0.1:5000"
    assert str(config.admin.listen) == "127.0.0.1:5001"
    assert config.storage.path == Path("./cache")
    assert config.default_registry == "docker.io"
    assert config.registries["docker.io"].upstreams == ["https://registry-1.docker.io"]
    assert config.registries["docker.io"].token_hosts == {"auth.docker.io"}
    assert (config.tags.ttl, config.tags.stale_if_error, config.tags.not_found_ttl) == (60, 30 * DAY, 30)
    downloads = config.downloads
    assert (downloads.connections_per_blob, downloads.max_upstream_connections) == (4, 64)
    assert (downloads.connect_timeout, downloads.stall_timeout, downloads.prefetch, downloads.max_rate) == (5, 15, True, 0)
    sync = config.sync
    assert (sync.interval, sync.active_within, sync.reserve) == (3600, 7 * DAY, 20)
    assert (sync.images, sync.platforms, sync.webhook_secret_file) == ((), (Platform("linux", "amd64"),), None)
    assert (sync.notify.url, sync.notify.secret_file) == (None, None)
    assert (config.log.format, config.log.level) == ("console", "info")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_empty_file(text):
    """A file that says nothing says the defaults."""
    assert load(write(text)) == load(None)


def test_every_key(tmp_path):
    """Every key can be set, in the form that the documentation shows."""
    password = tmp_path / "password"
    password.write_text("x")
    certificates = tmp_path / "ca.pem"
    certificates.write_text(CERTIFICATE)
    config = load(
        write(
            f"""
            listen: 0.0.0.0:80
            admin: {{listen: "[::1]:81"}}
            storage: {{path: /somewhere}}
            default_registry: ghcr.io
            registries:
              docker.io:
              GHCR.io:
                upstreams: [https://ghcr.io/, "http://10.0.0.1:5000"]
                username: someone
                password_file: {password}
                token_hosts: [auth.example]
                ca_file: {certificates}
                anonymous_fallback: true
                proxy: http://proxy.example:3128/
                keep_deleted: true
                allow: [team/*, "other/app:1.*"]
                deny: ["*:latest"]
            tags: {{ttl: 5m, stale_if_error: 1h30m, not_found_ttl: 0}}
            downloads:
              connections_per_blob: 1
              max_upstream_connections: 5
              connect_timeout: 500ms
              stall_timeout: 1m
              prefetch: false
              max_rate: 12MiB
            log: {{format: json, level: debug}}
            """
        )
    )
    assert (config.listen, config.admin.listen) == (Address(host="0.0.0.0", port=80), Address(host="::1", port=81))
    assert str(config.admin.listen) == "[::1]:81"
    assert config.storage.path == Path("/somewhere")
    assert set(config.registries) == {"docker.io", "ghcr.io"}
    ghcr = config.registries["ghcr.io"]
    assert ghcr.upstreams == ["https://ghcr.io", "http://10.0.0.1:5000"]
    assert (ghcr.username, ghcr.password_file, ghcr.ca_file) == ("someone", password, certificates)
    assert ghcr.token_hosts == {"auth.example"}
    assert (ghcr.anonymous_fallback, ghcr.proxy, ghcr.keep_deleted) == (True, "http://proxy.example:3128", True)
    assert (ghcr.allow, ghcr.deny) == (("team/*", "other/app:1.*"), ("*:latest",))
    assert config.registries["docker.io"].upstreams == ["https://registry-1.docker.io"]
    assert (config.tags.ttl, config.tags.stale_if_error, config.tags.not_found_ttl) == (300, 5400, 0)
    downloads = config.downloads
    assert (downloads.connections_per_blob, downloads.max_upstream_connections) == (1, 5)
    assert (downloads.connect_timeout, downloads.stall_timeout, downloads.prefetch, downloads.max_rate) == (
        0.5,
        60,
        False,
        12 << 20,
    )
    assert (config.log.format, config.log.level) == ("json", "debug")


def _rule(keys):
    """A rule for tags with these keys."""
    return f"registries: {{docker.io: {{upstreams: [https://h.example], tags: [{{match: app, {keys}}}]}}}}"


MISTAKES = [
    ("lisen: 127.0.0.1:5000", "lisen: there is no such key"),
    ("storage: {pat: x}", "storage.pat: there is no such key"),
    ("registries: {docker.io: {user: x}}", "registries.docker.io.user: there is no such key"),
    ("listen: 5000", "listen: "),
    ("listen: localhost", "listen: must be HOST:PORT"),
    ("listen: 127.0.0.1:99999", "listen: must be HOST:PORT"),
    ("listen: 127.0.0.1:http", "listen: must be HOST:PORT"),
    ("listen: 127.0.0.1:²", "listen: must be HOST:PORT"),
    ("listen: ::1:5000", "listen: must be HOST:PORT"),
    ("listen: [1]", "listen: "),
    ("listen:", "listen: "),
    ("admin: {listen: x}", "admin.listen: must be HOST:PORT"),
    ("admin: yes", "admin: "),
    ("storage: {path: [1]}", "storage.path: "),
    ("storage: x", "storage: "),
    ("tags: {ttl: 60}", "tags.ttl: "),
    ("tags: {ttl: sixty}", "tags.ttl: "),
    ("tags: {ttl: -1s}", "tags.ttl: "),
    ("tags: {ttl: 60 seconds}", "tags.ttl: "),
    ("tags: {ttl: true}", "tags.ttl: "),
    ("tags: {ttl: 10MB}", "tags.ttl: "),
    (_rule("cooldown: 61d"), "registries.docker.io.tags.0.cooldown: must be at most 60d"),
    (_rule("cooldown: 3"), "registries.docker.io.tags.0.cooldown: "),
    (_rule("cooldown_new: refuse"), "registries.docker.io.tags.0: cooldown is required with cooldown_new: refuse"),
    (_rule("cooldown: 3d, cooldown_new: hold"), "registries.docker.io.tags.0.cooldown_new: must be 'serve' or 'refuse'"),
    (_rule("freeze: 3d"), "registries.docker.io.tags.0.freeze: must be true or false"),
    ("tags: {stale_if_error: [1d]}", "tags.stale_if_error: "),
    ("tags: {not_found_ttl: {}}", "tags.not_found_ttl: "),
    ("downloads: {connections_per_blob: 0}", "downloads.connections_per_blob: "),
    ("downloads: {connections_per_blob: 17}", "downloads.connections_per_blob: "),
    ("downloads: {connections_per_blob: many}", "downloads.connections_per_blob: "),
    ("downloads: {max_upstream_connections: 0}", "downloads.max_upstream_connections: "),
    ("downloads: {connect_timeout: 0}", "downloads.connect_timeout: "),
    ("downloads: {connect_timeout: 11s}", "downloads.connect_timeout: "),
    ("downloads: {max_rate: 255KiB}", "downloads.max_rate: is less than 256KiB a second"),
    ("downloads: {max_rate: -1}", "downloads.max_rate: "),
    ("downloads: {stall_timeout: 1h}", "downloads.stall_timeout: "),
    ("log: {format: xml}", "log.format: "),
    ("log: {level: loud}", "log.level: "),
    ("sync: {interval: 60}", "sync.interval: "),
    ("sync: {active_within: x}", "sync.active_within: "),
    ("sync: {reserve: -1}", "sync.reserve: "),
    ("sync: {platforms: []}", "sync.platforms: at least one platform is required"),
    ("sync: {platforms: [linux/amd64, linux]}", "sync.platforms.1: invalid platform 'linux'"),
    ("sync: {platforms: [5]}", "sync.platforms.0: must be os/architecture"),
    ("sync: {images: nginx}", "sync.images: "),
    ("sync: {images: [nginx, 'Nginx']}", "sync.images.1: invalid name 'Nginx'"),
    ("sync: {images: [5]}", "sync.images.0: must be an image, or a mapping with the key image"),
    ("sync: {images: ['library/*']}", "sync.images.0: invalid image 'library/*': only the tag can be a glob: a registry cannot"),
    ("sync: {images: [{image: 'library/*'}]}", "sync.images.0: invalid image 'library/*': only the tag"),
    ("sync: {images: [{versions: '1'}]}", "sync.images.0.image: "),
    ("sync: {images: [nginx, {image: nginx, version: '1'}]}", "sync.images.1.version: there is no such key"),
    ("sync: {images: [{image: nginx, versions: 1.20}]}", "sync.images.0.versions: must be text in quotes"),
    ("sync: {images: [{image: nginx, versions: '>'}]}", "sync.images.0.versions: invalid range of versions '>'"),
    ("sync: {images: [{image: nginx, platforms: [{os: linux, architecture: arm64}]}]}", "sync.images.0.platforms.0: must be os/"),
    ("sync: {images: [{image: nginx, newest: 0}]}", "sync.images.0.newest: "),
    ("sync: {images: [{image: nginx, newest: 1001}]}", "sync.images.0.newest: "),
    ("sync: {images: [{image: nginx, platforms: [linux/amd64, x]}]}", "sync.images.0.platforms.1: invalid platform 'x'"),
    ("sync: {images: [{image: 'nginx:1', newest: 2}]}", "sync.images.0: invalid image 'nginx:1': versions and newest choose"),
    ("sync: {images: [nginx, ghcr.io/x/y]}", "sync.images.1: 'ghcr.io' is not one of the registries: docker.io"),
    ("sync: {webhook_secret_file: /nowhere/x}", "sync.webhook_secret_file: cannot be read: /nowhere/x"),
    ("sync: {webhook_secret_file: /dev/null}", "sync.webhook_secret_file: is empty"),
    ("sync: {notify: {url: example.com}}", "sync.notify.url: must be a URL like https://example.com/hook"),
    ("sync: {notify: {url: 'ftp://example.com'}}", "sync.notify.url: must be a URL like"),
    ("sync: {notify: {url: 'https://u:p@example.com'}}", "sync.notify.url: must not contain credentials"),
    ("sync: {notify: {url: 'https://example.com/#x'}}", "sync.notify.url: must not contain credentials or a fragment"),
    ("sync: {notify: {secret_file: /etc/passwd}}", "sync.notify: url is required"),
    ("sync: {notify: {url: 'https://x', secret_file: /dev/null}}", "sync.notify.secret_file: is empty"),
    ("default_registry: ghcr.io", "default_registry: 'ghcr.io' is not one of the registries: docker.io"),
    ("default_registry: UPPER CASE", "default_registry: "),
    ("registries: {}", "default_registry: "),
    ("registries: [docker.io]", "registries: "),
    ("registries: {ghcr.io: {}}", "registries.ghcr.io.upstreams: "),
    ("registries: {'a b': {upstreams: ['https://x']}}", "registries: "),
    ("registries: {docker.io: {upstreams: []}}", "registries.docker.io.upstreams: "),
    ("registries: {docker.io: {upstreams: registry-1.docker.io}}", "registries.docker.io.upstreams: "),
    ("registries: {docker.io: {upstreams: [registry-1.docker.io]}}", "registries.docker.io.upstreams.0: must be a URL"),
    ("registries: {docker.io: {upstreams: ['https://']}}", "registries.docker.io.upstreams.0: must be a URL"),
    ("registries: {docker.io: {deny: ['nginx@sha256:12']}}", "registries.docker.io.deny.0: "),
    (f"registries: {{docker.io: {{allow: ['nginx@sha256:{'0' * 64}']}}}}", "registries.docker.io.allow.0: "),
    ("registries: {docker.io: {upstreams: ['https://host/v2/']}}", "registries.docker.io.upstreams.0: must not end with /v2"),
    ("registries: {docker.io: {upstreams: ['https://host/x/v2']}}", "registries.docker.io.upstreams.0: must not end with /v2"),
    ("registries: {docker.io: {upstreams: ['https://a:99999']}}", "registries.docker.io.upstreams.0: "),
    ("registries: {docker.io: {upstreams: ['https://[::1']}}", "registries.docker.io.upstreams.0: "),
    ("registries: {docker.io: {upstreams: ['https://u:p@x']}}", "registries.docker.io.upstreams.0: must not contain"),
    ("registries: {docker.io: {upstreams: ['https://x?y=1']}}", "registries.docker.io.upstreams.0: must not contain"),
    ("registries: {docker.io: {username: [1]}}", "registries.docker.io.username: "),
    ("registries: {docker.io: {password_file: /nowhere/x}}", "registries.docker.io.password_file: cannot be read: /nowhere/x"),
    ("registries: {docker.io: {password_file: /}}", "registries.docker.io.password_file: cannot be read: /"),
    ("registries: {docker.io: {password_file: /dev/null}}", "registries.docker.io.password_file: is empty"),
    ("registries: {docker.io: {password_file: /bin/true, username: x}}", "registries.docker.io.password_file: is not text"),
    ("registries: {docker.io: {username: x}}", "registries.docker.io: username and password_file only make sense together"),
    ("registries: {docker.io: {password_file: /etc/passwd}}", "registries.docker.io: username and password_file only make"),
    ("registries: {docker.io: {proxy: proxy.example}}", "registries.docker.io.proxy: must be a URL like http://proxy"),
    ("registries: {docker.io: {proxy: 'https://proxy.example'}}", "registries.docker.io.proxy: must be a URL like http://proxy"),
    ("registries: {docker.io: {proxy: 'http://u:p@proxy.example'}}", "registries.docker.io.proxy: must not contain credentials"),
    ("registries: {docker.io: {keep_deleted: perhaps}}", "registries.docker.io.keep_deleted: "),
    ("registries: {docker.io: {ca_file: /etc/passwd}}", "registries.docker.io.ca_file: holds no certificates: /etc/passwd"),
    ("registries: {docker.io: {allow: library/*}}", "registries.docker.io.allow: "),
    ("registries: {docker.io: {allow: [UPPER]}}", "registries.docker.io.allow.0: "),
    ("registries: {docker.io: {deny: [x, 'a:b:c']}}", "registries.docker.io.deny.1: "),
    ("registries: {docker.io: {ca_file: /nowhere/x}}", "registries.docker.io.ca_file: cannot be read: /nowhere/x"),
    ("listen: 127.0.0.1:1\nlisten: 127.0.0.1:2", "listen: stands there twice, the second time in line 2"),
    ("tags: {ttl: 1s}\nlog: {level: info, level: debug}", "level: stands there twice, the second time in line 2"),
    ("[1, 2]", "mirror.yaml: must be a mapping"),
    ("text", "mirror.yaml: must be a mapping"),
    ("1: 2", "mirror.yaml: must be a mapping"),
    ("a: [", "mirror.yaml: is not YAML"),
    ("a: !!python/object/apply:os.system [x]", "mirror.yaml: is not YAML"),
    ("? [a, b]\n: c", "mirror.yaml: "),
    ("? {a: b}\n: c", "mirror.yaml: "),
    ("[" * 100_000, "mirror.yaml: "),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_mistakes(text, expected):
    """A mistake is one line that begins with its key."""
    (line,) = problems(text)
    assert line.startswith(expected)
    assert len(line) < 500
    assert not re.search(r"dictionary|instance of|boolean|tuple|integer|string|Input should", line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lisen: :5000", "lisen: there is no such key; did you mean listen?"),
        ("storage: {maxsize: 1GiB}", "storage.maxsize: there is no such key; did you mean storage.max_size?"),
        (
            "registries: {docker.io: {upstream: [x]}}",
            "registries.docker.io.upstream: there is no such key; did you mean registries.docker.io.upstreams?",
        ),
        (
            "sync: {images: [{image: x, version: '1'}]}",
            "sync.images.0.version: there is no such key; did you mean sync.images.0.versions?",
        ),
        (
            "registries: {docker.io: {tags: [{match: x, tll: 1s}]}}",
            "registries.docker.io.tags.0.tll: there is no such key; did you mean registries.docker.io.tags.0.ttl?",
        ),
        ("ttl: 1s", "ttl: there is no such key; did you mean tags.ttl?"),
        ("zzzzzz: 1", "zzzzzz: there is no such key"),
        ("workers: many", "workers: must be a whole number"),
        ("workers: 1.5", "workers: must be a whole number"),
        ("workers: -1", "workers: must be at least 0"),
        ("downloads: {stall_timeout: 0}", "downloads.stall_timeout: must be more than 0"),
        ("downloads: {prefetch: perhaps}", "downloads.prefetch: must be true or false"),
        ("log: {format: xml}", "log.format: must be 'console' or 'json'"),
        ("sync: {images: nginx}", "sync.images: must be a list, for example [a, b]"),
        ("storage: x", "storage: must be a mapping of keys to values"),
        ("registries: {docker.io: {username: [1]}}", "registries.docker.io.username: must be text"),
        ("registries: {docker.io: {upstreams: []}}", "registries.docker.io.upstreams: must have at least 1 of them"),
    ],
)
def test_words_of_mistakes(text, line):
    """A misspelt key is told with the right one, and a value with what it has to be in YAML."""
    assert problems(text) == [line]


def test_variable_with_one_underscore(monkeypatch, tmp_path):
    """A variable that was meant for a key is no silent default; others that begin alike are none of the mirror's."""
    monkeypatch.setenv("MIRROR_PORT", "tcp://10.0.0.1:5000")
    monkeypatch.setenv("MIRROR_SERVICE_HOST", "10.0.0.1")
    load(None)
    monkeypatch.setenv("MIRROR_TAGS_TTL", "5m")
    with pytest.raises(ConfigurationError, match=r"^MIRROR_TAGS_TTL: is not read; did you mean MIRROR__TAGS__TTL\?$"):
        load(None)


def test_images_to_keep():
    """An entry is text or a mapping; a name without a registry belongs to the default one."""
    config = load(
        write(
            """
            default_registry: quay.io
            registries: {docker.io: {}, quay.io: {upstreams: [https://quay.io]}}
            sync:
              interval: 0
              active_within: 1d
              reserve: 0
              platforms: [linux/arm64/v8, linux/amd64]
              images:
                - owner/app
                - docker.io/nginx:1.27.*
                - {image: docker.io/nginx, versions: ">=1.25 <2", newest: 3, platforms: [linux/arm64]}
                - docker.io/nginx@DIGEST
            """.replace("DIGEST", str(Digest.of(b"x")))
        )
    )
    assert (config.sync.interval, config.sync.active_within, config.sync.reserve) == (0, DAY, 0)
    assert config.sync.platforms == (Platform("linux", "arm64", "v8"), Platform("linux", "amd64"))
    assert config.selectors() == (
        ImageSelector.parse("quay.io/owner/app:latest"),
        ImageSelector.parse("nginx:1.27.*"),
        ImageSelector.parse("nginx", versions=VersionRange.parse(">=1.25 <2"), newest=3, platforms=[Platform("linux", "arm64")]),
        ImageSelector.parse(f"nginx@{Digest.of(b'x')}"),
    )


def test_images_to_keep_in_the_environment(monkeypatch):
    """A list in the environment is read like the file's."""
    monkeypatch.setenv("MIRROR__SYNC__IMAGES", "[nginx, {image: 'redis:*', newest: 2}]")
    assert [str(selector) for selector in load(None).selectors()] == [
        "docker.io/library/nginx:latest",
        "docker.io/library/redis:*",
    ]


def test_an_image_that_is_written_as_a_key():
    """Whoever takes the mapping for name and tag hears what is missing and what is not known."""
    lines = problems("sync: {images: [{nginx: '1.*'}]}")
    assert sorted(line.partition(":")[0] for line in lines) == ["sync.images.0.image", "sync.images.0.nginx"]


def test_every_wrong_image_is_named():
    """Images of registries that are not mirrored are all named, by their places."""
    lines = problems("sync: {images: [ghcr.io/x/y, nginx, quay.io/x]}")
    assert [line.partition(":")[0] for line in lines] == ["sync.images.0", "sync.images.2"]


def test_a_secret_that_could_be_guessed(tmp_path):
    """The secret of the webhook is all that it has to show, so a short one is refused, and not repeated."""
    write("0123456789abcde\n", "short")
    (line,) = problems("sync: {webhook_secret_file: short}")
    assert line.startswith("sync.webhook_secret_file: holds fewer than 16 characters")
    assert "0123456789abcde" not in line
    write("0123456789abcdef\n", "long")
    assert load(write("sync: {webhook_secret_file: long}")).sync.webhook_secret_file == Path("long")


def test_secrets_from_systemd(monkeypatch, tmp_path):
    """The files with secrets of sync are found like password files."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    for name in ("in", "out"):
        write("0123456789abcdef", f"credentials/{name}")
    sync = load(write("sync: {webhook_secret_file: in, notify: {url: 'https://x/?token=1', secret_file: out}}")).sync
    assert (sync.webhook_secret_file, sync.notify.secret_file) == (directory / "in", directory / "out")
    assert sync.notify.url == "https://x/?token=1"


def test_all_mistakes_at_once():
    """Whoever made several mistakes hears of all of them."""
    lines = problems("lisen: x\ntags: {ttl: x, tttl: 1s}\nlog: {level: loud}")
    assert sorted(line.partition(":")[0] for line in lines) == ["lisen", "log.level", "tags.ttl", "tags.tttl"]


def test_two_names_of_one_registry():
    """Two entries for one registry would leave one of them without effect."""
    lines = problems("registries: {docker.io: {}, registry-1.docker.io: {username: x}}")
    assert lines[0].startswith("registries")


SECRETS = [
    "username: {password: hunter2}, password: hunter2",
    *(
        f"{key}: {value.format(url)}"
        for key, value in (("proxy", "'{}'"), ("upstreams", "['{}']"))
        for url in (
            "http://robot:hunter2@proxy.example:3128",
            "https://robot:hunter2@proxy.example:port",
            "http://robot:hunter2/x@proxy.example:3128",
            "http://robot:hun#hunter2@proxy.example:3128",
            "http://robot:hun[hunter2@proxy.example:3128",
            "http://robot:hunter2@",
            "ftp://robot:hunter2@proxy.example",
            "robot:hunter2@proxy.example:3128",
            "//robot:hunter2@proxy.example",
        )
    ),
]


@pytest.mark.parametrize("entry", SECRETS)
def test_secrets_are_not_repeated(entry):
    """A mistake next to a secret, or a secret where none can be, does not bring it into the log."""
    lines = problems(f"registries: {{docker.io: {{{entry}}}}}")
    assert "hunter2" not in str(lines)


@pytest.mark.parametrize("url", ["https://robot:hunter2/x@hook.example", "https://robot:hunter2@hook.example", "//a:hunter2@x"])
def test_secrets_of_who_is_told_are_not_repeated(url):
    """Nor those in the URL of a webhook."""
    assert "hunter2" not in str(problems(f"sync: {{notify: {{url: '{url}'}}}}"))


@pytest.mark.parametrize("key", ["PROXY", "UPSTREAMS"])
def test_secrets_of_the_environment_are_not_repeated(monkeypatch, key):
    """The same holds for what the environment says."""
    monkeypatch.setenv(f"MIRROR__REGISTRIES__DOCKER.IO__{key}", "http://robot:hunter2/x@proxy.example:3128")
    with pytest.raises(ConfigurationError) as caught:
        load(None)
    assert "hunter2" not in str(caught.value.problems)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_unreadable_file(tmp_path, content):
    """A file that cannot be read is named."""
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"^{path}: "):
        load(path)


def test_environment(monkeypatch):
    """The environment overrides the file, key by key."""
    path = write("tags: {ttl: 5m, not_found_ttl: 1m}\nlisten: 127.0.0.1:1")
    monkeypatch.setenv("MIRROR__TAGS__TTL", "7m")
    monkeypatch.setenv("MIRROR__STORAGE__PATH", "/elsewhere")
    monkeypatch.setenv("MIRROR__LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("MIRROR__ADMIN__LISTEN", "[::1]:3")
    monkeypatch.setenv("MIRROR__REGISTRIES__DOCKER.IO__UPSTREAMS", "[https://a.example, https://b.example]")
    monkeypatch.setenv("MIRROR__DOWNLOADS__CONNECTIONS_PER_BLOB", "3")
    config = load(path)
    assert (config.tags.ttl, config.tags.not_found_ttl) == (420, 60)
    assert config.storage.path == Path("/elsewhere")
    assert (str(config.listen), str(config.admin.listen)) == ("127.0.0.1:2", "[::1]:3")
    assert config.registries["docker.io"].upstreams == ["https://a.example", "https://b.example"]
    assert config.downloads.connections_per_blob == 3


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("MIRROR__TAGS__TTL", "x", "tags.ttl"),
        ("MIRROR__TAGS__TTTL", "1s", "tags.tttl"),
        ("MIRROR__TAG__TTL", "1s", "tag"),
        ("MIRROR__LISEN", "127.0.0.1:1", "lisen"),
        ("MIRROR__LISTEN", "here", "listen"),
        ("MIRROR__REGISTRIES", "{a: [}", "MIRROR__REGISTRIES"),
        ("MIRROR__TAGS", "x", "tags"),
    ],
)
def test_mistakes_in_the_environment(monkeypatch, name, value, key):
    """A mistake in the environment is named by its key as well."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=rf"^{key}: "):
        load(None)


def test_contradiction_in_the_environment(monkeypatch):
    """A section cannot be text and have keys."""
    monkeypatch.setenv("MIRROR__TAGS", "x")
    monkeypatch.setenv("MIRROR__TAGS__TTL", "1s")
    with pytest.raises(ConfigurationError, match=r"^MIRROR__TAGS__TTL: "):
        load(None)


def test_registries_in_the_environment(monkeypatch, tmp_path):
    """What the environment says about a registry is added to what the file says."""
    password = tmp_path / "password"
    password.write_text("x")
    monkeypatch.setenv("MIRROR__REGISTRIES", '{"docker.io": {"username": "x"}}')
    config = load(write(f"registries: {{docker.io: {{password_file: {password}}}}}"))
    assert (config.registries["docker.io"].username, config.registries["docker.io"].password_file) == ("x", password)


def test_password_from_systemd(monkeypatch, tmp_path):
    """A bare file name is looked for among the credentials that systemd hands out, and else in this directory."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    for name in ("hub", "other"):
        write("x", name)
    write("y", "credentials/hub")
    found = {}
    for name in ("hub", "other", "./hub"):
        config = load(write(f"registries: {{docker.io: {{username: x, password_file: {name}}}}}"))
        found[name] = config.registries["docker.io"].password_file
    assert found == {"hub": directory / "hub", "other": Path("other"), "./hub": Path("hub")}


def test_search(monkeypatch, tmp_path):
    """The file is the named one, else the environment's, else the one in this directory, else none."""
    monkeypatch.setattr("mirror.config.model.SEARCH_PATH", ("./mirror.yaml", str(tmp_path / "etc.yaml")))
    assert find(None) is None
    write("", "etc.yaml")
    assert find(None) == tmp_path / "etc.yaml"
    write("")
    assert find(None) == Path("mirror.yaml")
    monkeypatch.setenv("MIRROR_CONFIG", "/named/by/environment")
    assert find(None) == Path("/named/by/environment")
    assert find(Path("/named")) == Path("/named")


def test_configuration_is_not_shown_with_its_types():
    """Messages speak of keys and values, not of the library that checks them."""
    for text, _ in MISTAKES:
        for line in problems(text):
            assert "pydantic" not in line
            assert "Value error" not in line


def test_config_is_frozen():
    """Nobody changes a configuration in use."""
    with pytest.raises(ValueError, match="frozen"):
        Config().listen = None
