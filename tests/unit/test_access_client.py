# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The client says who calls; ``mozpool token``, ``team`` and ``revoke`` on a real server."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from mozpool.client import Client, ClientError, NotAllowed, ServerUnavailable
from mozpool.client.cli import main
from mozpool.client.credentials import default_token
from mozpool.client.transport import Call, Transport
from mozpool.clock import Clock, Deadline
from tests.access_support import make_token
from tests.app_fixtures import Server, server
from tests.unit.client_support import Answer, Pool, PoolServer, error

TOKEN = "mozpool_1_" + "s" * 43


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token but those of the tests."""
    for name in ("MOZPOOL_TOKEN", "MOZPOOL_TOKEN_FILE", "MOZPOOL_SERVERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@contextmanager
def served(made: Server) -> Iterator[str]:
    """The URL of a server's application on a port of its own."""
    listening = make_server("127.0.0.1", 0, made.app, threaded=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.port}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


# Where it comes from


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_comes_from_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_token() is None
    write(tmp_path / "config" / "mozpool" / "token", f"{TOKEN}1\n")
    assert default_token() == f"{TOKEN}1"
    monkeypatch.setenv("MOZPOOL_TOKEN_FILE", str(write(tmp_path / "t2", f"{TOKEN}2")))
    assert default_token() == f"{TOKEN}2"
    monkeypatch.setenv("MOZPOOL_TOKEN", f"{TOKEN}3")
    assert default_token() == f"{TOKEN}3"
    assert Client("x").token == f"{TOKEN}3"
    assert Client("x", token=TOKEN).token == TOKEN
    assert Client("x", token="").token is None


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [(TOKEN, 0o640, "may be read by others"), ("", 0o600, "does not hold a token"), ("a b", 0o600, "does not hold")],
)
def test_a_file_that_is_no_good_is_refused(tmp_path: Path, text: str, mode: int, why: str) -> None:
    file = write(tmp_path / "token", text, mode)
    result = CliRunner().invoke(main, ["--token-file", str(file), "images"])
    assert result.exit_code == 2
    assert why in result.stderr
    assert "chmod" in result.stderr or text not in result.stderr or not text
    result = CliRunner().invoke(main, ["--token-file", str(tmp_path / "nix"), "images"])
    assert (result.exit_code, "can't be read" in result.stderr) == (2, True)


# Whom it is sent to


def test_a_token_is_sent_to_servers_of_the_pool_alone() -> None:
    """Those that are named, and those that the redirecting server names."""
    pool, foreign = Pool(), Pool()
    with PoolServer(pool) as one, PoolServer(pool) as two, PoolServer(foreign) as stranger:
        fqdn = two.url.removeprefix("http://")
        listed = Answer(200, {"servers": [{"fqdn": fqdn}]})
        transport = Transport(one.url, timeout=10, rng=random.Random(1), clock=Clock(), token=TOKEN)
        call = Call("POST", "api/request/1/return/", {}, repeatable=True)
        elsewhere = Answer(302, {}, {"Location": f"{two.url}/api/request/1/return/"})
        one.faults.extend([elsewhere, listed, elsewhere])
        two.faults.extend([Answer(204), Answer(204)])
        assert transport.call(call) is None
        assert transport.call(call) is None
        asked = [(each.path, each.headers.get("Authorization")) for each in pool.calls]
        assert {token for _, token in asked} == {f"Bearer {TOKEN}"}
        assert [path for path, _ in asked].count("/api/server/list/") == 1, "asked once"
        one.faults.append(Answer(302, {}, {"Location": f"{stranger.url}/api/request/1/return/"}))
        one.faults.append(listed)
        with pytest.raises(ClientError, match="no server of its pool: the token is not sent"):
            transport.call(call)
        assert foreign.calls == []


def test_without_a_token_redirects_are_followed_as_ever() -> None:
    pool = Pool()
    with PoolServer(pool) as one, PoolServer(pool) as two:
        one.faults.append(Answer(302, {}, {"Location": f"{two.url}/api/version/"}))
        assert Client(one.url).version() == "5.0.0"
        assert all("Authorization" not in call.headers for call in pool.calls)


