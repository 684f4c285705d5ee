# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Turns the OpenAPI description into what the page ``/api/docs`` shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Spec = Mapping[str, Any]

NAMES = {"/api/relay/": "relay-1", "/api/bmm/pxe_config/": "b2g", "/api/device/": "device1"}
"""What stands for a name in examples, by the beginning of the path."""

SAMPLES = {
    "number": "1",
    "event": "mobile_init_started",
    "old": "failed_pxe_booting",
    "new": "ready",
}
"""What stands for the other parameters of paths."""


@dataclass(frozen=True)
class Field:
    """A parameter, or a key of a body or an answer."""

    name: str
    kind: str
    required: bool
    text: str
    place: str = ""


@dataclass(frozen=True)
class Status:
    """A possible outcome."""

    code: str
    text: str
    fields: list[Field]


@dataclass(frozen=True)
class Call:
    """A verb of a path."""

    anchor: str
    method: str
    path: str
    summary: str
    text: str
    parameters: list[Field]
    body: list[Field]
    body_text: str
    statuses: list[Status]
    curl: str


@dataclass(frozen=True)
class Section:
    """A layer."""

    name: str
    text: str
    calls: list[Call]


def sections(spec: Spec, server: str) -> list[Section]:
    """The calls by layer; ``server`` stands in the examples."""
    found = []
    for tag in spec["tags"]:
        calls = [
            _call(spec, server, path, method, operation)
            for path, operations in spec["paths"].items()
            for method, operation in operations.items()
            if tag["name"] in operation.get("tags", ())
        ]
        found.append(Section(tag["name"], tag.get("description", ""), calls))
    return found


def _call(spec: Spec, server: str, path: str, method: str, operation: Spec) -> Call:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = _resolve(spec, content.get("schema", {}))
    body = list(_fields(spec, schema))
    return Call(
        anchor=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        text=operation.get("description", ""),
        parameters=[
            Field(
                parameter["name"],
                _kind(parameter["schema"]),
                parameter.get("required", False),
                parameter.get("description", ""),
                parameter["in"],
            )
            for parameter in operation.get("parameters", [])
        ],
        body=body,
        body_text=schema.get("description", "") if body else "",
        statuses=[
            Status(code, response.get("description", ""), list(_answer_fields(spec, code, response)))
            for code, response in sorted(operation["responses"].items())
        ],
        curl=_curl(server, path, method, content),
    )


def _answer_fields(spec: Spec, code: str, response: Spec) -> Iterator[Field]:
    if code.startswith("2"):
        schema = response.get("content", {}).get("application/json", {}).get("schema", {})
        yield from _fields(spec, _resolve(spec, schema))


def _resolve(spec: Spec, schema: Spec) -> Spec:
    if "$ref" in schema:
        found: Spec = spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return found
    return schema


def _fields(spec: Spec, schema: Spec, prefix: str = "", depth: int = 0) -> Iterator[Field]:
    """The keys of an object, with those of the objects in it."""
    for name, inner in schema.get("properties", {}).items():
        required = name in schema.get("required", ())
        yield Field(prefix + name, _kind(inner), required, inner.get("description", ""))
        for option in (inner, inner.get("items", {}), *inner.get("anyOf", ())):
            many = "[]" if option is inner.get("items") or option.get("type") == "array" else ""
            target = option.get("items", option) if many else option
            if "$ref" in target and depth < 2:
                yield from _fields(spec, _resolve(spec, target), f"{prefix}{name}{many}.", depth + 1)


def _kind(schema: Spec) -> str:
    """The type in a word or two."""
    if "$ref" in schema:
        return "object"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return kind


def _curl(server: str, path: str, method: str, content: Spec) -> str:
    named = next((sample for start, sample in NAMES.items() if path.startswith(start)), "name")
    for name, sample in {"name": named, **SAMPLES}.items():
        path = path.replace(f"{{{name}}}", sample)
    parts = ["curl", f"http://{server}{path}"]
    if method != "get":
        parts[1:1] = ["-X", method.upper()]
        example = content.get("example")
        if example is not None:
            parts += ["-d", json.dumps(example)]
    return " ".join(shlex.quote(part) for part in parts)
