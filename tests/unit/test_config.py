# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

from __future__ import annotations

import configparser
import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from mozpool import config, resources
from mozpool.config import ConfigError, Settings, check_state_names, load

NOWHERE = {"HOME": "/nonexistent"}


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.ini"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def nothing_to_find(tmp_path, monkeypatch):
    """No configuration file in any of the usual places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resources, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "etc" / "config.ini")
    return tmp_path


def problems(path: Path) -> list[str]:
    """The lines of the error that loading ``path`` raises, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(path, NOWHERE)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


# --- Where the file is found ---


def test_it_has_defaults_when_there_is_no_file(nothing_to_find):
    settings = load(environ={"HOME": "/home/ann"})
    assert settings.source is None
    assert settings.database.engine == "sqlite:////home/ann/.local/share/mozpool/mozpool.sqlite"
    assert (settings.server.fqdn, settings.server.listen, settings.server.port) == ("127.0.0.1", "127.0.0.1", 8080)


def test_it_keeps_the_default_pool_where_xdg_says(write):
    environ = {"HOME": "/home/ann", "XDG_DATA_HOME": "/var/lib/with space?"}
    engine = load(write("[database]\nengine =\n"), environ).database.engine
    assert make_url(engine).database == "/var/lib/with space?/mozpool/mozpool.sqlite"
    assert load(write(""), environ).database.engine == engine


def test_it_ignores_a_relative_xdg_data_home(write):
    engine = load(write(""), {"HOME": "/home/ann", "XDG_DATA_HOME": "data"}).database.engine
    assert engine == "sqlite:////home/ann/.local/share/mozpool/mozpool.sqlite"


def test_it_looks_in_each_place_in_turn(nothing_to_find):
    places = [
        nothing_to_find / "etc" / "config.ini",
        nothing_to_find / "checkout" / "config.ini",
        nothing_to_find / "config.ini",
    ]
    for place in places:  # each one is preferred to those before it
        place.parent.mkdir(exist_ok=True)
        place.write_text("[server]\nport = 81\n")
        settings = load(environ=NOWHERE)
        assert settings.source == place
        assert settings.server.port == 81


def test_it_prefers_the_environment_variable_and_above_all_the_argument(nothing_to_find):
    for name, port in (("config.ini", 81), ("variable.ini", 82), ("argument.ini", 83)):
        (nothing_to_find / name).write_text(f"[server]\nport = {port}\n")
    environ = NOWHERE | {"MOZPOOL_CONFIG": "variable.ini"}
    assert load(environ=environ).server.port == 82
    assert load("argument.ini", environ).server.port == 83


def test_it_does_not_go_on_without_a_file_that_was_named(tmp_path):
    missing = tmp_path / "missing.ini"
    with pytest.raises(ConfigError, match=re.escape(f"{missing}: cannot be read: No such file or directory")):
        load(environ=NOWHERE | {"MOZPOOL_CONFIG": str(missing)})


