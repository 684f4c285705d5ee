# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is given to Prometheus and Grafana, by Prometheus's own measure; and that it speaks of what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.app_fixtures import Server
from tests.processes import needs
from tests.prometheus import (
    ALERT_TESTS,
    ALERTS,
    DASHBOARD,
    SAMPLE,
    SPECS,
    alert_rules,
    family,
    missing,
    panel_expressions,
    panels,
    promtool,
)

AGGREGATED = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")
SELECTED = re.compile(r"\b([a-z_][a-z0-9_]*)\{([^}]*)\}")
PLAIN = re.compile(r"\b(mozpool_\w+|process_\w+|up)\b")
ADDED = {"job", "instance", "le"}
"""Labels that Prometheus adds, and that of histograms."""


@pytest.fixture
def tool() -> None:
    needs(missing())


# Alerts


def test_the_alert_rules_and_the_sample_configuration_are_right(tool: None) -> None:
    assert "FAILED" not in promtool("check", "rules", ALERTS)
    assert "FAILED" not in promtool("check", "config", SAMPLE)


def test_each_alert_fires_when_it_should_and_not_before(tool: None) -> None:
    promtool("test", "rules", ALERT_TESTS)


def test_no_alert_is_left_out_of_these_tests() -> None:
    tests = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alert_rules()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_the_document_names_each_alert_with_its_severity() -> None:
    text = (ALERTS.parents[1] / "monitoring.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"(?m)^\| `(Mozpool\w+)` \| (\w+) \|", text))
    assert described == {rule["alert"]: rule["labels"]["severity"] for rule in alert_rules()}


# Expressions


def labels_known(expression: str) -> set[str]:
    """All labels of the metrics in an expression; an AssertionError when it names a metric that there is not."""
    known = set(ADDED)
    for name in PLAIN.findall(expression):
        spec = family(name)
        assert spec is not None or name == "up" or name.startswith("process_"), f"there is no {name}"
        known |= set(spec.labels) if spec is not None else set()
    return known


ALL = [(rule["alert"], rule["expr"]) for rule in alert_rules()] + panel_expressions()


@pytest.mark.parametrize(("where", "expression"), ALL, ids=[where for where, _ in ALL])
def test_an_expression_names_metrics_and_labels_that_there_are(where: str, expression: str) -> None:
    known = labels_known(expression)
    for group in AGGREGATED.findall(expression):
        assert {label.strip() for label in group.split(",")} <= known, where
    for name, selectors in SELECTED.findall(expression):
        spec = family(name)
        mine = ADDED | (set(spec.labels) if spec is not None else set())
        assert {label for label, _ in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', selectors)} <= mine, where


def test_the_labels_in_annotations_and_legends_are_those_of_the_results() -> None:
    for rule in alert_rules():
        text = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels_known(rule["expr"]), rule["alert"]
    for panel in panels():
        for target in panel.get("targets", ()):
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            groups = AGGREGATED.findall(target["expr"])
            shown = {label.strip() for label in groups[-1].split(",")} if groups else labels_known(target["expr"])
            assert legend <= shown, panel["title"]


def test_values_of_labels_that_the_expressions_name_are_in_the_code(imaging_server: Server) -> None:
    """Those of a metric that has all its values at once; whether ``state`` of a device exists, no scrape can tell."""
    imaging_server.daemon.give_sign()
    imaging_server.made()
    told: dict[str, dict[str, set[str]]] = {}
    for found in parse_text(imaging_server.get("/metrics").text):
        for sample in found.samples:
            for label, value in sample.labels.items():
                told.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    complete = ("mozpool_devices_by_category", "mozpool_relay_boards", "mozpool_server_state", "mozpool_work_waiting")
    checked = set()
    for where, expression in ALL:
        for name, selectors in SELECTED.findall(expression):
            for label, value in re.findall(r'(\w+)="([^"]*)"', selectors):
                if name in complete:
                    assert value in told[name][label], where
                    checked.add(name)
    assert checked == set(complete)


def test_every_expression_of_the_dashboard_can_be_parsed(tool: None, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "1m", expression)}
        for number, (_, expression) in enumerate(panel_expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert dashboard["uid"] == "mozpool" and dashboard["title"] and dashboard["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "server", "instance"}
    for name in ("server", "instance"):
        metric = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"])
        assert metric is not None and variables[name]["query"]["query"] == variables[name]["definition"]
        assert metric[2] in labels_known(metric[1])
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} overlaps"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


# What is scraped


def test_what_is_scraped_is_what_the_code_declares_and_in_good_form(imaging_server: Server) -> None:
    imaging_server.daemon.give_sign()
    imaging_server.made()
    answer = imaging_server.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    families = {found.name: found for found in parse_text(answer.text)}
    seen = set()
    for name, found in families.items():
        if not name.startswith("mozpool_"):
            assert name.startswith(("process_", "python_")), name
            continue
        spec = SPECS.get(name) or SPECS[f"{name}_total"]
        seen.add(spec.name)
        assert (found.type, found.documentation) == (spec.kind, spec.text)
        for sample in found.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), sample
    assert seen == set(SPECS), "each one is there from the beginning"


def test_promtool_has_nothing_to_say_against_it(imaging_server: Server, tool: None) -> None:
    imaging_server.daemon.give_sign()
    imaging_server.made()
    imaging_server.get("/api/device/no-such/details/")
    text = imaging_server.get("/metrics").text
    assert promtool("check", "metrics", given=text) == ""


def test_who_asks_for_openmetrics_gets_that(imaging_server: Server) -> None:
    answer = imaging_server.get(
        "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    )
    assert answer.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    assert "mozpool_transitions" in {found.name for found in parse_openmetrics(answer.text)}
