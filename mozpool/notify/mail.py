# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Mail, by SMTP: one for all that happened lately."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from mozpool.bmm.netio import PeerError, connect
from mozpool.clock import Clock, Deadline
from mozpool.config import Email
from mozpool.notify.webhook import NotTaken

SUBJECT = 150
"""The most characters of a subject."""

WIDTH = 76
"""Characters of a line of text."""

SHOWN = 100
"""Of so many events a mail tells everything; of the others how many there are."""

Send = Callable[[EmailMessage, Sequence[str]], list[str]]
"""Sends a mail to these addresses; answers those that were refused. Raises NotTaken."""


def compose(
    bodies: Sequence[Mapping[str, Any]], *, sender: str, recipients: Sequence[str], identity: str, now: datetime
) -> EmailMessage:
    """A mail that tells of these events (:meth:`Event.body`). ``identity`` is equal when the same is sent again."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Subject"] = f"[mozpool] {_subject(bodies)}"
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = f"<{identity}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    parts = [_part(body) for body in bodies[:SHOWN]]
    if len(bodies) > SHOWN:
        parts.append(f"And {len(bodies) - SHOWN} more.\n")
    mail.set_content("\n\n".join(parts), cte="quoted-printable")
    return mail


def _subject(bodies: Sequence[Mapping[str, Any]]) -> str:
    if len(bodies) == 1:
        text = str(bodies[0]["summary"])
    else:
        kinds = Counter(str(body["event"]) for body in bodies)
        text = ", ".join(f"{kind.replace('_', ' ')} ({number})" for kind, number in sorted(kinds.items()))
    # What a client has said may have any characters, and headers end at a line's end.
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())
    line = line.encode(errors="replace").decode()
    return line if len(line) <= SUBJECT else f"{line[: SUBJECT - 3]}..."


def _part(body: Mapping[str, Any]) -> str:
    summary, text = (textwrap.fill(" ".join(str(body[key]).split()), WIDTH) for key in ("summary", "text"))
    said = f"{summary}\n{'-' * min(WIDTH, len(summary))}\n{text}\n\n{body['url']}\n"
    return said.encode(errors="replace").decode()


class Mailer:
    """Sends mail through the configured server. Used from any thread."""

    def __init__(self, settings: Email) -> None:
        self._settings = settings

    def __call__(self, mail: EmailMessage, recipients: Sequence[str]) -> list[str]:
        """Send it, within the time limit of the configuration; answer who was refused. Raises NotTaken."""
        settings = self._settings
        deadline = Deadline(Clock(), settings.timeout)
        try:
            with _Conversation(settings, deadline) as server:
                if settings.tls == "starttls":
                    server.encrypt()
                if settings.username:
                    server.login(settings.username, settings.password)
                return sorted(server.send_message(mail, settings.sender, list(recipients)))
        except smtplib.SMTPRecipientsRefused as error:
            code, said = next(iter(error.recipients.values()))
            raise NotTaken(f"all addresses were refused: {code} {_words(said)}", answered=True) from error
        except smtplib.SMTPAuthenticationError as error:
            raise NotTaken(f"the login was refused: {error.smtp_code}") from error
        except smtplib.SMTPResponseException as error:
            raise NotTaken(f"answered {error.smtp_code} {_words(error.smtp_error)}") from error
        except ssl.SSLCertVerificationError as error:
            raise NotTaken(f"its certificate is not good: {error.verify_message}") from error
        except ValueError as error:
            # Its message may quote a password.
            raise NotTaken(f"it can't be sent ({type(error).__name__})") from error
        except (smtplib.SMTPException, PeerError, OSError) as error:
            late = f"no answer within {settings.timeout:g} s"
            raise NotTaken(late if deadline.expired else str(error) or type(error).__name__) from error


def _words(said: bytes | str) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return " ".join(text.split())[:120]


def _allow(sock: socket.socket, deadline: Deadline | None) -> None:
    """Let the next call on ``sock`` take what is left of the deadline."""
    if deadline is not None:
        # 0 would mean not to block.
        sock.settimeout(max(0.001, deadline.remaining()))


class _Plain(socket.socket):
    """A connection whose every call gets what is left of a deadline."""

    deadline: Deadline | None = None

    def recv_into(self, *args: Any) -> int:
        _allow(self, self.deadline)
        return super().recv_into(*args)

    def sendall(self, *args: Any) -> None:
        _allow(self, self.deadline)
        super().sendall(*args)


class _Secure(ssl.SSLSocket):
    """The same through TLS. Its handshake gets what was left when it began."""

    deadline: Deadline | None = None

    def recv_into(self, *args: Any) -> int:
        _allow(self, self.deadline)
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        _allow(self, self.deadline)
        return super().send(*args)


class _Conversation(smtplib.SMTP):
    """SMTP in which everything is over by a deadline: the time limit of smtplib begins anew with every byte."""

    def __init__(self, settings: Email, deadline: Deadline) -> None:
        """Connect, and hear the greeting. Raises PeerError, SMTPException, OSError."""
        assert settings.host is not None  # the configuration has been checked
        self._deadline = deadline
        self._at_once = settings.tls == "tls"
        self._context = None
        if settings.tls != "none":
            self._context = ssl.create_default_context(cafile=settings.ca_file)
            self._context.sslsocket_class = _Secure
        # Without a name, the name server would be asked for one, for as long as that takes.
        super().__init__(settings.host, settings.port, local_hostname=socket.gethostname())

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        """What smtplib talks through."""
        raw = connect(host, port, self._deadline)
        plain = _Plain(raw.family, raw.type, raw.proto, fileno=raw.detach())
        plain.deadline = self._deadline
        if self._context is None or not self._at_once:
            return plain
        _allow(plain, self._deadline)
        secure = self._context.wrap_socket(plain, server_hostname=host)
        assert isinstance(secure, _Secure)
        secure.deadline = self._deadline
        return secure

    def encrypt(self) -> None:
        """Go on through TLS. Raises SMTPException, OSError."""
        self.starttls(context=self._context)
        assert isinstance(self.sock, _Secure)
        self.sock.deadline = self._deadline

    def __exit__(self, *args: object) -> None:
        """Hang up: what comes of that says nothing of the mail, which was taken or not."""
        if args[0] is None:
            with suppress(smtplib.SMTPException, OSError):
                self.docmd("QUIT")
        self.close()
