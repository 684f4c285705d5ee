# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Providers that are away, hang, talk nonsense or lie. A real one is in test_signon.py."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry

from mozpool.clock import Clock
from mozpool.config import Auth, Server, Settings
from mozpool.errors import Forbidden, ProviderAway
from mozpool.fakes.webserver import Answer, Call, Fault, Nonsense, Service, WebServer
from mozpool.web import oidc
from mozpool.web.oidc import Begun, Claims, Provider

KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
OTHER_KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
NEW_KEY = RSAKey.generate_key(2048, {"kid": "two", "use": "sig"})


class LyingProvider(Service):
    """Says of everybody who comes what it is told to say."""

    def __init__(self) -> None:
        self.web = WebServer("the lying provider", self._answer, Clock(), "127.0.0.1", 0)
        self.metadata: dict[str, Any] = {}
        self.claims: dict[str, Any] = {"email": "ada@example.com", "email_verified": True, "groups": ["lab"]}
        self.userinfo: dict[str, Any] = {}
        self.keys = [KEY]
        self.signed_with: RSAKey = KEY
        self.header: dict[str, Any] = {"alg": "RS256", "kid": "one"}
        self.id_token: Any = None
        """Sent in place of one that it has signed."""
        self.forms: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.nonce = ""

    def _answer(self, call: Call) -> Answer:
        if call.path == "/.well-known/openid-configuration":
            about = {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
                "userinfo_endpoint": f"{self.url}/userinfo",
            }
            return Answer(200, {**about, **self.metadata})
        if call.path == "/keys":
            return Answer(200, {"keys": [key.as_dict(private=False) for key in self.keys]})
        if call.path == "/userinfo":
            return Answer(200, {"sub": "7", **self.userinfo})
        assert call.path == "/token"
        self.forms.append(dict(parse_qsl(call.body.decode())))
        self.headers.append(dict(call.headers))
        return Answer(200, {"access_token": "a", "token_type": "Bearer", "id_token": self.id_token or self.sign()})

    def sign(self) -> str:
        now = int(Clock().now().timestamp())
        usual = {"iss": self.url, "aud": "mozpool", "sub": "7", "nonce": self.nonce, "iat": now, "exp": now + 300}
        claims = {key: value for key, value in {**usual, **self.claims}.items() if value is not None}
        registry = JWSRegistry(algorithms=[self.header["alg"]])
        return jwt.encode(self.header, claims, self.signed_with, registry=registry)


@pytest.fixture
def lying() -> Iterator[LyingProvider]:
    with LyingProvider() as made:
        yield made


def settings(issuer: str, **more: Any) -> Settings:
    auth = Auth(mode="oidc", oidc_issuer=issuer, oidc_client_id="mozpool", oidc_client_secret="hush", **more)
    return replace(Settings(), auth=auth, server=Server(fqdn="pool.example.com"))


def provider(lying: LyingProvider, **more: Any) -> Provider:
    return Provider(settings(lying.url, **more), Clock())


def begin(ours: Provider, lying: LyingProvider) -> Begun:
    begun = ours.begin()
    lying.nonce = begun.nonce
    return begun


def come_back(lying: LyingProvider, ours: Provider | None = None, **more: Any) -> Claims:
    ours = ours or provider(lying, **more)
    begun = begin(ours, lying)
    return ours.finish("the code", begun.verifier, begun.nonce)


