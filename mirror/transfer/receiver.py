"""Receives a bundle: keeps its small documents in memory, and brings all other content into the store's staging."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from posixpath import dirname, join, normpath
from typing import Final, Protocol

from mirror.core.digest import Digest
from mirror.core.units import format_bytes
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.staging import StagedFile, Staging
from mirror.transfer.decompression import Decompressor
from mirror.transfer.errors import ImportStopped, InvalidBundle
from mirror.transfer.layout import DOCKER_FILE, INDEX_FILE, LAYOUT_FILE, MAX_DOCUMENT_BYTES, blob_digest
from mirror.transfer.tar_reader import Kind, Member, TarReader

MAX_SKIPPED_BYTES: Final = 16 << 20
"""Bytes of all members that belong to no image, such as the `VERSION` files of Docker's old format."""

_ROOM_TIMEOUT_S: Final = 30.0

_DOCUMENTS: Final = (LAYOUT_FILE, INDEX_FILE, DOCKER_FILE)
# Docker before 25: `<id>/layer.tar` and `<hex>.json`; containers/image: `<hex>.tar`; go-containerregistry: `sha256:<hex>` and
# `<hex>.tar.gz`. Docker's own v1 documents, `<id>/json` and `repositories`, say nothing that these do not.
_CONTENT: Final = re.compile(r"[0-9a-f]{64}/layer\.tar|[^/]+\.(?:tar|tar\.gz|tgz|json)|sha256:[0-9a-f]{64}", re.ASCII)
_LAYER_LINK: Final = re.compile(r"[0-9a-f]{64}/layer\.tar", re.ASCII)


@dataclass(slots=True)
class BundleContent:
    """Content of a bundle whose bytes have arrived.

    Attributes:
        size: bytes.
        member: its name in the bundle.
        path: the staged file; None if the store has the same content.
        damage: what is wrong with the bytes, or with their file; None if they have the digest.
    """

    digest: Digest
    size: int
    member: str
    path: str | None
    damage: str | None = None


class _Sink(Protocol):
    def write(self, piece: memoryview) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None: ...


