# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The benchmarks run, and what they do is right; how fast it is, they only print."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.bench import launcher, load
from tests.bench.__main__ import MODES, daemon, server
from tests.integration.mozpool_site import free_ports
from tests.mariadb import MariaDB


@pytest.mark.mysql
@pytest.mark.timeout(180)
def test_each_mode_of_the_benchmark_runs_without_an_error_or_a_doubly_held_device(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    mariadb.execute("CREATE DATABASE bench CHARACTER SET utf8mb4")
    try:
        engine, port = mariadb.url("bench"), free_ports(2)
        with server(engine, 10, tmp_path, port) as url, daemon(engine, tmp_path, port + 1) as other:
            for mode in MODES:
                measured = "claim and return" if mode == "claim" else mode
                result = load.run(url, mode, 4, 2.0, other)
                print(f"{mode}: {result.rate(measured):.1f} per second, p50 {result.quantile(measured, 0.5):.1f} ms")
                assert result.times[measured]
                assert result.errors == 0
                assert result.doubles == 0
    finally:
        mariadb.execute("DROP DATABASE bench")


@pytest.mark.parametrize("phones", [8, 60])
def test_all_phones_are_busy_sooner_than_by_the_old_rules(phones: int) -> None:
    results = {rules: [launcher.run(rules, phones, seed) for seed in range(5)] for rules in launcher.RULES}
    assert not any(each.violations for found in results.values() for each in found)
    assert max(each.most_initiated for each in results["new"]) <= 40
    old, new = (statistics.median(each.busy for each in results[rules]) for rules in ("old", "new"))
    assert new < (old / 2 if phones == 60 else old)
    # As fast as the spacing allows, and a look.
    assert all(each.started <= 2 * phones + 10 for each in results["new"])
