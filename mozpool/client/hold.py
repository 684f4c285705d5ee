# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Holding a device for a ``with`` block."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mozpool.client.errors import ClientError, DeviceLost, ServerUnavailable
from mozpool.client.models import Device, Request
from mozpool.clock import Clock, Deadline

if TYPE_CHECKING:
    from mozpool.client.api import Client, Progress

log = logging.getLogger("mozpool.client")

RETRY = 5.0
"""Seconds until a renewal that no server answered is tried again, at most."""


def make_request(client: Client, wanted: Mapping[str, Any]) -> Request:
    """Make a request that is not left behind when this call is interrupted (KeyboardInterrupt).

    ``wanted``: the arguments of :meth:`Client.request`, which is told what may be raised.
    """
    wanted = {"idempotency_key": str(uuid.uuid4()), **wanted}
    try:
        return client.request(**wanted)
    except ClientError:
        raise
    except BaseException:
        try:
            # The same call again tells what the interrupted one has made, if it has made anything.
            client.return_request(client.request(**wanted).id)
        except ClientError as error:
            log.warning("the request that was interrupted may be open until it expires: %s", error)
        raise


class Hold:
    """Asks for a device, waits until it is ready, keeps it by renewing, and gives it back at the end, whatever happens.

    ``with client.hold(image="b2g", duration=600, boot_config={…}) as device:`` gives the :class:`Device`. A thread
    renews the request at half of its duration from the beginning, also while it waits. It is returned when the block
    ends by an exception, too, and when waiting is interrupted (KeyboardInterrupt included).

    When the device is lost meanwhile (somebody closed the request, or no server could renew it until it expired),
    ``on_lost`` is called with the error, from the renewing thread; :meth:`check` raises it; and leaving the block
    raises it unless the block raised something itself.
    """

    def __init__(
        self,
        client: Client,
        request: Mapping[str, Any],
        *,
        timeout: float | None = None,
        on_change: Callable[[Progress], None] | None = None,
        on_lost: Callable[[Exception], None] | None = None,
        poll: float,
    ) -> None:
        """``request``: the arguments of :meth:`Client.request`. The rest: see :meth:`Client.wait_ready`."""
        self._client = client
        self._wanted = request
        self._timeout = timeout
        self._on_change = on_change
        self._on_lost = on_lost
        self._poll = poll
        self._request: Request | None = None
        self._renewal: _Renewal | None = None

    @property
    def request(self) -> Request:
        """The request, as it was made, or when its device became ready."""
        if self._request is None:
            raise RuntimeError("nothing is held yet")
        return self._request

    @property
    def error(self) -> Exception | None:
        """Why the device is lost, if it is."""
        return None if self._renewal is None else self._renewal.error

    def check(self) -> None:
        """Raise why the device is lost, if it is."""
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Device:
        """Raises what :meth:`Client.request` and :meth:`Client.wait_ready` raise; nothing is held then."""
        self._request = make_request(self._client, self._wanted)
        try:
            self._renewal = _Renewal(self._client, self._request.id, self._wanted["duration"], self._on_lost)
            self._request = self._client.wait_ready(self._request.id, self._timeout, self._on_change, poll=self._poll)
            return self._client.device(self._request.assigned_device or "")
        except BaseException as error:
            self._finish(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises why the device was lost or could not be given back, unless the block raised something."""
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        """End the renewals and give the device back; what goes wrong becomes a note of ``error``, if that is given."""
        if self._renewal is not None:
            self._renewal.stop()
        problem = self.error
        try:
            self._client.return_request(self.request.id)
        except ClientError as unreturned:
            log.warning("request %d was not returned: %s", self.request.id, unreturned)
            problem = problem or unreturned
        if problem is None:
            return
        if error is None:
            raise problem
        error.add_note(f"and the device: {problem}")


class _Renewal:
    """The thread that renews a request at half of its duration, until it is stopped or the request is lost."""

    def __init__(
        self, client: Client, request_id: int, duration: float, on_lost: Callable[[Exception], None] | None
    ) -> None:
        self._client = client
        self._clock: Clock = client.clock
        self._request_id = request_id
        self._duration = duration
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"renew request {request_id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a renewal that is just being made is waited for."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        expiry = Deadline(self._clock, self._duration)
        rest = self._duration / 2
        while not self._clock.wait(self._stopped, rest):
            asked = Deadline(self._clock, self._duration)
            try:
                self._client.renew(self._request_id, self._duration)
            except ServerUnavailable as error:
                log.warning("request %d was not renewed yet: %s", self._request_id, error)
                if expiry.expired:
                    self._lost(error)
                    return
                rest = min(RETRY, self._duration / 10, max(expiry.remaining(), 0.01))
            except Exception as error:
                self._lost(error)
                return
            else:
                expiry, rest = asked, self._duration / 2

    def _lost(self, error: Exception) -> None:
        if self._stopped.is_set():
            return
        lost = DeviceLost(f"the device of request {self._request_id} is lost: {error}")
        lost.__cause__ = error
        self.error = lost
        log.error("%s", lost)
        if self._on_lost is not None:
            self._on_lost(lost)
