"""What each kind of file names."""

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.image_lists.reader import read

ENVIRONMENT = {"TAG": "1.27", "EMPTY": "", "ARCH": "arm64"}


def found(name, text, environment=ENVIRONMENT):
    return read(name, dedent(text), environment)


def named(name, text):
    """The images of a file without a mistake, with the platform behind the name where there is one."""
    findings = found(name, text)
    assert not findings.mistakes
    return [f"{one.image} {one.platform}" if one.platform else one.image for one in findings.images]


def mistakes(name, text):
    """The mistakes of a file, without its name."""
    findings = found(name, text)
    assert all(line.startswith(f"{name}:") for line in findings.mistakes)
    return [line.removeprefix(f"{name}:") for line in findings.mistakes]


def test_plain_list():
    """Comments and empty lines are no images; tags may be globs."""
    text = """
        # for the ship
        nginx:1.27
        ghcr.io/owner/app:2.*    # all of them
        nginx:1.27

        quay.io/a/b@sha256:{}
    """.replace("{}", "a" * 64)
    assert named("images.txt", text) == ["nginx:1.27", "ghcr.io/owner/app:2.*", f"quay.io/a/b@sha256:{'a' * 64}"]


def test_mistakes_of_a_plain_list():
    """Every one is named with its line."""
    first, second = mistakes("images.txt", "nginx\nNginx:1\nnginx redis\n")
    assert first.startswith("2: ")
    assert "Nginx" in first
    assert second == "3: one image per line, not nginx redis"


def test_compose_file():
    """Variables have the values of the environment, and merge keys those of their mappings."""
    text = """
        x-base: &base
          image: redis:${REDIS:-7}
        services:
          web: {image: "nginx:$TAG", platform: linux/$ARCH}
          cache:
            <<: *base
          cache2:
            <<: [{image: redis:6}, *base]
          app:
            build: .
            image: example/app
          nested: {image: "${NONE:-${TAG:+alpine}}"}
          plain: {image: "a/b${EMPTY-x}:${EMPTY:-1}"}
          extending: {extends: web}
    """
    assert named("compose.yaml", text) == ["nginx:1.27 linux/arm64", "redis:7", "redis:6", "alpine", "a/b:1"]
    assert found("compose.yaml", text).left_out == [
        "compose.yaml:11: service app is built: its Dockerfile names what that takes",
    ]


def test_mistakes_of_a_compose_file():
    """A variable without a value names nothing, though Compose would take it for an empty one."""
    text = """\
        services:
          a: {image: "nginx:${NO_SUCH}"}
          b: {image: "nginx:${NO_SUCH:?set it}"}
          c: {image: "nginx:${TAG"}
          d: {command: x}
          e: {image: [nginx]}
          f:
            image: nginx
            image: redis
          g: {image: nginx, platform: nonsense}
          h: {image: "nginx:$"}
    """
    lines = mistakes("compose.yaml", text)
    assert lines[:7] == [
        "2: NO_SUCH is not set and has no default",
        "3: NO_SUCH is not set: set it",
        "4: ${TAG has no closing brace",
        "5: service d has no image",
        "6: the image of service e has to be text",
        "9: the key image stands there twice",
        lines[6],
    ]
    assert lines[6].startswith("10: ")
    assert "nonsense" in lines[6]
    assert lines[7:] == ["11: a $ stands before no name"]


def test_braces_that_close_nothing():
    """They are plain text, however many there are."""
    (mistake,) = mistakes("compose.yaml", f"services: {{a: {{image: '$TAG{'}' * 5000}'}}}}")
    assert mistake.startswith("1: invalid name '1.27}}}}")


def test_what_other_files_hold_is_left_out():
    """It is said, and names no image."""
    text = """\
        include: [other.yaml]
        services:
          a: {extends: {file: common.yaml, service: b}}
    """
    findings = found("compose.yaml", text)
    assert not findings.images
    assert not findings.mistakes
    assert [line.split(":")[1] for line in findings.left_out] == ["1", "3"]


def test_kubernetes_manifests():
    """Of every document, wherever a pod stands in it."""
    text = """
        apiVersion: v1
        kind: Pod
        metadata: {name: a, annotations: {image: not/this}}
        spec:
          initContainers: [{name: i, image: busybox:1}]
          containers: [{name: c, image: nginx:1.27}]
          volumes: [{name: v, image: {reference: example.org/data:1}}, {name: w, emptyDir: {}}]
        ---
        ---
        apiVersion: v1
        kind: List
        items:
        - apiVersion: batch/v1
          kind: CronJob
          spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: redis:7}, {name: no-image}]}}}}}
        - apiVersion: example.org/v1
          kind: Custom
          spec: {sidecar: {ephemeralContainers: [{image: alpine}]}}
    """
    assert named("all.yaml", text) == ["busybox:1", "nginx:1.27", "example.org/data:1", "redis:7", "alpine"]


def test_templates_are_rendered_first():
    """Helm's charts are no manifests."""
    text = """\
        apiVersion: v1
        kind: Pod
        spec: {containers: [{image: "{{ .Values.image }}"}]}
    """
    assert mistakes("pod.yaml", text) == ["3: {{ .Values.image }} is a template: render it first"]