def test_it_says_when_the_file_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, NOWHERE)
    (tmp_path / "latin1.ini").write_bytes("[server]\nfqdn = höst\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        load(tmp_path / "latin1.ini", NOWHERE)


# --- What is read ---


def test_it_reads_the_keys_of_an_old_file(write):
    settings = load(
        write(
            "[database]\n"
            "engine = mysql://mozpool:pa%25ss@db.example.com/mozpool\n"
            "[server]\n"
            "fqdn = mobile-imaging-001.example.com\n"
            "ipaddress = 10.12.128.20\n"
            "heartbeat_file = /var/run/heartbeat\n"
            "[inventory]\n"
            "url = https://inventory.example.com\n"
            "username = pool\n"
            "password = a%b#c;d = %(e)s\n"
            "filter = hostname__startswith=panda-\n"
            "ignore_devices_on_servers_re = ^test-\n"
            "[paths]\n"
            "tftp_root = /opt/tftp/\n"
            "image_store = /opt/images\n"
            "[testing]\n"
            "run_fakes = yes\n"
        )
    )
    assert settings.database.engine == "mysql+pymysql://mozpool:pa%25ss@db.example.com/mozpool"
    assert settings.server.fqdn == "mobile-imaging-001.example.com"
    assert settings.server.heartbeat_file == Path("/var/run/heartbeat")
    assert settings.inventory.password == "a%b#c;d = %(e)s"
    assert settings.inventory.filter == "hostname__startswith=panda-"
    assert settings.inventory.ignore_devices_on_servers_re == re.compile("^test-")
    assert settings.paths.tftp_root == Path("/opt/tftp")
    assert settings.testing.run_fakes is True


@pytest.mark.parametrize(
    ("section", "key", "text", "value"),
    [
        ("database", "engine", "sqlite:////var/lib/pool.sqlite", "sqlite:////var/lib/pool.sqlite"),
        ("database", "engine", "mysql+pymysql://u@h:3307/d?charset=utf8", "mysql+pymysql://u@h:3307/d?charset=utf8"),
        ("database", "connect_timeout", "0.5", 0.5),
        ("server", "fqdn", "127.0.0.1:8081", "127.0.0.1:8081"),
        ("server", "listen", "::", "::"),
        ("server", "log_level", "Debug", "DEBUG"),
        ("server", "syslog", "/dev/log", "/dev/log"),
        ("server", "syslog", "logs.example.com:514", ("logs.example.com", 514)),
        ("server", "syslog", "", None),
        ("server", "syslog", "[fd99::1]:514", ("fd99::1", 514)),
        ("syslog", "listen", "0.0.0.0:514", ("0.0.0.0", 514)),
        ("syslog", "listen", "[::]:514", ("::", 514)),
        ("syslog", "listen", "", None),
        ("syslog", "facility", "LOCAL3", "local3"),
        ("server", "origins", "a.example.com, B.example.com:8080\n  c", ("a.example.com", "b.example.com:8080", "c")),
        ("server", "log_requests", "off", False),
        ("paths", "tftp_root", "", None),
        ("testing", "speed", "20", 20.0),
        ("testing", "seed", "42", 42),
    ],
)
def test_it_reads_each_kind_of_value(write, section, key, text, value):
    settings = load(write(f"[{section}]\n{key} = {text}\n"), NOWHERE)
    read = getattr(getattr(settings, section), key)
    assert read == value
    assert type(read) is type(value)


def test_it_reads_limits_of_states_by_any_name(write):
    settings = load(write("[timeouts]\nb2g_downloading = 240\nready = 0.5\n[tries]\npxe_booting = 10\n"), NOWHERE)
    assert settings.timeouts == {"b2g_downloading": 240.0, "ready": 0.5}
    assert settings.tries == {"pxe_booting": 10}


def test_it_gives_settings_that_nobody_can_change(write):
    settings = load(write("[timeouts]\nready = 5\n"), NOWHERE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.server.port = 81  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.timeouts["ready"] = 6  # type: ignore[index]


def test_it_reads_programs_that_switch_power(write):
    settings = load(
        write("[commands]\nAPC-1.2.on = a 'b c'\napc-1.2.off = b\napc-1.2.status = c\napc-1.2.test = d\n"), NOWHERE
    )
    assert settings.commands["apc-1.2.on"] == ("a", "b c")
    assert len(settings.commands) == 4


TOLD = """\
[notify]
expiry_warning = 600
[notify ops.1]
events = device_failed, Server_Away server_away
email = ops@example.com, boss@example.com
environments = production stag*
[notify chat]
webhook = https://chat.example.com/hooks/T0K3N
secret = s3cr%t = ü
events = request_ready
[notify who]
email = assignee
events = request_ready device_failed
[email]
host = mail.example.com
tls = STARTTLS
ca_file = /etc/ssl/ours.pem
username = pool
password = p4ss
"""


def test_it_reads_who_is_told_what(write):
    settings = load(write(TOLD), NOWHERE)
    assert settings.notify == config.Notify(expiry_warning=600.0)
    assert set(settings.targets) == {"ops.1", "chat", "who"}
    ops = settings.targets["ops.1"]
    assert ops.events == ("device_failed", "server_away")
    assert ops.email == ("ops@example.com", "boss@example.com")
    assert ops.environments == ("production", "stag*")
    assert settings.targets["chat"].secret == "s3cr%t = ü"
    assert settings.targets["who"].email == ("assignee",)
    assert (settings.email.tls, settings.email.port, settings.email.delay) == ("starttls", 25, 10.0)
    with pytest.raises(TypeError):
        settings.targets["new"] = ops  # type: ignore[index]
    for secret in ("T0K3N", "s3cr", "p4ss"):
        assert secret not in repr(settings)


def test_nobody_is_told_anything_by_default(write):
    assert load(write("[server]\nport = 81\n"), NOWHERE).targets == {}


# --- What is refused ---


HOOK = ["events = device_failed", "webhook = http://x/", "secret = s"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            ["[notify]", "events = x"],
            "2: [notify] events: there is no such key; expected one of expiry_warning, give_up_",
        ),
        (
            ["[notify A]", *HOOK],
            "1: [notify A] 'A' is not right; expected [notify NAME] with 1 to 64 small letters, digi",
        ),
        (["[notify ]", *HOOK], "1: [notify ] '' is not right; expected [notify NAME]"),
        (["[notify a b]", *HOOK], "1: [notify a b] 'a b' is not right; expected [notify NAME]"),
        (["[notifi a]", *HOOK], "1: [notifi a] there is no such section; did you mean notify?"),
        (["[notify a]", *HOOK, "device = x"], "5: [notify a] device: there is no such key; did you mean devices?"),
        (["[notify a]", *HOOK, "secret = t"], "5: [notify a] secret: is already set in line 4"),
        (
            ["[notify a]", *HOOK[1:]],
            "2: [notify a] events: is missing; expected events, separated by spaces or commas:",
        ),
        (
            ["[notify a]", "events = device_failed, x"],
            "2: [notify a] events: 'device_failed, x' is not right; expected eve",
        ),
        (["[notify a]", HOOK[0]], "2: [notify a] webhook: expected either webhook or email, and not both"),
        (
            ["[notify a]", *HOOK, "email = a@b.c"],
            "3: [notify a] webhook: expected either webhook or email, and not both",
        ),
        (["[notify a]", *HOOK[:2]], "2: [notify a] secret: is missing: the calls of a webhook are signed"),
        (
            ["[notify a]", HOOK[0], "webhook = ftp://x/"],
            "3: [notify a] webhook: (a secret) is not right; expected an http",
        ),
        (["[notify a]", HOOK[0], "email = a@b.c"], "3: [notify a] email: needs a mail server: [email] host is not set"),
        (
            ["[notify a]", HOOK[0], "email = a@b@c"],
            "3: [notify a] email: 'a@b@c' is not right; expected e-mail addresses",
        ),
        (["[notify a]", HOOK[0], "email = assignee a@b.c"], "3: [notify a] email: 'assignee a@b.c' is not right"),
        (
            ["[email]", "host = m", "[notify a]", HOOK[0], "email = assignee"],
            "5: [notify a] email: only requests have an assignee; expected one of the events request_...",
        ),
        (
            ["[email]", "host = m", "[notify a]", HOOK[0], "email = a@b.c", "secret = s"],
            "6: [notify a] secret: is for a webhook; mail is not signed",
        ),
        (["[email]", "sender = me"], "2: [email] sender: 'me' is not right; expected an e-mail address"),
        (["[email]", "tls = ssl"], "2: [email] tls: 'ssl' is not right; expected one of none, starttls, tls"),
        (
            ["[notify]", "expiry_warning = 90000"],
            "2: [notify] expiry_warning: '90000' is not right; expected seconds, from",
        ),
    ],
)
def test_it_names_what_is_wrong_with_who_is_told(write, lines, problem):
    file = write("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load(file, NOWHERE)
    (found,) = caught.value.problems
    assert str(found).removeprefix(f"{file}:").startswith(problem)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["mode = oidc"], ["2: [auth] oidc_issuer: mode = oidc", "2: [auth] oidc_client_id: mode = oidc"]),
        (
            ["mode = oidc", "oidc_issuer = https://login/", "oidc_client_id = x", "oidc_scope = profile"],
            ["5: [auth] oidc_scope: 'profile' is not right; openid"],
        ),
        (["public_url = https://pool/x"], ["2: [auth] public_url: 'https://pool/x' is not right; expected a URL with"]),
        (
            ["oidc_issuer = https://login/?x"],
            ["2: [auth] oidc_issuer: 'https://login/?x' is not right; expected a URL"],
        ),
        (["server_key = short"], ["2: [auth] server_key: (a secret) is not right"]),
    ],
)
def test_it_names_what_is_missing_for_signing_on(write, lines, found):
    said = problems(write("\n".join(["[auth]", *lines])))
    assert len(said) == len(found)
    for line, expected in zip(said, found, strict=True):
        assert line.startswith(expected)


