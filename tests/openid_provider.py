# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real OpenID provider: django-oauth-toolkit, with people of its own, in a process of its own.

It shares no code with Authlib, by which Mozpool speaks to it. ``python -m tests.openid_provider DIRECTORY`` is the
provider; what it is to be like is in files of the directory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from tests.processes import end, free_port

CLIENT_ID = "mozpool"
CLIENT_SECRET = "a secret that the provider has given"
PASSWORD = "of no use elsewhere"
READY_WITHIN = 60.0


class OpenIDProvider:
    """The provider as tests see it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.issuer = f"{self.url}/o"
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, return_urls: Sequence[str]) -> None:
        """Say where it may send browsers back to."""
        made = {"port": self._port, "return_urls": list(return_urls)}
        (self._directory / "provider.json").write_text(json.dumps(made))
        self.people()

    def people(self, **groups: Sequence[str]) -> None:
        """Who there is, and in which groups: by the part of their address before the @."""
        known = {"ada": ["lab"], "grace": ["lab", "admins"], "linus": [], **groups}
        (self._directory / "people.json").write_text(json.dumps(known))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._directory / "provider.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.openid_provider", str(self._directory)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up = time.monotonic() + READY_WITHIN
        while True:
            with suppress(requests.ConnectionError):
                requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).raise_for_status()
                return
            assert self._process.poll() is None, (self._directory / "provider.log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def sign_on(self, address: str, person: str) -> str:
        """Do what a browser and a person do there: from where the pool has sent them to where they are sent back."""
        with requests.Session() as browser:
            said = browser.get(address, allow_redirects=False, timeout=30)
            while said.is_redirect:
                address = urljoin(said.url, said.headers["Location"])
                if not address.startswith(self.url):
                    return address
                said = browser.get(address, allow_redirects=False, timeout=30)
                if found := re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', said.text):
                    form = {"username": person, "password": PASSWORD, "csrfmiddlewaretoken": found[1]}
                    said = browser.post(address, data=form, allow_redirects=False, timeout=30)
            raise AssertionError(f"{said.status_code}: {said.text}")


@contextmanager
def running(directory: Path, return_urls: Sequence[str]) -> Iterator[OpenIDProvider]:
    """A provider that is up."""
    provider = OpenIDProvider(directory)
    provider.prepare(return_urls)
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()


# --- The provider itself ---

LOGIN_PAGE = """<!doctype html><html lang="en"><title>The provider</title><h1>The provider</h1>
<form method="post">{% csrf_token %}{{ form.as_p }}<button>Log in</button></form></html>"""


def main(directory: Path) -> None:
    """Be the provider."""
    import django
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from django.conf import settings

    made = json.loads((directory / "provider.json").read_text())
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    settings.configure(
        SECRET_KEY="not a secret",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        LOGIN_URL="/login/",
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / "provider.sqlite")}},
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        ("django.template.loaders.locmem.Loader", {"registration/login.html": LOGIN_PAGE}),
                        "django.template.loaders.app_directories.Loader",
                    ],
                    "context_processors": ["django.template.context_processors.request"],
                },
            }
        ],
        OAUTH2_PROVIDER={
            "OIDC_ENABLED": True,
            "OIDC_RSA_PRIVATE_KEY": key.decode(),
            "OIDC_ISS_ENDPOINT": f"http://127.0.0.1:{made['port']}/o",
            "OIDC_RP_INITIATED_LOGOUT_ENABLED": True,
            "PKCE_REQUIRED": True,
            "SCOPES": {"openid": "who you are", "profile": "your name", "email": "your address"},
            "OAUTH2_VALIDATOR_CLASS": f"{__name__}.Claims",
        },
    )
    django.setup()
    _make_models(made["return_urls"])
    _define(directory)

    import waitress
    from django.core.wsgi import get_wsgi_application

    waitress.serve(get_wsgi_application(), listen=f"127.0.0.1:{made['port']}", threads=4)


def _make_models(return_urls: Sequence[str]) -> None:
    from django.core.management import call_command
    from oauth2_provider.models import Application

    call_command("migrate", verbosity=0)
    Application.objects.get_or_create(
        client_id=CLIENT_ID,
        defaults={
            "name": "Mozpool",
            "client_secret": CLIENT_SECRET,
            "client_type": Application.CLIENT_CONFIDENTIAL,
            "authorization_grant_type": Application.GRANT_AUTHORIZATION_CODE,
            "redirect_uris": " ".join(return_urls),
            "algorithm": Application.RS256_ALGORITHM,
            "skip_authorization": True,
        },
    )


def _define(directory: Path) -> None:
    """Define what needs Django to be set up: who may log in, what is said of them, and the paths."""
    from django.contrib.auth import get_user_model
    from django.contrib.auth.views import LoginView
    from django.urls import include, path
    from oauth2_provider.oauth2_validators import OAuth2Validator

    people = directory / "people.json"
    for name in json.loads(people.read_text()):
        if not get_user_model().objects.filter(username=name).exists():
            get_user_model().objects.create_user(name, f"{name}@example.com", PASSWORD)

    class Claims(OAuth2Validator):  # type: ignore[misc]
        oidc_claim_scope = None

        def get_additional_claims(self, request: Any) -> dict[str, Any]:
            name = request.user.username
            return {
                "email": request.user.email,
                "email_verified": name != "linus",
                "groups": json.loads(people.read_text()).get(name, []),
            }

    globals()["Claims"] = Claims
    globals()["urlpatterns"] = [
        path("login/", LoginView.as_view()),
        path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
