# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which role each call needs: the only place that says so. A test walks every route of the application.

``scripts/gen-docs`` writes it into docs/access.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mozpool.access.principal import Role


@dataclass(frozen=True)
class Rule:
    """Who may make a call."""

    least: Role
    """Whoever has this role or a higher one."""
    holder: bool = False
    """Also a user, for their own request, or for the device that their own request holds."""
    device: bool = False
    """Also the device itself: see [auth] device_events."""
    acts: bool = False
    """Whether it changes something although it is a GET: never on a cookie alone."""


ANYBODY = Rule(Role.NOBODY)
VIEWER = Rule(Role.VIEWER)
USER = Rule(Role.USER)
HOLDER = Rule(Role.OPERATOR, holder=True)
OPERATOR = Rule(Role.OPERATOR)
ADMIN = Rule(Role.ADMIN)

RULES: Mapping[str, Rule] = {
    # Requests
    "mozpool.version": ANYBODY,
    "mozpool.device_list": VIEWER,
    "mozpool.image_list": VIEWER,
    "mozpool.pool_history": VIEWER,
    "mozpool.request_device": USER,
    "mozpool.request_list": VIEWER,
    "mozpool.request_match": VIEWER,
    "mozpool.request_details": VIEWER,
    "mozpool.request_status": VIEWER,
    "mozpool.request_log": VIEWER,
    "mozpool.request_renew": HOLDER,
    "mozpool.request_return": HOLDER,
    "mozpool.request_revoke": OPERATOR,
    "mozpool.request_event": Rule(Role.OPERATOR, acts=True),
    "mozpool.device_return": HOLDER,
    # Devices
    "lifeguard.agent_exec": HOLDER,
    "lifeguard.agent_verify": HOLDER,
    "lifeguard.device_details": VIEWER,
    "lifeguard.device_event": Rule(Role.OPERATOR, device=True, acts=True),
    "lifeguard.device_flash": HOLDER,
    "lifeguard.device_maintenance": OPERATOR,
    "lifeguard.device_reboot": HOLDER,
    "lifeguard.device_self_test": OPERATOR,
    "lifeguard.device_state": VIEWER,
    "lifeguard.device_status": VIEWER,
    "lifeguard.set_device_status": OPERATOR,
    "lifeguard.state_change": OPERATOR,
    "lifeguard.inventory_info": VIEWER,
    "lifeguard.server_list": VIEWER,
    # Hardware
    "bmm.bootconfig": Rule(Role.VIEWER, device=True),
    "bmm.clear_pxe": HOLDER,
    "bmm.device_log": VIEWER,
    "bmm.ping": VIEWER,
    "bmm.power_cycle": HOLDER,
    "bmm.power_off": Rule(Role.OPERATOR, holder=True, acts=True),
    "bmm.set_comments": OPERATOR,
    "bmm.set_environment": OPERATOR,
    "bmm.set_labels": OPERATOR,
    "bmm.relay_list": VIEWER,
    "bmm.relay_retry": OPERATOR,
    "bmm.relay_test": OPERATOR,
    # Catalogue
    "catalogue.environment_list": VIEWER,
    "catalogue.environment_rename": ADMIN,
    "catalogue.hardware_type_change": ADMIN,
    "catalogue.hardware_type_create": ADMIN,
    "catalogue.hardware_type_delete": ADMIN,
    "catalogue.hardware_type_list": VIEWER,
    "catalogue.image_change": ADMIN,
    "catalogue.image_create": ADMIN,
    "catalogue.image_delete": ADMIN,
    "catalogue.image_details": VIEWER,
    "catalogue.pxe_config_assign": ADMIN,
    "catalogue.pxe_config_change": ADMIN,
    "catalogue.pxe_config_check": ADMIN,
    "catalogue.pxe_config_create": ADMIN,
    "catalogue.pxe_config_delete": ADMIN,
    "catalogue.pxe_config_details": VIEWER,
    "catalogue.pxe_config_list": VIEWER,
    "catalogue.pxe_config_unassign": ADMIN,
    # Tokens and teams. Of tokens, all but admins have to do with their own alone.
    "access.whoami": VIEWER,
    "access.token_list": USER,
    "access.token_create": USER,
    "access.token_revoke": USER,
    "access.team_list": VIEWER,
    "access.team_create": ADMIN,
    "access.team_change": ADMIN,
    "access.team_delete": ADMIN,
    # Sessions: all but admins have to do with their own alone.
    "session.session_list": VIEWER,
    "session.session_end": VIEWER,
    # Reports, notifications, monitoring
    "reports.report": VIEWER,
    "reports.report_list": VIEWER,
    "notify.notifications": VIEWER,
    "audit.audit_list": OPERATOR,
    "monitoring.health": ANYBODY,
    "monitoring.ready": ANYBODY,
    "monitoring.pool_status": VIEWER,
    "scraped.metrics": VIEWER,
    # What boards load on their way: they can't show anything yet.
    "files.image": ANYBODY,
    "files.script": ANYBODY,
    "files.ipxe_script": Rule(Role.OPERATOR, device=True),
    # Pages
    "static": ANYBODY,
    "pages.api_docs": VIEWER,
    "pages.openapi_json": ANYBODY,
    "pages.overview": VIEWER,
    "pages.requests_page": VIEWER,
    "pages.request_page": VIEWER,
    "pages.request_new": USER,
    "pages.devices_page": VIEWER,
    "pages.device_page": VIEWER,
    "pages.machine_json": VIEWER,
    "pages.reports_page": VIEWER,
    "pages.report_page": VIEWER,
    "pages.relays": VIEWER,
    "pages.relay_page": VIEWER,
    "pages.pxe_configs": VIEWER,
    "pages.pxe_config_page": VIEWER,
    "pages.pxe_config_new": ADMIN,
    "pages.images_page": VIEWER,
    "pages.hardware_types": VIEWER,
    "pages.environments_page": VIEWER,
    "pages.server_page": VIEWER,
    "pages.login": ANYBODY,
    "pages.sign_on": ANYBODY,
    "pages.sign_on_start": ANYBODY,
    "pages.sign_on_return": ANYBODY,
    "pages.logout": ANYBODY,
    "pages.sign_off": ANYBODY,
    "pages.sessions_page": VIEWER,
    "pages.teams_page": VIEWER,
    "pages.tokens_page": USER,
    "pages.audit_page": OPERATOR,
}
"""Endpoint → who may call it. Other imaging servers may call all that this pool's code calls between servers."""
