# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where a client's token comes from, and where it is kept: see docs/access.md."""

from __future__ import annotations

import os
from pathlib import Path

from mozpool.client.errors import ClientError

TOKEN, TOKEN_FILE = "MOZPOOL_TOKEN", "MOZPOOL_TOKEN_FILE"


def default_token() -> str | None:
    """The token of $MOZPOOL_TOKEN, else of the file $MOZPOOL_TOKEN_FILE or ~/.config/mozpool/token; None without any.

    Raises ClientError when a file can't be read, or others may read it.
    """
    named = os.environ.get(TOKEN, "").strip()
    if named:
        return named
    given = os.environ.get(TOKEN_FILE, "")
    if given:
        return read_token(Path(given))
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    usual = Path(base, "mozpool", "token")
    return read_token(usual) if usual.exists() else None


def read_token(path: Path) -> str:
    """The token in a file. Raises ClientError as :func:`default_token` does."""
    try:
        with path.open(encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ClientError(f"{path} may be read by others than you, and a token is in it: chmod 600 {path}")
            text = file.read(1000).strip()
    except OSError as error:
        raise ClientError(f"{path}, where a token is to be, can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or " " in text:
        raise ClientError(f"{path} does not hold a token, such as mozpool_1_abc…, and nothing else")
    return text
