# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The API's description: complete, committed, and true."""

import re
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mozpool.access.matrix import RULES, Rule
from mozpool.access.principal import Role
from mozpool.apikit import site
from mozpool.db import teams
from mozpool.web import openapi
from mozpool.web.app import bare_app
from mozpool.web.rates import UNLIMITED
from tests.access_support import bearer, make_token
from tests.app_fixtures import Server
from tests.fuzz import api
from tests.fuzz.callers import BAD, CALLERS

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"

# Every verb and path of the REST contract.
CONTRACT = """
GET /api/version/
GET /api/device/list/
POST /api/device/{name}/request/
GET /api/request/list/
GET /api/request/{number}/status/
GET /api/request/{number}/details/
GET /api/request/{number}/log/
POST /api/request/{number}/renew/
POST /api/request/{number}/return/
GET /api/request/{number}/event/{event}/
POST /api/request/{number}/event/{event}/
GET /api/image/list/
GET /api/device/{name}/event/{event}/
POST /api/device/{name}/event/{event}/
POST /api/device/{name}/state-change/{old}/to/{new}/
GET /api/device/{name}/status/
GET /api/device/{name}/state/
POST /api/device/{name}/power-cycle/
GET /api/device/{name}/power-off/
POST /api/device/{name}/power-off/
GET /api/device/{name}/ping/
POST /api/device/{name}/clear-pxe/
GET /api/device/{name}/log/
GET /api/device/{name}/bootconfig/
POST /api/device/{name}/set-comments/
POST /api/device/{name}/set-environment/
GET /api/environment/list/
GET /api/bmm/pxe_config/list/
GET /api/bmm/pxe_config/{name}/details/
GET /api/relay/{name}/test/
GET /api/device/{name}/details/
POST /api/device/{name}/return/
POST /api/device/{name}/reboot/
POST /api/device/{name}/flash/
POST /api/device/{name}/status/
POST /api/device/{name}/agent/exec/
"""


def described() -> dict[str, Any]:
    spec = bare_app().spec
    assert isinstance(spec, dict)
    return spec


def test_it_is_committed_as_the_code_says() -> None:
    fresh = openapi.text(bare_app())
    assert COMMITTED.read_text(encoding="utf-8") == fresh, (
        "run python -m mozpool.web.openapi > docs/openapi.json, and say in UPGRADING.md what changed"
    )


def test_every_path_of_the_contract_is_described() -> None:
    found = {f"{method.upper()} {path}" for path, methods in described()["paths"].items() for method in methods}
    assert set(CONTRACT.split("\n")) - {""} <= found


def test_every_route_of_the_api_is_described() -> None:
    spec, app = described(), bare_app()
    hidden = {"/api/openapi.json", "/api/docs"}
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/") and rule.rule not in hidden:
            path = re.sub(r"<([^>]+)>", r"{\1}", rule.rule)
            assert rule.methods is not None
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                operation = spec["paths"][path][method.lower()]
                assert operation["summary"], path
                assert operation["tags"], path


def test_all_references_lead_somewhere() -> None:
    spec = described()

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    for reference in walk(spec):
        assert reference.removeprefix("#/components/schemas/") in spec["components"]["schemas"], reference


def test_names_of_operations_are_unique() -> None:
    names = [operation["operationId"] for methods in described()["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


def test_it_is_served_for_programs_and_for_people(imaging_server: Server) -> None:
    spec = imaging_server.get("/api/openapi.json").get_json()
    assert spec == described()
    page = imaging_server.get("/api/docs").text
    for path in spec["paths"]:
        assert path in page


# --- Is it true? ---


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_is_sent_by_whomever_is_answered_as_described():
    """Thousands of calls made up from the description, right ones and wrong ones, in all modes and roles."""
    seen = api.one_round(0)
    print("\n".join(api.report(seen)))
    assert seen.total() >= 5000
    found = api.statuses(seen)
    assert all(found[status] for status in (200, 204, 400, 401, 403, 404, 409))
    operations = sum(len(methods) for methods in described()["paths"].values())
    for caller in CALLERS:
        counts = Counter({status: times for (who, status), times in seen.items() if who == caller})
        assert counts.total() >= operations, caller
        is_known = caller.mode == "open" or (caller.by not in BAD and caller.role > Role.NOBODY)
        assert (counts[200] > operations / 10) == is_known, caller


def test_an_answer_that_is_not_as_described_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mozpool.db.devices.environments", lambda conn: [1])
    with pytest.raises(api.Wrong, match="environment/list"):
        api.one_round(0, paths="/api/environment/list/")


@pytest.mark.parametrize(("least", "fault"), [(Role.NOBODY, "is not for them"), (Role.ADMIN, "is for them")])
def test_a_gate_that_does_not_keep_to_the_matrix_is_found(
    least: Role, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mozpool.web.gate.RULES", {**RULES, "mozpool.image_list": Rule(least)})
    with pytest.raises(api.Wrong, match=f"mozpool.image_list {fault}"):
        api.one_round(0, paths="/api/image/list/")


def test_a_refused_call_that_changes_something_is_found(monkeypatch: pytest.MonkeyPatch):
    def refusal(*_: object) -> str:
        site().database.run(lambda conn: teams.add(conn, teams.values(name=secrets.token_hex())))
        return "no"

    monkeypatch.setattr("mozpool.web.gate._refusal", refusal)
    with pytest.raises(api.Wrong, match="was refused, and changed something: INSERT INTO teams"):
        api.one_round(0, paths="/api/image/create/")


def test_too_many_calls_are_answered_as_described() -> None:
    """What counts is refused before all else; what devices, other servers and monitors call does not count."""
    with api.a_server("token", rate_limit=5) as made:
        token = bearer(make_token(made.daemon.database, "root", "admin"))
        # Calls for which nobody is asked who they are count for the address, the others for the token.
        assert made.get("/api/version/").status_code == 200
        assert made.get("/api/device/list/", headers=token).status_code == 200
        before = made.counts()
        for route in made.app.url_map.iter_rules():
            if not route.rule.startswith("/api/") or route.endpoint in UNLIMITED:
                continue
            path = re.sub(r"<[^>]+>", "1", route.rule)
            for method in (route.methods or set()) & {"GET", "POST"}:
                said = made.client.open(path, method=method, headers=token)
                assert (said.status_code, said.get_json()["error"]["code"]) == (429, "too_many_calls"), path
                assert int(said.headers["Retry-After"]) >= 1
        assert made.counts() == before