def test_it_proves_by_pkce_that_it_was_the_one_who_began(lying: LyingProvider) -> None:
    ours = provider(lying)
    begun = begin(ours, lying)
    asked = parse_qs(urlsplit(begun.url).query)
    digest = hashlib.sha256(begun.verifier.encode()).digest()
    assert asked["code_challenge"] == [base64.urlsafe_b64encode(digest).decode().rstrip("=")]
    assert asked["state"] == [begun.state]
    assert asked["nonce"] == [begun.nonce]
    assert len({begun.state, begun.nonce, begun.verifier}) == 3
    assert ours.finish("the code", begun.verifier, begun.nonce) == Claims("ada@example.com", ("lab",))
    (form,) = lying.forms
    assert form["code"] == "the code"
    assert form["code_verifier"] == begun.verifier
    assert form["redirect_uri"] == "http://pool.example.com/login/return"
    assert "client_secret" not in form
    expected = base64.b64encode(b"mozpool:hush").decode()
    assert lying.headers[0]["authorization"] == f"Basic {expected}"


def test_it_shows_its_secret_in_the_way_that_the_provider_wants(lying: LyingProvider) -> None:
    lying.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    come_back(lying)
    assert lying.forms[0]["client_secret"] == "hush"
    assert "authorization" not in lying.headers[0]


def test_what_the_provider_says_of_itself_is_asked_for_once(lying: LyingProvider) -> None:
    ours = provider(lying)
    for _ in range(3):
        come_back(lying, ours)
    assert sorted(set(lying.web.asked)) == ["GET /.well-known/openid-configuration", "GET /keys", "POST /token"]
    assert len(lying.web.asked) == 5


# --- Lies ---


NOW = int(Clock().now().timestamp())

LIES: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "x"},
    "no nonce": {"nonce": None},
    "for somebody else": {"aud": "other"},
    "for nobody": {"aud": None},
    "for both of us, without saying who asked": {"aud": ["mozpool", "other"]},
    "asked for by somebody else": {"aud": ["mozpool", "other"], "azp": "other"},
    "of another provider": {"iss": "http://evil.example.com"},
    "of no provider": {"iss": None},
    "expired": {"exp": NOW - 3600},
    "without an end": {"exp": None},
    "of the future": {"iat": NOW + 3600},
    "not valid yet": {"nbf": NOW + 3600},
    "of nobody": {"sub": None},
    "about another access token": {"at_hash": "x"},
}


@pytest.mark.parametrize("claims", LIES.values(), ids=LIES.keys())
def test_lies_are_not_believed(lying: LyingProvider, claims: dict[str, Any]) -> None:
    lying.claims = {**lying.claims, **claims}
    with pytest.raises(Forbidden, match="can't be believed"):
        come_back(lying)


def test_clocks_may_differ_a_little(lying: LyingProvider) -> None:
    now = int(Clock().now().timestamp())
    lying.claims = {**lying.claims, "iat": now + 20, "exp": now - 20}
    assert come_back(lying).name == "ada@example.com"