def test_only_the_groups_that_are_named_get_a_role(write):
    settings = load(write("[auth]\nmode = oidc\noidc_issuer = https://x\noidc_client_id = y\noidc_users = a, b-*\n"))
    assert settings.auth.oidc_users == ("a", "b-*")
    assert settings.auth.oidc_admins == ()


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        (["a.on = x", "a.onn = y"], ["3: [commands] a.onn: there is no such command; did you mean a.on?"]),
        (
            ["a.on = x", "a.off = x", "a.foo = y"],
            ["4: [commands] a.foo: there is no such command; expected one of a.on, a.off, a.status, a.test"],
        ),
        (
            ["apc = x"],
            ["2: [commands] apc: there is no such command; expected one of apc.on, apc.off, apc.status, apc.test"],
        ),
        (
            ["a b.on = x", "a b.off = x", ".on = x"],
            [
                f"{line}: [commands] {name}{end}: '{name}' is not right; expected letters, digits and . _ - as a name"
                for line, name, end in ((2, "a b", ".on"), (3, "a b", ".off"), (4, "", ".on"))
            ],
        ),
        (
            ["a.on = x", "b.off = x", "a.status = x"],
            ["2: [commands] a.on: a.off must be there as well", "3: [commands] b.off: b.on must be there as well"],
        ),
        (["a.status = x"], ["2: [commands] a.status: a.on and a.off must be there as well"]),
    ],
)
def test_it_names_what_is_no_program_that_switches_power(write, lines, problems):
    file = write("\n".join(("[commands]", *lines)))
    with pytest.raises(ConfigError) as caught:
        load(file, NOWHERE)
    assert [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems] == problems


