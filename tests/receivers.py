# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who is told things: a real HTTP server, and a real mail server. Both can be difficult."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP as SMTPServer
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from tests.processes import free_port


@dataclass
class Call:
    """What was POSTed."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Listener:
    """Answers with ``answers`` in turn, then with 200: a status, "hang", "close" (at once) or "drip"."""

    def __init__(self, *answers: int | str) -> None:
        self.answers = list(answers)
        self.calls: list[Call] = []
        self.over = threading.Event()
        self.host = ""

    @property
    def url(self) -> str:
        return f"{self.host}/done?build=7"


@contextmanager
def listening(*answers: int | str, port: int = 0) -> Iterator[Listener]:
    """Somebody who wants to be called back."""
    listener = Listener(*answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            listener.calls.append(Call(self.path, headers, raw))
            answer = listener.answers.pop(0) if listener.answers else 200
            if answer == "hang":
                listener.over.wait(60)
            elif answer == "drip":
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + b"X" * 1000:
                    if listener.over.is_set():
                        break
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            elif answer != "close":
                self.send_response(int(answer))
                if answer == 302:
                    self.send_header("Location", f"{listener.host}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the other side has hung up

    http = Server(("127.0.0.1", port), Handler)
    listener.host = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield listener
    finally:
        listener.over.set()
        http.shutdown()
        thread.join()
        http.server_close()


@dataclass
class Mail:
    """A mail that arrived."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    encrypted: bool
    user: str | None

    @property
    def text(self) -> str:
        text: str = self.message.get_content()
        return text.replace("\r\n", "\n")


class Postbox:
    """What arrived; ``refused`` recipients are not taken, and ``failures`` come before the first mail that is."""

    def __init__(self, *failures: str, refused: tuple[str, ...] = ()) -> None:
        self.mails: list[Mail] = []
        self.refused = refused
        self.failures = list(failures)
        self.port = 0

    async def handle_RCPT(
        self, server: SMTPServer, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTPServer, session: Session, envelope: Envelope) -> str:
        if self.failures:
            return self.failures.pop(0)
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        login: Any = session.auth_data
        user = login.login.decode() if login else None
        self.mails.append(
            Mail(str(envelope.mail_from), list(envelope.rcpt_tos), message, session.ssl is not None, user)
        )
        return "250 OK"


@contextmanager
def mail_server(
    *failures: str,
    refused: tuple[str, ...] = (),
    port: int = 0,
    context: ssl.SSLContext | None = None,
    at_once: bool = False,
    password: str | None = None,
) -> Iterator[Postbox]:
    """A mail server; with a context it wants STARTTLS or, ``at_once``, TLS. With a password it wants a login."""
    box = Postbox(*failures, refused=refused)

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data.password == str(password).encode()
        return AuthResult(success=good, auth_data=data, handled=False)

    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=port or free_port(),
        ssl_context=context if at_once else None,
        tls_context=None if at_once else context,
        require_starttls=context is not None and not at_once,
        auth_required=password is not None,
        auth_require_tls=False,
        authenticator=login if password is not None else None,
    )
    controller.start()
    box.port = controller.port
    try:
        yield box
    finally:
        controller.stop()


def certificate(directory: Path, name: str = "127.0.0.1") -> tuple[Path, ssl.SSLContext]:
    """A certificate that vouches for itself, to be trusted as a file, and what a server with it needs."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    kind = "IP" if name[0].isdigit() else "DNS"
    command += ["-addext", f"subjectAltName={kind}:{name}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context
