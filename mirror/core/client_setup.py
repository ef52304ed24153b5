"""How each container client is configured to use the mirror: the files, the command that reloads them, and how to check."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from mirror.core.client_files import MARKER, ConfigFile, Merge
from mirror.core.errors import InvalidUrl
from mirror.core.names import DOCKER_HUB

_HUB_SERVER = "https://registry-1.docker.io"
# Where podman and CRI-O look for files beside registries.conf (containers-registries.conf.d, section DESCRIPTION).
_REGISTRIES_FILE = "/etc/containers/registries.conf.d/50-registry-mirror.conf"


@dataclass(frozen=True, slots=True)
class MirrorUrl:
    """The address of the mirror, as clients see it. Make one with `parse`.

    Attributes:
        host: the host, with a port if the URL has one.
        path: empty, or beginning with a slash.
    """

    scheme: str
    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> MirrorUrl:
        """Parse `http[s]://HOST[:PORT][/PATH]`. Raises InvalidUrl."""
        try:
            parts = urlsplit(text)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        plain = not (parts.query or parts.fragment or "@" in parts.netloc) and not set(text) & set(" \"'\\\n\t")
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain or not text.isprintable():
            raise InvalidUrl(text, "expected one like http://mirror.example:5000, with https if the mirror has a certificate")
        return cls(parts.scheme, parts.netloc.lower(), parts.path.rstrip("/").removesuffix("/v2"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Whether it means the host, or the container, of the client itself."""
        name = self.host.rpartition(":")[0] or self.host
        return name in ("localhost", "[::1]") or name.startswith("127.")


@dataclass(frozen=True, slots=True)
class MirroredRegistry:
    """A registry of the mirror.

    Attributes:
        server: the URL of the registry itself, which a client asks when the mirror does not answer.
        is_default: the mirror looks there for names without a registry.
    """

    name: str
    server: str
    is_default: bool

    @classmethod
    def of(cls, name: str, upstreams: Iterable[str], *, is_default: bool) -> MirroredRegistry:
        """Return the registry of a name. An upstream on the same host says whether the registry has TLS."""
        if name == DOCKER_HUB:
            return cls(name, _HUB_SERVER, is_default)
        own = (url.rstrip("/") for url in upstreams if urlsplit(url).netloc == name)
        return cls(name, next(own, f"https://{name}"), is_default)


@dataclass(frozen=True, slots=True)
class Mirror:
    """What the configuration of a client has to say.

    Attributes:
        ca: path of the certificate authority's file on the client's host; None if the system trusts the mirror's certificate.
    """

    url: MirrorUrl
    registries: tuple[MirroredRegistry, ...]
    ca: str | None = None

    def of(self, name: str) -> MirroredRegistry | None:
        """Return the registry of a name; None if the mirror does not have it."""
        return next((registry for registry in self.registries if registry.name == name), None)

    @property
    def sample(self) -> str:
        """An image for trying it out."""
        hub = self.of(DOCKER_HUB)
        return "docker.io/library/alpine:latest" if hub else f"{self.registries[0].name}/REPOSITORY:TAG"


@dataclass(frozen=True, slots=True)
class ClientSetup:
    """The configuration of one client.

    Attributes:
        files: to be written.
        by_hand: parts of files that only a person can edit.
        commands: what makes the client use them; shell commands.
        checks: commands that show whether it does.
        notes: what else to know, a sentence each.
    """

    files: tuple[ConfigFile, ...]
    commands: tuple[str, ...]
    checks: tuple[str, ...]
    notes: tuple[str, ...] = ()
    by_hand: tuple[ConfigFile, ...] = ()


def client_setup(client: str, mirror: Mirror) -> ClientSetup:
    """Return the configuration of a client, one of `CLIENTS`, for all registries of the mirror."""
    return CLIENTS[client](mirror)


