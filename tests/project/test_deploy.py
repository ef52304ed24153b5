"""What is in deploy/ is valid, fits together, and configures the mirror. `tests/e2e/test_image.py` builds the image."""

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from mirror.config.model import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
# Custom resources: their schemas are not Kubernetes' own.
CUSTOM = {"Kustomization", "ServiceMonitor"}
# The oldest release that was still maintained when these were written, and the newest.
RELEASES = ("1.34", "1.37")


def documents():
    return {str(path.relative_to(KUBERNETES)): yaml.safe_load(path.read_text()) for path in KUBERNETES.rglob("*.yaml")}


def named(kind, within="."):
    (found,) = [
        document for path, document in documents().items() if (document["kind"], str(Path(path).parent)) == (kind, within)
    ]
    return found


def pod_of(document):
    return document["spec"]["template"]


def patched():
    """The DaemonSet of the nodes of a cluster: that of `node` with the patches that kustomize would apply."""
    document = named("DaemonSet", "node")
    (patch,) = yaml.safe_load((KUBERNETES / "node-cluster" / "kustomization.yaml").read_text())["patches"]
    assert (patch["target"]["kind"], patch["target"]["name"]) == (document["kind"], document["metadata"]["name"])
    for step in yaml.safe_load(patch["patch"]):
        *path, last = [int(part) if part.isdigit() else part for part in step["path"].split("/")[1:]]
        parent = document
        for part in path:
            parent = parent[part]
        if last == "-":
            parent.append(step["value"])
        else:
            assert (last in parent) == (step["op"] == "replace")
            parent[last] = step["value"]
    return document


def workloads():
    return [named("Deployment"), named("DaemonSet", "node"), named("StatefulSet", "cluster"), patched()]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", [path for path, document in documents().items() if document["kind"] not in CUSTOM])
def test_manifests_validate(path, release):
    """Against the schema of the API; fields that it does not know are mistakes."""
    kubernetes_validate.validate(documents()[path], release, strict=True)