class BundleReceiver:
    """Receives the bytes of one bundle, compressed or not, in a thread.

    Args:
        make_room: makes room in the store for so many bytes; blocks.

    Attributes:
        documents: the documents about all images, by name.
        by_digest: the content, by digest.
        by_name: the content of Docker's old formats, by the name of its member.
        held: bytes of content that the store had already.
    """

    def __init__(self, files: BlobFiles, staging: Staging, make_room: Callable[[int], None]) -> None:
        self.documents: dict[str, bytes] = {}
        self.by_digest: dict[Digest, BundleContent] = {}
        self.by_name: dict[str, BundleContent] = {}
        self._files = files
        self._staging = staging
        self._make_room = make_room
        self._links: dict[str, str] = {}
        self._decompressor = Decompressor()
        self._tar = TarReader()
        self._sink: _Sink | None = None
        self._left = self._skipped = self._staged = 0
        self.held = 0
        self._is_stopped = False

    def feed(self, data: bytes) -> None:
        """Receive the next bytes.

        Raises:
            InvalidBundle: the bundle is refused.
            StorageError: the store cannot take it.
            ImportStopped: see that.
        """
        for piece in self._decompressor.feed(data):
            self.require_running()
            for event in self._tar.feed(piece):
                if isinstance(event, Member):
                    self._begin(event)
                elif self._sink is not None:
                    self._sink.write(event)
                    self._left -= len(event)
                    self._end_if_whole()

    def close(self) -> None:
        """Check that the bundle has ended; raises InvalidBundle if it has not."""
        self._decompressor.close()
        self._tar.close()

    def stop(self) -> None:
        """End the work that a thread is doing for the import; called in any thread."""
        self._is_stopped = True

    def require_running(self) -> None:
        """Raise ImportStopped after `stop`. Work that may take long calls it for each MiB."""
        if self._is_stopped:
            raise ImportStopped("the import was stopped")

    def abort(self) -> None:
        """Close the file of content that has not arrived whole."""
        if self._sink is not None:
            self._sink.abort()

    def find(self, name: str) -> BundleContent | None:
        """Return the content of a member, or of the one that a link of this name leads to; None if there is none."""
        name = self._links.get(name, name)
        digest = blob_digest(name)
        return self.by_name.get(name) if digest is None else self.by_digest.get(digest)

    def _begin(self, member: Member) -> None:
        if member.kind is Kind.LINK:
            self._note_link(member)
        elif member.kind is Kind.FILE:
            self._sink, self._left = self._sink_for(member), member.size
            self._end_if_whole()

    def _end_if_whole(self) -> None:
        if self._sink is not None and not self._left:
            self._sink.end()
            self._sink = None

    def _note_link(self, member: Member) -> None:
        """Keep a link from a layer to another member, the only one that Docker and skopeo write."""
        target = normpath(join(dirname(member.name), member.target))
        if _LAYER_LINK.fullmatch(member.name) is None or target.startswith(("..", "/")) or not member.target:
            raise InvalidBundle(
                f"a symbolic link to {member.target!r}, which is not from a layer to one of this archive", member.name
            )
        self._links[member.name] = target

    def _sink_for(self, member: Member) -> _Sink:
        name, size = member.name, member.size
        if name in _DOCUMENTS:
            if size > MAX_DOCUMENT_BYTES:
                raise InvalidBundle(f"has {size} bytes; at most {MAX_DOCUMENT_BYTES} are read", name)
            return _Document(self.documents, name)
        digest = blob_digest(name)
        if digest is not None or _CONTENT.fullmatch(name) is not None:
            return self._content(member, digest)
        if name.startswith("blobs/") and name.count("/") == 2:
            raise InvalidBundle("its name is no digest that can be verified", name)
        self._skipped += size
        if self._skipped > MAX_SKIPPED_BYTES:
            raise InvalidBundle(f"belongs to no image, and such members have more than {format_bytes(MAX_SKIPPED_BYTES)}", name)
        return _Nothing()

    def _content(self, member: Member, digest: Digest | None) -> _Content:
        is_held = digest is not None and self._files.size(digest) == member.size
        return _Content(self, member, digest, None if is_held else self._create(member))

    def _create(self, member: Member) -> StagedFile:
        self._staged += member.size
        limit = self._files.quota.max_size
        if limit and self._staged > limit:
            needed = f"the bundle needs at least {format_bytes(self._staged)}"
            raise InvalidBundle(f"{needed}, and storage.max_size is {format_bytes(limit)}", member.name)
        deadline, missing = time.monotonic() + _ROOM_TIMEOUT_S, math.inf
        while True:
            try:
                return self._staging.create(member.size, member.name)
            except StorageError as error:
                before, missing = missing, self._files.quota.shortage_for(member.size).bytes
                # An eviction of many files takes several attempts; one that removes nothing is the last.
                if error.reason != "full" or missing >= before or time.monotonic() >= deadline:
                    raise
            self._make_room(member.size)

    def keep(self, content: BundleContent, *, by_name: bool) -> None:
        """Keep content that has arrived; the same content under another name is kept once."""
        if content.damage is not None and content.path is not None:
            self._staging.remove(content.path)
            content.path = None
        if content.path is None and content.damage is None:
            # It stays in the store until the end of the import.
            self._files.touch(content.digest, time.time())
            self.held += content.size
        known = self.by_digest.get(content.digest)
        if known is None or known.damage is not None:
            self.by_digest[content.digest] = known = content
        if known is not content and content.path is not None:
            self._staging.remove(content.path)
        if by_name:
            self.by_name[content.member] = known


class _Document:
    def __init__(self, documents: dict[str, bytes], name: str) -> None:
        self._documents = documents
        self._name = name
        self._data = bytearray()

    def write(self, piece: memoryview) -> None:
        self._data += piece

    def end(self) -> None:
        self._documents[self._name] = bytes(self._data)

    def abort(self) -> None:
        pass


class _Nothing:
    def write(self, piece: memoryview) -> None:
        pass

    def end(self) -> None:
        pass

    def abort(self) -> None:
        pass


class _Content:
    """Hashes content, and writes it to a file unless the store has it.

    Args:
        digest: what its name states; None if that states none.
    """

    def __init__(self, receiver: BundleReceiver, member: Member, digest: Digest | None, file: StagedFile | None) -> None:
        self._receiver = receiver
        self._member = member
        self._digest = digest
        self._file = file
        self._hasher = hashlib.sha256() if digest is None else digest.hasher()

    def write(self, piece: memoryview) -> None:
        self._hasher.update(piece)
        if self._file is not None:
            self._file.write(piece)

    def abort(self) -> None:
        if self._file is not None:
            self._file.close()

    def end(self) -> None:
        found = self._hasher.hexdigest()
        digest = self._digest or Digest.parse(f"sha256:{found}")
        if self._file is not None and found == digest.encoded:
            self._file.flush()
        self.abort()
        damage = None if found == digest.encoded else f"its bytes have the digest {digest.algorithm}:{found}"
        path = None if self._file is None else self._file.path
        content = BundleContent(digest, self._member.size, self._member.name, path, damage)
        self._receiver.keep(content, by_name=self._digest is None)