def _docker(mirror: Mirror) -> ClientSetup:
    files, notes = [], []
    hub = mirror.of(DOCKER_HUB)
    if hub is not None:
        # Docker names no registry, so a mirror with another default needs it in the path.
        url = str(mirror.url) + ("" if hub.is_default else f"/{DOCKER_HUB}")
        text = json.dumps({"registry-mirrors": [url]}, indent=2) + "\n"
        files.append(ConfigFile("/etc/docker/daemon.json", text, Merge.DAEMON_JSON))
        notes.append("Docker refuses to start if --registry-mirror is also among its arguments.")
        if urlsplit(url).path:
            notes.append("A path in registry-mirrors needs Docker 24 or newer.")
    others = [registry for registry in mirror.registries if registry.name != DOCKER_HUB]
    if others:
        names = ", ".join(registry.name for registry in others)
        notes.append(f"{names}: only Docker 29 and newer with the containerd image store use a mirror for these.")
    files += _hosts_files("/etc/docker/certs.d", mirror, others)
    check = "docker info --format '{{json .RegistryConfig.Mirrors}}'" if hub else f"docker pull {mirror.sample}"
    return ClientSetup(
        tuple(files),
        (*_install_ca(mirror, "/etc/docker/certs.d"), "systemctl reload docker"),
        (_ping(mirror), check),
        tuple(notes),
    )


def _containerd(mirror: Mirror) -> ClientSetup:
    directory = "/etc/containerd/certs.d"
    table = (
        "# Only if the file does not set config_path yet, followed by one restart of containerd. containerd 2:\n"
        "version = 3\n"
        '[plugins."io.containerd.cri.v1.images".registry]\n'
        f'  config_path = "{directory}"\n'
        "# containerd 1:\n"
        "# version = 2\n"
        '# [plugins."io.containerd.grpc.v1.cri".registry]\n'
        f'#   config_path = "{directory}"\n'
    )
    return ClientSetup(
        tuple(_hosts_files(directory, mirror, mirror.registries)),
        (),
        (_ping(mirror), f"ctr images pull --hosts-dir {directory} {mirror.sample}", f"crictl pull {mirror.sample}"),
        ("containerd reads hosts.toml at each pull: no reload is needed.",),
        (ConfigFile("/etc/containerd/config.toml", table, Merge.CREATE),),
    )


def _podman(mirror: Mirror) -> ClientSetup:
    notes = ("podman, skopeo and buildah read the file at each run: no reload is needed.", *_behind_v2(mirror, "podman"))
    return ClientSetup(
        (_registries_file(mirror),),
        _install_ca(mirror, "/etc/containers/certs.d"),
        (_ping(mirror), f"podman pull {mirror.sample}"),
        notes,
    )


def _crio(mirror: Mirror) -> ClientSetup:
    commands = (*_install_ca(mirror, "/etc/containers/certs.d"), "systemctl reload crio")
    checks = (_ping(mirror), f"crictl pull {mirror.sample}")
    return ClientSetup((_registries_file(mirror),), commands, checks, _behind_v2(mirror, "CRI-O"))


def _buildkit(mirror: Mirror) -> ClientSetup:
    path = "/etc/buildkit/buildkitd.toml"
    location = f"{mirror.url.host}{mirror.url.path}"
    tables = [f'[registry."{registry.name}"]\n  mirrors = ["{location}"]\n' for registry in mirror.registries]
    own = "  http = true\n" if mirror.url.scheme == "http" else f'  ca = ["{mirror.ca}"]\n' if mirror.ca else ""
    if own:
        tables.append(f'[registry."{mirror.url.host}"]\n{own}')
    notes = ["A builder of buildx reads the file when it is created; builders of the default driver use Docker's configuration."]
    if mirror.url.is_loopback:
        notes.append(f"{mirror.url.host} is the builder itself if that is a container: add --driver-opt network=host.")
    commands = ("systemctl restart buildkit", f"docker buildx create --use --driver docker-container --config {path}")
    checks = (_ping(mirror), f"echo 'FROM {mirror.sample}' | docker buildx build --pull -")
    return ClientSetup(
        (ConfigFile(path, "".join(tables), Merge.CREATE),), commands, checks, (*notes, *_behind_v2(mirror, "BuildKit"))
    )


