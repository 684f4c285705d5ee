# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench.empty PORT``: an application that does nothing, behind the HTTP server that Mozpool has."""

from __future__ import annotations

import sys
from typing import Any

from flask import Flask

from mozpool.clock import Clock
from mozpool.config import Server
from mozpool.web.http import make_server


def create_app() -> Flask:
    """An application that answers an event with an empty object, and its version."""
    app = Flask(__name__)

    @app.get("/api/device/<name>/event/<event>/")
    def event(name: str, event: str) -> dict[str, Any]:
        return {}

    @app.get("/api/version/")
    def version() -> dict[str, Any]:
        return {}

    return app


def main() -> None:
    """Serve until the process is ended."""
    app: Any = create_app()
    make_server(app, Server(port=int(sys.argv[1])), Clock()).run()


if __name__ == "__main__":
    main()
