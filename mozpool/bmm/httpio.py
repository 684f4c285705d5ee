# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""HTTP in which a whole call is over by a deadline, for programs that speak through ``requests``.

The time limits of ``requests`` start anew with every byte that arrives, do not hold for looking up names, and a library
on top of it may try again after a pause. Here every step of a call gets what is left of one
:class:`~mozpool.clock.Deadline`, an answer has a largest size, and redirects, which could lead credentials to
somebody else, are errors.
"""

from __future__ import annotations

import http.client
import io
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse

from mozpool.bmm.netio import Connection, PeerError
from mozpool.clock import Deadline

ANSWER_LIMIT = 4 * 1024 * 1024
"""Bytes after which an answer is given up, so that a babbling server can't fill the memory."""


class CallError(requests.RequestException):
    """The call failed; ``str()`` is the reason in plain words, without the server's name.

    It is none of the exceptions (connection errors, time-outs) after which libraries try again.
    """


class DeadlineAdapter(HTTPAdapter):
    """What :func:`session` puts under ``requests``: a new connection for each call, without proxies."""

    def __init__(self, deadline: Deadline, answer_limit: int = ANSWER_LIMIT) -> None:
        """All calls together are over by ``deadline``; an answer has at most so many bytes."""
        super().__init__()
        self._deadline = deadline
        self._limit = answer_limit

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: object = None,
        verify: bool | str = True,
        cert: object = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Do one call and read the whole answer. Raises CallError. ``timeout`` and ``proxies`` play no part."""
        url = urlsplit(request.url or "")
        secure = url.scheme == "https"
        try:
            port = url.port or (443 if secure else 80)
            with Connection(url.hostname or "", port, self._deadline) as connection:
                wire: _Wire = _Wire(connection, self._deadline, self._limit)
                if secure:
                    certificates, host = _certificates(bool(verify)), url.hostname or ""
                    wire = _SecureWire(connection, self._deadline, self._limit, certificates, host)
                wire.send(_bytes_of(request, url.netloc.rpartition("@")[2]))
                answer, body = _read(wire, request.method)
        except PeerError as e:
            raise CallError(str(e)) from e
        except ssl.SSLCertVerificationError as e:
            raise CallError(f"its certificate is not good: {e.verify_message}") from e
        except ssl.SSLError as e:
            raise CallError(f"TLS failed: {e.reason or 'the connection was closed'}") from e
        except http.client.RemoteDisconnected as e:
            raise CallError("closed the connection without an answer") from e
        except (http.client.HTTPException, ValueError) as e:
            # Their messages quote what arrived, at any length; the kind of fault is what a reader needs.
            raise CallError(f"what it answered is not HTTP ({type(e).__name__})") from e
        if 300 <= answer.status < 400:
            raise CallError(f"answered {answer.status}, a redirect, which is not followed")
        if answer.status < 200:
            raise CallError(f"answered {answer.status}, which nobody asked for")
        if (answer.getheader("Content-Encoding") or "identity").strip().lower() != "identity":
            # Unpacked, a small answer may fill the memory; nobody asked for it.
            raise CallError("answered in an encoding that was not asked for")
        response = HTTPResponse(
            io.BytesIO(body),
            headers=HTTPHeaderDict(
                # A value may go on in the next line; how long the body is, and in how many pieces it came, is settled.
                (name, " ".join(value.split()))
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding")
            ),
            status=answer.status,
            reason=answer.reason,
            preload_content=False,
            decode_content=False,
        )
        return self.build_response(request, response)


def session(deadline: Deadline, answer_limit: int = ANSWER_LIMIT) -> requests.Session:
    """A session whose calls, all together, are over by ``deadline``; they raise CallError. The environment's proxies
    and ``.netrc`` play no part. An answer of more than ``answer_limit`` bytes is given up."""
    made = requests.Session()
    made.trust_env = False
    made.headers["Accept-Encoding"] = "identity"
    adapter = DeadlineAdapter(deadline, answer_limit)
    for prefix in ("http://", "https://"):
        made.mount(prefix, adapter)
    return made


def _bytes_of(request: requests.PreparedRequest, host: str) -> bytes:
    """The request as it goes over the wire. Raises ValueError (UnicodeError) for headers that can't."""
    headers = {"Host": host, **request.headers, "Connection": "close"}
    head = [f"{request.method} {request.path_url} HTTP/1.1", *(f"{name}: {_text(v)}" for name, v in headers.items())]
    body = request.body or b""
    return "\r\n".join([*head, "", ""]).encode("latin-1") + (body.encode() if isinstance(body, str) else bytes(body))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _read(wire: _Wire, method: str | None) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer and its body. Raises PeerError, HTTPException, ValueError."""
    # It wants a socket, but uses nothing of it except makefile().
    answer = http.client.HTTPResponse(wire, method=method)  # type: ignore[arg-type]
    with answer:
        answer.begin()
        if wire.ended:
            # Taken as it is, it would be an answer without a body, and with as many headers as came.
            raise PeerError("closed the connection within its answer")
        body = answer.read(wire.limit + 1)
        if len(body) > wire.limit:
            raise PeerError(f"answered more than {wire.limit} bytes")
        if answer.length:
            raise PeerError("closed the connection within its answer")
    return answer, body


def _certificates(verify: bool) -> ssl.SSLContext:
    """What is asked of a certificate: that the system's authorities vouch for it, or nothing."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Lines(io.BufferedReader):
    """Notes when a line is read where nothing more comes."""

    ended = False

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.ended = self.ended or not line
        return line


class _Wire(io.RawIOBase):
    """The bytes of one connection, as a file; each read and write gets what is left of the deadline."""

    def __init__(self, connection: Connection, deadline: Deadline, limit: int) -> None:
        self._connection = connection
        self._deadline = deadline
        self.limit = limit
        self._received = 0
        self._file: _Lines | None = None

    def makefile(self, *_mode: str) -> io.BufferedReader:
        self._file = _Lines(self)
        return self._file

    @property
    def ended(self) -> bool:
        """Whether the other end closed the connection where another line was expected."""
        return self._file is not None and self._file.ended

    def send(self, data: bytes) -> None:
        self._connection.send(data, self._deadline)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._receive(len(buffer))
        # Headers count too, and they may be many: http.client limits only their number and lengths.
        self._received += len(data)
        if self._received > 2 * self.limit:
            raise PeerError(f"answered more than {2 * self.limit} bytes")
        buffer[: len(data)] = data
        return len(data)

    def _receive(self, at_most: int) -> bytes:
        return self._connection.receive(self._deadline, at_most)


class _SecureWire(_Wire):
    """The same through TLS. Python's TLS over a socket would count its time limit anew with every piece."""

    def __init__(
        self, connection: Connection, deadline: Deadline, limit: int, context: ssl.SSLContext, host: str
    ) -> None:
        super().__init__(connection, deadline, limit)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._carry(self._tls.do_handshake)

    def send(self, data: bytes) -> None:
        self._carry(lambda: self._tls.write(data))

    def _receive(self, at_most: int) -> bytes:
        try:
            return bytes(self._carry(lambda: self._tls.read(at_most)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def _carry(self, step: Callable[[], Any]) -> Any:
        """Do ``step``, moving between it and the connection what TLS wants to say and to hear."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._connection.receive(self._deadline)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            finally:
                self._flush()
            return result

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._connection.send(self._outgoing.read(), self._deadline)
