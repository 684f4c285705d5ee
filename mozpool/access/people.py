# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the groups that an OpenID provider says of a person make of them here."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from mozpool.access.principal import Role
from mozpool.config import Auth
from mozpool.db.teams import Team

EVERYBODY = "*"
"""As a pattern of groups: also people without any."""


def role_of(auth: Auth, groups: Collection[str]) -> Role:
    """The highest role that the settings give to any of these groups; NOBODY when they give none."""
    for role, patterns in (
        (Role.ADMIN, auth.oidc_admins),
        (Role.OPERATOR, auth.oidc_operators),
        (Role.USER, auth.oidc_users),
        (Role.VIEWER, auth.oidc_viewers),
    ):
        if EVERYBODY in patterns or any(fnmatchcase(group, pattern) for group in groups for pattern in patterns):
            return role
    return Role.NOBODY


def team_of(teams: Collection[Team], groups: Collection[str]) -> Team | None:
    """The first of these teams that takes people of any of these groups; None when none does."""
    return next((team for team in teams if any(group in team.groups for group in groups)), None)