@pytest.mark.parametrize(
    ("section", "key", "text", "expected"),
    [
        ("database", "pool_size", "0", "a whole number from 1 to 1000"),
        ("database", "connect_timeout", "0", "seconds, more than 0"),
        ("server", "fqdn", "http://host", "a host name or an IPv4 address, or HOST:PORT"),
        ("server", "ipaddress", "10.1.2.300", "an IPv4 address"),
        ("server", "listen", "", "a host name or an IP address"),
        ("server", "port", "http", "a whole number from 1 to 65535"),
        ("server", "port", "65536", "a whole number from 1 to 65535"),
        ("server", "port", "8_080", "a whole number from 1 to 65535"),
        ("server", "port", "8080 # the usual", "a whole number from 1 to 65535"),
        ("server", "port", "", "a whole number from 1 to 65535"),
        ("server", "heartbeat_file", "heartbeat", "an absolute path, or nothing"),
        ("server", "heartbeat_file", "~nobody-of-that-name/x", "an absolute path, or nothing"),
        ("server", "log_level", "loud", "one of debug, info, warning, error"),
        ("syslog", "listen", "514", "HOST:PORT, or nothing"),
        ("syslog", "listen", "/dev/log", "HOST:PORT, or nothing"),
        ("syslog", "listen", "host:0", "HOST:PORT, or nothing"),
        ("syslog", "lines_per_second", "0", "lines a second, more than 0"),
        ("server", "syslog", "dev/log", "a path such as /dev/log, or HOST:PORT, or nothing"),
        ("server", "syslog", "host:70000", "a path such as /dev/log, or HOST:PORT, or nothing"),
        ("server", "origins", "http://a.example.com", "host names (HOST or HOST:PORT, without http://), separated"),
        ("server", "log_requests", "maybe", "true or false"),
        ("inventory", "ignore_devices_on_servers_re", "(", "a regular expression, or nothing"),
        ("pool", "default_wait", "-1", "a whole number, at least 0"),
        ("bmm", "power", "Not A Name", "the name of a backend"),
        ("timeouts", "ready", "never", "seconds, more than 0"),
        ("tries", "ready", "1.5", "a whole number, at least 0"),
        ("testing", "speed", "0.5", "a factor, at least 1"),
        ("testing", "speed", "nan", "a factor, at least 1"),
        ("testing", "speed", "inf", "a factor, at least 1"),
        ("testing", "fake_boot_failure", "5", "a probability, from 0 to 1"),
    ],
)
def test_it_names_line_key_value_and_what_it_expected(write, section, key, text, expected):
    path = write(f"# comment\n[{section}]\n\n{key} = {text}\n")
    (problem,) = problems(path)
    assert problem.startswith(f"4: [{section}] {key}: {text!r} is not right; expected {expected}")


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@h/d", "mysql://u:hunter2@h", "mysql://u:hunter2@h:x/d", "u:hunter2", "sqlite://"]
)
def test_it_refuses_other_databases_without_showing_the_password(write, url):
    (problem,) = problems(write(f"[database]\nengine = {url}\n"))
    assert problem == (
        "2: [database] engine: (a secret) is not right; "
        "expected mysql+pymysql://USER:PASSWORD@HOST/NAME (or HOST1:PORT,HOST2,HOST3, each once) or sqlite:////PATH, "
        "or nothing"
    )


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("mysql://u:pw@db1/d", [("db1", None)]),
        ("mysql://u:pw@db1,db2:3307,10.1.0.5/d", [("db1", None), ("db2", 3307), ("10.1.0.5", None)]),
        ("mariadb://u@[fd00::1]:3307,[fd00::2]/d", [("fd00::1", 3307), ("fd00::2", None)]),
        ("mysql+pymysql://u:a,b%40c@db1,db2/d?ssl_ca=/x,y", [("db1", None), ("db2", None)]),
        ("mysql://u:a,b@db1/d", [("db1", None)]),
        ("mysql://db1,db2/d", [("db1", None), ("db2", None)]),
    ],
)
def test_an_engine_may_name_the_nodes_of_a_cluster(url, hosts):
    urls = config.database_urls(url)
    assert [(each.host, each.port) for each in urls] == hosts
    assert {each.drivername for each in urls} == {"mysql+pymysql"}
    assert {(each.username, each.password, each.database) for each in urls} == {
        (urls[0].username, urls[0].password, "d")
    }


