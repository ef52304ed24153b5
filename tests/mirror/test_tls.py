"""TLS at the registry address, end to end."""

import asyncio
import contextlib
import hashlib
import socket
import ssl
import threading

import aiohttp
import pytest

from mirror.config.model import load
from mirror.errors import ConfigurationError
from tests.fakehub import Corrupt, Rule
from tests.mirror.commands import command
from tests.support.certificates import Authority, openssl
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, blob_path, content
from tests.support.waiting import LIMIT, SOON, eventually


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Who issues certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def served(authority):
    """The mirror's certificate and key."""
    return authority.issue("mirror")


@pytest.fixture
def trust(authority):
    """A client's context that trusts the authority."""
    return ssl.create_default_context(cafile=authority.certificate)


def tls(certificate, key=None, client_ca=None):
    return {"certificate": certificate, **({"key": key} if key else {}), **({"client_ca": client_ca} if client_ca else {})}


@pytest.fixture
async def mirror(hub, tmp_path, served):
    """A mirror that speaks TLS."""
    async with MirrorUnderTest(hub, tmp_path / "store", tls=tls(*served)) as running:
        yield running


@contextlib.asynccontextmanager
async def connection(mirror, context):
    reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", mirror.port, ssl=context), LIMIT)
    try:
        yield reader, writer
    finally:
        writer.close()


async def common_name(mirror, context):
    """The name in the certificate that a new connection is shown."""
    async with connection(mirror, context) as (_, writer):
        subject = writer.get_extra_info("peercert")["subject"]
    return dict(pair for part in subject for pair in part)["commonName"]


async def test_everything_by_tls(hub, mirror, trust):
    """Manifests, blobs cold and held, ranges and several of them come byte for byte."""
    data = content(3_000_001, 1)
    image = hub.add_image("library/app", "1", layers=[data])
    layer = image.layers[0]
    blob = f"/v2/library/app/blobs/{layer.digest}"
    assert (await mirror.get("/v2/library/app/manifests/1", ssl=trust)).body == image.raw
    for outcome in ("MISS", "HIT"):
        answer = await mirror.get(blob, ssl=trust)
        assert (answer.status, answer.cache, answer.sha256) == (200, outcome, layer.digest)
        await mirror.idle()
    for start, stop in ((0, 0), (5, 300_000), (262_143, 262_144), (2_999_999, 3_000_000)):
        answer = await mirror.get(blob, ssl=trust, headers={"Range": f"bytes={start}-{stop}"})
        assert (answer.status, answer.body) == (206, layer.data[start : stop + 1])
    answer = await mirror.get(blob, ssl=trust, headers={"Range": "bytes=1-2,4-7"})
    assert layer.data[4:8] in answer.body
    assert (await mirror.head(blob, ssl=trust)).headers["Content-Length"] == str(layer.size)


async def test_many_readers(hub, mirror, trust):
    """Readers of a blob while it arrives and after it get the same bytes."""
    data = content(2_000_000, 2)
    digest = hub.add_image("library/app", "1", layers=[data]).layers[0].digest
    answers = await asyncio.gather(*(mirror.get(f"/v2/library/app/blobs/{digest}", ssl=trust) for _ in range(20)))
    assert {answer.sha256 for answer in answers} == {digest}
    assert {hashlib.sha256(answer.body).hexdigest() for answer in answers} == {digest.partition(":")[2]}


async def until_goodbye(mirror, context, request):
    """What is answered until close_notify and then a FIN; a connection that ends without either raises."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    answer, asked = b"", False
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                if not asked:
                    client.do_handshake()
                    client.write(request)
                    asked = True
                if not (part := client.read(65536)):
                    break
                answer += part
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                if data := await reader.read(65536):
                    incoming.write(data)
                else:
                    incoming.write_eof()
        with contextlib.suppress(ssl.SSLError):
            client.unwrap()
        writer.write(outgoing.read())
        assert await reader.read() == b""
    writer.close()
    return answer


async def test_last_answer_ends_in_order(mirror, trust):
    """A connection that ends after an answer ends with TLS's own goodbye."""
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await until_goodbye(mirror, trust, request)).endswith(b"\r\n\r\n{}")


