# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""MozPool's paths over HTTP."""

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, update

from mozpool import __version__
from mozpool.db import images, servers, tables
from mozpool.links import Links
from tests.app_fixtures import OTHER, OWN, Server

BODY = {"assignee": "me@example.com", "duration": 3600, "image": "b2g", "b2gbase": "http://builds/1/"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def test_it_tells_its_version(imaging_server: Server) -> None:
    assert imaging_server.get("/api/version/").get_json() == {"version": __version__}


def test_every_path_works_with_and_without_its_last_slash(imaging_server: Server) -> None:
    imaging_server.made()
    for path in ("/api/version", "/api/device/list", "/api/request/1/details", "/api/device/device1/state"):
        assert imaging_server.get(path).status_code == 200
        assert imaging_server.get(path + "/").status_code == 200
    assert imaging_server.post("/api/request/1/return").status_code == 204


def test_it_lists_devices_by_name(imaging_server: Server) -> None:
    assert imaging_server.get("/api/device/list/").get_json() == {"devices": ["device1", "device2", "device3"]}


def test_it_lists_devices_with_all_their_keys(imaging_server: Server) -> None:
    number = imaging_server.made("device2")
    found = imaging_server.get("/api/device/list/?details=true").get_json()["devices"]
    second = found[1]
    assert second["name"] == "device2"
    assert second["request_id"] == number
    assert second["device_status"] == second["state"] == "ready"
    assert second["address"] == imaging_server.device("device2").address
    assert second["labels"] == {"android": "4.0", "pool": "b2g", "processor": "armv7"}
    wanted = "id name fqdn inventory_id mac_address imaging_server relay_info state comments environment image "
    wanted += "boot_config last_pxe_config request_id"
    assert set(wanted.split()) <= set(second)


def test_it_filters_devices(imaging_server: Server) -> None:
    imaging_server.made("device1")
    cases = {
        "label=pool=b2g": ["device2"],
        "label=pool=mobile&label=android=4.0": ["device1", "device3"],
        "search=ice3": ["device3"],
        "claimed=1": ["device1"],
        "claimed=false&environment=production": ["device2", "device3"],
        "hardware_type=panda&hardware_model=ES&state=ready": ["device1", "device2", "device3"],
        "image=b2g": [],
        "imaging_server=nobody": [],
    }
    for query, expected in cases.items():
        assert imaging_server.get(f"/api/device/list/?{query}").get_json()["devices"] == expected, query


def test_names_are_compared_letter_by_letter(imaging_server: Server) -> None:
    """On every database: MySQL by itself would take no notice of case, accents and spaces at the end."""
    for name in ("DEVICE1", "device1 ", "d\u00e9vice1"):
        for answer in (imaging_server.ask(name), imaging_server.get(f"/api/device/{name}/state/")):
            assert (answer.status_code, answer.get_json()["error"]["field"]) == (404, "device")
    for image in ("B2G", "b2g "):
        assert imaging_server.ask(image=image).status_code == 404
    before = imaging_server.counts()
    cycle = imaging_server.post("/api/device/device1/power-cycle/", {"pxe_config": "B2G"})
    assert cycle.status_code == 404
    assert imaging_server.counts() == before
    number = imaging_server.made("device1")
    for query in (
        "state=READY",
        "environment=Production",
        "environment=production%20",
        "hardware_type=Panda",
        "hardware_model=es",
        "image=B2G",
        "imaging_server=" + OWN.upper(),
        "label=Pool=b2g",
        "label=pool=B2G",
        "label=pool=b2g%20",
    ):
        assert imaging_server.get(f"/api/device/list/?{query}").get_json()["devices"] == [], query
    state = imaging_server.request(number).state
    for query in (f"state={state.upper()}", "assignee=Me@example.com", "device=DEVICE1", "environment=ANY"):
        assert imaging_server.get(f"/api/request/list/?{query}").get_json()["requests"] == [], query
        exact = query.lower()
        assert len(imaging_server.get(f"/api/request/list/?{exact}").get_json()["requests"]) == 1, exact


def test_what_is_wanted_is_compared_letter_by_letter(imaging_server: Server) -> None:
    for wanted in (
        {"environment": "Production"},
        {"hardware_type": "PANDA"},
        {"hardware_type": "panda", "hardware_model": "es"},
        {"labels": {"Pool": "b2g"}},
        {"labels": {"pool": "B2G"}},
        {"labels": {"pool": "b2g "}},
    ):
        made = imaging_server.ask(**wanted, wait=60).get_json()["request"]
        assert made["assigned_device"] == "", wanted
        assert "there is no" in made["reason"] or "has no devices" in made["reason"], made["reason"]


def test_environments_that_differ_in_case_are_two(imaging_server: Server) -> None:
    imaging_server.change("device1", environment="Production")
    assert imaging_server.get("/api/environment/list/").get_json() == {"environments": ["Production", "production"]}
    assert imaging_server.made(environment="Production") and imaging_server.device("device1").claim_id is not None


def test_lists_come_in_parts(imaging_server: Server) -> None:
    first = imaging_server.get("/api/device/list/?limit=2").get_json()
    assert first["devices"] == ["device1", "device2"]
    second = imaging_server.get(f"/api/device/list/?limit=2&cursor={first['next_cursor']}").get_json()
    assert second == {"devices": ["device3"], "next_cursor": None}


def test_bad_queries_are_refused(imaging_server: Server) -> None:
    for query in ("limit=0", "limit=x", "cursor=-1", "label=pool", "label=a=1&label=a=2", "claimed=7"):
        answer = imaging_server.get(f"/api/device/list/?{query}")
        assert answer.status_code == 400, query
        assert answer.get_json()["error"]["field"] == query.split("=")[0]


def test_hidden_images_are_not_listed(imaging_server: Server) -> None:
    found = imaging_server.get("/api/image/list/").get_json()["images"]
    assert [image["name"] for image in found] == ["b2g", "android", "maintenance"]
    assert found[0]["boot_config_keys"] == ["b2gbase"]
    assert found[0]["hidden"] is False


def test_it_lends_a_free_device(imaging_server: Server) -> None:
    answer = imaging_server.ask()
    assert answer.status_code == 200
    request = answer.get_json()["request"]
    assert request["assigned_device"] in ("device1", "device2", "device3")
    assert request["url"] == f"http://{OWN}/api/request/{request['id']}/"
    assert json.loads(request["boot_config"]) == {"b2gbase": "http://builds/1/"}
    assert request["requested_device"] == "any"
    assert request["environment"] == "any"
    assert request["image"] == "b2g"
    assert TIME.fullmatch(request["expires"])
    assert imaging_server.device(request["assigned_device"]).request_id == request["id"]


def test_it_reads_what_old_clients_send(imaging_server: Server) -> None:
    body = {"requester": "host", "duration": "1800", "image": "android", "b2gbase": None, "wait": None, "nonsense": 1}
    answer = imaging_server.client.post(
        "/api/device/any/request/",
        data=json.dumps(body),
        content_type="application/x-www-form-urlencoded",
    )
    assert answer.status_code == 200
    assert answer.get_json()["request"]["assignee"] == "host"
    assert answer.get_json()["request"]["boot_config"] == "{}"


BAD: list[tuple[dict[str, Any], str | None, int]] = [
    ({"assignee": None}, "assignee", 400),
    ({"assignee": " "}, "assignee", 400),
    ({"duration": None}, "duration", 400),
    ({"duration": "soon"}, "duration", 400),
    ({"duration": -1}, "duration", 400),
    ({"duration": 0}, "duration", 400),
    ({"duration": True}, "duration", 400),
    ({"duration": 1e300}, "duration", 400),
    ({"image": None}, "image", 400),
    ({"image": 7}, "image", 400),
    ({"b2gbase": None}, "b2gbase", 400),
    ({"wait": -1}, "wait", 400),
    ({"priority": "high"}, "priority", 400),
    ({"labels": ["a"]}, "labels", 400),
    ({"labels": {"a": 1}}, "labels.a", 400),
    ({"labels": {"a=b": "c"}}, "labels.a=b", 400),
    ({"labels": {"pool": "a", "Pool": "a"}}, "labels", 400),
    ({"labels": {"pool": "a", "pool ": "a"}}, "labels", 400),
    ({"labels": {"pool": "a", "p\u00f6ol": "a"}}, "labels", 400),
    ({"callback_url": "file:///etc/passwd"}, "callback_url", 400),
    *[
        ({"callback_url": url}, "callback_url", 400)
        for url in (
            "http://[bad/",
            "http://a b:99999999/",
            "http://a:99999999/",
            "http://a:port/",
            "http://a:0/",
            "http://a/b c",
            "http://a/\n",
            "http://a/\x01",
            "http://a/\u202e",
            "http://?x",
            "http://:80/",
            "http://me@/",
            "http://a..b/",
            f"http://{'a' * 64}.example.com/",
            f"http://a/{'b' * 2000}",
        )
    ],
    ({"environment": "x" * 33}, "environment", 400),
    ({"assignee": "\ud800"}, None, 400),
    ({"image": "windows"}, "image", 404),
    ({"b2gbase": "x" * 60_000}, None, 400),
    ({"labels": {str(number): "\u20ac" * 190 for number in range(64)}}, "labels", 400),
]


def test_bad_requests_change_nothing(imaging_server: Server) -> None:
    before = imaging_server.counts()
    for changes, field, status in BAD:
        answer = imaging_server.ask(**changes)
        assert answer.status_code == status, changes
        error = answer.get_json()["error"]
        assert error["field"] == field
        assert error["code"]
        assert error["message"]
    assert imaging_server.counts() == before


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a", "http://a"),
        ("https://me:secret@ci.example.com:8443/x?y=1", "https://ci.example.com:8443"),
        ("http://[::1]:80/done", "http://[::1]:80"),
    ],
)
def test_wherever_something_can_be_sent_may_be_called_back(imaging_server: Server, url: str, shown: str) -> None:
    """Whoever sees the request sees who is called, and nothing of the address that lets them call, too."""
    made = imaging_server.ask(callback_url=url).get_json()["request"]
    assert made["callback_url"] == shown
    assert imaging_server.request(made["id"]).callback_url == url
    assert "secret" not in imaging_server.get(f"/requests/{made['id']}").text


