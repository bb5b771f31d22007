"""Serve the page's files with ETags by content, so that a browser never mixes old and new files."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ETag, web

PAGE = Path(__file__).with_name("page")
REVALIDATED = {"Cache-Control": "no-cache"}
"""Makes a browser revalidate its copy each time; it gets 304 or the new file."""


@dataclass(frozen=True, slots=True)
class _Copy:
    signature: tuple[int, int, int]
    content: bytes
    tag: str


class PageFiles:
    """Serves the files of a folder from memory, and rereads a file that has changed on disk.

    If no file descriptor is left to read it, the last copy is served.
    """

    def __init__(self, folder: Path = PAGE) -> None:
        self._folder = folder
        self._copies: dict[str, _Copy] = {}
        self.version = ""
        """Changes whenever a file changes. Updated by :meth:`refresh`."""
        self.refresh()

    def refresh(self) -> str:
        """Read changed files. Return :attr:`version`."""
        try:
            paths = sorted(path for path in self._folder.rglob("*") if path.is_file())
            copies = {path.relative_to(self._folder).as_posix(): self._read(path) for path in paths}
        except OSError:
            if not self._copies:
                raise  # at the start, a page without files is of no use
            return self.version
        # The version covers all files, so that a page notices that any of its scripts has changed.
        if copies != self._copies:
            self._copies = copies
            tags = "".join(f"{name} {copy.tag}\n" for name, copy in copies.items())
            self.version = hashlib.sha256(tags.encode()).hexdigest()[:16]
        return self.version

    def answer(self, request: web.Request, name: str) -> web.Response:
        """Answer with a file, or 304 if the browser's copy is current.

        Raises:
            web.HTTPNotFound: The file does not exist.
        """
        # Costs a stat(2) for each file; only changed ones are read.
        self.refresh()
        copy = self._copies.get(name)
        if copy is None:
            raise web.HTTPNotFound(text=f"the page has no file {name!r}\n")
        known = request.if_none_match or ()
        if any(tag.value in (copy.tag, "*") for tag in known):
            response = web.Response(status=304, headers=REVALIDATED)
        else:
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            charset = "utf-8" if kind.startswith("text/") or kind.endswith(("javascript", "json")) else None
            response = web.Response(body=copy.content, content_type=kind, charset=charset, headers=REVALIDATED)
        response.etag = ETag(copy.tag)
        return response

    def _read(self, path: Path) -> _Copy:
        status = path.stat()
        # Use the kernel's change time, because the modification time can be reset to its previous value.
        signature = (status.st_ctime_ns, status.st_size, status.st_ino)
        known = self._copies.get(path.relative_to(self._folder).as_posix())
        if known is not None and known.signature == signature:
            return known
        content = path.read_bytes()
        return _Copy(signature, content, hashlib.sha256(content).hexdigest()[:32])