def test_a_token_does_not_go_from_https_to_http() -> None:
    transport = Transport("https://a.example.com", timeout=1, rng=random.Random(1), clock=Clock(), token=TOKEN)
    transport._pool.add("https://b.example.com")
    url = "https://a.example.com/api/x/"
    deadline = Deadline(Clock(), 1)
    assert transport._trusted(url, "http://b.example.com/api/x/?y=1", deadline) == "https://b.example.com/api/x/?y=1"
    with pytest.raises(ClientError, match="unencrypted"):
        transport._trusted(url, "http://b.example.com:8080/api/x/", deadline)


def test_who_may_not_is_told_so() -> None:
    pool = Pool()
    with PoolServer(pool) as one:
        one.faults.append(error(403, "forbidden", "x has the role viewer, and this needs the role user"))
        with pytest.raises(NotAllowed, match="needs the role user"):
            Client(one.url).version()
        one.faults.append(error(401, "unauthorized", "the token is not known"))
        result = CliRunner().invoke(main, ["--server", one.url, "--token", TOKEN, "images"])
        assert (result.exit_code, result.stderr) == (6, "mozpool: the token is not known\n")


def test_who_is_slowed_down_waits() -> None:
    pool = Pool()
    with PoolServer(pool) as one:
        one.faults.append(Answer(429, error(429, "too_many_attempts", "wait").body, {"Retry-After": "0"}))
        assert Client(one.url).version() == "5.0.0"
        one.faults.append(Answer(429, error(429, "too_many_attempts", "wait").body, {"Retry-After": "60"}))
        with pytest.raises(ServerUnavailable):
            Client(one.url).version()


# The commands


def test_tokens_and_teams_from_the_command_line(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as made, served(made) as url:
        root = make_token(made.daemon.database, "root@example.com", "admin")

        def run(*arguments: str, token: str = root, status: int = 0) -> Result:
            result = CliRunner().invoke(main, ["--server", url, *arguments], env={"MOZPOOL_TOKEN": token})
            assert result.exit_code == status, result.output
            return result

        run("team", "create", "web", "--max-devices", "0", "--max-duration", "2h", "--environment", "none")
        run("team", "change", "web", "--max-devices", "1", "--without", "environments", "--group", "devs")
        assert run("team", "list").stdout.splitlines()[1].split() == ["web", "0", "1", "7200", "all", "devs"]
        given = run("token", "create", "ci", "--role", "user", "--team", "web", "--note", "x", "--duration", "1d")
        ci = given.stdout.strip()
        assert ci.startswith("mozpool_")
        assert ci not in given.stderr
        shown = json.loads(run("token", "show", "--json", token=ci).stdout)
        assert (shown["name"], shown["role"], shown["team"]) == ("ci", "user", "web")
        number = run("request", "b2g", "--boot-config", "b2gbase=http://b/1/", "--no-wait", token=ci).stdout.split()[1]
        request_id = number.rstrip(":")
        assert run("return", request_id, token=ci).exit_code == 0
        other = run("request", "b2g", "--boot-config", "b2gbase=http://b/1/", "--no-wait", token=ci).stdout.split()[1]
        other = other.rstrip(":")
        run("revoke", other, "--reason", "needed", token=ci, status=6)
        run("revoke", other, "--reason", "needed")
        assert made.request(int(other)).reason == "revoked by root@example.com: needed"
        run("team", "delete", "web", status=5)
        listed = json.loads(run("token", "list", "--json").stdout)
        run("token", "revoke", str(next(each["id"] for each in listed if each["name"] == "ci")))
        run("images", token=ci, status=6)
        run("images", token="", status=6)
        assert "ci" not in run("token", "list").stdout
        assert "ci" in run("token", "list", "--all").stdout
        run("team", "delete", "web")
