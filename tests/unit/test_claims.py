# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Claims on a real database: who gets a device, how it is freed, and what stays in the history."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from mozpool.db import claims, devices
from mozpool.db.claims import ClaimLost
from mozpool.db.engine import Database
from tests.unit.pool_support import NOW, Rows


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


def take(rows: Rows, request_id: int, device_id: int, version: int | None = None) -> int:
    read = rows.get_device(device_id).version if version is None else version
    return rows.database.run(
        lambda conn: claims.take(conn, request_id=request_id, device_id=device_id, device_version=read, now=NOW)
    )


def release(rows: Rows, claim_id: int, device_id: int, *, verify: bool = False, reason: str = "returned") -> None:
    rows.database.run(
        lambda conn: claims.release(
            conn,
            claim_id=claim_id,
            device_id=device_id,
            ready_at=None,
            now=NOW + timedelta(seconds=5),
            reason=reason,
            shuffle=77,
            verify=verify,
        )
    )


def test_it_claims_a_free_device(rows: Rows):
    device_id, request_id = rows.device(operation_claim_id=3), rows.request()
    before = rows.get_device(device_id)
    claim_id = take(rows, request_id, device_id)
    device, request = rows.get_device(device_id), rows.get_request(request_id)
    assert (device.claim_id, device.request_id, device.operation_claim_id) == (claim_id, request_id, None)
    assert (device.version, device.attempt, device.state) == (before.version + 1, before.attempt, "ready")
    assert (request.claim_id, request.device_id, request.device, request.imaging_result) == (
        claim_id,
        device_id,
        "panda-0001",
        None,
    )
    with rows.database.read() as conn:
        (past,) = claims.of_device(conn, device_id)
    assert (past.id, past.request_id, past.device, past.claimed_at, past.released_at, past.reason) == (
        claim_id,
        request_id,
        "panda-0001",
        NOW,
        None,
        None,
    )


def test_it_loses_a_device_that_was_written_since_it_was_read(rows: Rows):
    device_id, request_id = rows.device(), rows.request()
    version = rows.get_device(device_id).version
    rows.database.run(lambda conn: devices.set_attributes(conn, device_id, comments="broken screen"))
    with pytest.raises(ClaimLost):
        take(rows, request_id, device_id, version)
    assert rows.holder(device_id) is None
    with rows.database.read() as conn:
        assert claims.of_device(conn, device_id) == []


@pytest.mark.parametrize("state", ["new", "pxe_booting", "failed_pxe_booting", "locked_out", "maintenance_mode"])
def test_it_only_claims_devices_that_are_ready(rows: Rows, state: str):
    device_id, request_id = rows.device(state), rows.request()
    with pytest.raises(ClaimLost):
        take(rows, request_id, device_id)
    assert rows.holder(device_id) is None


def test_it_claims_no_device_twice(rows: Rows):
    device_id, first, second = rows.device(), rows.request(), rows.request()
    take(rows, first, device_id)
    with pytest.raises(ClaimLost):
        take(rows, second, device_id)
    assert rows.holder(device_id) == first


def test_it_gives_no_request_two_devices(rows: Rows):
    one, two, request_id = rows.device(), rows.device(), rows.request()
    take(rows, request_id, one)
    with pytest.raises(IntegrityError):
        take(rows, request_id, two)
    assert rows.holder(one) == request_id
    assert rows.holder(two) is None


def test_it_frees_a_device(rows: Rows):
    device_id, request_id = rows.device(), rows.request()
    claim_id = take(rows, request_id, device_id)
    before = rows.get_device(device_id)
    release(rows, claim_id, device_id, reason="x" * 300)
    device = rows.get_device(device_id)
    assert rows.holder(device_id) is None
    assert (device.version, device.attempt, device.state_timeout) == (before.version + 1, before.attempt, None)
    with rows.database.read() as conn:
        (past,) = claims.of_request(conn, request_id)
    assert (past.released_at, past.reason) == (NOW + timedelta(seconds=5), "x" * 190)
    assert claim_id != take(rows, rows.request(), device_id)


@pytest.mark.parametrize(
    "state, verify, due",
    [
        ("maintenance_mode", False, True),
        ("maintenance_mode", True, True),
        ("ready", True, True),
        ("ready", False, False),
        ("pxe_booting", True, False),
    ],
)
def test_a_freed_device_is_due_at_once_when_there_is_something_to_do(rows: Rows, state: str, verify: bool, due: bool):
    later = NOW + timedelta(seconds=600)
    device_id, request_id = rows.device(), rows.request()
    claim_id = take(rows, request_id, device_id)
    rows.database.run(lambda conn: devices.set_attributes(conn, device_id, state=state, state_timeout=later))
    release(rows, claim_id, device_id, verify=verify)
    assert rows.get_device(device_id).state_timeout == (NOW + timedelta(seconds=5) if due else later)


def test_an_old_claim_frees_nobody_elses_device(rows: Rows):
    device_id, first, second = rows.device(), rows.request(), rows.request()
    old = take(rows, first, device_id)
    release(rows, old, device_id)
    take(rows, second, device_id)
    release(rows, old, device_id)
    assert rows.holder(device_id) == second


def test_it_stores_the_result_with_the_claim_and_not_after_its_end(rows: Rows):
    device_id, request_id = rows.device(), rows.request()
    claim_id = take(rows, request_id, device_id)
    rows.database.run(lambda conn: claims.set_result(conn, claim_id, "complete"))
    assert rows.get_request(request_id).imaging_result == "complete"
    release(rows, claim_id, device_id)
    rows.database.run(lambda conn: claims.set_result(conn, claim_id, "failed-bad-device"))
    with rows.database.read() as conn:
        assert claims.result_of(conn, claim_id) is None
        (past,) = claims.of_device(conn, device_id)
    assert past.imaging_result == "complete"


def test_a_new_holder_does_not_see_the_result_of_the_one_before(rows: Rows):
    device_id, first, second = rows.device(), rows.request(), rows.request()
    old = take(rows, first, device_id)
    rows.database.run(lambda conn: claims.set_result(conn, old, "complete"))
    release(rows, old, device_id)
    take(rows, second, device_id)
    assert rows.get_request(second).imaging_result is None


def test_many_threads_that_want_one_device_get_it_once(rows: Rows):
    device_id = rows.device()
    request_ids = [rows.request() for _ in range(8)]
    version = rows.get_device(device_id).version
    together = threading.Barrier(8)

    def grab(request_id: int) -> bool:
        together.wait(10)
        try:
            take(rows, request_id, device_id, version)
        except ClaimLost:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = dict(zip(request_ids, threads.map(grab, request_ids), strict=True))
    assert sum(won.values()) == 1
    assert won[rows.holder(device_id) or 0]
