"""The ten steps of a cold pull in ARCHITECTURE.md name the files that it crosses."""

import re
import sys

from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, MIB, TAG, blob_path, content, manifest_path
from tests.support.rooms import DOCUMENT


def named_files():
    steps = re.search(r"^## A cold pull in ten steps\n(.*?)^## ", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r"^\| \d+ \|.*$", steps, re.MULTILINE)
    assert len(rows) == 10
    return {file for row in rows for file in re.findall(r"`([\w/]+\.py)`", row)}


async def test_cold_pull_crosses_every_named_file(hub, tmp_path):
    image = hub.add_image(APP, "1", layers=[content(3 * MIB)])
    crossed = set()
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"prefetch": True}) as mirror:
        sys.setprofile(lambda frame, event, _: crossed.add(frame.f_code.co_filename.rpartition("/mirror/")[2]))
        try:
            await mirror.head(TAG)
            await mirror.get(manifest_path(image.digest))
            for blob in [image.config, *image.layers]:
                await mirror.get(blob_path(blob))
            await mirror.idle()
        finally:
            sys.setprofile(None)
    assert named_files() - crossed == set()