def test_the_engine_of_a_cluster_is_kept_as_it_is_written(write):
    settings = load(write("[database]\nengine = mysql://u:a,b@db1:3307,db2/d\n"))
    assert settings.database.engine == "mysql+pymysql://u:a,b@db1:3307,db2/d"


def test_a_comma_in_the_path_of_an_sqlite_file_names_no_host():
    (url,) = config.database_urls("sqlite:////srv/a,b@c/pool.sqlite")
    assert url.database == "/srv/a,b@c/pool.sqlite"


@pytest.mark.parametrize(
    "hosts",
    [
        "db1,",
        ",db1",
        "db1,,db2",
        "db1, db2",
        "db1,db1",
        "db1,db1:3306",
        "db1:0,db2",
        "db1:x,db2",
        "db1:,db2",
        "db1,db2:70000",
        "db1/d,db2",
        "db1,db2/d,db3",
        "db1,db2@db3",
    ],
)
def test_it_refuses_a_list_of_hosts_that_is_none(write, hosts):
    (problem,) = problems(write(f"[database]\nengine = mysql://u:hunter2@{hosts}/d\n"))
    assert problem.startswith("2: [database] engine: (a secret) is not right; expected mysql+pymysql://")


@pytest.mark.parametrize("url", ["mysql://u@a,b/d?unix_socket=/s", "sqlite://a,b/d", "mysql://u@a,b/d?port=1"])
def test_only_mysql_over_tcp_has_several_hosts(url):
    with pytest.raises(ValueError, match="only MySQL over TCP"):
        config.database_urls(url)


def test_it_never_shows_secrets(write, caplog):
    text = "[database]\nengine = mysql://u:hunter2@h/d\n[inventory]\nurl = http://u:hunter2@h\npassword = hunter2\n"
    settings = load(write(text), NOWHERE)
    assert settings.inventory.password == "hunter2"
    assert "hunter2" not in repr(settings)
    broken = text + "  hunter2\n[inventory]\npassword = hunter2\nhunter2\n"
    with pytest.raises(ConfigError) as caught:
        load(write(broken), NOWHERE)
    for error in (caught.value, caught.value.__context__, caught.value.__cause__):
        assert "hunter2" not in repr(error)
    assert "hunter2" not in str(caught.value)


