# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``config.ini`` as typed, frozen settings.

Each setting is one field of one of the section classes below: its kind (what may be written, how it is
read), its default and one sentence for the operator. A new key is one such line, followed by
``python -m mozpool.config > config.ini.dist``, which writes the documented sample anew.
"""

from __future__ import annotations

import configparser
import difflib
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar, get_type_hints

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mozpool import resources
from mozpool.errors import MozpoolError

SYSTEM_FILE = Path("/etc/mozpool/config.ini")

MYSQL_PORT = 3306
"""Where MySQL listens unless the URL names another port."""

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a configuration file."""

    file: Path
    line: int | None
    """Counted from 1; None when the fault is not in one line, such as a file that can't be read."""
    section: str | None
    key: str | None
    message: str
    """The value (never a secret one) and what was expected."""

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        name = "".join(([f"[{self.section}] "] if self.section else []) + ([f"{self.key}: "] if self.key else []))
        return f"{place}: {name}{self.message}"


class ConfigError(MozpoolError):
    """The configuration cannot be used; the message has one line for each of ``problems``."""

    code = "config_error"

    def __init__(self, problems: Collection[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


# --- Kinds of values ---


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What may be written as a value, and what becomes of it."""

    expected: str
    """Completes the sentence "expected ..."."""
    parse: Callable[[str], T]
    """From the text of the file, stripped; raises ValueError when the text is not ``expected``."""
    show: Callable[[T], str] = str
    """Back to the text."""


def integer(low: int, high: int | None = None) -> Kind[int]:
    """Whole numbers from ``low`` to ``high``, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
            raise ValueError(text)
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError(text)
        return value

    return Kind(f"a whole number, at least {low}" if high is None else f"a whole number from {low} to {high}", parse)


def number(what: str, low: float, high: float = math.inf, *, above: bool = False) -> Kind[float]:
    """Decimal numbers from ``low`` (itself left out when ``above``) to ``high``; ``what`` is "seconds" or the like."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"-?\d{1,18}(\.\d+)?", text, re.ASCII):
            raise ValueError(text)
        value = float(text)
        if not low <= value <= high or (above and value == low):
            raise ValueError(text)
        return value

    if high < math.inf:
        bounds = f"from {low:g} to {high:g}"
    else:
        bounds = f"more than {low:g}" if above else f"at least {low:g}"
    return Kind(f"{what}, {bounds}", parse, "{:g}".format)


def matching(expected: str, pattern: str) -> Kind[str]:
    """Text that ``pattern`` matches as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(expected, parse)


def choice(*words: str) -> Kind[str]:
    """One of ``words``, in upper or lower case; read as it is written in ``words``."""

    def parse(text: str) -> str:
        for word in words:
            if word.lower() == text.lower():
                return word
        raise ValueError(text)

    return Kind("one of " + ", ".join(word.lower() for word in words), parse, str.lower)


def optional(kind: Kind[T]) -> Kind[T | None]:
    """Like ``kind``, or nothing at all: None."""
    return Kind(
        f"{kind.expected}, or nothing",
        lambda text: kind.parse(text) if text else None,
        lambda value: "" if value is None else kind.show(value),
    )


def _boolean(text: str) -> bool:
    try:
        return configparser.RawConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _path(text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # a ~user who does not exist
        raise ValueError(text) from None
    if not path.is_absolute():
        raise ValueError(text)
    return path


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error:
        raise ValueError(text) from None


def _ipv4(text: str) -> str:
    return str(IPv4Address(text))


def database_urls(text: str) -> tuple[URL, ...]:
    """One SQLAlchemy URL for each host that ``text`` names: a cluster's nodes stand in one URL, with commas between.

    Elsewhere a comma is a character like others. ``mysql://``, which once meant another driver, and ``mariadb://`` mean
    PyMySQL. Raises ValueError, which does not show the password.
    """
    text = re.sub(r"^(mysql|mariadb)://", "mysql+pymysql://", text)
    parts = re.fullmatch(r"(?P<before>[\w+]+://(?:[^:/@]*(?::[^@]*)?@)?)(?P<hosts>[^/?@]*)(?P<behind>.*)", text)
    words = parts["hosts"].split(",") if parts else []
    try:
        if parts is None or len(words) == 1:
            return (make_url(text),)
        urls = tuple(make_url(f"{parts['before']}{word}{parts['behind']}") for word in words)
    except (ArgumentError, ValueError):
        raise ValueError("this is no database URL") from None
    for word, url in zip(words, urls, strict=True):
        HOST.parse(url.host or "")
        if ":" in word.rpartition("]")[2]:  # a colon in brackets belongs to an IPv6 address
            PORT.parse(str(url.port))
    if len({(url.host, url.port or MYSQL_PORT) for url in urls}) < len(urls):
        raise ValueError("a host is named twice")
    if urls[0].drivername != "mysql+pymysql" or {"host", "port", "unix_socket"} & set(urls[0].query):
        raise ValueError("only MySQL over TCP has several hosts")
    return urls


def _engine(text: str) -> str:
    """The database's URL, as it is written; ``mysql://`` means PyMySQL."""
    text = re.sub(r"^mysql://", "mysql+pymysql://", text)
    url = database_urls(text)[0]
    if url.drivername not in ("mysql+pymysql", "sqlite") or url.database in (None, "", ":memory:"):
        raise ValueError(text)
    if url.drivername != "sqlite" and re.search("[,/]", url.database or ""):
        raise ValueError(text)  # a list of hosts in the wrong place
    return text


def _endpoint(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(text)
    return HOST.parse(host.removeprefix("[").removesuffix("]")), PORT.parse(port)


def _syslog(text: str) -> str | tuple[str, int]:
    return text if text.startswith("/") else _endpoint(text)


def host_and_port(host: str, port: int) -> str:
    """``HOST:PORT``; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _show_syslog(value: str | tuple[str, int]) -> str:
    return value if isinstance(value, str) else host_and_port(*value)


def _names(text: str) -> tuple[str, ...]:
    return tuple(HOST_PORT.parse(name.lower()) for name in re.split(r"[\s,]+", text) if name)


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(word) for word in re.split(r"[\s,]+", text) if word)


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, re.split(r"[\s,]+", text)))


def words_of(what: str, *known: str) -> Kind[tuple[str, ...]]:
    """Any of ``known``, each once or not at all; ``what`` they are."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word.lower() for word in _list(text))
        if not set(words) <= set(known):
            raise ValueError(text)
        return tuple(dict.fromkeys(words))

    return Kind(f"{what}, separated by spaces or commas: {', '.join(known)}", parse, " ".join)


def _recipients(text: str) -> tuple[str, ...]:
    words = _list(text)
    if words != (ASSIGNEE,) and not all(ADDRESS.fullmatch(word) for word in words):
        raise ValueError(text)
    return words


def _words(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if not words:
        raise ValueError(text)
    return words


TEXT: Kind[str] = matching("text on one line, or nothing", r".*")
BOOLEAN: Kind[bool] = Kind("true or false", _boolean, lambda value: str(value).lower())
SECONDS = number("seconds", 0, above=True)
PROBABILITY = number("a probability", 0, 1)
PORT = integer(1, 65535)
HOST = matching("a host name or an IP address", r"[A-Za-z0-9_:]([A-Za-z0-9_.:-]*[A-Za-z0-9_:])?")
HOST_PORT = matching(
    "a host name or an IPv4 address, or HOST:PORT", r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(:\d+)?"
)
IPV4: Kind[str] = Kind("an IPv4 address", _ipv4)
NAMES: Kind[tuple[str, ...]] = Kind(
    "host names (HOST or HOST:PORT, without http://), separated by spaces or commas", _names, " ".join
)
NETWORK4: Kind[IPv4Network] = Kind("an IPv4 network such as 10.99.0.0/24", IPv4Network)
NETWORK6: Kind[IPv6Network] = Kind("an IPv6 network such as fd99::/64", IPv6Network)
NETWORKS: Kind[tuple[IPv4Network | IPv6Network, ...]] = Kind(
    "networks such as 10.99.0.0/24, separated by spaces or commas",
    _networks,
    lambda value: " ".join(map(str, value)),
)
WORDS: Kind[tuple[str, ...]] = Kind("a program and its arguments, quoted as in a shell", _words, shlex.join)
PROGRAM = matching("a program's name or path", r".+")
URL_HTTP = matching("an http:// or https:// URL", r"https?://[^\s/]+(/\S*)?")
URL_HTTP_OR_NOTHING = matching("an http:// or https:// URL, or nothing", r"(https?://[^\s/]+(/\S*)?)?")
INTERFACES = matching("names of network interfaces, separated by spaces", r"([A-Za-z0-9_.:@-]{1,15}( +|$))*")
PATH: Kind[Path] = Kind("an absolute path", _path)
PATTERN: Kind[re.Pattern[str]] = Kind("a regular expression", _pattern, lambda value: value.pattern)
ENGINE: Kind[str | None] = optional(
    Kind(
        "mysql+pymysql://USER:PASSWORD@HOST/NAME (or HOST1:PORT,HOST2,HOST3, each once) or sqlite:////PATH",
        _engine,
    )
)
SYSLOG: Kind[str | tuple[str, int]] = Kind("a path such as /dev/log, or HOST:PORT", _syslog, _show_syslog)
ENDPOINT: Kind[tuple[str, int]] = Kind("HOST:PORT", _endpoint, lambda value: host_and_port(*value))
BACKEND = matching("the name of a backend", r"[a-z][a-z0-9_-]*")
GLOBS: Kind[tuple[str, ...]] = Kind(
    "names, in which * and ? stand for anything, separated by spaces or commas; nothing: all", _list, " ".join
)

GROUPS: Kind[tuple[str, ...]] = Kind(
    "names, in which * and ? stand for anything, separated by spaces or commas; nothing: nobody", _list, " ".join
)

EVENTS = (
    "device_failed",
    "relay_board_failed",
    "server_away",
    "server_back",
    "request_ready",
    "request_expiring",
    "request_failed",
)
"""What somebody may be told of."""

ASSIGNEE = "assignee"
"""In place of addresses: whoever the request is for, where that is an address."""

ADDRESS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62})){0,8}"
)
"""An e-mail address, without anything around it."""

RECIPIENTS: Kind[tuple[str, ...]] = Kind(
    "e-mail addresses, separated by spaces or commas, or assignee, or nothing", _recipients, " ".join
)
EVENT_WORDS = words_of("events", *EVENTS)


INVENTORIES = ("mozilla", "netbox", "file", "command")
"""The kinds of inventories."""

FILES = (".csv", ".yaml", ".yml", ".json")
"""Ends of the names of files that can be one."""

COMMANDS = ("on", "off", "status", "test")
"""What a program of ``[commands]`` may be for."""

COMMAND_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
"""NAME of a program's key, in lower case, as configparser reads it."""


# --- The settings ---


@dataclass(frozen=True)
class Setting:
    """What the field of a section class says about its key."""

    kind: Kind[Any]
    doc: str
    secret: bool


@dataclass(frozen=True)
class Named:
    """Sections of one kind, each of which has a name."""

    word: str
    """What their headers begin with."""
    section: type


def setting(kind: Kind[T], default: T, doc: str, *, secret: bool = False) -> T:
    """Declare a key. The value of a ``secret`` one shows neither in ``repr()`` nor in messages."""
    return field(default=default, repr=not secret, metadata={"setting": Setting(kind, doc, secret)})


def free_names(kind: Kind[T], doc: str) -> Mapping[str, T]:
    """Declare a section whose keys are free names, each with a value of this kind; none by default."""
    return field(default_factory=lambda: MappingProxyType({}), metadata={"setting": Setting(kind, doc, secret=False)})


def named_sections(word: str, section: type[T]) -> Mapping[str, T]:
    """Declare sections that are called ``[WORD NAME]``, with any names; none by default."""
    return field(default_factory=lambda: MappingProxyType({}), metadata={"named": Named(word, section)})


def default_engine(environ: Mapping[str, str] = os.environ) -> str:
    """The URL of the SQLite pool in the user's data directory, which need not exist yet."""
    data = Path(environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # the XDG specification says to ignore such a value
        data = Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    path = data / "mozpool" / "mozpool.sqlite"
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


@dataclass(frozen=True)
class Database:
    """Where the pool is kept: MySQL or MariaDB in production, SQLite for a first look."""

    engine: str = field(
        default_factory=default_engine,
        repr=False,
        metadata={
            "setting": Setting(
                ENGINE,
                "The database's SQLAlchemy URL. In user name and password, characters such as @ / : % are written as "
                "%XX (a percent sign as %25). mysql:// means mysql+pymysql://. The nodes of a Galera cluster stand in "
                "one URL, with commas between and a port where it is not 3306: "
                "mysql+pymysql://USER:PASSWORD@db1,db2,db3:3307/NAME. The first one that works is used until it fails. "
                "Nothing: an SQLite file in the user's data directory, ~/.local/share/mozpool/mozpool.sqlite.",
                secret=True,
            )
        },
    )
    pool_size: int = setting(
        integer(1, 1000),
        20,
        "How many connections for writing are kept open at most, and as many for reading: a MySQL server needs room "
        "for twice as many and two more from each imaging server (max_connections), and each node of a cluster for all "
        "of them.",
    )
    connect_timeout: float = setting(SECONDS, 5.0, "How long connecting to a host may take before it counts as away.")


@dataclass(frozen=True)
class Server:
    """This imaging server: how others reach it, and where it listens."""

    fqdn: str = setting(
        HOST_PORT,
        "127.0.0.1",
        "The name under which clients, boards and other imaging servers reach this server, and under which it owns "
        "its devices; with a port where that is not 80.",
    )
    ipaddress: str = setting(
        IPV4, "127.0.0.1", "What %IPADDRESS% in PXE configs stands for: where boards reach this server."
    )
    listen: str = setting(HOST, "127.0.0.1", "The address to listen on; in production nginx stands in front.")
    port: int = setting(PORT, 8080, "The TCP port to listen on.")
    threads: int = setting(integer(1, 1000), 64, "How many API calls are served at a time.")
    connections: int = setting(
        integer(10, 100_000),
        2000,
        "How many connections may be open at a time. For a further one, those are closed that have waited longest for "
        "a whole call.",
    )
    connections_per_address: int = setting(
        integer(0, 100_000),
        500,
        "How many of them may come from one address (IPv6: one /64 network); 0: all. A proxy on this machine may have "
        "all where listen is 127.0.0.1 or ::1: limit them there. Raise it where all clients come through one proxy.",
    )
    header_timeout: float = setting(
        SECONDS, 20.0, "How long a client may take to send the first line and the headers of a call."
    )
    body_timeout: float = setting(SECONDS, 60.0, "How long a client may take to send the body of a call.")
    idle_timeout: float = setting(
        SECONDS,
        120.0,
        "How long a connection may be open without a call; longer than a proxy in front keeps its own.",
    )
    send_timeout: float = setting(SECONDS, 60.0, "How long a client may take nothing of the answer it is sent.")
    rate_limit: int = setting(
        integer(0, 1_000_000),
        0,
        "How many API calls and pages one token, or without a token one address (IPv6: one /64 network), may ask for a "
        "minute; a fifth of them may come at once. What is beyond is answered 429. Boards' own calls, files, health "
        "checks and metrics do not count. 0: no limit.",
    )
    hsts: int = setting(
        integer(0, 63_072_000),
        86_400,
        "For how many seconds browsers that came by https remember to come by nothing else (HSTS); 0: they are not "
        "told to. It is said only where a proxy on this machine says that a call came by https.",
    )
    heartbeat_interval: float = setting(
        SECONDS, 5.0, "How often this server gives a sign of life in the database, for the other imaging servers."
    )
    away_after: float = setting(
        SECONDS,
        30.0,
        "How long another imaging server may give no sign of life before its devices are not handed out any more; at "
        "least three times heartbeat_interval.",
    )
    group: str | None = setting(
        optional(matching("a name of at most 64 letters, digits and . _ -", r"[A-Za-z0-9._-]{1,64}")),
        None,
        "Imaging servers that name the same group take over from one another: they are in the same network, reach the "
        "same relay boards and have the same images. Nothing: nobody takes over from this server.",
    )
    takeover_after: float = setting(
        SECONDS,
        60.0,
        "How long this server may give no sign of life before others of its group act on its devices and requests. It "
        "switches and boots nothing itself when it could give none for half of this time. At least away_after, and at "
        "least six times heartbeat_interval.",
    )
    heartbeat_file: Path | None = setting(
        optional(PATH), None, "A file that is touched as long as the drivers make progress, for monitoring."
    )
    log_level: str = setting(
        choice("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "The least severe messages that are logged."
    )
    syslog: str | tuple[str, int] | None = setting(optional(SYSLOG), None, "Where to log to besides stderr.")
    origins: tuple[str, ...] = setting(
        NAMES, (), "Servers whose pages may call this API from a browser, besides the imaging servers of this pool."
    )
    log_requests: bool = setting(BOOLEAN, True, "Log each API call with caller, path, status and duration.")

    @property
    def listen_url(self) -> str:
        """Where this server itself listens, without a slash at the end."""
        return f"http://{host_and_port(self.listen, self.port)}"


@dataclass(frozen=True)
class Auth:
    """Who may do what: see docs/access.md. All servers of a pool have the same settings here."""

    mode: str | None = setting(
        optional(choice("open", "token", "oidc")),
        None,
        "open: everybody who reaches this server may do everything, for trusted networks. token: machines and people "
        "have tokens (mozpool token). oidc: people sign on through an OpenID provider, machines have tokens. Nothing: "
        "open where [server] listen is a loopback address, else token.",
    )
    anonymous: str = setting(
        choice("none", "viewer"), "none", "What callers without credentials may do, in other modes than open."
    )
    device_events: str | None = setting(
        optional(choice("token", "address", "open")),
        None,
        "Whose word is taken that a device has got so far. token: who sends the token of the device's current boot, "
        "which %TOKEN% in its PXE config stands for. address: that, or a call from the device's own address. open: "
        "anybody's. Nothing: open in mode open, else address.",
    )
    server_key: str = setting(
        matching("nothing, or at least 32 characters", r"(\S{32,})?"),
        "",
        "What imaging servers sign their calls to each other with, the same on all of them; in other modes than open "
        "a pool of several servers needs it. For example: openssl rand -hex 32.",
        secret=True,
    )
    server_key_before: str = setting(
        matching("nothing, or at least 32 characters", r"(\S{32,})?"),
        "",
        "While the key is changed from server to server: the one before, with which calls are signed as well, and "
        "whose signatures are still taken. Empty when all servers have the new one.",
        secret=True,
    )
    public_url: str = setting(
        URL_HTTP_OR_NOTHING,
        "",
        "Under which address browsers reach this server, where that is not http:// and [server] fqdn. With https:// "
        "cookies are sent encrypted only.",
    )
    session_lifetime: float = setting(SECONDS, 43200.0, "How long somebody stays signed on in a browser, in seconds.")
    token_lifetime: int = setting(
        integer(1, 3650),
        90,
        "How many days a token is good for at most that somebody makes who signed on through the OpenID provider.",
    )
    audit_log: Path | None = setting(
        optional(PATH), None, "A file that each change is appended to as a line of JSON, besides the table audit."
    )
    oidc_issuer: str = setting(
        URL_HTTP_OR_NOTHING, "", "The OpenID provider: what /.well-known/openid-configuration is looked up below."
    )
    oidc_client_id: str = setting(TEXT, "", "As whom this pool is registered with the provider.")
    oidc_client_secret: str = setting(TEXT, "", "The secret that the provider gave for it.", secret=True)
    oidc_scope: str = setting(TEXT, "openid profile email", "What is asked of the provider.")
    oidc_name_claim: str = setting(TEXT, "email", "The claim that names a person here, as assignee and in the audit.")
    oidc_groups_claim: str = setting(TEXT, "groups", "The claim that lists a person's groups.")
    oidc_email_unverified: bool = setting(
        BOOLEAN,
        False,
        "Whether an e-mail address names a person though the provider does not say whether it has made sure of it. One "
        "of which it says that it has not never does.",
    )
    oidc_viewers: tuple[str, ...] = setting(GROUPS, (), "Groups of the provider whose people may look; * is everybody.")
    oidc_users: tuple[str, ...] = setting(GROUPS, (), "Groups whose people may have requests; * is everybody.")
    oidc_operators: tuple[str, ...] = setting(GROUPS, (), "Groups whose people may act on all devices and requests.")
    oidc_admins: tuple[str, ...] = setting(GROUPS, (), "Groups whose people may do everything.")


@dataclass(frozen=True)
class Inventory:
    """The inventory that devices are read from, by mozpool-inventorysync or by the daemon itself."""

    source: str = setting(
        choice(*INVENTORIES),
        "mozilla",
        "What kind of inventory it is. mozilla: Mozilla's, over HTTP. netbox: NetBox's REST API. file: a CSV, YAML or "
        "JSON file. command: a program that prints JSON.",
    )
    url: str = setting(
        TEXT,
        "",
        "The base URL of an inventory of kind mozilla or netbox, http:// or https://; nothing when devices are entered "
        "by hand.",
        secret=True,
    )
    username: str = setting(TEXT, "", "User name for HTTP basic authentication (mozilla).")
    password: str = setting(TEXT, "", "Password of that user, as it is: nothing is quoted or replaced.", secret=True)
    token: str = setting(
        TEXT, "", "The API token (netbox), of a user who may view devices and interfaces.", secret=True
    )
    verify: bool = setting(BOOLEAN, True, "Check the certificate of an https:// inventory.")
    filter: str = setting(
        TEXT,
        "",
        "The query that picks this pool's hosts: hostname__startswith=panda- (mozilla), or parameters of NetBox's list "
        "of devices such as tag=mozpool&site=lab.",
    )
    path: Path | None = setting(
        optional(PATH), None, "The file (file); the end of its name tells what it is: .csv, .yaml, .yml or .json."
    )
    command: tuple[str, ...] | None = setting(
        optional(WORDS), None, "The program and its arguments (command). There is no shell."
    )
    netbox_prefix: str = setting(
        matching("letters, digits and _, or nothing", r"[a-z0-9_]{0,30}"),
        "mozpool_",
        "What the names of the custom fields begin with that NetBox's devices have for Mozpool: imaging_server, "
        "relay_info, environment, labels, backends.",
    )
    netbox_interface: str = setting(
        TEXT,
        "",
        "The name of the interface that boards boot from in NetBox; nothing: the first one with a MAC address that is "
        "enabled and not for management only.",
    )
    timeout: float = setting(SECONDS, 300.0, "How long reading the inventory may take in all.")
    sync_interval: float = setting(
        number("seconds", 0),
        0.0,
        "How often the daemon reads the inventory: one server of the pool at a time does. 0: only "
        "mozpool-inventorysync does, from cron or by hand.",
    )
    ignore_devices_on_servers_re: re.Pattern[str] | None = setting(
        optional(PATTERN), None, "Devices of imaging servers whose name matches (from its beginning) are left out."
    )

    @property
    def is_configured(self) -> bool:
        """Whether there is an inventory at all."""
        return bool({"file": self.path, "command": self.command}.get(self.source, self.url))


@dataclass(frozen=True)
class Paths:
    """Directories on this server."""

    tftp_root: Path | None = setting(
        optional(PATH),
        None,
        "What the TFTP server serves; PXE configs are written below pxelinux.cfg/ in it. Nothing: no network boot.",
    )
    image_store: Path | None = setting(optional(PATH), None, "Where the images that devices download are kept.")


@dataclass(frozen=True)
class Pool:
    """How requests and devices are brought together."""

    verify_on_return: bool = setting(
        BOOLEAN, False, "Prove a returned device at once, instead of when it is prepared for its next holder."
    )
    priority_interval: float = setting(SECONDS, 60.0, "So much waiting raises a request's priority by one.")
    default_wait: int = setting(
        integer(0), 600, "Seconds that a request by criteria may wait for a device, unless it says otherwise."
    )
    max_duration: int = setting(integer(0), 0, "The most seconds that a device is lent for; 0: no limit.")
    scan_interval: float = setting(
        SECONDS, 10.0, "How often the queue is matched again even if nobody said that a device is free."
    )


@dataclass(frozen=True)
class LifeGuard:
    """The drivers that keep every device's state."""

    workers: int = setting(integer(1, 1000), 64, "How many hardware operations run at a time.")
    breaker_failures: int = setting(
        integer(1), 3, "After so many failures in a row a relay board counts as failed, and its devices wait."
    )
    breaker_probe: float = setting(SECONDS, 10.0, "How often a failed relay board is tried again.")
    stuck_after: float = setting(SECONDS, 60.0, "A driver without progress for so long logs the stacks of all threads.")
    exit_after: float = setting(
        SECONDS, 600.0, "A driver without progress for so long ends the process, to be started again."
    )


@dataclass(frozen=True)
class BMM:
    """How hardware is reached where neither the device nor its hardware type says it."""

    power: str = setting(BACKEND, "proxr", "Backend that switches power.")
    boot: str = setting(BACKEND, "pxe", "Backend that says what a device boots.")
    probe: str = setting(BACKEND, "fping", "Backend that tells whether a device is there.")
    agent: str = setting(BACKEND, "sut", "Backend that talks to the program on a device.")
    source: str | None = setting(
        optional(IPV4), None, "The address that connections to relay boards come from; nothing: as the system chooses."
    )
    relay_spacing: float = setting(
        number("seconds", 0, 10),
        0.0,
        "How long after one device of a relay board the next one gets power again, for supplies that cannot start "
        "all at once.",
    )
    fping: str = setting(PROGRAM, "fping", "The fping program.")
    pdudaemon: str = setting(
        URL_HTTP, "http://127.0.0.1:16421", "Where pdudaemon listens, for devices whose power is pdudaemon."
    )
    redfish_user: str = setting(TEXT, "", "User name at the management controllers of devices whose power is redfish.")
    redfish_password: str = setting(TEXT, "", "Password of that user.", secret=True)
    redfish_verify: bool = setting(BOOLEAN, True, "Check the certificates of these controllers.")
    adb_server: str = setting(HOST_PORT, "127.0.0.1:5037", "The adb server, for devices whose probe or agent is adb.")


@dataclass(frozen=True)
class Netboot:
    """Network boot by dnsmasq, which mozpool-netboot or the daemon itself writes a configuration for and runs."""

    run_dnsmasq: bool = setting(BOOLEAN, False, "Run dnsmasq inside the daemon; in a [server] group it has to be.")
    dnsmasq: str = setting(PROGRAM, "dnsmasq", "The dnsmasq program.")
    mode: str = setting(
        choice("dhcp", "proxy", "tftp"),
        "dhcp",
        "dhcp: give this server's devices their addresses, and nobody else. proxy: another DHCP server does that; tell "
        "them only what to boot. tftp: serve files only.",
    )
    interfaces: str = setting(
        INTERFACES, "", "The network interfaces that boards are on; nothing: the one with [server] ipaddress."
    )
    network: IPv4Network | None = setting(
        optional(NETWORK4), None, "The network that boards are in; needed for dhcp and proxy."
    )
    router: str | None = setting(optional(IPV4), None, "The default gateway that boards are told; nothing: none.")
    nameserver: str | None = setting(optional(IPV4), None, "The name server that boards are told; nothing: none.")
    lease_time: int = setting(integer(120), 3600, "Seconds that an address is given for.")
    boot_loader: str = setting(
        choice("lpxelinux", "pxelinux", "ipxe"),
        "lpxelinux",
        "lpxelinux and pxelinux read pxelinux.cfg/ by TFTP, and lpxelinux gets kernels by HTTP too. ipxe gets a script "
        "that says the same by HTTP, from the daemon.",
    )
    advertise: IPv6Network | None = setting(
        optional(NETWORK6),
        None,
        "An IPv6 network to advertise: some boards' firmware waits long for one. Nothing: no router advertisements.",
    )
    url: str = setting(
        URL_HTTP_OR_NOTHING,
        "",
        "Where boards reach this daemon, or nginx in front of it; nothing: http://IPADDRESS:PORT, with [server] "
        "ipaddress and port.",
    )


@dataclass(frozen=True)
class Registration:
    """Where SUT agents tell that they have started."""

    listen: str | None = setting(optional(HOST), None, "The address to listen on; nothing: agents cannot register.")
    port: int = setting(PORT, 28001, "The TCP port to listen on.")
    accept: tuple[IPv4Network | IPv6Network, ...] = setting(
        NETWORKS,
        (),
        "Networks that are trusted: unknown devices that call from there become devices in state new, known ones may "
        "bring a new address. Others are refused, but for known devices that call from the address known for them.",
    )
    environment: str = setting(
        matching("1 to 32 characters, other than any", r"(?!any$).{1,32}"),
        "none",
        "The environment that such new devices are put into.",
    )


@dataclass(frozen=True)
class Syslog:
    """What boards log, taken by the daemon itself: for small set-ups without rsyslog."""

    listen: tuple[str, int] | None = setting(
        optional(ENDPOINT),
        None,
        "Where boards log to, by UDP and TCP: 0.0.0.0:514 is where they look for it; ports below 1024 take a right of "
        "their own. Nothing: rsyslog does it, or nobody.",
    )
    facility: str = setting(
        choice("user", "daemon", "syslog", *(f"local{number}" for number in range(8))),
        "local0",
        "Lines of this facility are taken, others are dropped.",
    )
    lines_per_second: float = setting(
        number("lines a second", 0, above=True),
        100.0,
        "What one sender may log on average, and ten seconds' worth of it at once; what is beyond that is dropped.",
    )


@dataclass(frozen=True)
class Notify:
    """Who is told what, by webhook or by e-mail: what holds for all of the [notify NAME] sections below."""

    expiry_warning: float = setting(
        number("seconds", 0, 86400), 300.0, "So long before a request's end request_expiring is told; 0: never."
    )
    give_up_after: float = setting(
        number("days", 0, 30, above=True), 3.0, "For so long it is tried to tell somebody who does not take it."
    )


@dataclass(frozen=True)
class NotifyTarget:
    """Somebody who is told, under any NAME: by webhook or by email. All servers of the pool have the same ones."""

    events: tuple[str, ...] = setting(EVENT_WORDS, (), "What it is told.")
    webhook: str = setting(
        URL_HTTP_OR_NOTHING, "", "Where each event is sent to, as a POST of a JSON object.", secret=True
    )
    secret: str = setting(
        TEXT, "", "What a webhook's calls are signed with: any text that its receiver knows, too.", secret=True
    )
    email: tuple[str, ...] = setting(
        RECIPIENTS, (), "Who gets mail, through the server of [email]; assignee: who the request is for."
    )
    environments: tuple[str, ...] = setting(GLOBS, (), "Only what concerns devices or requests in these environments.")
    devices: tuple[str, ...] = setting(
        GLOBS, (), "Only what concerns these devices, or requests that have or want them."
    )
    hardware_types: tuple[str, ...] = setting(GLOBS, (), "Only what concerns hardware of these types.")
    servers: tuple[str, ...] = setting(
        GLOBS, (), "Only what concerns these imaging servers, or is theirs to look after."
    )
    assignees: tuple[str, ...] = setting(GLOBS, (), "Only requests that are for these.")


@dataclass(frozen=True)
class Email:
    """The mail server that [notify NAME] sections with email use."""

    host: str | None = setting(optional(HOST), None, "Its name; nothing: no mail is sent.")
    port: int = setting(PORT, 25, "Its TCP port: often 587 for starttls and 465 for tls.")
    tls: str = setting(
        choice("none", "starttls", "tls"), "none", "Whether the connection becomes (starttls) or is (tls) encrypted."
    )
    ca_file: Path | None = setting(
        optional(PATH), None, "Who vouches for its certificate, as a file in PEM form; nothing: whom the system trusts."
    )
    username: str = setting(TEXT, "", "Who to log in as; nothing: without a login.")
    password: str = setting(TEXT, "", "Password of that user.", secret=True)
    sender: str = setting(
        matching("an e-mail address", ADDRESS.pattern), "mozpool@localhost", "The address that mails come from."
    )
    timeout: float = setting(SECONDS, 30.0, "How long sending a mail may take in all.")
    delay: float = setting(number("seconds", 0, 3600), 10.0, "What happens within so many seconds is told in one mail.")


@dataclass(frozen=True)
class LambdaTest:
    """Phones in LambdaTest's private cloud, and the launcher that starts jobs on them for Taskcluster's queues."""

    enabled: bool = setting(BOOLEAN, False, "Watch the queues in this server and start jobs for them, as mld run does.")
    projects: Path | None = setting(
        optional(PATH), None, "The YAML file with the projects and their phones (lambdatest.yml)."
    )
    username: str = setting(
        TEXT, "", "The account's short user name, never the e-mail; nothing: that in LT_USERNAME of the environment."
    )
    access_key: str = setting(
        TEXT, "", "The account's access key; nothing: that in LT_ACCESS_KEY of the environment.", secret=True
    )
    hyperexecute: str = setting(PROGRAM, "hyperexecute", "LambdaTest's program that starts jobs.")
    user_scripts: str = setting(
        TEXT,
        "",
        "The directory with one folder of user scripts a version, or the URL of a git repository, whose revision "
        "USER_SCRIPTS_VERSION is taken; nothing: those that come with Mozpool.",
    )
    job_directory: Path | None = setting(
        optional(PATH), None, "Where the directories of jobs are made; nothing: a directory that ends with the server."
    )
    start_spacing: float = setting(number("seconds", 0, 3600), 2.0, "Seconds from one start of a job to the next.")
    max_initiated: int = setting(integer(1), 40, "No job is started while so many are initiated in the whole account.")
    max_starting: int = setting(integer(1, 100), 8, "How many runs of hyperexecute there may be at a time.")
    status_age: float = setting(
        number("seconds", 0, 600), 8.0, "How old the cloud's answers may be that are used again."
    )
    pick_up: float = setting(
        SECONDS, 210.0, "Seconds from a job's start within which it counts as on its way to a pending task."
    )
    job_limit: float = setting(SECONDS, 5400.0, "Seconds that a job may run; then it is stopped.")
    look_interval: float = setting(SECONDS, 5.0, "How often the queues are looked at.")
    label: str = setting(
        matching("up to 20 letters, digits and -", r"[A-Za-z0-9-]{1,20}"),
        "mozpool",
        "What this pool's jobs are known by in an account that others use, too.",
    )
    devices_api: str = setting(
        URL_HTTP, "https://mobile-api.lambdatest.com", "Where the cloud says how its phones are."
    )
    jobs_api: str = setting(URL_HTTP, "https://api.hyperexecute.cloud", "Where the cloud says how its jobs are.")
    stop_path: str = setting(
        matching("a path with {id} in it, or nothing", r"|/\S*\{id\}\S*"),
        "/v1.0/job/{id}/abort",
        "What is sent a PUT at jobs_api to stop a job; {id} is its id. Nothing: jobs end by themselves only.",
    )
    job_page: str = setting(
        TEXT,
        "https://hyperexecute.lambdatest.com/hyperexecute/task?jobId={id}",
        "The page of a job; {id} is its id.",
    )
    taskcluster: str = setting(
        URL_HTTP, "https://firefox-ci-tc.services.mozilla.com", "The root URL of the Taskcluster that has the queues."
    )
    provisioner: str = setting(TEXT, "proj-autophone", "What the worker pools' names begin with, before the slash.")
    sentry_dsn: str = setting(TEXT, "", "Where errors are reported to; nothing: nowhere.", secret=True)


@dataclass(frozen=True)
class Testing:
    """Simulated hardware, for trying Mozpool out and for its tests. The probabilities are those of real boards."""

    run_fakes: bool = setting(BOOLEAN, False, "Run simulated relay boards, boards and agents inside the daemon.")
    speed: float = setting(
        number("a factor", 1), 1.0, "Divides all time limits and pauses, here and in the simulation."
    )
    seed: int | None = setting(
        optional(integer(0)), None, "Start of the simulation's random numbers; nothing: a new one each time."
    )
    fake_boot_failure: float = setting(PROBABILITY, 0.05, "How often a simulated board does not boot.")
    fake_download_failure: float = setting(PROBABILITY, 0.05, "How often it hangs while it downloads an image.")
    fake_extract_failure: float = setting(PROBABILITY, 0.08, "How often it hangs while it unpacks an image.")
    fake_reboot_failure: float = setting(PROBABILITY, 0.08, "How often it does not come back from its reboot.")
    fake_ping_failure: float = setting(PROBABILITY, 0.02, "How often it misses a ping.")
    fake_selftest_failure: float = setting(PROBABILITY, 0.20, "How often it fails its self-test.")


@dataclass(frozen=True)
class Settings:
    """Everything that ``config.ini`` says; ``Settings()`` is what holds without one."""

    database: Database = field(default_factory=Database)
    server: Server = field(default_factory=Server)
    auth: Auth = field(default_factory=Auth)
    inventory: Inventory = field(default_factory=Inventory)
    paths: Paths = field(default_factory=Paths)
    pool: Pool = field(default_factory=Pool)
    lifeguard: LifeGuard = field(default_factory=LifeGuard)
    bmm: BMM = field(default_factory=BMM)
    commands: Mapping[str, tuple[str, ...]] = free_names(
        WORDS,
        "Programs that switch power, for devices whose power is command: NAME.on, NAME.off, NAME.status and NAME.test "
        "of those with the option command = NAME. {name}, {address} and {OPTION} stand for the device's own. For "
        "example: apc.on = /usr/local/bin/pdu on {socket}",
    )
    netboot: Netboot = field(default_factory=Netboot)
    registration: Registration = field(default_factory=Registration)
    syslog: Syslog = field(default_factory=Syslog)
    notify: Notify = field(default_factory=Notify)
    targets: Mapping[str, NotifyTarget] = named_sections("notify", NotifyTarget)
    email: Email = field(default_factory=Email)
    lambdatest: LambdaTest = field(default_factory=LambdaTest)
    timeouts: Mapping[str, float] = free_names(
        SECONDS, "Time limits of states, in seconds, where the built-in ones do not fit: b2g_downloading = 240."
    )
    tries: Mapping[str, int] = free_names(
        integer(0), "Numbers of tries of states where the built-in ones do not fit: pxe_booting = 10."
    )
    testing: Testing = field(default_factory=Testing)
    source: Path | None = field(default=None, compare=False)
    """The file that was read; None when there was none."""
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict, repr=False, compare=False)
    """Where each (section, key) of ``source`` stands."""

    @property
    def auth_mode(self) -> str:
        """``open``, ``token`` or ``oidc``."""
        return self.auth.mode or ("open" if is_loopback(self.server.listen) else "token")

    @property
    def device_events(self) -> str:
        """``token``, ``address`` or ``open``."""
        return self.auth.device_events or ("open" if self.auth_mode == "open" else "address")

    @property
    def public_url(self) -> str:
        """Where browsers reach this server, without a slash at the end."""
        return self.auth.public_url.rstrip("/") or f"http://{self.server.fqdn}"

    @property
    def boards_url(self) -> str:
        """Where boards reach this daemon, without a slash at the end."""
        return self.netboot.url.rstrip("/") or f"http://{self.server.ipaddress}:{self.server.port}"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sections() -> dict[str, type | Setting]:
    """The sections by name: a dataclass, or the kind that all values of a section with free names have."""
    hints = get_type_hints(Settings)
    return {
        f.name: hints[f.name] if is_dataclass(hints[f.name]) else f.metadata["setting"]
        for f in fields(Settings)
        if is_dataclass(hints[f.name]) or "setting" in f.metadata
    }


SECTIONS: Mapping[str, type | Setting] = MappingProxyType(_sections())

NAMED: Mapping[str, tuple[str, Named]] = MappingProxyType(
    {f.metadata["named"].word: (f.name, f.metadata["named"]) for f in fields(Settings) if "named" in f.metadata}
)
"""The first word of sections that have names → the field of :class:`Settings`, and what they are like."""

NAME_OF_SECTION = re.compile(r"[a-z0-9._-]{1,64}")


def spec_of(section: str) -> type | Setting | None:
    """What a section of this name has, as in :data:`SECTIONS`; None when there can't be any."""
    word, _, name = section.partition(" ")
    if word in NAMED and NAME_OF_SECTION.fullmatch(name):
        return NAMED[word][1].section
    return SECTIONS.get(section)


def keys(section: type) -> dict[str, Setting]:
    """The keys of a section class, in the order of their declaration."""
    return {f.name: f.metadata["setting"] for f in fields(section)}


# --- Reading ---


def load(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration file and return its settings.

    The file is ``path``, else ``$MOZPOOL_CONFIG``; these must exist. Else it is the first that exists of
    ``config.ini`` in the current directory, ``config.ini`` of the checkout that runs, and
    ``/etc/mozpool/config.ini``; without any, the defaults hold.

    Raises ConfigError with everything that is wrong in the file.
    """
    file = find(path, environ)
    if file is None:
        return Settings(database=Database(engine=default_engine(environ)))
    settings = _Reader(file).read()
    if not (("database", "engine") in settings.lines and settings.database.engine):
        settings = replace(settings, database=replace(settings.database, engine=default_engine(environ)))
    return settings


def find(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file that :func:`load` reads, made absolute; None when there is none and none was named."""
    named = path or environ.get("MOZPOOL_CONFIG")
    if named:
        return Path(named).absolute()
    candidates = [Path.cwd() / "config.ini", SYSTEM_FILE]
    if resources.CHECKOUT:
        candidates.insert(1, resources.CHECKOUT / "config.ini")
    return next(filter(_is_there, candidates), None)


def _is_there(file: Path) -> bool:
    """Whether the file exists; one that may not be looked at does, so that reading it says so."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def check_state_names(settings: Settings, names: Collection[str]) -> None:
    """Raise ConfigError when ``[timeouts]`` or ``[tries]`` names a state that is not in ``names``."""
    problems = [
        Problem(
            settings.source or Path("config.ini"),
            settings.lines.get((section, name)),
            section,
            name,
            "there is no such state" + _did_you_mean(name, names),
        )
        for section, values in (("timeouts", settings.timeouts), ("tries", settings.tries))
        for name in values
        if name not in names
    ]
    if problems:
        raise ConfigError(problems)


class _Reader:
    """Reads one file, and gathers what is wrong with it on the way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[tuple[str, str], int] = {}

    def read(self) -> Settings:
        text = self._text()
        parser = self._parse(text)
        values = {name: self._section(name, dict(parser[name])) for name in parser.sections() if spec_of(name)}
        for word, (field_name, _) in NAMED.items():
            named = {name.partition(" ")[2]: value for name, value in values.items() if name.startswith(f"{word} ")}
            values = {name: value for name, value in values.items() if not name.startswith(f"{word} ")}
            values[field_name] = MappingProxyType(named)
        if self.problems:
            raise ConfigError(self.problems)
        settings = Settings(source=self.file, lines=MappingProxyType(self.lines), **values)
        self._check_targets(settings)
        if self.problems:
            raise ConfigError(self.problems)
        return settings

    def _text(self) -> str:
        try:
            return self.file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError([Problem(self.file, None, None, None, f"cannot be read: {error.strerror}")]) from None
        except UnicodeDecodeError:
            raise ConfigError([Problem(self.file, None, None, None, "is not text in UTF-8")]) from None

    def _parse(self, text: str) -> configparser.RawConfigParser:
        """The file as configparser sees it, with faults of the form reported by their lines."""
        # No interpolation, since passwords contain percent signs; a name that no file can have as default section.
        # Duplicates are not left to configparser, which stops at the first one.
        parser = configparser.RawConfigParser(
            delimiters=("=",), default_section="", strict=False, empty_lines_in_values=False
        )
        for line, section, key in positions(text):
            if spec_of(section) is None:
                if key is None:
                    self._problem(line, section, None, _no_section(section))
            elif key is not None:
                first = self.lines.setdefault((section, key), line)
                if first != line:
                    self._problem(line, section, key, f"is already set in line {first}")
        try:
            parser.read_string(text)
        except configparser.MissingSectionHeaderError as error:
            self._problem(error.lineno, None, None, "expected a [section] before the first key")
        except configparser.ParsingError as error:
            for line, _ in error.errors:  # the line itself is not shown: it may be part of a password
                self._problem(line, None, None, "expected KEY = VALUE, [section] or # comment")
        return parser

    def _section(self, section: str, texts: Mapping[str, str]) -> Any:
        """The dataclass or, where names are free, the mapping that stands for the section."""
        spec = spec_of(section)
        assert spec is not None
        if isinstance(spec, Setting):
            values = {name: self._value(section, name, spec, text) for name, text in texts.items()}
            if section == "commands":
                self._check_commands(values)
            return MappingProxyType(values)
        known = keys(spec)
        values = {}
        for key, text in texts.items():
            if key in known:
                values[key] = self._value(section, key, known[key], text)
            else:
                self._problem(
                    self.lines.get((section, key)), section, key, "there is no such key" + _did_you_mean(key, known)
                )
        made = None if self.problems else spec(**values)
        if isinstance(made, Server):
            self._check_server(made)
        if isinstance(made, Inventory):
            self._check_inventory(made)
        if isinstance(made, Auth):
            self._check_auth(made)
        return made

    def _check_server(self, server: Server) -> None:
        """Silence is told from a sign of life that comes a little late, and who is taken over from is away."""
        wrong = []
        if server.away_after < 3 * server.heartbeat_interval:
            wrong.append(
                ("away_after", "heartbeat_interval", f"three times heartbeat_interval, {server.heartbeat_interval:g}")
            )
        elif server.group is not None and server.takeover_after < 6 * server.heartbeat_interval:
            wrong.append(
                ("takeover_after", "heartbeat_interval", f"six times heartbeat_interval, {server.heartbeat_interval:g}")
            )
        elif server.group is not None and server.takeover_after < server.away_after:
            wrong.append(("takeover_after", "away_after", f"away_after, {server.away_after:g}"))
        for key, other, least in wrong:
            line = self.lines.get(("server", key), self.lines.get(("server", other)))
            self._problem(line, "server", key, f"{getattr(server, key):g} is not at least {least}")

    def _check_inventory(self, inventory: Inventory) -> None:
        """What its kind needs is there."""
        wrong = []
        if inventory.source == "file" and (inventory.path is None or inventory.path.suffix.lower() not in FILES):
            wrong.append(("path", f"source = file needs a path that ends in {', '.join(FILES)}"))
        elif inventory.source == "command" and inventory.command is None:
            wrong.append(("command", "source = command needs a program"))
        elif inventory.source == "netbox" and not (inventory.url and inventory.token):
            wrong.append(("token" if inventory.url else "url", "source = netbox needs url and token"))
        elif inventory.sync_interval and not inventory.is_configured:
            wrong.append(("sync_interval", f"there is no inventory to read: source = {inventory.source} needs a url"))
        if inventory.url and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", inventory.url):
            wrong.append(("url", "(a secret) is not right; expected an http:// or https:// URL without ? and #"))
        for key, what in wrong:
            line = self.lines.get(("inventory", key), self.lines.get(("inventory", "source")))
            self._problem(line, "inventory", key, what)

    def _check_auth(self, auth: Auth) -> None:
        """What signing on through a provider needs is there, and browsers find the way."""
        wrong = []
        if auth.mode == "oidc":
            needed = ("oidc_issuer", "oidc_client_id", "oidc_name_claim")
            wrong += [(key, "mode = oidc needs it") for key in needed if not getattr(auth, key)]
            if "openid" not in auth.oidc_scope.split():
                wrong.append(
                    ("oidc_scope", f"{_shorten(auth.oidc_scope)} is not right; openid must be one of the words")
                )
        for key in ("public_url", "oidc_issuer"):
            if re.search("[?#]", getattr(auth, key)):
                wrong.append((key, f"{_shorten(getattr(auth, key))} is not right; expected a URL without ? and #"))
        if re.fullmatch("https?://[^/]+/.+", auth.public_url.rstrip("/")):
            wrong.append(("public_url", f"{_shorten(auth.public_url)} is not right; expected a URL without a path"))
        for key, what in wrong:
            line = self.lines.get(("auth", key), self.lines.get(("auth", "mode")))
            self._problem(line, "auth", key, what)

    def _check_targets(self, settings: Settings) -> None:
        """Each is told something, in one way, and what that way needs is there."""
        for name, target in settings.targets.items():
            section = f"notify {name}"
            wrong: tuple[str, str] | None = None
            if not target.events:
                wrong = ("events", f"is missing; expected {EVENT_WORDS.expected}")
            elif bool(target.webhook) == bool(target.email):
                wrong = ("webhook", "expected either webhook or email, and not both")
            elif target.webhook and not target.secret:
                wrong = ("secret", "is missing: the calls of a webhook are signed")
            elif target.email and target.secret:
                wrong = ("secret", "is for a webhook; mail is not signed")
            elif target.email and settings.email.host is None:
                wrong = ("email", "needs a mail server: [email] host is not set")
            elif target.email == (ASSIGNEE,) and not any(event.startswith("request_") for event in target.events):
                wrong = ("email", "only requests have an assignee; expected one of the events request_... as well")
            if wrong is not None:
                line = self.lines.get((section, wrong[0])) or min(
                    (line for (where, _), line in self.lines.items() if where == section), default=None
                )
                self._problem(line, section, *wrong)

    def _check_commands(self, names: Collection[str]) -> None:
        """Each is NAME and what it does; who can be switched off must be able to be switched on, and vice versa."""
        first: dict[str, str] = {}
        bad: set[str] = set()
        for key in names:
            name, _, action = key.rpartition(".")
            if action not in COMMANDS:
                close = difflib.get_close_matches(action, COMMANDS, n=1)
                known = ", ".join(f"{name or action}.{each}" for each in COMMANDS)
                hint = f"did you mean {name}.{close[0]}?" if name and close else f"expected one of {known}"
                what = f"there is no such command; {hint}"
            elif not COMMAND_NAME.fullmatch(name):
                what = f"{_shorten(name)} is not right; expected letters, digits and . _ - as a name"
            else:
                first.setdefault(name, key)
                continue
            bad.add(name)
            self._problem(self.lines.get(("commands", key)), "commands", key, what)
        for name, key in first.items():
            missing = [each for each in (f"{name}.on", f"{name}.off") if each not in names]
            if missing and name not in bad:  # what is misspelt is missing, too
                what = f"{' and '.join(missing)} must be there as well"
                self._problem(self.lines.get(("commands", key)), "commands", key, what)

    def _value(self, section: str, key: str, setting: Setting, text: str) -> Any:
        try:
            return setting.kind.parse(text)
        except ValueError:
            shown = "(a secret)" if setting.secret and text else _shorten(text)
            self._problem(
                self.lines.get((section, key)), section, key, f"{shown} is not right; expected {setting.kind.expected}"
            )
            return None

    def _problem(self, line: int | None, section: str | None, key: str | None, message: str) -> None:
        self.problems.append(Problem(self.file, line, section, key, message))


def positions(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Where sections and keys stand: (line, section, None) and (line, section, key), in the file's order.

    configparser keeps no line numbers, so this follows its rules of what a line is: a line that is
    indented more than the key above it goes on with that key's value, up to a comment or an empty line.
    """
    section: str | None = None
    indent: float = math.inf
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            indent = math.inf
            continue
        current = len(line) - len(line.lstrip())
        if current > indent:
            continue
        if header := configparser.RawConfigParser.SECTCRE.match(stripped):
            section, indent = header["header"], math.inf
            yield number, section, None
        elif section is not None and "=" in stripped:
            indent = current
            yield number, section, stripped.partition("=")[0].strip().lower()


def _did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return "; expected one of " + ", ".join(known) if len(known) <= 12 else ""


def _no_section(section: str) -> str:
    word, _, name = section.partition(" ")
    if word in NAMED:
        shown = _shorten(name)
        return f"{shown} is not right; expected [{word} NAME] with 1 to 64 small letters, digits and . _ - as a name"
    return "there is no such section" + _did_you_mean(section, SECTIONS)


def _shorten(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


# --- The sample ---


def sample() -> str:
    """The text of ``config.ini.dist``: every section and key, with its default and what may be written."""
    parts = [
        _comment(
            "Mozpool's configuration. Copy this file to config.ini and change what is different with you: what is left "
            "out has the value that stands here. A comment is a line of its own; values are taken as they are, without "
            "quotes. Unknown sections and keys, and values that cannot be right, stop the start."
        )
    ]
    for name, spec in SECTIONS.items():
        doc = spec.doc if isinstance(spec, Setting) else spec.__doc__ or ""
        parts.append(f"\n{_comment(doc)}[{name}]\n")
        if isinstance(spec, Setting):
            parts.append(_comment(f"NAME = VALUE: {spec.kind.expected}"))
        else:
            parts += map(_sample_key, fields(spec))
        if name in NAMED:
            section = NAMED[name][1].section
            parts.append(f"\n{_comment(section.__doc__ or '')}# [{name} NAME]\n")
            parts += [_sample_key(f).replace(f"\n{f.name} =", f"\n# {f.name} =") for f in fields(section)]
    return "\n".join(parts)


def _sample_key(f: Field[Any]) -> str:
    spec: Setting = f.metadata["setting"]
    default = "" if f.default is MISSING else spec.kind.show(f.default)
    return _comment(spec.doc) + _comment(f"Value: {spec.kind.expected}") + f"{f.name} = {default}".rstrip() + "\n"


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, 98, break_on_hyphens=False, break_long_words=False)
    return "".join(f"# {line}\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(sample())
