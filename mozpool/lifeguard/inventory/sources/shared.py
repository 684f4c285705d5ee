# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What sources share: JSON that is taken as it is or not at all, over HTTP or from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http.client import responses
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import requests
from requests.auth import HTTPBasicAuth

from mozpool.bmm import httpio
from mozpool.bmm.netio import shown
from mozpool.clock import Deadline
from mozpool.config import Inventory
from mozpool.errors import BadInput
from mozpool.lifeguard.inventory.hosts import Entry, InventoryError

ANSWER_LIMIT = 256 * 1024 * 1024
"""Bytes of an answer: tens of thousands of hosts with all that an inventory keeps of each."""


def parse(text: bytes | str, where: str) -> Any:
    """JSON in which no key comes twice. Raises InventoryError; ``where`` begins its message."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except _Twice as error:
        raise InventoryError(f"{where}: {shown(str(error))} stands there twice") from None
    except (ValueError, RecursionError) as error:
        start = text[:80].decode("utf-8", "replace") if isinstance(text, bytes) else text[:80]
        what = f"it begins with {shown(start)}" if not isinstance(error, json.JSONDecodeError) else _place(error, start)
        raise InventoryError(f"{where}: this is not JSON: {what}") from None


def _place(error: json.JSONDecodeError, start: str) -> str:
    where = f"line {error.lineno}, column {error.colno}: {error.msg}"
    return f"{where}; it begins with {shown(start)}"


class _Twice(ValueError):
    pass


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def an_object(value: Any, what: str) -> dict[str, Any]:
    """``value`` when it is a JSON object. Raises BadInput."""
    if not isinstance(value, dict):
        raise BadInput.value(what, value, "an object")
    return value


def listed(value: Any, where: str, unit: str = "entry") -> list[Entry]:
    """The entries of a list of objects, as files and programs give them. Raises InventoryError."""
    if not isinstance(value, list):
        raise InventoryError.value(where, value, "a list of hosts")
    found = []
    for number, item in enumerate(value, start=1):
        place = f"{where}, {unit} {number}"
        if not isinstance(item, dict) or not all(isinstance(key, str) for key in item):
            raise InventoryError.value(place, item, "an object with the fields of a host")
        found.append(Entry(f"{place} ({item['fqdn']})" if isinstance(item.get("fqdn"), str) else place, item))
    return found


class JsonCalls:
    """GET calls to one server, all of them over by one deadline. A context manager."""

    def __init__(self, settings: Inventory, deadline: Deadline, headers: Mapping[str, str] | None = None) -> None:
        """``headers`` go with each call."""
        self._base = settings.url.rstrip("/")
        self._session = httpio.session(deadline, ANSWER_LIMIT)
        self._session.verify = settings.verify
        self._session.headers.update({"Accept": "application/json", **(headers or {})})
        if settings.username and not headers:
            self._session.auth = HTTPBasicAuth(settings.username.encode(), settings.password.encode())
        self.host = host_of(settings.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.close()

    def get(self, path: str) -> Any:
        """What a path (with its query) answers. Raises InventoryError."""
        where = f"{self.host}, {path.partition('?')[0]}"
        try:
            said = self._session.get(f"{self._base}{path}")
        except httpio.CallError as error:
            raise InventoryError(f"{where}: {error}") from error
        except requests.RequestException as error:
            raise InventoryError(f"{where}: the URL is not right ({type(error).__name__})") from error
        if said.status_code in (401, 403):
            raise InventoryError(f"{where}: answered {said.status_code}: it does not accept the credentials")
        if said.status_code != 200:
            # In its own words it might quote the address, which may be secret.
            raise InventoryError(f"{where}: answered {said.status_code} {responses.get(said.status_code, '')}".rstrip())
        return parse(said.content, where)


def host_of(url: str) -> str:
    """The server's name, and a port where one is named; without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]
