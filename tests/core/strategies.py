"""What is valid, as hypothesis strategies shared by the tests of the core."""

from hypothesis import strategies as st

from mirror.core.digest import Digest

PATH_COMPONENT = r"\A[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}\Z"
REGISTRY = r"\A[a-z]{1,8}(-[a-z0-9]{1,4})?\.[a-z]{2,6}(:[1-9][0-9]{0,3})?\Z"
TAG = r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,40}\Z"

digests = st.builds(Digest.of, st.binary(max_size=16), st.sampled_from(["sha256", "sha512"]))
tags = st.from_regex(TAG)
paths = st.lists(st.from_regex(PATH_COMPONENT), min_size=1, max_size=4).map("/".join)
registries = st.one_of(st.from_regex(REGISTRY), st.sampled_from(["docker.io", "localhost", "localhost:5000"]))
