"""The status page of a mirror of several workers: one session, one set of figures, whichever of them answers."""

from tests.support.browser import Browser
from tests.support.names import APP, TAG
from tests.support.waiting import eventually
from tests.workers.cluster import Cluster


async def test_any_worker_knows_a_session(hub, tmp_path):
    """Who has signed in at one worker is signed in at the other, and both show the pulls of both."""
    hub.add_image(APP, "1")
    (tmp_path / "token").write_text("s3cret")
    mirror = Cluster(hub, tmp_path)
    mirror.write(admin={**mirror.settings["admin"], "token_file": str(tmp_path / "token")})
    async with mirror:
        workers = mirror.workers()
        for worker in workers:
            await (await mirror.pull(TAG, worker)).rest()
        browser = Browser(mirror)
        assert (await browser.send("/sign-in", {"token": "s3cret"})).status == 303
        # The name of a cookie has the port of `Host`; what follows sends none.
        cookie = browser.cookie.replace(f"-{mirror.admin_port}", "")
        for worker in workers:

            async def shown(worker=worker):
                return (await mirror.page("/", worker, f"Cookie: {cookie}"))[1]

            # Each worker publishes its counts every second.
            await eventually(shown, holds=lambda text: "1 of 2 manifests and blobs from the store" in text)
            answer, _ = await mirror.page("/", worker)
            assert (answer.status, answer.headers["location"]) == (303, "/sign-in")
