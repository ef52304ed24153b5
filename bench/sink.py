"""A bucket that forgets what it is given: `python -m bench.sink PORT CERTIFICATE KEY`.

Speaks as much of the API of S3 over TLS as an upload needs, and is cheap beside the mirror. `GET /control` answers with the
bytes of the objects that were written. Prints its port, then answers until it is ended.
"""

import contextlib
import os
import re
import socket
import ssl
import sys
import threading

from bench.process import die_with_parent

READ_BYTES, LARGEST_HEAD = 1 << 20, 64 << 10
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
BEGUN = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
ENDED = b'<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>'
LISTED = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
NONE = b"<Error><Code>NoSuchKey</Code></Error>"


class Sink:
    """All connections, each in a thread of its own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._bytes = 0

    def serve(self, listener: socket.socket) -> None:
        """Accept connections for ever."""
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            received = bytearray(READ_BYTES)
            while head := _head(connection):
                line, _, rest = head.partition(b"\r\n\r\n")
                length = LENGTH.search(line)
                left = count = int(length[1]) if length else 0
                left -= len(rest)
                if b"100-continue" in line.lower():
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                while left > 0 and (more := connection.recv_into(received, min(left, READ_BYTES))):
                    left -= more
                connection.sendall(self._answer(line.split(b" ", 2), count))

    def _answer(self, request: list[bytes], count: int) -> bytes:
        method, target, _ = request
        if target == b"/control":
            return _rendered(b"200 OK", str(self._bytes).encode())
        if method == b"PUT":
            with self._lock:
                self._bytes += count
            return _rendered(b"200 OK", b"")
        if method == b"POST":
            return _rendered(b"200 OK", BEGUN if b"?uploads" in target else ENDED)
        if b"list-type=" in target:
            return _rendered(b"200 OK", LISTED)
        return _rendered(b"404 Not Found", b"" if method == b"HEAD" else NONE)


def _head(connection: socket.socket) -> bytes:
    """A head and what came with it of its body; nothing once the client has closed."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(LARGEST_HEAD)
        if not more or len(received) > LARGEST_HEAD:
            return b""
        received += more
    return received


def _rendered(status: bytes, body: bytes) -> bytes:
    return b'HTTP/1.1 %s\r\nContent-Length: %d\r\nETag: "0"\r\n\r\n%s' % (status, len(body), body)


def main() -> None:
    """Listen, print the port, serve until the parent ends."""
    die_with_parent()
    # It stands for other machines, so it takes only what the mirror and its clients leave of this one. Niceness is not enough: a
    # thread that is woken waits until the one that runs, however nice, has had its turn of some milliseconds.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        Sink(context).serve(listener)


if __name__ == "__main__":
    main()