async def test_short_body_ends_in_order(hub, mirror, trust):
    """A body that cannot be completed ends short and with TLS's own goodbye: nobody can take it for an attack on the way."""
    data = content(1_000_000, 3)
    layer = hub.add_image("library/app", "1", layers=[data]).layers[0]
    hub.script(Rule(kind="blob", times=None), Corrupt(at=700_000))
    request = f"GET /v2/library/app/blobs/{layer.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    head, _, body = (await until_goodbye(mirror, trust, request)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    # The mirror may know that it is wrong before the client has read much.
    assert 0 < len(body) < layer.size
    assert body[:700_000] == layer.data[: min(len(body), 700_000)]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions(mirror, trust, version):
    """TLS 1.2 and 1.3 are spoken, and HTTP/1.1 is what is agreed on."""
    trust.minimum_version = trust.maximum_version = version
    trust.set_alpn_protocols(["h2", "http/1.1"])
    async with connection(mirror, trust) as (_, writer):
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions(mirror, trust):
    """What is older is refused."""
    trust.set_ciphers("ALL:@SECLEVEL=0")
    trust.minimum_version, trust.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with connection(mirror, trust):
            pass


async def test_no_tls_spoken(mirror, trust, quiet):
    """Whoever does not speak TLS gets no answer and disturbs nobody."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), LIMIT)
    writer.close()
    assert (await mirror.get("/v2/", ssl=trust)).status == 200
    quiet()


async def test_command_at_a_port_with_tls(mirror, tmp_path):
    """A command that is given the registry's address, without TLS, is told so."""
    code, _, complaint = await command("status", "--url", f"http://127.0.0.1:{mirror.port}", directory=tmp_path)
    (line,) = complaint.splitlines()
    assert (code, "as a port with TLS does; the admin address has another one" in line) == (1, True)


async def test_client_certificates(hub, tmp_path, authority, served, trust):
    """With `client_ca`, only clients with a certificate of that authority are served."""
    clients, others = Authority(tmp_path / "clients", "clients"), Authority(tmp_path / "others", "others")
    async with MirrorUnderTest(hub, tmp_path / "store", tls=tls(*served, clients.certificate)) as mirror:
        for given in (None, others.issue("stranger"), authority.issue("neighbour")):
            context = ssl.create_default_context(cafile=authority.certificate)
            if given is not None:
                context.load_cert_chain(*given)
            with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
                await mirror.get("/v2/", ssl=context)
        trust.load_cert_chain(*clients.issue("client"))
        assert (await mirror.get("/v2/", ssl=trust)).status == 200


async def test_renewed_certificate(hub, tmp_path, authority, trust, monkeypatch, log):
    """A certificate renewed on disk is shown to new connections without a restart; standing ones go on; nothing is refused."""
    monkeypatch.setattr("mirror.listener.registry_listener._POLL_INTERVAL_S", 0.02)
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"

    def put(issued, *, halfway=False):
        certificate.write_bytes(issued[0].read_bytes())
        if not halfway:
            key.write_bytes(issued[1].read_bytes())

    async def until(event):
        await eventually(lambda: any(entry["event"] == event for entry in log))

    first, second = authority.issue("first"), authority.issue("second")
    put(first)
    async with (
        MirrorUnderTest(hub, tmp_path / "store", tls=tls(certificate, key)) as mirror,
        connection(mirror, trust) as (reader, writer),
    ):
        assert await common_name(mirror, trust) == "first"
        put(second, halfway=True)
        await until("renewed_files_refused")
        assert await common_name(mirror, trust) == "first"
        put(second)
        await until("renewed_files_in_use")
        assert await common_name(mirror, trust) == "second"
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)


async def test_no_connection_is_lost_by_renewals(hub, tmp_path, served, trust):
    """While certificates are renewed again and again, every new connection is served."""
    async with MirrorUnderTest(hub, tmp_path / "store", tls=tls(*served)) as mirror:
        done = asyncio.Event()

        async def ask():
            count = 0
            while not done.is_set():
                async with connection(mirror, trust) as (reader, writer):
                    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert (await asyncio.wait_for(reader.readline(), LIMIT)).startswith(b"HTTP/1.1 200")
                count += 1
            return count

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        for _ in range(20):
            await mirror.reload()
        done.set()
        assert min(await asyncio.gather(*clients)) > 0


async def test_reload_turns_it_on_and_off(hub, tmp_path, served, trust):
    """A reload brings TLS and takes it away; who is connected stays so."""
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        assert (await mirror.get("/v2/")).status == 200
        await mirror.reload(tls=tls(*served))
        assert (await mirror.get("/v2/", ssl=trust)).status == 200
        mirror.settings.pop("tls")
        await mirror.reload()
        assert (await mirror.get("/v2/")).status == 200


