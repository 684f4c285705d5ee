# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The launcher: watches Taskcluster's queues, and asks the pool for a phone for each job that is to be started."""

from __future__ import annotations

import os
from pathlib import Path

from mozpool.bmm.backends.lambdatest.jobdir import has_scripts
from mozpool.bmm.projects import Projects, load
from mozpool.config import LambdaTest


def load_projects(settings: LambdaTest, path: Path) -> Projects:
    """A projects file, with the tokens of this process's environment. Raises ProjectsError."""
    return load(path, os.environ, has_scripts=lambda version: has_scripts(settings.user_scripts, version))