def _k3s(mirror: Mirror) -> ClientSetup:
    # A path replaces the default one, /v2, as a whole.
    endpoint = f"{mirror.url}/v2" if mirror.url.path else str(mirror.url)
    lines = ["mirrors:"]
    for registry in mirror.registries:
        lines += [f'  "{registry.name}":', f'    endpoint: ["{endpoint}"]']
    if mirror.ca and mirror.url.scheme == "https":
        lines += ["configs:", f'  "{mirror.url.host}":', f'    tls: {{ca_file: "{mirror.ca}"}}']
    return ClientSetup(
        (ConfigFile("/etc/rancher/k3s/registries.yaml", "\n".join(lines) + "\n", Merge.CREATE),),
        ("systemctl restart k3s",),
        (_ping(mirror), f"k3s crictl pull {mirror.sample}"),
        (
            "Every node needs the file. On an agent the service is k3s-agent.",
            "RKE2 has the same file as /etc/rancher/rke2/registries.yaml, and the services rke2-server and rke2-agent.",
        ),
    )


CLIENTS: Mapping[str, Callable[[Mirror], ClientSetup]] = MappingProxyType({
    "docker": _docker,
    "containerd": _containerd,
    "podman": _podman,
    "crio": _crio,
    "buildkit": _buildkit,
    "k3s": _k3s,
})  # fmt: skip


def _hosts_files(directory: str, mirror: Mirror, registries: Iterable[MirroredRegistry]) -> list[ConfigFile]:
    """Return a hosts.toml for each registry (containerd, docs/hosts.md)."""
    files = []
    for registry in registries:
        text = f'{MARKER}\nserver = "{registry.server}"\n\n[host."{mirror.url}"]\n  capabilities = ["pull", "resolve"]\n'
        if mirror.ca and mirror.url.scheme == "https":
            text += f'  ca = "{mirror.ca}"\n'
        files.append(ConfigFile(f"{directory}/{registry.name}/hosts.toml", text, Merge.OWN_FILE))
    return files


def _registries_file(mirror: Mirror) -> ConfigFile:
    text = MARKER + "\n"
    for registry in mirror.registries:
        # These clients name no registry, so all but the default one need it in the path.
        location = f"{mirror.url.host}{mirror.url.path}" + ("" if registry.is_default else f"/{registry.name}")
        text += f'\n[[registry]]\nprefix = "{registry.name}"\nlocation = "{registry.name}"\n'
        if registry.server.startswith("http:"):
            text += "insecure = true\n"
        text += f'\n[[registry.mirror]]\nlocation = "{location}"\n'
        if mirror.url.scheme == "http":
            text += "insecure = true\n"
    return ConfigFile(_REGISTRIES_FILE, text, Merge.OWN_FILE)


def _install_ca(mirror: Mirror, directory: str) -> tuple[str, ...]:
    if mirror.ca is None or mirror.url.scheme == "http":
        return ()
    return (f"install -D -m 644 {mirror.ca} {directory}/{mirror.url.host}/ca.crt",)


def _behind_v2(mirror: Mirror, client: str) -> tuple[str, ...]:
    if not mirror.url.path:
        return ()
    return (f"{client} asks for /v2{mirror.url.path}/… at {mirror.url.host}, with the path after /v2.",)


def _ping(mirror: Mirror) -> str:
    trust = f" --cacert {mirror.ca}" if mirror.ca and mirror.url.scheme == "https" else ""
    return f"curl -fsS{trust} {mirror.url.scheme}://{mirror.url.host}{mirror.url.path}/v2/"