def _hand_made(lying: LyingProvider, nonce: str, header: dict[str, str], secret: bytes | None) -> str:
    """An ID token as no library makes it: not signed, or with a secret."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).decode().rstrip("=")

    claims = {"iss": lying.url, "aud": "mozpool", "sub": "7", "nonce": nonce, "iat": NOW, "exp": NOW + 9999}
    text = ".".join(encoded(json.dumps(part).encode()) for part in (header, {**claims, **lying.claims}))
    return f"{text}." + ("" if secret is None else encoded(hmac.digest(secret, text.encode(), "sha256")))


def test_only_what_its_own_keys_have_signed_is_believed(lying: LyingProvider) -> None:
    ours = provider(lying)
    begun = begin(ours, lying)

    def refused() -> None:
        with pytest.raises(Forbidden, match="can't be believed"):
            ours.finish("the code", begun.verifier, begun.nonce)

    lying.signed_with = OTHER_KEY  # of the same name
    refused()
    lying.signed_with = KEY
    lying.id_token = lying.sign()[:-8] + "AAAAAAAA"
    refused()
    lying.id_token = _hand_made(lying, begun.nonce, {"alg": "none"}, None)
    refused()
    # The public key, which everybody has, as a secret; and the client's secret.
    for secret in (KEY.as_pem(private=False), b"hush"):
        for header in ({"alg": "HS256", "kid": "one"}, {"alg": "HS256"}):
            lying.id_token = _hand_made(lying, begun.nonce, header, secret)
            refused()
    for text in ("", "x", "a.b.c", "..", 7, None, ["x"], "\u00e9.\u00e9.\u00e9"):
        lying.id_token = text or "nothing"
        with pytest.raises((Forbidden, ProviderAway)):
            ours.finish("the code", begun.verifier, begun.nonce)


def test_keys_that_were_changed_are_asked_for_again(lying: LyingProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "KEYS_AGAIN", 0.0)
    ours = provider(lying)
    come_back(lying, ours)
    lying.keys, lying.signed_with, lying.header = [NEW_KEY], NEW_KEY, {"alg": "RS256", "kid": "two"}
    assert come_back(lying, ours).name == "ada@example.com"
    assert lying.web.asked.count("GET /keys") == 2


def test_but_not_again_and_again(lying: LyingProvider) -> None:
    ours = provider(lying)
    come_back(lying, ours)
    lying.signed_with = OTHER_KEY
    for _ in range(5):
        with pytest.raises(Forbidden):
            come_back(lying, ours)
    assert lying.web.asked.count("GET /keys") == 1


@pytest.mark.parametrize(
    "about",
    [
        {"issuer": "http://evil.example.com"},
        {"issuer": None},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": 7},
        {"authorization_endpoint": None},
    ],
)
def test_a_provider_that_is_another_or_has_no_page_is_no_good(lying: LyingProvider, about: dict[str, Any]) -> None:
    lying.metadata = about
    with pytest.raises(ProviderAway):
        provider(lying).begin()


def test_a_provider_behind_https_is_not_talked_to_without(lying: LyingProvider) -> None:
    ours = Provider(settings("https://provider.example.com"), Clock())
    about = {"issuer": "https://provider.example.com", "authorization_endpoint": f"{lying.url}/authorize"}
    ours._metadata = (Clock().monotonic(), about)
    with pytest.raises(ProviderAway, match="without encryption"):
        ours.begin()


# --- Names and groups ---


@pytest.mark.parametrize("name", [None, "", " ", 7, ["x"], "x" * 257, "a\nb", "a\x00b"])
def test_a_name_that_is_none_is_refused(lying: LyingProvider, name: Any) -> None:
    lying.claims = {"email": name, "email_verified": True, "groups": []}
    with pytest.raises(Forbidden, match="no usable email"):
        come_back(lying)


def test_the_settings_say_which_claims_count(lying: LyingProvider) -> None:
    lying.claims = {"preferred_username": "ada", "roles": "one"}
    found = come_back(lying, oidc_name_claim="preferred_username", oidc_groups_claim="roles")
    assert found == Claims("ada", ("one",))


def test_what_the_token_does_not_say_is_asked_for(lying: LyingProvider) -> None:
    lying.claims = {"email": "ada@example.com", "email_verified": True}
    lying.userinfo = {"email": "evil@example.com", "groups": ["lab", "x"]}
    assert come_back(lying) == Claims("ada@example.com", ("lab", "x"))


def test_who_is_in_no_group_is_in_none(lying: LyingProvider) -> None:
    lying.claims = {"email": "ada@example.com", "email_verified": True}
    assert come_back(lying) == Claims("ada@example.com", ())
    lying.metadata = {"userinfo_endpoint": None}
    with pytest.raises(ProviderAway):
        come_back(lying)


def test_what_is_said_of_somebody_else_is_not_believed(lying: LyingProvider) -> None:
    lying.claims = {"email": "ada@example.com", "email_verified": True}
    lying.userinfo = {"sub": "8", "groups": ["admins"]}
    with pytest.raises(Forbidden, match="somebody else"):
        come_back(lying)


@pytest.mark.parametrize("groups", [7, {"a": 1}, [1], [["x"]], ["x"] * 1001])
def test_groups_that_are_none_are_refused(lying: LyingProvider, groups: Any) -> None:
    lying.claims = {"email": "ada@example.com", "email_verified": True, "groups": groups}
    with pytest.raises(Forbidden, match="no list of names"):
        come_back(lying)


@pytest.mark.parametrize("said", [False, "false", 0, "", "no", None])
def test_an_address_that_the_provider_has_not_proven_is_refused(lying: LyingProvider, said: Any) -> None:
    """None: it says nothing, in the ID token."""
    lying.claims["email_verified"] = said
    with pytest.raises(Forbidden, match="not made sure"):
        come_back(lying)


@pytest.mark.parametrize("said", [False, "false"])
def test_what_the_userinfo_endpoint_says_of_an_address_counts(lying: LyingProvider, said: Any) -> None:
    lying.claims["email_verified"] = None
    lying.userinfo = {"email_verified": said}
    with pytest.raises(Forbidden, match="not made sure"):
        come_back(lying)
    lying.userinfo = {"email_verified": "true"}
    assert come_back(lying).name == "ada@example.com"


def test_an_address_may_be_believed_of_which_nothing_is_said(lying: LyingProvider) -> None:
    lying.claims["email_verified"] = None
    assert come_back(lying, oidc_email_unverified=True).name == "ada@example.com"
    lying.claims["email_verified"] = False
    with pytest.raises(Forbidden, match="not made sure"):
        come_back(lying, oidc_email_unverified=True)


# --- Outages ---


FAULTS = [Fault(down=True), Fault(status=500), Fault(status=404), *(Fault(nonsense=each) for each in Nonsense)]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("path", ["/.well-known", "/token", "/keys"])
def test_a_provider_that_does_not_work_is_told_of(lying: LyingProvider, fault: Fault, path: str) -> None:
    lying.web.set_fault(replace(fault, path=path))
    ours = provider(lying)
    with pytest.raises((ProviderAway, Forbidden)):
        begun = begin(ours, lying)
        ours.finish("the code", begun.verifier, begun.nonce)
    lying.web.set_fault(None)
    assert come_back(lying).name == "ada@example.com"


def test_a_redirect_is_not_followed(lying: LyingProvider) -> None:
    lying.web.set_fault(Fault(status=302))
    with pytest.raises(ProviderAway, match="redirect"):
        provider(lying).begin()


def test_a_provider_that_hangs_is_given_up(lying: LyingProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "LIMIT", 0.3)
    lying.web.set_fault(Fault(slow=60))
    with pytest.raises(ProviderAway, match="does not answer"):
        provider(lying).begin()


def test_one_that_was_away_just_now_is_not_asked_again_at_once(
    lying: LyingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying.web.set_fault(Fault(down=True))
    ours = provider(lying)
    for _ in range(5):
        with pytest.raises(ProviderAway):
            ours.begin()
    assert len(lying.web.asked) == 1
    lying.web.set_fault(None)
    monkeypatch.setattr(oidc, "AWAY_FOR", 0.0)
    ours.begin()


def test_a_provider_that_hangs_holds_up_only_a_few(lying: LyingProvider) -> None:
    lying.web.set_fault(Fault(slow=60))
    ours = provider(lying)

    def wait() -> None:
        with suppress(ProviderAway):
            ours.begin()

    waiting = [threading.Thread(target=wait) for _ in range(oidc.AT_A_TIME)]
    for each in waiting:
        each.start()
    clock = Clock()
    give_up = clock.monotonic() + 30
    while len(lying.web.asked) < oidc.AT_A_TIME:
        assert clock.monotonic() < give_up
        clock.sleep(0.01)
    began = clock.monotonic()
    with pytest.raises(ProviderAway, match="too many"):
        ours.begin()
    assert clock.monotonic() - began < 1
    lying.stop()
    for each in waiting:
        each.join(30)
        assert not each.is_alive()
