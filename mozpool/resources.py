# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Finds the files that belong to Mozpool but are no modules: pages, migrations, scripts, the sample configuration.

They live at the top of the repository. A bare checkout and an editable install use them there; in a wheel,
``package_dir`` in setup.cfg has moved them into the package.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

CHECKOUT: Path | None = _PACKAGE.parent if (_PACKAGE.parent / "config.ini.dist").is_file() else None
"""The top of the repository that runs; None when Mozpool was installed from a wheel."""

# setup.cfg maps each folder to the package mozpool.FOLDER, and single files of the top to mozpool.toplevel.
_ROOTS = (CHECKOUT,) if CHECKOUT else (_PACKAGE, _PACKAGE / "toplevel")


def path(*parts: str) -> Path:
    """The absolute path of e.g. ``("templates",)``, ``("sql", "migrations")`` or ``("config.ini.dist",)``.

    Raises FileNotFoundError when this installation has no such file or folder.
    """
    for root in _ROOTS:
        found = root.joinpath(*parts)
        if found.exists():
            return found
    searched = ", ".join(str(root.joinpath(*parts)) for root in _ROOTS)
    raise FileNotFoundError(f"Mozpool's installation is incomplete: {searched} not found")
