# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The OpenAPI description of the API. ``python -m mozpool.web.openapi > docs/openapi.json`` writes it anew."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from apiflask import APIFlask
from pydantic import BaseModel

from mozpool.access.matrix import RULES
from mozpool.access.principal import Role
from mozpool.apikit import OPERATION, ErrorAnswer, Operation

DESCRIPTION = """\
Everything is JSON under `/api/`; every path works with and without its last slash. Bodies are read as JSON whatever
their content type says, empty bodies count as `{}`, unknown keys are ignored and keys with null count as left out.
Times are ISO-8601 in UTC without a zone. Errors are `{"error": {"code", "message", "field"}}`.

`POST /api/device/any/request/?wait=S` answers as soon as a device is claimed, not when that is ready to be used: ask
`/api/request/ID/status/?wait=S` until the state is `ready`."""

TAGS = {
    "MozPool": "Requests: who gets which device, for how long.",
    "LifeGuard": "Devices: their states, and what their holders and operators may do to them.",
    "BMM": "The hardware itself, and what is known of it.",
    "Monitoring": "Whether a server lives and is ready, and how the pool is doing.",
    "Catalogue": "Images, hardware types, PXE configs and environments: what there is to choose from.",
    "Access": "Who may do what: tokens, teams, and who is signed on. `docs/access.md` tells the rules.",
    "Reports": "How the pool was used, and what fails: `docs/reports.md` says what the numbers mean.",
    "Notifications": "Who is told what has happened.",
    "Audit": "Who changed what: `docs/audit.md` says what is in it.",
}

REFS = "#/components/schemas/{model}"


def register(app: APIFlask) -> None:
    """Complete what the framework generates by what only our own annotations say."""
    app.config["OPENAPI_VERSION"] = "3.1.0"
    app.config["AUTO_SERVERS"] = False
    app.config["AUTO_404_RESPONSE"] = False
    app.config["AUTO_VALIDATION_ERROR_RESPONSE"] = False
    app.config["AUTO_OPERATION_ID"] = True
    app.description = DESCRIPTION
    app.tags = [{"name": name, "description": text} for name, text in TAGS.items()]

    @app.spec_processor
    def complete(spec: dict[Any, Any] | str) -> dict[Any, Any] | str:
        assert isinstance(spec, dict)
        schemas = spec.setdefault("components", {}).setdefault("schemas", {})
        _add_schema(schemas, ErrorAnswer)
        for rule in app.url_map.iter_rules():
            view = app.view_functions[rule.endpoint]
            operation = getattr(view, OPERATION, None)
            if isinstance(operation, Operation):
                path = re.sub(r"<(?:[^<:>]+:)?([^>]+)>", r"{\1}", rule.rule)
                least = RULES[rule.endpoint].least
                for method, described in spec["paths"][path].items():
                    _complete(described, method, operation, schemas)
                    if least > Role.NOBODY:
                        described["security"] = [{"token": []}]
                    else:
                        del described["responses"]["401"]  # nobody is asked who they are
        spec["components"]["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token, in other modes than open. Browsers send the cookie of their session instead.",
            }
        }
        spec["components"]["schemas"] = dict(sorted(schemas.items()))
        spec["paths"] = dict(sorted(spec["paths"].items()))
        return spec


def _complete(described: dict[str, Any], method: str, operation: Operation, schemas: dict[str, Any]) -> None:
    described["operationId"] = f"{method}_{described['operationId'].split('_', 1)[1]}"
    parameters = described["parameters"]
    if operation.query is not None:
        parameters += _parameters(operation.query, schemas)
    for name, text in operation.headers.items():
        parameters.append({"name": name, "in": "header", "description": text, "schema": {"type": "string"}})
    if operation.media is not None:
        described["responses"]["200"]["content"][operation.media] = {"schema": {"type": "string"}}
    if operation.body is not None and method != "get":
        _add_schema(schemas, operation.body)
        content: dict[str, Any] = {"schema": {"$ref": REFS.format(model=operation.body.__name__)}}
        if operation.example is not None:
            content["example"] = dict(operation.example)
        required = any(info.is_required() for info in operation.body.model_fields.values())
        described["requestBody"] = {"required": required, "content": {"application/json": content}}


def _parameters(model: type[BaseModel], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    properties = _schema(model, schemas)["properties"]
    found = []
    for name, schema in properties.items():
        schema = dict(schema)
        options = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
        if options:  # a query can't say null
            schema.update(options[0])
            schema.pop("default", None)
        text = schema.pop("description", None)
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": False, "schema": schema}
        if text:
            parameter["description"] = text
        found.append(parameter)
    return found


BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""What pydantic calls bounds of values that are looked at before they are read, and what JSON Schema calls them."""


def _bounded(schema: Any) -> Any:
    """The schema, with its bounds by their right names."""
    if isinstance(schema, list):
        return [_bounded(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_number = schema.get("type") in ("integer", "number")
    return {BOUNDS.get(key, key) if is_number else key: _bounded(value) for key, value in schema.items()}


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = _bounded(model.model_json_schema(ref_template=REFS))
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    return schema


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    if model.__name__ not in schemas:
        schemas[model.__name__] = _schema(model, schemas)


def text(app: APIFlask) -> str:
    """The description as it is committed."""
    return json.dumps(app.spec, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from mozpool.web.app import bare_app

    sys.stdout.write(text(bare_app()))
