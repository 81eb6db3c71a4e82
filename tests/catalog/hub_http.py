"""How a Hub on loopback hears requests and sends answers, and what goes wrong with them; see hub_server.py."""

from __future__ import annotations

import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from tests.catalog.hub_state import Refused

if TYPE_CHECKING:
    from tests.catalog.hub_server import Fault, HubServer

_BLOCK = 2**16


@dataclass
class Request:
    """One request: which kind, whose, what its path and query say, and its body."""

    kind: str
    method: str
    parts: Mapping[str, str]
    query: Mapping[str, list[str]]
    user: str | None
    body: bytes | Path
    range: str | None

    @property
    def json(self) -> dict[str, Any]:
        assert isinstance(self.body, bytes)
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


@dataclass
class Answer:
    """Status, headers, and a body: bytes, or a file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""

    @classmethod
    def of(cls, value: object, **headers: str) -> Answer:
        return cls(200, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())

    @classmethod
    def refusal(cls, refused: Refused) -> Answer:
        told = {"X-Error-Code": refused.code, "X-Error-Message": refused.message, "Content-Type": "application/json"}
        return cls(refused.status, told, json.dumps({"error": refused.message}).encode())


class _CutError(Exception):
    """The connection is to be closed without a further word."""


class Exchange(BaseHTTPRequestHandler):
    """Requests in, answers out, and what goes wrong with them on demand; what is answered, subclasses know."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # heads and bodies of answers are sent apart
    hub: HubServer
    routes: tuple[tuple[str, str, str], ...] = ()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        try:
            self._handle()
        except _CutError:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        address = urlsplit(self.path)
        kind, parts = self._route(address.path)
        fault = self.hub.fault(kind)
        with self.hub.lock:
            self.hub.asked.append(f"{self.command} {unquote(address.path)}")
        body = self._body(kind, fault)
        if fault is not None:
            fault.before()
            if fault.pause is not None and not fault.lost:
                fault.pause.wait()
                if fault.pause.dropped:
                    raise _CutError
        try:
            answer = self._answered(Request(
                kind, self.command, parts, parse_qs(address.query), self._user(kind), body, self.headers.get("Range"),
            ), fault)  # fmt: skip
        except Refused as refused:
            answer = Answer.refusal(refused)
        if fault is not None and fault.lost:
            if fault.pause is not None:
                fault.pause.wait()
            raise _CutError
        self._send(kind, answer, fault)

    def _route(self, path: str) -> tuple[str, Mapping[str, str]]:
        for kind, methods, pattern in self.routes:
            found = re.fullmatch(pattern, path)
            if found is not None and self.command in methods.split("|"):
                return kind, {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
        return "unknown", {}

    def _user(self, kind: str) -> str | None:
        return self.hub.user(self.headers.get("Authorization", ""))

    def _answered(self, request: Request, fault: Fault | None) -> Answer:
        if fault is not None and fault.status:
            if isinstance(request.body, Path):
                request.body.unlink()
            told = {"Content-Type": "application/json", **fault.headers}
            return Answer(fault.status, told, b'{"error": "asked for"}')
        if request.kind == "unknown":
            raise Refused(404, "", f"nothing at {self.path}")
        if "name" in request.parts:
            self._allowed(request)
        answer: Callable[[Request], Answer] = getattr(self, f"_{request.kind}")
        return answer(request)

    def _allowed(self, request: Request) -> None:
        """Raises Refused: not for this user."""

    # What bodies are made of.

    def _body(self, kind: str, fault: Fault | None) -> bytes | Path:
        """The body of the request; that of an upload in a file. Cut where the fault says so."""
        cut = fault.cut if fault is not None and self.command in ("POST", "PUT") else None
        path = self.hub.repositories.objects.folder / f".{secrets.token_hex(8)}" if kind == "upload" else None
        pieces: list[bytes] = []
        taken = 0
        stream: BinaryIO | None = path.open("wb") if path is not None else None
        try:
            for piece in self._pieces(cut):
                taken += len(piece)
                self.hub.count(self.hub.received, kind, len(piece))
                if stream is not None:
                    stream.write(piece)
                else:
                    pieces.append(piece)
        finally:
            if stream is not None:
                stream.close()
        if cut is not None and taken >= cut:
            if path is not None:
                path.unlink()
            raise _CutError
        return path if path is not None else b"".join(pieces)

    def _pieces(self, cut: int | None) -> Iterator[bytes]:
        left = cut if cut is not None else 2**62
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                yield self.rfile.read(min(size, left))
                left -= size
                if left <= 0:
                    return
                self.rfile.readline()
            self.rfile.readline()
            return
        length = min(int(self.headers.get("Content-Length") or 0), left)
        while length:
            piece = self.rfile.read(min(_BLOCK, length))
            if not piece:
                raise _CutError
            length -= len(piece)
            yield piece

    def _send(self, kind: str, answer: Answer, fault: Fault | None) -> None:
        whole = answer.body if isinstance(answer.body, bytes) else b""
        size = len(whole) if isinstance(answer.body, bytes) else answer.body.stat().st_size
        start, end = int(answer.headers.pop("start", 0)), int(answer.headers.pop("end", size))
        self.send_response(answer.status)
        length = answer.headers.pop("Content-Length", str(end - start))
        for name, value in {**answer.headers, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = fault.cut if fault is not None and self.command == "GET" else None
        left = end - start if cut is None else min(cut, end - start)
        if isinstance(answer.body, bytes):
            self.wfile.write(whole[start : start + left])
        else:
            with answer.body.open("rb") as stream:
                stream.seek(start)
                for first in range(0, left, _BLOCK):
                    self.wfile.write(stream.read(min(_BLOCK, left - first)))
        self.hub.count(self.hub.sent, kind, left)
        if cut is not None:
            raise _CutError

    def _ranged(self, answer: Answer, size: int, wanted: str | None) -> Answer:
        """`answer`, whose body has `size` bytes, or the piece of it that was asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if found is None or not self.hub.ranges:
            return answer
        start, last = int(found[1]), min(int(found[2] or size), size - 1)
        if start >= size:
            return Answer(416, {"Content-Range": f"bytes */{size}"})
        piece = {"Content-Range": f"bytes {start}-{last}/{size}", "start": str(start), "end": str(last + 1)}
        return Answer(206, {**answer.headers, **piece}, answer.body)