def test_it_reports_all_problems_together_in_the_order_of_the_file(write):
    path = write(
        "[server]\n"
        "prot = 80\n"
        "port = x\n"
        "[servers]\n"
        "port = 80\n"
        "[pool]\n"
        "colour = green\n"
        "no equals sign\n"
        "max_duration = 1\n"
        "max_duration = 2\n"
    )
    found = problems(path)
    assert found[0] == "2: [server] prot: there is no such key; did you mean port?"
    assert found[1].startswith("3: [server] port: 'x' is not right")
    assert found[2] == "4: [servers] there is no such section; did you mean server?"
    assert found[3].startswith("7: [pool] colour: there is no such key; expected one of verify_on_return, ")
    assert found[4] == "8: expected KEY = VALUE, [section] or # comment"
    assert found[5] == "10: [pool] max_duration: is already set in line 9"
    assert len(found) == 6


def test_it_knows_no_default_section(write):
    assert problems(write("[DEFAULT]\nport = 81\n"))[0].startswith("1: [DEFAULT] there is no such section")


def test_it_wants_a_section_before_the_first_key(write):
    assert problems(write("\nport = 81\n")) == ["2: expected a [section] before the first key"]


def test_it_shows_no_more_of_a_long_value_than_one_line_holds(write):
    (problem,) = problems(write(f"[server]\nport = {'9' * 5000}\n"))
    assert len(problem) < 200


def test_it_names_limits_of_states_that_do_not_exist(write):
    path = write("[timeouts]\nready = 5\nredy = 5\n[tries]\nsleeping = 3\n")
    settings = load(path, NOWHERE)
    check_state_names(settings, {"ready", "redy", "sleeping"})
    with pytest.raises(ConfigError) as caught:
        check_state_names(settings, ["ready", "closed"])
    assert str(caught.value) == (
        f"{path}:3: [timeouts] redy: there is no such state; did you mean ready?\n"
        f"{path}:5: [tries] sleeping: there is no such state; expected one of ready, closed"
    )


# --- Line numbers ---

LINES = st.sampled_from(
    [
        "[a]",
        "  [b]",
        "[a] x = 1",
        "k = v",
        "l=",
        "  k = v",
        "\tl = v",
        "    more",
        "",
        "   ",
        "# k = v",
        " ; x",
        "M = = #",
        "[]",
    ]
)


@given(st.lists(LINES))
def test_it_finds_keys_where_configparser_does(lines):
    text = "\n".join(["[first]", *lines])
    parser = configparser.RawConfigParser(
        delimiters=("=",), default_section="", strict=False, empty_lines_in_values=False
    )
    try:
        parser.read_string(text)
    except configparser.ParsingError:
        return  # reported as it is
    found = list(config.positions(text))
    assert {section for _, section, _ in found} == set(parser.sections())
    keys = {(section, key) for _, section, key in found if key is not None}
    assert keys == {(section, key) for section in parser.sections() for key in parser[section]}
    for number, section, key in found:
        assert (key or f"[{section}]") in text.split("\n")[number - 1].lower()


# --- The sample ---


def test_the_sample_is_what_the_settings_declare():
    """When this fails: python -m mozpool.config > config.ini.dist"""
    assert resources.path("config.ini.dist").read_text() == config.sample()


def test_the_sample_says_nothing_but_the_defaults():
    settings = load(resources.path("config.ini.dist"), NOWHERE)
    assert settings == dataclasses.replace(Settings(), database=settings.database)
    assert settings.database == config.Database(engine=config.default_engine(NOWHERE))


def test_the_sample_documents_each_key_and_names_no_other():
    text = resources.path("config.ini.dist").read_text()
    lines = text.split("\n")
    named = set()
    for number, section, key in config.positions(text):
        above = lines[number - 2]
        assert above.startswith("# "), f"{section}.{key} has no comment"
        named.add((section, key))
    declared: set[tuple[str, str | None]] = {(name, None) for name in config.SECTIONS}
    for name, spec in config.SECTIONS.items():
        if isinstance(spec, type):
            declared |= {(name, field.name) for field in dataclasses.fields(spec)}
    assert named == declared


