# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Brings the pool's phones into line with the projects file and the cloud.

A phone of a project that the cloud has and the pool has not is added. It is no inventory's, so none removes it. One
that serves no project any more stays, in environment ``none``: a person decides what becomes of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from mozpool.bmm.backends.lambdatest import Phone as CloudPhone
from mozpool.bmm.interfaces import NO_MAC
from mozpool.bmm.projects import Projects
from mozpool.db import devices, images, launches
from mozpool.errors import Conflict

BACKENDS = {"launcher": "lambdatest", "probe": "lambdatest"}
"""What a phone's row names."""

KIND = 32
"""Characters of a hardware type's name and model that are kept."""

NO_PROJECT = "none"
"""The environment of phones that serve no project."""


@dataclass(frozen=True)
class Change:
    """What is to be done with a phone."""

    udid: str
    device_id: int | None
    """None: it is to be added."""
    environment: str | None = None
    """Where it is to be; None: where it is."""
    hardware: tuple[str, str] | None = None
    """What it is; None: what is known of it."""

    def __str__(self) -> str:
        kind = f"{self.hardware[0]} {self.hardware[1]}" if self.hardware else ""
        if self.device_id is None:
            return f"added as {kind}, environment {self.environment}"
        return ", ".join([f"environment {self.environment}"] * bool(self.environment) + [f"it is {kind}"] * bool(kind))


def changes(projects: Projects, known: Mapping[str, launches.Phone], cloud: Mapping[str, CloudPhone]) -> list[Change]:
    """What differs between the projects file, the cloud and the pool; phones that somebody has are left alone."""
    found = []
    wanted = {udid: [project.name for project in projects.projects_of(udid)] for udid in _udids(projects)}
    for udid, names in wanted.items():
        if udid not in known and udid in cloud:
            found.append(Change(udid, None, names[0], _hardware(cloud[udid])))
    for udid, phone in known.items():
        if phone.claimed:
            continue
        mine = wanted.get(udid, [NO_PROJECT])
        was_ours = udid in wanted or phone.environment in projects.projects
        environment = mine[0] if was_ours and phone.environment not in mine else None
        hardware = _hardware(cloud[udid]) if udid in cloud and _hardware(cloud[udid]) != phone.hardware else None
        if environment is not None or hardware is not None:
            found.append(Change(udid, phone.id, environment, hardware))
    return found


def missing(projects: Projects, cloud: Mapping[str, CloudPhone]) -> list[str]:
    """The phones of projects that take part and that the cloud does not have, sorted."""
    return sorted(udid for udid in _udids(projects) if udid not in cloud)


def _udids(projects: Projects) -> list[str]:
    return list(dict.fromkeys(udid for project in projects.taking_part for udid in project.devices))


def _hardware(phone: CloudPhone) -> tuple[str, str]:
    return (phone.name or "phone")[:KIND], (phone.os_version or "unknown")[:KIND]


def carry_out(conn: Connection, wanted: list[Change], server_id: int, rng: random.Random) -> dict[str, int]:
    """Write changes, in the caller's transaction; what is added is this server's. Answers UDID → id of all of them.

    Raises Conflict when another server does the same, or when a device's name is such a UDID but for its case.
    """
    kinds = {change.hardware for change in wanted if change.hardware is not None}
    # MySQL takes names that differ in case only for equal ones.
    spelt = {(each.type.lower(), each.model.lower()) for each in images.known_hardware(conn)}
    new = {kind for kind in kinds if (kind[0].lower(), kind[1].lower()) not in spelt}
    for kind, model in sorted(new):
        images.add_hardware_type(conn, kind, model, {})
    ids = {(each.type.lower(), each.model.lower()): each.id for each in images.known_hardware(conn)}
    for kind, model in sorted(kinds):
        images.offer_hosted(conn, ids[kind.lower(), model.lower()])
    done = {}
    for change in wanted:
        hardware_id = None
        if change.hardware is not None:
            hardware_id = ids[change.hardware[0].lower(), change.hardware[1].lower()]
        if change.device_id is None:
            done[change.udid] = _add(conn, change, hardware_id, server_id, rng)
            continue
        done[change.udid] = change.device_id
        if change.environment is not None:
            launches.set_environment(conn, change.device_id, change.environment)
        if hardware_id is not None:
            launches.set_hardware(conn, change.device_id, hardware_id)
    return done


def _add(conn: Connection, change: Change, hardware_id: int | None, server_id: int, rng: random.Random) -> int:
    if devices.key_by_name(conn, change.udid) is not None:
        raise Conflict(f"there is a device {change.udid} by now, or one that is not hosted", field="name")
    return devices.insert_device(
        conn,
        rng,
        name=change.udid,
        fqdn=change.udid,
        inventory_id=0,
        mac_address=NO_MAC,
        imaging_server_id=server_id,
        environment=change.environment,
        hardware_type_id=hardware_id,
        backends=json.dumps(BACKENDS),
    )