def test_a_misspelt_field_is_found():
    """The validation refuses what the API server would ignore."""
    document = named("Deployment")
    container = pod_of(document)["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, RELEASES[-1], strict=True)


@pytest.mark.parametrize("release", RELEASES)
def test_patched_manifest_validates(release):
    kubernetes_validate.validate(patched(), release, strict=True)


@pytest.mark.parametrize("folder", [KUBERNETES, KUBERNETES / "node", KUBERNETES / "cluster"])
def test_kustomization_names_every_file(folder):
    """And the image that the manifests use, in the version of the project."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization["resources"] == sorted(path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    (image,) = kustomization["images"]
    assert image["newTag"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for document in workloads():
        spec = pod_of(document)["spec"]
        assert {container["image"] for container in [*spec["containers"], *spec.get("initContainers", [])]} == {image["name"]}


def test_service_reaches_the_pods():
    """By label and by the names of ports; the monitor finds the service."""
    service, pod, monitor = named("Service"), pod_of(named("Deployment")), named("ServiceMonitor")
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items()
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    # A mirror of a node is none of the service's.
    assert not service["spec"]["selector"].items() <= pod_of(named("DaemonSet", "node"))["metadata"]["labels"].items()


@pytest.mark.parametrize("document", workloads(), ids=lambda document: document["kind"])
def test_mirror_runs_without_privileges(document):
    """As the user of the image, on a root file system that it cannot write."""
    (user,) = re.findall(r"^USER (\d+):\1$", CONTAINERFILE, re.MULTILINE)
    spec = pod_of(document)["spec"]
    (container,) = spec["containers"]
    settings = {**spec["securityContext"], **container["securityContext"]}
    assert settings["runAsNonRoot"]
    assert settings["readOnlyRootFilesystem"]
    assert not settings["allowPrivilegeEscalation"]
    assert settings["capabilities"] == {"drop": ["ALL"]}
    assert settings["seccompProfile"] == {"type": "RuntimeDefault"}
    assert settings["runAsUser"] == settings["runAsGroup"] == int(user)
    assert not spec["automountServiceAccountToken"]
    # The mirror lets running responses go on for 30 s.
    assert spec["terminationGracePeriodSeconds"] > 30


def test_nodes_of_a_cluster():
    """Clients reach the nodes, which reach each other and Redis; a policy leaves their port to them; all have the secret."""
    pod = pod_of(named("StatefulSet", "cluster"))
    labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for path, service in documents().items():
        if service["kind"] == "Service" and path.startswith("cluster/") and not path.startswith("cluster/redis"):
            assert service["spec"]["selector"].items() <= labels.items()
            assert all(ports[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    config = yaml.safe_load(named("ConfigMap", "cluster")["data"]["mirror.yaml"])["cluster"]
    redis = yaml.safe_load((KUBERNETES / "cluster" / "redis-service.yaml").read_text())
    assert config["redis"]["url"] == f"redis://{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}/0"
    assert config["listen"] == f":{ports['nodes']}"
    for folder, workload in (("cluster", named("StatefulSet", "cluster")), ("node-cluster", patched())):
        spec, policy = pod_of(workload)["spec"], named("NetworkPolicy", folder)["spec"]
        (node,) = spec["containers"]
        assert {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}} in node["env"]
        assert "/run/secrets/registry-mirror-cluster" in {mount["mountPath"] for mount in node["volumeMounts"]}
        assert "registry-mirror-cluster" in {volume.get("secret", {}).get("secretName") for volume in spec["volumes"]}
        assert spec["securityContext"]["fsGroup"] == 10001
        selected = pod_of(workload)["metadata"]["labels"]
        (rule,) = [rule for rule in policy["ingress"] if {"port": "nodes"} in rule["ports"]]
        (source,) = rule["from"]
        assert source["podSelector"]["matchLabels"] == policy["podSelector"]["matchLabels"] == selected


@pytest.mark.parametrize(("within", "kind"), [(".", "Deployment"), ("node", "DaemonSet"), ("cluster", "StatefulSet")])
def test_configuration(within, kind, tmp_path):
    """The mirror takes it; its ports and its store are those of the pod."""
    text = named("ConfigMap", within)["data"]["mirror.yaml"]
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "secret").write_text("a secret of forty characters, more or less\n")
    text = text.replace("/run/secrets/registry-mirror-cluster", str(tmp_path))
    (tmp_path / "mirror.yaml").write_text(text.replace("/run/secrets/registry-mirror", str(tmp_path)))
    config = load(tmp_path / "mirror.yaml")
    (container,) = pod_of(named(kind, within))["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.listen.port == ports["registry"]
    assert not config.listen.is_loopback
    assert ports.get("admin", config.admin.listen.port) == config.admin.listen.port
    assert config.admin.listen.is_loopback == ("admin" not in ports)
    assert ports.get("nodes", config.cluster.listen.port) == config.cluster.listen.port
    assert config.cluster.is_enabled == ("nodes" in ports)
    assert str(config.storage.path) in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_hosts_toml():
    """containerd's file names the port of the node, and Docker Hub where the mirror does not answer."""
    hosts = tomllib.loads(named("ConfigMap", "node")["data"]["hosts.toml"])
    (container,) = pod_of(named("DaemonSet", "node"))["spec"]["containers"]
    (port,) = container["ports"]
    assert hosts["server"] == "https://registry-1.docker.io"
    assert hosts["host"] == {f"http://{port['hostIP']}:{port['hostPort']}": {"capabilities": ["pull", "resolve"]}}


def test_image_configuration():
    """Others reach the registry address; only the container itself reaches the admin address, as its health check does."""
    config = load(DEPLOY / "mirror.yaml")
    assert not config.listen.is_loopback
    assert config.admin.listen.is_loopback
    assert f"http://127.0.0.1:{config.admin.listen.port}/healthz" in CONTAINERFILE
    assert re.findall(r"^EXPOSE (.*)$", CONTAINERFILE, re.MULTILINE) == [str(config.listen.port)]
    assert re.findall(r"^VOLUME (.*)$", CONTAINERFILE, re.MULTILINE) == [str(config.storage.path)]


def test_compose():
    """It builds this image, and runs it without privileges where its store lies."""
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    config = load(DEPLOY / "mirror.yaml")
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"] == [f"127.0.0.1:{config.listen.port}:{config.listen.port}"]
    assert f"store:{config.storage.path}" in service["volumes"]