def test_each_default_is_a_value_that_the_file_could_say():
    for section in config.SECTIONS.values():
        if isinstance(section, type):
            for field in dataclasses.fields(section):
                kind = field.metadata["setting"].kind
                if field.default is not dataclasses.MISSING:
                    assert kind.parse(kind.show(field.default)) == field.default


def test_who_is_away_was_silent_for_some_signs_of_life(tmp_path: Path) -> None:
    file = tmp_path / "config.ini"
    file.write_text("[server]\nheartbeat_interval = 20\naway_after = 50\n")
    with pytest.raises(ConfigError, match=r"config.ini:3: \[server\] away_after: 50 is not at least three times .* 20"):
        load(file)
    file.write_text("[server]\nheartbeat_interval = 20\n")
    with pytest.raises(ConfigError, match=r"config.ini:2: \[server\] away_after: 30 is not at least"):
        load(file)


def server_section(tmp_path: Path, **keys: object) -> Path:
    """A file with these keys of [server], from its second line on."""
    file = tmp_path / "config.ini"
    file.write_text("[server]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()))
    return file


def test_no_server_is_in_a_group_by_itself(tmp_path: Path) -> None:
    server = load(server_section(tmp_path, port=8080), NOWHERE).server
    assert (server.group, server.takeover_after) == (None, 60.0)
    assert load(server_section(tmp_path, group=""), NOWHERE).server.group is None


@pytest.mark.parametrize("group", ["lab", "Lab-2.north_west", "x" * 64])
def test_a_group_has_a_name(tmp_path: Path, group: str) -> None:
    assert load(server_section(tmp_path, group=group), NOWHERE).server.group == group


@pytest.mark.parametrize("group", ["two words", "a,b", "x" * 65, "gr\u00f6\u00dfe", "lab/2", "none!"])
def test_the_name_of_a_group_is_one_plain_word(tmp_path: Path, group: str) -> None:
    (problem,) = problems(server_section(tmp_path, port=8080, group=group))
    assert problem.startswith("3: [server] group: ")
    assert "expected a name of at most 64 letters, digits and . _ -, or nothing" in problem


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"group": "lab", "takeover_after": 29},
            "3: [server] takeover_after: 29 is not at least six times heartbeat_interval, 5",
        ),
        (
            {"takeover_after": 60, "heartbeat_interval": 10.5, "away_after": 40, "group": "lab"},
            "2: [server] takeover_after: 60 is not at least six times heartbeat_interval, 10.5",
        ),
        (
            {"group": "lab", "away_after": 40, "heartbeat_interval": 11},
            "4: [server] takeover_after: 60 is not at least six times heartbeat_interval, 11",
        ),
        (
            {"group": "lab", "takeover_after": 40, "away_after": 45},
            "3: [server] takeover_after: 40 is not at least away_after, 45",
        ),
        (
            {"away_after": 90, "group": "lab"},
            "2: [server] takeover_after: 60 is not at least away_after, 90",
        ),
        (
            {"group": "lab", "takeover_after": 20, "away_after": 10},
            "4: [server] away_after: 10 is not at least three times heartbeat_interval, 5",
        ),
        (
            {"group": "lab", "takeover_after": 0},
            "3: [server] takeover_after: '0' is not right; expected seconds, more than 0",
        ),
    ],
)
def test_who_is_taken_over_from_was_away_and_silent_for_six_signs_of_life(
    tmp_path: Path, keys: dict[str, object], problem: str
) -> None:
    assert problems(server_section(tmp_path, **keys)) == [problem]


@pytest.mark.parametrize(
    "keys",
    [
        {"group": "lab"},
        {"group": "lab", "takeover_after": 30, "away_after": 30},
        {"group": "lab", "takeover_after": 6, "away_after": 3, "heartbeat_interval": 1},
        {"group": "lab", "takeover_after": 3600},
        {"takeover_after": 1},  # nobody takes over
        {"away_after": 90},
    ],
)
def test_any_other_time_will_do(tmp_path: Path, keys: dict[str, object]) -> None:
    server = load(server_section(tmp_path, **keys), NOWHERE).server
    assert {key: getattr(server, key) for key in keys} == keys
