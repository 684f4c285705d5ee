# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The OpenID provider that people sign on through: the code flow with PKCE, and what it says of them.

OpenID Connect Core 1.0 (section 3.1, the code flow), Discovery 1.0, RFC 7636 (PKCE), RFC 9207 (``iss`` in the answer).
Authlib speaks the protocol; each step of ours is over within a time limit, and only a few take place at a time, so that
a provider that hangs holds up nobody but those who sign on.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests as http
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from mozpool.bmm import httpio
from mozpool.clock import Clock, Deadline
from mozpool.config import Settings
from mozpool.errors import Forbidden, ProviderAway

LIMIT = 8.0
"""Seconds that a step may take in all."""

KEPT = 3600.0
"""Seconds for which what the provider says of itself, and its keys, are not asked for again."""

AWAY_FOR = 5.0
"""Seconds for which a provider that did not answer is not asked anew."""

KEYS_AGAIN = 10.0
"""Seconds after which its keys may be asked for again, since a token is signed with one that is not known."""

AT_A_TIME = 4
"""Steps that may be under way at a time."""

LEEWAY = 60
"""Seconds by which the provider's clock and ours may differ."""

ANSWER_LIMIT = 512 * 1024
"""Bytes that an answer may have."""

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""How ID tokens may be signed: never with a secret that others could know, and never not at all."""

LONGEST_NAME = 256
MOST_GROUPS = 1000


@dataclass(frozen=True)
class Begun:
    """A sign-on that has begun."""

    url: str
    """Where the browser is sent."""
    state: str
    nonce: str
    verifier: str
    """These three stay with the browser until it comes back."""


@dataclass(frozen=True)
class Claims:
    """What the provider says of a person."""

    name: str
    groups: tuple[str, ...]


class Provider:
    """One pool's provider. All methods may be called from any thread; all raise ProviderAway."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Asks for nothing yet."""
        self._auth = settings.auth
        self._clock = clock
        self._return_url = f"{settings.public_url}/login/return"
        self._steps = threading.BoundedSemaphore(AT_A_TIME)
        self._lock = threading.Lock()
        self._metadata: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._failed: tuple[float, ProviderAway] | None = None

    def begin(self) -> Begun:
        """Begin to sign on somebody."""
        with self._step() as deadline, self._client(deadline) as client:
            endpoint = self._endpoint("authorization_endpoint", deadline)
            state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
            url, _ = client.create_authorization_url(endpoint, state=state, nonce=nonce, code_verifier=verifier)
        return Begun(url, state, nonce, verifier)

    def finish(self, code: str, verifier: str, nonce: str) -> Claims:
        """What the provider says of somebody who came back with this code. Raises Forbidden when it knows no such code,
        or says of them what can't be believed."""
        with self._step() as deadline, self._client(deadline) as client:
            endpoint = self._endpoint("token_endpoint", deadline)
            client.token_endpoint_auth_method = self._auth_method(deadline)
            try:
                token = self._talk(
                    lambda: client.fetch_token(
                        endpoint, grant_type="authorization_code", code=code, code_verifier=verifier
                    )
                )
            except AuthlibBaseError as error:
                raise Forbidden(f"the provider refused to sign you on: {_code(error.error)}") from error
            claims = self._id_token(token, nonce, deadline)
            return self._claims(claims, lambda: self._userinfo(client, claims, deadline))

    def is_issuer(self, said: str) -> bool:
        """Whether an answer that says from which provider it comes is this one's (RFC 9207)."""
        return said == self._auth.oidc_issuer

    def end_url(self) -> str | None:
        """Where a person signs off at the provider, as far as is known without asking."""
        with self._lock:
            known = None if self._metadata is None else self._metadata[1].get("end_session_endpoint")
        if not isinstance(known, str) or not _is_url(known):
            return None
        return f"{known}{'&' if '?' in known else '?'}{urlencode({'client_id': self._auth.oidc_client_id})}"

    # -- Steps --

    @contextmanager
    def _step(self) -> Iterator[Deadline]:
        """One of a few that may be under way, and when it must be over."""
        if not self._steps.acquire(blocking=False):
            raise ProviderAway("too many people sign on at this moment, or the provider is slow: try again")
        try:
            yield Deadline(self._clock, LIMIT)
        finally:
            self._steps.release()

    @contextmanager
    def _client(self, deadline: Deadline) -> Iterator[OAuth2Session]:
        auth = self._auth
        with OAuth2Session(
            auth.oidc_client_id,
            auth.oidc_client_secret or None,
            scope=auth.oidc_scope,
            redirect_uri=self._return_url,
            code_challenge_method="S256",
        ) as client:
            client.trust_env = False
            client.headers["Accept-Encoding"] = "identity"
            for prefix in ("http://", "https://"):
                client.mount(prefix, httpio.DeadlineAdapter(deadline, ANSWER_LIMIT))
            yield client

    def _talk(self, call: Callable[[], Any]) -> Any:
        """Do a call. What the provider refuses raises AuthlibBaseError."""
        try:
            return call()
        except http.HTTPError as error:
            status = "nothing" if error.response is None else error.response.status_code
            raise ProviderAway(f"the provider answered {status}") from error
        except httpio.CallError as error:
            raise ProviderAway(f"the provider does not answer: {error}") from error
        except (http.RequestException, ValueError) as error:
            raise ProviderAway(f"what the provider answers makes no sense ({type(error).__name__})") from error

    def _get(self, url: str, deadline: Deadline) -> Mapping[str, Any]:
        """The JSON object at a URL."""

        def get() -> Any:
            with httpio.session(deadline, ANSWER_LIMIT) as session:
                answer = session.get(url, headers={"Accept": "application/json"})
            answer.raise_for_status()
            return answer.json()

        said = self._talk(get)
        if not isinstance(said, dict):
            raise ProviderAway("what the provider answers makes no sense: it is no JSON object")
        return said

    # -- What it says of itself --

    def _about(self, deadline: Deadline) -> Mapping[str, Any]:
        now = self._clock.monotonic()
        with self._lock:
            known, failed = self._metadata, self._failed
        if known is not None and now - known[0] < KEPT:
            return known[1]
        if failed is not None and now - failed[0] < AWAY_FOR:
            raise ProviderAway(failed[1].message)
        issuer = self._auth.oidc_issuer
        try:
            said = self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", deadline)
            if said.get("issuer") != issuer:  # Discovery, 4.3: it must be the same, letter by letter
                raise ProviderAway(
                    f"the provider calls itself {_word(said.get('issuer'))}, and [auth] oidc_issuer is {issuer}"
                )
        except ProviderAway as error:
            with self._lock:
                self._failed = (self._clock.monotonic(), error)
            raise
        with self._lock:
            self._metadata, self._failed = (now, said), None
        return said

    def _endpoint(self, key: str, deadline: Deadline) -> str:
        found = self._about(deadline).get(key)
        if not isinstance(found, str) or not _is_url(found):
            raise ProviderAway(f"the provider does not say where its {key} is")
        if self._auth.oidc_issuer.startswith("https:") and not found.startswith("https:"):
            raise ProviderAway(f"the provider's {key} would be reached without encryption")
        return found

    def _auth_method(self, deadline: Deadline) -> str:
        """How we prove at the token endpoint who we are (Discovery, 3: client_secret_basic unless it says others)."""
        if not self._auth.oidc_client_secret:
            return "none"
        offered = self._about(deadline).get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return "client_secret_post" if "client_secret_basic" not in offered else "client_secret_basic"

    # -- What it says of a person --

    def _id_token(self, token: Mapping[str, Any], nonce: str, deadline: Deadline) -> Mapping[str, Any]:
        """The claims of the ID token, which is the provider's, for us, about this sign-on, and of now."""
        text = token.get("id_token")
        if not isinstance(text, str):
            raise ProviderAway("the provider sent no ID token")
        offered = self._about(deadline).get("id_token_signing_alg_values_supported")
        allowed = [each for each in ALGORITHMS if not isinstance(offered, list) or each in offered]
        registry = JWSRegistry(algorithms=allowed, strict_check_header=False)
        keys, asked = self._key_set(deadline)
        try:
            try:
                signed = jwt.decode(text, keys, registry=registry)
            except (InvalidKeyIdError, BadSignatureError):
                newer, _ = self._key_set(deadline, since=asked)
                if newer is keys:
                    raise
                signed = jwt.decode(text, newer, registry=registry)
            claims = CodeIDToken(
                signed.claims,
                signed.header,
                {
                    "iss": {"essential": True, "value": self._auth.oidc_issuer},
                    "aud": {"essential": True, "value": self._auth.oidc_client_id},
                },
                {
                    "nonce": nonce,
                    "client_id": self._auth.oidc_client_id,
                    "access_token": token.get("access_token"),
                },
            )
            claims.validate(now=int(self._clock.now().timestamp()), leeway=LEEWAY)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            what = getattr(error, "error", "") or type(error).__name__
            raise Forbidden(f"what the provider says of you can't be believed: {_word(what)}") from error
        return dict(claims)

    def _key_set(self, deadline: Deadline, since: float | None = None) -> tuple[KeySet, float]:
        """Its public keys, and when they were asked for.

        They are asked for anew when they are old, or when those of ``since`` will not do, unless that was just now.
        """
        now = self._clock.monotonic()
        with self._lock:
            known = self._keys
        if known is not None and now - known[0] < (KEPT if since is None or known[0] > since else KEYS_AGAIN):
            return known[1], known[0]
        said = self._get(self._endpoint("jwks_uri", deadline), deadline)
        keys = [key for key in said.get("keys") or () if isinstance(key, dict) and key.get("kty") != "oct"]
        try:
            found = KeySet.import_key_set({"keys": keys})
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise ProviderAway("the provider's keys make no sense") from error
        with self._lock:
            self._keys = (now, found)
        return found, now

    def _userinfo(self, client: OAuth2Session, claims: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """What its userinfo endpoint says; nothing when it has none."""
        if "userinfo_endpoint" not in self._about(deadline):
            return {}
        endpoint = self._endpoint("userinfo_endpoint", deadline)

        def get() -> Any:
            answer = client.get(endpoint, headers={"Accept": "application/json"})
            answer.raise_for_status()
            return answer.json()

        try:
            said = self._talk(get)
        except AuthlibBaseError as error:
            raise ProviderAway(f"the provider tells nothing of you: {_code(error.error)}") from error
        if not isinstance(said, dict) or said.get("sub") != claims["sub"]:  # Core, 5.3.2
            raise Forbidden("what the provider says of you can't be believed: it is of somebody else")
        return said

    def _claims(self, claims: Mapping[str, Any], more: Callable[[], Mapping[str, Any]]) -> Claims:
        name_claim, groups_claim = self._auth.oidc_name_claim, self._auth.oidc_groups_claim
        wanted = {name_claim, groups_claim, *({"email_verified"} if name_claim == "email" else ())}
        if not wanted <= claims.keys():
            claims = {**more(), **claims}
        name, groups = claims.get(name_claim), claims.get(groups_claim, [])
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise Forbidden(f"the provider says no usable {name_claim} of you, which would be your name here")
        unknown = self._auth.oidc_email_unverified
        # Some providers say it as text.
        if name_claim == "email" and str(claims.get("email_verified", unknown)).lower() != "true":
            raise Forbidden("the provider has not made sure that the e-mail address which would be your name is yours")
        if isinstance(groups, str):
            groups = [groups]
        if not isinstance(groups, list) or len(groups) > MOST_GROUPS or not all(isinstance(g, str) for g in groups):
            raise Forbidden(f"what the provider says of your {groups_claim} is no list of names")
        return Claims(name.strip(), tuple(groups))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _code(said: object) -> str:
    """An error's code (RFC 6749, 5.2). Nothing else of a refusal is shown: it may quote our secret."""
    text = str(said)
    return text if re.fullmatch("[a-z_]{1,40}", text) else "with a code that can't be shown"


def _word(said: object) -> str:
    """What the provider said, as far as it may stand in a message."""
    text = str(said)[:80]
    return text if text.isprintable() else "something that can't be shown"