# ---- configuration


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The lines about a `tls` section that cannot be used."""
    monkeypatch.chdir(tmp_path)

    def check(**settings):
        path = tmp_path / "mirror.yaml"
        path.write_text("tls:\n" + "".join(f"  {key}: {value}\n" for key, value in settings.items()))
        with pytest.raises(ConfigurationError) as caught:
            load(path)
        return caught.value.problems

    return check


def test_certificate_and_key_in_one_file(tmp_path, served):
    """One file may hold both."""
    both, path = tmp_path / "both.pem", tmp_path / "mirror.yaml"
    both.write_bytes(served[0].read_bytes() + served[1].read_bytes())
    path.write_text(f"tls: {{certificate: {both}}}")
    assert load(path).tls.certificate == both


def test_useless_files_are_named(problems, tmp_path, authority, served):
    """A file of no use is found when the configuration is read, and named with its key."""
    certificate, key = served
    _, other_key = authority.issue("other")
    passphrase = tmp_path / "passphrase.key"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", passphrase)
    (tmp_path / "text").write_text("nothing")
    for settings, expected in (
        ({"certificate": "/nowhere"}, "tls.certificate: cannot be read: /nowhere"),
        ({"certificate": tmp_path / "text"}, "tls.certificate: holds no certificates"),
        ({"certificate": key, "key": key}, "tls.certificate: holds no certificates"),
        ({"certificate": certificate}, f"tls: holds no key of the certificate in {certificate}"),
        ({"certificate": certificate, "key": certificate}, f"tls.key: holds no key of the certificate in {certificate}"),
        ({"certificate": certificate, "key": other_key}, f"tls.key: holds no key of the certificate in {certificate}"),
        ({"certificate": certificate, "key": passphrase}, f"tls.key: holds no key of the certificate in {certificate}"),
        ({"certificate": certificate, "key": key, "client_ca": key}, "tls.client_ca: holds no certificates"),
        ({"key": key}, "tls: certificate is required with key or client_ca"),
        ({"client_ca": certificate}, "tls: certificate is required with key or client_ca"),
    ):
        (line,) = problems(**settings)
        assert line.startswith(expected)


async def test_names_that_do_not_resolve_stall_no_blob(hub, mirror, trust):
    """Encrypted blobs are read in threads of their own: those that look up names may all be busy."""
    data = content(1 << 20)
    path = blob_path(hub.add_blob(APP, data))
    assert (await mirror.get(path, ssl=trust)).body == data
    go, loop = threading.Event(), asyncio.get_running_loop()
    lookups = [loop.run_in_executor(None, go.wait, LIMIT) for _ in range(100)]
    try:
        async with asyncio.timeout(SOON):
            assert (await mirror.get(path, ssl=trust)).body == data
    finally:
        go.set()
        await asyncio.gather(*lookups)


async def test_names_of_the_certificate(hub, tmp_path, trust, mirror):
    """On loopback a mirror may be called by what its certificate says, and by nothing else."""
    for host, status in (("localhost", 200), ("mirror.example", 200), ("a.wild.example", 200), ("evil.example", 403)):
        certificate = Authority(tmp_path / host, "other").issue("mirror", "DNS:mirror.example,DNS:*.wild.example,IP:127.0.0.1")
        await mirror.reload(tls=tls(*certificate))
        async with mirror.session.get(mirror.url("/v2/"), headers={"Host": host}, ssl=False) as response:
            assert response.status == status, host


async def test_handshakes_that_never_end_are_counted(hub, tmp_path, served, trust):
    """Who opens connections and says nothing has no more of them than others."""
    limits = {"connections_per_address": 3}
    async with (
        MirrorUnderTest(hub, tmp_path / "store", tls=tls(*served), limits=limits) as mirror,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
            stack.callback(writer.close)
        async with mirror.session.get(mirror.url("/v2/"), ssl=trust) as response:
            assert response.status == 429
        await stack.pop_all().aclose()
        async with asyncio.timeout(LIMIT):
            while True:
                async with mirror.session.get(mirror.url("/v2/"), ssl=trust) as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.02)


async def test_memory_of_connections(mirror, trust):
    """Hundreds of connections that only begin to speak TLS take little memory."""
    assert (await mirror.get("/v2/", ssl=trust)).status == 200
    before, sockets = resident(), []
    try:
        for _ in range(200):
            sockets.append(socket.create_connection(("127.0.0.1", mirror.port), timeout=LIMIT))
            sockets[-1].send(b"\x16\x03\x01\x02\x00\x01")
        assert (await mirror.get("/v2/", ssl=trust)).status == 200
        assert resident() - before < 30 << 20
    finally:
        for sock in sockets:
            sock.close()


def resident():
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_stop_during_a_handshake(hub, tmp_path, served):
    """Who has not come to its first request when the mirror stops is not waited for, and leaves nothing behind."""
    async with MirrorUnderTest(hub, tmp_path / "store", tls=tls(*served)) as mirror:
        reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01")
        await eventually(lambda: handshakes(), "a handshake")
    assert not handshakes()
    assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    writer.close()


def handshakes():
    """Tasks of connections that do not stand yet."""
    return [task for task in asyncio.all_tasks() if "Acceptor._connect" in repr(task.get_coro())]
