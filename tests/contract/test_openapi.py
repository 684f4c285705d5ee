# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The API's description: complete, committed, and true."""

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

from mozpool.web import openapi
from mozpool.web.app import bare_app
from tests.app_fixtures import Server, server

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
@pytest.mark.timeout(600)
def test_whatever_is_sent_is_answered_as_described(sqlite_url: str, tmp_path: Path) -> None:
    """Hundreds of calls made up from the description, right ones and wrong ones."""
    with server(sqlite_url, tmp_path) as made:
        made.app.extensions["mozpool.site"].long_polls._free = threading.BoundedSemaphore(1)
        for _ in range(3):
            made.made()
        with made.app.extensions["mozpool.site"].long_polls.slot(1):  # nobody waits for anything
            schema = schemathesis.openapi.from_wsgi("/api/openapi.json", made.app)
            for result in schema.get_all_operations():
                assert isinstance(result, Ok)
                call_with_anything(made, result.ok())


NAMES = strategies.sampled_from(["device1", "device2", "any", "relay-9", "b2g", ""])
NUMBERS = strategies.sampled_from(["1", "2", "3", ""])


def call_with_anything(made: Server, operation: Any) -> None:
    for mode in schemathesis.GenerationMode:

        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode), name=NAMES, number=NUMBERS)
        def call(case: schemathesis.Case, name: str, number: str) -> None:
            known = {"name": name, "number": number}
            case.path_parameters = {key: known.get(key) or value for key, value in case.path_parameters.items()}
            answer = case.call()
            assert answer.status_code != 500, case.as_curl_command()
            assert made.undocumented == [], case.as_curl_command()

        with suppress(Unsatisfiable, SkipTest):
            call()
