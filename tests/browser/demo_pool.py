# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A pool in which something has happened: for tests of all pages, and for their pictures."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import requests
from sqlalchemy import Connection, insert

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from mozpool.db.history import given_up
from mozpool.db.samples import Sample, add
from tests.browser.conftest import Pool

PEOPLE = ("ada@example.com", "grace@example.com", "foopy-12.build.example.com", "linus@example.com")

TROUBLES = (
    ("device7", "failed_pxe_booting", "does not get an address; the cable was changed on Monday"),
    ("device11", "failed_sut_verifying", None),
    ("device19", "failed_power_cycling", "relay 3 sticks when it is warm; a new board is ordered"),
    ("device23", "failed_b2g_downloading", None),
)


STATES_OF_FAILURE = ("failed_pxe_booting", "failed_sut_verifying", "failed_self_test", "failed_b2g_downloading")

DAY = 24 * 60
"""Minutes."""


def make_up_a_day(pool: Pool, boards: int, seed: int = 1) -> None:
    """Note a working day of so many boards, minute by minute, as imaging servers would have done: for the charts."""
    rng, now = random.Random(seed), int(time.time()) // 60
    samples = []
    for ago in range(1, DAY):
        hour = ((now - ago) // 60) % 24 + ((now - ago) % 60) / 60
        busy = 0.1 + 0.6 * math.exp(-(((hour - 14) / 4.5) ** 2)) + rng.uniform(-0.03, 0.03)
        failed = 2 + (ago < 500) + (ago < 200)
        in_use, processing = round(busy * boards), round(busy * boards / 7)
        waiting = max(0, round((busy - 0.62) * boards * 1.5 + rng.uniform(-1, 1)))
        ready = rng.choice((0, 1, 1, 2, 3)) if busy > 0.2 else int(rng.random() < 0.3)
        median = rng.uniform(70, 110) + waiting * 15 if ready else None
        samples.append(
            Sample(
                minute=now - ago,
                in_use=in_use,
                idle=max(0, boards - in_use - processing - failed - 1),
                processing=processing,
                failed=failed,
                out_of_service=1,
                away=0,
                waiting=waiting,
                ready=ready,
                ready_median=median,
                ready_worst=None if median is None else median * rng.uniform(1, 2.2),
                failures=int(rng.random() < 0.01),
            )
        )

    def write(conn: Connection) -> None:
        for sample in samples:
            add(conn, sample)

    _run(pool, write)


def make_up_a_week(pool: Pool, boards: int, seed: int = 1) -> None:
    """Note a week of so many boards, as imaging servers would have done: for reports."""
    rng, now = random.Random(seed), Clock().now()

    def write(conn: Connection) -> None:
        for number in range(100_000, 101_200):
            begin = now - timedelta(hours=rng.uniform(1, 7 * 24))
            device = rng.randint(1, boards)
            image = rng.choice(("b2g", "b2g", "android"))
            took = rng.lognormvariate(4.6 if image == "b2g" else 4.0, 0.5)
            ready = begin + timedelta(seconds=took) if rng.random() < 0.95 else None
            held = rng.expovariate(1 / 2400) if ready else 0.0
            end = begin + timedelta(seconds=took + held)
            reason = "returned" if ready else rng.choice(("returned", "expired", "it failed while it was prepared"))
            what = {
                "environment": "staging" if device % 4 == 0 else "production",
                "hardware_type": "panda",
                "hardware_model": "ES",
                "ready_at": ready,
                "reason": reason,
            }
            who = rng.choices(PEOPLE, (5, 2, 9, 1))[0]
            past = {"request_id": number, "assignee": who, "image": image, "created": begin, "ended": end}
            conn.execute(insert(tables.past_requests).values(**past, **what, state="closed"))
            claim = {"request_id": number, "device_id": device, "device": f"device{device}"}
            conn.execute(insert(tables.claim_history).values(**claim, **what, claimed_at=begin, released_at=end))
        for _ in range(60):
            device, failed = min(boards, int(rng.expovariate(1 / 5)) + 1), rng.choice(STATES_OF_FAILURE)
            at = now - timedelta(hours=rng.uniform(1, 7 * 24))
            row = {"device_id": device, "device": f"device{device}", "version": 1}
            why = given_up(failed.removeprefix("failed_"), 3)
            mended = at + timedelta(hours=rng.expovariate(1 / 3))
            for moment, source, target, detail in (
                (at, failed.removeprefix("failed_"), failed, why),
                (min(now, mended), failed, "start_self_test", None),
            ):
                change = {"ts": moment, "from_state": source, "to_state": target, "event": "timeout", "detail": detail}
                conn.execute(insert(tables.device_history).values(**row, **change))

    _run(pool, write)


def _run(pool: Pool, work: Callable[[Connection], None]) -> None:
    database = Database(pool.database_url, clock=Clock(), rng=random.Random(1))
    try:
        database.run(work)
    finally:
        database.dispose()


class Story:
    """What happened; of a pool with few devices, only some of it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.numbers: dict[str, int] = {}
        self._names = set(self._call("GET", "/api/device/list/")["devices"])

    def _call(self, verb: str, path: str, body: Any = None) -> Any:
        said = requests.request(verb, self.pool.url + path, json=body, timeout=30)
        assert said.status_code in (200, 204), f"{path}: {said.text}"
        return said.json() if said.content else None

    def _ask(self, device: str, who: str, image: str = "b2g", hours: float = 2.0, **more: Any) -> int:
        body = {"assignee": who, "duration": hours * 3600, "image": image, "wait": 3600, **more}
        if image == "b2g":
            body["b2gbase"] = "http://builds.example.com/b2g/2026-11-24/"
        number: int = self._call("POST", f"/api/device/{device}/request/", body)["request"]["id"]
        return number

    def _wait_for(self, number: int, *states: str) -> None:
        give_up = time.monotonic() + 60
        while (state := self._call("GET", f"/api/request/{number}/status/")["state"]) not in states:
            assert time.monotonic() < give_up, f"request {number} is in state {state}"
            time.sleep(0.2)

    def tell(self) -> None:
        """Let it happen; what is asked for and can be had is ready when this returns."""
        for device, state, comments in TROUBLES:
            if device in self._names:
                self._call("POST", f"/api/device/{device}/state-change/ready/to/{state}/")
                if comments:
                    self._call("POST", f"/api/device/{device}/set-comments/", {"comments": comments})
        self._call("POST", "/api/device/device3/status/", {"status": "offline", "reason": "broken screen"})
        comments = "the screen flickers when it is warm; a new one is ordered, see the lab's notebook of May"
        self._call("POST", "/api/device/device3/set-comments/", {"comments": comments})
        labels = {"screen": "4.3", "android": "4.0.4", "owner": "lab in Berlin"}
        for device in ("device4", "device5", "device12"):
            self._call("POST", f"/api/device/{device}/set-labels/", {"labels": labels})
        returned = self._ask("device2", PEOPLE[0])
        self._wait_for(returned, "ready")
        self._call("POST", f"/api/request/{returned}/return/", {})
        ready = self._ask("device1", PEOPLE[0], hours=3)
        others = [
            self._ask("any", PEOPLE[place % len(PEOPLE)], ("b2g", "android")[place % 2], 1 + place / 3)
            for place in range(len(self._names) // 4)
        ]
        for number in [ready, *others]:
            self._wait_for(number, "ready")
        waiting = self._ask("device1", PEOPLE[1], priority=2)
        self._ask("device1", PEOPLE[3], "android")
        self.numbers = {"ready": ready, "waiting": waiting, "returned": returned}

    def pages(self) -> dict[str, str]:
        """Every page, some of them in several states: name → path."""
        failed = next((device for device, *_ in TROUBLES if device in self._names), "device1")
        return {
            "overview": "/",
            "requests": "/requests?whose=all",
            "requests-with-closed": "/requests?whose=all&closed=1",
            "new-request": "/requests/new?image=b2g",
            "request": f"/requests/{self.numbers['ready']}",
            "request-that-waits": f"/requests/{self.numbers['waiting']}",
            "request-that-ended": f"/requests/{self.numbers['returned']}",
            "devices": "/devices",
            "device": "/devices/device1",
            "failed-device": f"/devices/{failed}",
            "locked-device": "/devices/device3",
            "reports": "/reports",
            "report": "/reports/use-by-assignee?days=30",
            "report-of-types": "/reports/devices",
            "report-of-failed": "/reports/failed",
            "report-of-times": "/reports/ready-by-device?sort=-p95",
            "report-of-troubles": "/reports/worst-devices",
            "report-of-nothing": "/reports/worst-devices?environment=nowhere",
            "hardware": "/relays",
            "pxe-configs": "/pxe-configs",
            "pxe-config": "/pxe-configs/b2g",
            "images": "/images",
            "hardware-types": "/hardware-types",
            "environments": "/environments",
            "servers": "/servers",
            "audit": "/audit",
            "api": "/api/docs",
        }