NO_OBJECTS = [b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"duration": NaN}', b'{"a": ' + b"9" * 5000 + b"}"]


def test_bodies_that_are_no_json_object_are_refused(imaging_server: Server) -> None:
    for body in NO_OBJECTS:
        answer = imaging_server.client.post("/api/device/any/request/", data=body)
        assert answer.status_code == 400, body[:20]
        assert answer.get_json()["error"]["code"] == "bad_input"


def test_an_unknown_device_is_not_found(imaging_server: Server) -> None:
    before = imaging_server.counts()
    assert imaging_server.ask("panda-0001").status_code == 404
    assert imaging_server.ask("4711").status_code == 404
    assert imaging_server.counts() == before


def test_a_device_can_be_asked_for_by_its_number(imaging_server: Server) -> None:
    number = imaging_server.device("device2").id
    assert imaging_server.ask(str(number)).get_json()["request"]["requested_device"] == "device2"


def test_a_named_device_that_is_taken_is_a_conflict(imaging_server: Server) -> None:
    imaging_server.made("device1")
    answer = imaging_server.ask("device1")
    assert answer.status_code == 409
    body = answer.get_json()
    assert body["request"]["state"] == "closed"
    assert body["request"]["assigned_device"] == ""
    assert "me@example.com" in body["request"]["reason"]
    assert body["error"]["code"] == "conflict"
    assert imaging_server.device("device1").request_id != body["request"]["id"]


def test_a_request_for_a_named_device_may_queue(imaging_server: Server) -> None:
    imaging_server.made("device1")
    answer = imaging_server.ask("device1", wait=60)
    assert answer.status_code == 200
    request = answer.get_json()["request"]
    assert (request["state"], request["assigned_device"], request["place"]) == ("finding_device", "", 1)
    assert request["reason"].startswith("device1 is taken by me@example.com until ")


def test_a_request_for_any_device_that_may_not_queue_fails(imaging_server: Server) -> None:
    answer = imaging_server.ask(labels={"pool": "none"}, wait=0)
    assert answer.status_code == 200
    assert answer.get_json()["request"]["state"] == "failed_device_not_found"
    assert answer.get_json()["request"]["reason"]


def test_a_waiting_request_says_why_and_where_it_stands(imaging_server: Server) -> None:
    for _ in range(4):
        imaging_server.made()
    fifth = imaging_server.made(priority=-1, labels={"pool": "b2g"})
    sixth = imaging_server.made()
    listed = {item["id"]: item for item in imaging_server.get("/api/request/list").get_json()["requests"]}
    for path in ("details", "status"):
        found = imaging_server.get(f"/api/request/{sixth}/{path}/").get_json()
        assert found["place"] == 2
        assert found["reason"].startswith("3 matching devices: 3 taken")
        assert listed[sixth]["reason"] == found["reason"]
    found = imaging_server.get(f"/api/request/{fifth}/details/").get_json()
    assert found["reason"].startswith("1 matching device: 1 taken")
    assert (found["priority"], found["wait"], found["labels"]) == (-1, 600, {"pool": "b2g"})
    assert TIME.fullmatch(found["created"])


def test_status_tells_since_when_a_request_has_its_device_and_the_devices_state(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    imaging_server.change("device1", state="pxe_booting")
    status = imaging_server.get(f"/api/request/{number}/status/").get_json()
    assert TIME.fullmatch(status["claimed_at"])
    assert status["device_state"] == "pxe_booting"
    waiting = imaging_server.made("device1", wait=60)
    status = imaging_server.get(f"/api/request/{waiting}/status/").get_json()
    assert (status["claimed_at"], status["device_state"]) == (None, "")


def test_a_list_tells_which_device_a_request_had(imaging_server: Server) -> None:
    first = imaging_server.made("device2")
    imaging_server.post(f"/api/request/{first}/return/")
    second = imaging_server.made("device1")
    waiting = imaging_server.made("device1", wait=60)
    listed = imaging_server.get("/api/request/list/?include_closed=1").get_json()["requests"]
    found = {item["id"]: (item["assigned_device"], item["last_device"]) for item in listed}
    assert found == {first: ("", "device2"), second: ("device1", "device1"), waiting: ("", None)}


def test_logs_hold_lines_that_were_just_noted(imaging_server: Server) -> None:
    # Nothing writes the logbook here but the calls themselves.
    number = imaging_server.made("device1")
    imaging_server.post(f"/api/request/{number}/return/")
    said = imaging_server.get(f"/api/request/{number}/status/").get_json()
    assert said["log"][-1]["message"] == "gave up device device1: returned"
    imaging_server.daemon.mozpool.driver.logbook.add("request", number, "x", "test", "a line")
    log = imaging_server.get(f"/api/request/{number}/log/").get_json()["log"]
    assert log[-1]["message"] == "a line"
    device = imaging_server.device("device1")
    for path in ("log", "status"):
        imaging_server.daemon.logbook.add("device", device.id, "x", "test", f"for {path}")
        log = imaging_server.get(f"/api/device/device1/{path}/").get_json()["log"]
        assert log[-1]["message"] == f"for {path}"


def test_answers_end_with_a_newline(imaging_server: Server) -> None:
    for path in ("/api/version/", "/api/device/nobody/details/"):
        text = imaging_server.get(path).text
        assert text.endswith("}\n")


def test_nothing_to_say_has_no_content_type(imaging_server: Server) -> None:
    number = imaging_server.made()
    said = imaging_server.post(f"/api/request/{number}/return/")
    assert (said.status_code, said.data, said.headers.get("Content-Type")) == (204, b"", None)


def test_details_are_flat_and_nested(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    found = imaging_server.get(f"/api/request/{number}/details/").get_json()
    nested = found.pop("request")
    assert found == nested
    assert found["device_id"] == imaging_server.device("device1").id
    assert found["status"] == found["state"]


def test_lists_leave_out_what_is_closed(imaging_server: Server) -> None:
    closed, failed, still_open = (
        imaging_server.made(),
        imaging_server.made(labels={"a": "b"}, wait=0),
        imaging_server.made(),
    )
    imaging_server.post(f"/api/request/{closed}/return/")
    assert _listed(imaging_server, "") == [failed, still_open]
    assert _listed(imaging_server, "?include_closed=1") == [closed, failed, still_open]
    assert _listed(imaging_server, "?include_closed=true&state=closed") == [closed]
    assert _listed(imaging_server, "?assignee=nobody") == []
    device = imaging_server.request(still_open).device
    assert _listed(imaging_server, f"?device={device}&environment=any") == [still_open]
    part = imaging_server.get("/api/request/list/?limit=1").get_json()
    assert [item["id"] for item in part["requests"]] == [failed]
    assert _listed(imaging_server, f"?limit=5&cursor={part['next_cursor']}") == [still_open]


def test_a_failed_request_is_listed_until_it_is_returned(imaging_server: Server) -> None:
    failed = imaging_server.made(labels={"a": "b"}, wait=0)
    assert imaging_server.post(f"/api/request/{failed}/return/").status_code == 204
    assert _listed(imaging_server, "") == []
    assert imaging_server.request(failed).state == "failed_device_not_found"


def _listed(server: Server, query: str) -> list[int]:
    return [item["id"] for item in server.get(f"/api/request/list/{query}").get_json()["requests"]]


def test_unknown_requests_are_not_found(imaging_server: Server) -> None:
    for number, status in (("x", 400), ("1.5", 400), ("99", 404), ("-1", 404), ("9" * 30, 404)):
        for path in ("details", "status", "log"):
            assert imaging_server.get(f"/api/request/{number}/{path}/").status_code == status, number
        for path in ("renew", "return", "event/close"):
            answer = imaging_server.post(f"/api/request/{number}/{path}/", {"duration": 1})
            assert answer.status_code == status, number


def test_it_shows_the_log_of_a_request(imaging_server: Server) -> None:
    number = imaging_server.made()
    imaging_server.daemon.logbook.flush()
    whole = imaging_server.get(f"/api/request/{number}/log/").get_json()["log"]
    assert whole[0]["message"] == "me@example.com wants any device"
    assert TIME.fullmatch(whole[0]["timestamp"])
    assert [line["id"] for line in whole] == sorted(line["id"] for line in whole)
    assert imaging_server.get(f"/api/request/{number}/status/").get_json()["log"] == whole
    newest = imaging_server.get(f"/api/request/{number}/log/?limit=1&timeperiod=3600").get_json()["log"]
    assert newest == whole[-1:]
    assert imaging_server.get(f"/api/request/{number}/log/?limit=no").status_code == 400


def test_a_request_is_renewed_to_its_new_remaining_time(imaging_server: Server) -> None:
    number = imaging_server.made()
    assert imaging_server.post(f"/api/request/{number}/renew/", {"duration": "7200"}).status_code == 204
    left = imaging_server.request(number).expires - imaging_server.daemon.clock.now()
    assert 7100 < left.total_seconds() <= 7200


def test_a_bad_renewal_changes_nothing(imaging_server: Server) -> None:
    number = imaging_server.made()
    before = imaging_server.request(number)
    for body in ({}, {"duration": "x"}, {"duration": -5}, {"duration": 1e12}):
        assert imaging_server.post(f"/api/request/{number}/renew/", body).status_code == 400, body
    assert imaging_server.request(number) == before


def test_a_request_that_has_ended_can_not_be_renewed(imaging_server: Server) -> None:
    number = imaging_server.made()
    imaging_server.post(f"/api/request/{number}/return/")
    assert imaging_server.post(f"/api/request/{number}/renew/", {"duration": 5}).status_code == 422


@pytest.mark.parametrize("data", [b"", b"{}", b" "])
def test_a_return_frees_the_device(imaging_server: Server, data: bytes) -> None:
    number = imaging_server.made("device1")
    assert imaging_server.client.post(f"/api/request/{number}/return/", data=data).status_code == 204
    assert imaging_server.request(number).state == "closed"
    assert imaging_server.device("device1").claim_id is None


def test_returning_twice_changes_nothing(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    imaging_server.post(f"/api/request/{number}/return/")
    before = imaging_server.request(number)
    assert imaging_server.post(f"/api/request/{number}/return/").status_code == 204
    assert imaging_server.request(number) == before


def test_a_device_is_returned_by_its_name(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    assert imaging_server.post("/api/device/device1/return/", {"request_id": number + 1}).status_code == 409
    assert imaging_server.device("device1").request_id == number
    assert imaging_server.post("/api/device/device1/return/", {"request_id": number}).status_code == 204
    assert imaging_server.request(number).state == "closed"
    assert imaging_server.post("/api/device/device1/return/").status_code == 204
    assert imaging_server.post("/api/device/nobody/return/").status_code == 404


def test_events_reach_the_state_machine(imaging_server: Server) -> None:
    number = imaging_server.made()
    answer = imaging_server.get(f"/api/request/{number}/event/close/")
    assert (answer.status_code, answer.get_json()) == (200, {})
    assert imaging_server.request(number).state == "closed"


def test_events_that_are_not_expected_are_ignored(imaging_server: Server) -> None:
    number = imaging_server.made(labels={"pool": "none"})
    before = imaging_server.request(number)
    for event in ("nonsense", "device_found", "do_not_wait", "timeout", "taken_over", "lifeguard_finished"):
        answer = imaging_server.post(f"/api/request/{number}/event/{event}/", {"device_id": 1})
        assert (answer.status_code, answer.get_json()) == (200, {})
    assert imaging_server.request(number) == before


def test_an_event_that_comes_again_is_not_handed_over_again(imaging_server: Server) -> None:
    number = imaging_server.made()
    for event_id in ("a", "a", "b"):
        answer = imaging_server.post(f"/api/request/{number}/event/nonsense/", {"event_id": event_id})
        assert (answer.status_code, answer.get_json()) == (200, {})
    lines = imaging_server.get(f"/api/request/{number}/log/").get_json()["log"]
    assert [line["message"] for line in lines].count("ignored event nonsense in state contact_lifeguard") == 2
    refused = imaging_server.post(f"/api/request/{number}/event/nonsense/", {"event_id": "x" * 65})
    assert (refused.status_code, refused.get_json()["error"]["field"]) == (400, "event_id")


def test_each_operations_end_is_told_to_its_request_by_an_id_of_its_own(imaging_server: Server) -> None:
    number = imaging_server.made()
    _move_request(imaging_server, number)
    imaging_server.daemon.requests.forget(number)
    told: list[tuple[str, str, Mapping[str, Any]]] = []

    def post(*call: Any) -> Mapping[str, Any]:
        told.append(call)
        return {}

    links = Links(OWN, imaging_server.daemon.database, post)
    for attempt in (3, 3, 9):
        links.lifeguard_finished(number, 7, "complete", attempt)
    ids = [body["event_id"] for _, _, body in told]
    assert ids[0] == ids[1] != ids[2]
    assert told[0][:2] == (OTHER, f"/api/request/{number}/event/lifeguard_finished/")
    assert told[0][2] == {"imaging_result": "complete", "claim_id": 7, "event_id": ids[0]}


# --- Another server's requests ---


def test_acts_on_another_servers_request_are_sent_there(imaging_server: Server) -> None:
    number = imaging_server.made()
    _move_request(imaging_server, number)
    for path in ("renew/", "return/", "event/close/?a=b%20c&d", "return"):
        answer = imaging_server.post(f"/api/request/{number}/{path}", {"duration": 10})
        assert answer.status_code == 302
        assert answer.headers["Location"] == f"http://{OTHER}/api/request/{number}/{path}"
    assert imaging_server.request(number).is_open


def test_another_servers_requests_can_be_read(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    _move_request(imaging_server, number)
    for path in ("details", "status", "log"):
        assert imaging_server.get(f"/api/request/{number}/{path}/").status_code == 200
    found = imaging_server.get(f"/api/request/{number}/details/").get_json()
    assert found["url"] == f"http://{OTHER}/api/request/{number}/"
    assert (
        imaging_server.post("/api/device/device1/return/").headers["Location"]
        == f"http://{OTHER}/api/device/device1/return/"
    )


def test_a_request_is_the_affair_of_who_has_taken_it_over(imaging_server: Server) -> None:
    """Whoever it was made on."""
    number = imaging_server.made()
    _move_request(imaging_server, number, owner_id=imaging_server.other_server())
    for path in ("renew/", "return/", "event/lifeguard_finished/"):
        answer = imaging_server.post(f"/api/request/{number}/{path}", {"duration": 10})
        assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/request/{number}/{path}")
    found = imaging_server.get(f"/api/request/{number}/details/").get_json()
    assert (found["imaging_server"], found["url"]) == (OTHER, f"http://{OTHER}/api/request/{number}/")
    (listed,) = imaging_server.get("/api/request/list/").get_json()["requests"]
    assert listed["imaging_server"] == OTHER
    assert imaging_server.request(number).is_open

    _move_request(
        imaging_server,
        number,
        owner_id=imaging_server.daemon.server_id,
        imaging_server_id=imaging_server.other_server(),
    )
    found = imaging_server.get(f"/api/request/{number}/details/").get_json()
    assert (found["imaging_server"], found["url"]) == (OWN, f"http://{OWN}/api/request/{number}/")
    assert imaging_server.post(f"/api/request/{number}/renew/", {"duration": 7200}).status_code == 204
    assert imaging_server.post(f"/api/request/{number}/return/").status_code == 204
    assert imaging_server.request(number).state == "closed"


def test_a_device_is_returned_where_somebody_acts_for_its_request(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    other = imaging_server.other_server()
    _move_request(imaging_server, number, owner_id=other)
    answer = imaging_server.post("/api/device/device1/return/")
    assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/device/device1/return/")
    shown = imaging_server.get("/api/device/device1/details/").get_json()["holder"]
    assert shown["url"] == f"http://{OTHER}/api/request/{number}/"
    _move_request(imaging_server, number, owner_id=None)
    imaging_server.change("device1", owner_id=other)
    assert imaging_server.post("/api/device/device1/return/").status_code == 204
    assert imaging_server.request(number).state == "closed"


def test_each_request_says_that_its_own_server_is_away(imaging_server: Server) -> None:
    """Of several equal ones, in a list."""
    daemon = imaging_server.daemon
    here, there, third = (imaging_server.made(labels={"pool": "none"}) for _ in range(3))
    names = {there: OTHER, third: "server-3.example.com"}
    for number, name in names.items():
        _move_request(imaging_server, number, owner_id=_stopped_server(imaging_server, name))
    daemon.presence.beat()
    rows = [imaging_server.request(number) for number in (here, there, third)]
    reasons = daemon.mozpool.reasons(rows)
    assert reasons[here].startswith("there is no device with pool=none")
    for number, name in names.items():
        assert reasons[number] == f"its imaging server {name} is away"
        details = imaging_server.get(f"/api/request/{number}/details/").get_json()
        assert details["reason"] == reasons[number]


def test_a_request_that_is_taken_over_during_a_call_sends_the_caller_there(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = imaging_server.made()
    give_back = imaging_server.daemon.mozpool.give_back

    def after_others(request_id: int) -> None:
        _move_request(imaging_server, number, owner_id=imaging_server.other_server())
        give_back(request_id)

    monkeypatch.setattr(imaging_server.daemon.mozpool, "give_back", after_others)
    answer = imaging_server.post(f"/api/request/{number}/return/")
    assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/request/{number}/return/")
    assert imaging_server.request(number).is_open


def _stopped_server(server: Server, name: str) -> int:
    """The id of another imaging server, which was stopped."""

    def work(conn: Connection) -> int:
        server_id = images.ensure_imaging_server(conn, name)
        servers.say_here(conn, servers.Presence(server_id, 1, True, "5.1", now, now, 32, 0))
        return server_id

    now = server.daemon.clock.now()
    return server.daemon.database.run(work)


def _move_request(server: Server, number: int, **columns: int | None) -> None:
    """Write who acts for a request, which is another server's without a word about it."""
    table = tables.requests
    values = columns or {"imaging_server_id": server.other_server()}
    server.daemon.database.run(
        lambda conn: conn.execute(
            update(table).where(table.c.id == number).values(version=table.c.version + 1, **values)
        )
    )


# --- Long polls ---


def test_a_status_poll_ends_when_the_state_changes(imaging_server: Server) -> None:
    number = imaging_server.made(labels={"pool": "none"})
    changes = imaging_server.daemon.mozpool.changes
    found: list[dict[str, object]] = []
    client = imaging_server.app.test_client()
    path = f"/api/request/{number}/status/?wait=30&state=finding_device"
    poll = threading.Thread(target=lambda: found.append(client.get(path).get_json()))
    poll.start()
    imaging_server.wait_until(lambda: changes.waiting)
    imaging_server.post(f"/api/request/{number}/return/")
    poll.join(10)
    assert found[0]["state"] == "closed"


def test_a_status_poll_for_another_state_ends_at_once(imaging_server: Server) -> None:
    number = imaging_server.made()
    answer = imaging_server.get(f"/api/request/{number}/status/?wait=60&state=finding_device")
    assert answer.get_json()["state"] == "contact_lifeguard"


def test_a_request_waits_for_its_device(imaging_server: Server) -> None:
    holder = imaging_server.made("device1")
    changes = imaging_server.daemon.mozpool.changes
    found: list[dict[str, object]] = []

    def ask() -> None:
        body = {**BODY, "wait": 600}
        answer = imaging_server.app.test_client().post("/api/device/device1/request/?wait=30", json=body)
        found.append(answer.get_json()["request"])

    asking = threading.Thread(target=ask)
    asking.start()
    imaging_server.wait_until(lambda: changes.waiting)
    imaging_server.post(f"/api/request/{holder}/return/")
    asking.join(10)
    assert found[0]["assigned_device"] == "device1"


def test_long_polls_do_not_use_up_all_threads(imaging_server: Server) -> None:
    number = imaging_server.made(labels={"pool": "none"})
    polls = imaging_server.app.extensions["mozpool.site"].long_polls
    half = imaging_server.daemon.settings.server.threads // 2
    slots = [polls.slot(60) for _ in range(half - half // 4)]
    assert [slot.__enter__() for slot in slots] == [60] * len(slots)
    before = imaging_server.daemon.clock.monotonic()
    assert imaging_server.get(f"/api/request/{number}/status/?wait=60").status_code == 200
    assert imaging_server.daemon.clock.monotonic() - before < 10
    # What acts does not wait for what looks, but it is not without limit either.
    acting = [polls.slot(60, acts=True) for _ in range(half // 4 + 1)]
    assert [slot.__enter__() for slot in acting] == [60] * (half // 4) + [0]
    for slot in (*slots, *acting):
        slot.__exit__(None, None, None)
    with polls.slot(60) as seconds:
        assert seconds == 60


# --- Repeated calls ---


def test_the_same_idempotency_key_gives_the_same_request(imaging_server: Server) -> None:
    headers = {"Idempotency-Key": "job 1"}
    first, second = imaging_server.ask(headers=headers), imaging_server.ask(headers=headers)
    assert first.get_json()["request"]["id"] == second.get_json()["request"]["id"]
    assert imaging_server.ask(headers=headers, duration=1).status_code == 422
    assert imaging_server.ask(headers={"Idempotency-Key": "x" * 129}).status_code == 400


def test_a_repeat_of_a_served_request_with_a_key_is_no_conflict(imaging_server: Server) -> None:
    headers = {"Idempotency-Key": "job 2"}
    number = imaging_server.ask("device1", headers=headers).get_json()["request"]["id"]
    imaging_server.post(f"/api/request/{number}/return/")
    answer = imaging_server.ask("device1", headers=headers)
    assert (answer.status_code, answer.get_json()["request"]["id"]) == (200, number)


def test_equal_calls_make_different_requests(imaging_server: Server) -> None:
    assert imaging_server.made() != imaging_server.made()


def test_a_repeat_gets_the_request_whose_answer_was_never_sent(imaging_server: Server) -> None:
    first = _lost(imaging_server)
    assert imaging_server.made(duration=1) != first
    assert imaging_server.made() == first
    assert imaging_server.made() != first  # it was taken over once


def test_a_repeat_gets_a_new_request_when_the_first_one_has_ended(imaging_server: Server) -> None:
    first = _lost(imaging_server)
    imaging_server.post(f"/api/request/{first}/return/")
    assert imaging_server.made() != first


def test_a_repeat_takes_over_a_call_that_is_still_being_worked_on(imaging_server: Server) -> None:
    imaging_server.made("device1")
    changes = imaging_server.daemon.mozpool.changes
    body = {**BODY, "wait": 600}
    hung_up = threading.Event()

    def first_call() -> None:
        environ = {"waitress.client_disconnected": hung_up.is_set}
        imaging_server.app.test_client().post(
            "/api/device/device1/request/?wait=20", json=body, environ_overrides=environ
        )

    calling = threading.Thread(target=first_call)
    calling.start()
    imaging_server.wait_until(lambda: changes.waiting)
    hung_up.set()
    found: list[int] = []

    def repeat() -> None:
        answer = imaging_server.app.test_client().post("/api/device/device1/request/?wait=20", json=body)
        found.append(answer.get_json()["request"]["id"])

    repeating = threading.Thread(target=repeat)
    repeating.start()
    imaging_server.wait_until(lambda: changes.waiting == 2)
    number = imaging_server.get("/api/request/list/?state=finding_device").get_json()["requests"][0]["id"]
    imaging_server.post(f"/api/request/{number}/return/")
    calling.join(10)
    repeating.join(10)
    assert found == [number]
    assert len(imaging_server.get("/api/request/list/?include_closed=1").get_json()["requests"]) == 2


def _lost(server: Server) -> int:
    """A request that was made for a client which hung up before the answer."""
    environ = {"waitress.client_disconnected": lambda: True}
    answer = server.client.post("/api/device/any/request/", json=BODY, environ_overrides=environ)
    number: int = answer.get_json()["request"]["id"]
    return number
