# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The web application of an imaging server: the API of all layers, and the pages."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

from apiflask import APIFlask
from flask import Response, g, has_request_context, request

from mozpool import __version__, resources
from mozpool.access import matrix, servers
from mozpool.access.principal import principal
from mozpool.apikit import MAX_BODY, SITE, LongPolls, Site
from mozpool.bmm import api as bmm_api
from mozpool.bmm import catalogueapi
from mozpool.lifeguard import api as lifeguard_api
from mozpool.lifeguard.devicemachine import RULES
from mozpool.notify import api as notify_api
from mozpool.pool import api as pool_api
from mozpool.pool.devicelist import DeviceListCache
from mozpool.pool.repeats import Repeats
from mozpool.precedence import Precedence
from mozpool.web import (
    accessapi,
    audit,
    auditapi,
    devicecalls,
    errors,
    files,
    gate,
    headers,
    monitoring,
    openapi,
    origins,
    pages,
    rates,
    reportapi,
    sessionapi,
)
from mozpool.web.monitoring import MONITORING, QUIET, Monitoring
from mozpool.web.pages.base import STAMP, Fresh, Stamp
from mozpool.web.pages.catalogue import CATALOGUE, catalogue_rows
from mozpool.web.pages.overview import OVERVIEW, Overviews
from mozpool.web.pages.signon import PROVIDER
from mozpool.web.peers import PEERS
from mozpool.web.rates import Rates
from mozpool.web.services import Services

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

access_log = logging.getLogger("mozpool.access")


def create_app(services: Services) -> APIFlask:
    """The WSGI application over running services; it starts no threads and opens no connections."""
    app = bare_app()
    settings = services.settings
    site = Site(
        settings=settings,
        database=services.database,
        clock=services.clock,
        server_id=services.server_id,
        presence=services.presence,
        lease=services.lease,
        long_polls=LongPolls(max(1, settings.server.threads // 2), lambda: _waits(services.precedence)),
        seen=services.seen,
        device_changed=services.mozpool.matcher.wake,
    )
    app.extensions[SITE] = site
    app.extensions[pool_api.SERVICE] = services.mozpool
    app.extensions[pool_api.REPEATS] = Repeats(services.clock)
    app.extensions[pool_api.CATEGORIES] = RULES
    app.extensions[pool_api.LIST] = DeviceListCache(site)
    app.extensions[lifeguard_api.SERVICE] = services.lifeguard
    app.extensions[lifeguard_api.HARDWARE] = services.bmm
    app.extensions[lifeguard_api.STATES] = lifeguard_api.StateCache(site)
    app.extensions[bmm_api.HARDWARE] = bmm_api.Hardware(
        services.bmm, services.hardware, services.logbook, services.device_effects
    )
    app.extensions[STAMP] = Stamp(site)
    app.extensions[CATALOGUE] = Fresh(site, lambda: catalogue_rows(site))
    app.extensions[OVERVIEW] = Overviews(site)
    app.extensions[PEERS] = services.peers
    app.extensions[MONITORING] = Monitoring(services, site)
    if settings.auth_mode == "oidc":
        from mozpool.web.oidc import Provider  # its libraries take a tenth of the memory that a server needs

        app.extensions[PROVIDER] = Provider(settings, services.clock)
    _watch_calls(app, services)
    audit.register(app, site, services.auditor)
    headers.register(app, settings.server.hsts)
    limit = Rates(services.clock, settings.server.rate_limit)
    rates.register(app, limit, gated=settings.auth_mode != "open")
    origins.register(app, site)
    servers.register(app, settings, services.clock)
    devicecalls.register(app, site, services.lifeguard)
    gate.register(app, site)
    rates.register_tokens(app, limit)
    app.wsgi_app = _preceding(app.wsgi_app, services.precedence)  # type: ignore[method-assign, assignment]
    return app


def _preceding(inner: WSGIApplication, precedence: Precedence) -> WSGIApplication:
    """Let background work wait for calls that have just come in."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with precedence.call():
            return inner(environ, start_response)

    return serve


def bare_app() -> APIFlask:
    """The application with all its paths but nothing behind them: enough to describe it."""
    app = APIFlask(
        "mozpool",
        title="Mozpool",
        version=__version__,
        spec_path=None,
        docs_path=None,
        json_errors=False,
        static_folder=str(resources.path("static")),
        template_folder=str(resources.path("templates")),
    )
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_BODY
    errors.register(app)
    openapi.register(app)
    layers = (pool_api, lifeguard_api, bmm_api, catalogueapi, notify_api)
    apis = (*layers, accessapi, sessionapi, auditapi, reportapi, monitoring)
    for blueprint in (*(api.blueprint for api in apis), monitoring.scraped, files.blueprint, pages.blueprint):
        app.register_blueprint(blueprint)
    for rule in app.url_map.iter_rules():
        if rule.methods is not None and rule.endpoint in matrix.RULES and matrix.RULES[rule.endpoint].acts:
            rule.methods.discard("HEAD")  # Flask does a GET for it: nobody expects that to act
    return app


def _waits(precedence: Precedence) -> None:
    """The current call begins to wait for something."""
    precedence.step_aside()
    if has_request_context():
        g.waited = True


def _watch_calls(app: APIFlask, services: Services) -> None:
    """Count and measure calls, and log each in a line: who, what, what came of it, and how long it took."""
    clock, metrics = services.clock, services.metrics
    log_requests = services.settings.server.log_requests

    @app.before_request
    def began() -> None:
        g.began = clock.monotonic()

    @app.after_request
    def ended(said: Response) -> Response:
        seconds = clock.monotonic() - g.get("began", clock.monotonic())
        rule = request.url_rule
        metrics.http(
            request.method,
            None if rule is None else rule.rule,
            said.status_code,
            None if g.get("waited") else seconds,
        )
        is_worth_it = request.path.startswith("/api/") and request.path.rstrip("/") not in QUIET
        if log_requests and (is_worth_it or said.status_code >= 400):
            who = quote(principal().name or g.get("assignee", "-"), safe="@.+-_: ")
            path = quote(request.path, safe="/")
            access_log.info(
                "%s %s %s %s %d %.0f ms",
                request.remote_addr,
                who,
                request.method,
                path,
                said.status_code,
                seconds * 1000,
            )
        return said