def test_aliases_of_aliases():
    """What is named again and again is looked at once: 10 to the power of 40 paths lead to one image."""
    levels = "\n".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 40))
    text = f"apiVersion: v1\nkind: X\nspec:\n  l0: &l0 {{containers: [{{image: nginx}}]}}\n{levels}\n"
    assert named("bomb.yaml", text) == ["nginx"]
    assert found("loop.yaml", "&a\napiVersion: v1\nkind: X\nspec: *a\n").mistakes == ["loop.yaml:1: no image is named here"]


@pytest.mark.parametrize("text", ["a: [", "services: {a: {image: '", "a: b: c", "[" * 5000, "%YAML 9\n"])
def test_text_that_is_not_yaml(text):
    """The parser's complaint has the line."""
    (mistake,) = found("x.yaml", text).mistakes
    assert mistake.startswith("x.yaml:1: is not YAML: ") or "not YAML" in mistake


def test_yaml_of_another_kind():
    """It is named by the line where it begins."""
    assert mistakes("x.yaml", "a: 1\n---\n- b\n") == [
        f"{line}: is neither a compose file nor a Kubernetes manifest" for line in (1, 3)
    ]


def test_dockerfile():
    """Stages, other stages' images, and what the instructions copy from."""
    text = r"""
        # syntax=docker/dockerfile:1
        # a comment
        ARG VERSION=1.27 VARIANT="alpine"
        ARG IMAGE=nginx:${VERSION}-$VARIANT
        FROM --platform=$BUILDPLATFORM golang:1.24 AS Build
        RUN --mount=type=bind,from=tools:2,target=/t \
            # in between

            --mount=type=cache,from=build,target=/c echo "FROM no/image"
        RUN <<EOF
        FROM no/image
        EOF
        RUN echo $((1 << TWO)) <<< "$x"
        FROM --platform=linux/arm64 ${IMAGE} \
          AS final
        COPY --from=build /a /b
        COPY --chown=1 --from=ghcr.io/owner/files:1 /a /b
        COPY --from=0 /a /b
        FROM build
        FROM scratch
        COPY <<"END" /x
        FROM no/image
        END
    """
    text = dedent(text).lstrip()
    assert named("Dockerfile", text) == [
        "docker/dockerfile:1",
        "golang:1.24",
        "tools:2",
        "nginx:1.27-alpine linux/arm64",
        "ghcr.io/owner/files:1",
    ]


def test_another_escape_character():
    """Windows' paths end in a backslash."""
    assert named("Dockerfile.windows", "# escape=`\nFROM a`\nAS b\nRUN dir c:\\\nFROM d\n") == ["a", "d"]


def test_mistakes_of_a_dockerfile():
    """Also without a stage."""
    assert mistakes("Dockerfile", "ARG V\nFROM nginx:$V\nFROM a b\nFROM\n") == [
        "2: V is not set and has no default",
        "3: FROM takes an image, and perhaps AS and a name, not a b",
        "4: FROM takes an image, and perhaps AS and a name, not ",
    ]
    assert mistakes("Dockerfile", "RUN true\n") == ["1: there is no FROM"]
    assert mistakes("Dockerfile", "ARG A='x\nFROM a\n") == ["1: ARG A='x: No closing quotation"]


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("services: {a: {image: nginx}}", "nginx"),
        ("# a list\n\nnginx\n", "nginx"),
        ('{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "nginx"}]}}', "nginx"),
        ("---\napiVersion: v1\nkind: Pod\nspec: {containers: [{image: nginx}]}", "nginx"),
        ("# comment\nfrom nginx", "nginx"),
        ("arg a=nginx\nfrom $a", "nginx"),
        ("localhost:5000/a", "localhost:5000/a"),
    ],
)
def test_kind_by_content(text, image):
    """Standard input has no name."""
    assert named("standard input", text) == [image]


def test_a_file_that_names_nothing():
    """It is a mistake: an empty list may stand for everything elsewhere."""
    assert mistakes("images.txt", "# nothing\n") == ["1: no image is named here"]
    assert mistakes("x.yaml", "") == ["1: no image is named here"]


_DOCKERFILE = ["FROM ", "ARG A=", "COPY --from=", "RUN <<E\n", "\\", "'", '"', "$A", "${", "}", ":-"]
_YAML = ["services:", "image: ", "- ", "<<: ", "*a", "&a ", "containers:", "apiVersion: v1\nkind: X\n", "---\n", "!!binary "]
_PIECES = st.sampled_from([*_DOCKERFILE, *_YAML, "\n", "  ", "#", "nginx", "[", "]", "{", "%", "\t", "\x00", "é"])


@given(st.lists(_PIECES, max_size=30).map("".join), st.sampled_from(["Dockerfile", "a.yaml", "a.txt"]))
def test_any_text_gets_an_answer(text, name):
    """Whatever a file holds, there is an image, something left out, or a mistake with a line."""
    findings = read(name, text, ENVIRONMENT)
    assert findings.images or findings.left_out or findings.mistakes
    assert all(line.split(":")[1].isdecimal() and "\n" not in line for line in findings.mistakes)
