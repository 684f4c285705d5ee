# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Whether a live pool works: borrows a device through each of its servers, looks at it, and gives it back.

What ``scripts/smoke`` runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import click

from mozpool.client import output
from mozpool.client.api import ANY, Client, default_assignee
from mozpool.client.child import Signals, Stopped
from mozpool.client.cli import POLL
from mozpool.client.errors import ClientError
from mozpool.client.hold import Hold
from mozpool.client.models import Device
from mozpool.client.values import duration, pair

RENEWED = 120.0
"""Seconds by which the test prolongs its request; half of them must show."""


class Unexpected(Exception):
    """The pool answered, but not what it should."""


def expect(true: object, otherwise: str) -> None:
    """Raise Unexpected with these words unless ``true``."""
    if not true:
        raise Unexpected(otherwise)


@dataclass
class Trial:
    """Borrows one device through one server. Its steps raise ClientError and Unexpected."""

    client: Client
    device: str
    image: str
    boot_config: Mapping[str, str]
    within: float
    """Seconds in which a device must be ready."""

    def run(self) -> None:
        """All steps, each a line on the screen; the device is given back whatever happens."""
        with self._step("it answers") as say:
            say(f"version {self.client.version()}")
        hold = self.client.hold(
            self.device,
            image=self.image,
            duration=2 * self.within,
            boot_config=self.boot_config,
            wait=round(self.within),
            timeout=self.within,
            poll=POLL,
        )
        with ExitStack() as held:
            with self._step(f"it lends {self.device if self.device != ANY else 'a device'} with {self.image}") as say:
                lent = held.enter_context(hold)
                say(lent.name)
            self._look(hold, lent)
            self._renew(hold)
            with self._step("it takes it back"):
                held.close()
        with self._step("it has closed the request") as say:
            state = self.client.get_request(hold.request.id).state
            expect(state == "closed", f"request {hold.request.id} is {state}")
            holder = self.client.device(lent.name).request_id
            expect(holder != hold.request.id, f"{lent.name} is still held by request {hold.request.id}")
            say(f"request {hold.request.id} is {state}")

    def _look(self, hold: Hold, lent: Device) -> None:
        with self._step("it is the one, and ours") as say:
            seen = self.client.device(lent.name)
            expect(self.device in (ANY, seen.name), f"{seen.name} was lent instead of {self.device}")
            expect(seen.request_id == hold.request.id, f"{seen.name} is held by request {seen.request_id}")
            say(f"{seen.name} at {seen.address}, {seen.state}, image {seen.image or '-'}")

    def _renew(self, hold: Hold) -> None:
        with self._step("it may be kept longer") as say:
            self.client.renew(hold.request.id, 2 * self.within + RENEWED)
            before, now = hold.request.expires, self.client.get_request(hold.request.id).expires
            assert before is not None and now is not None
            expect((now - before).total_seconds() >= RENEWED / 2, f"it still ends at {output.moment(now)} UTC")
            say(f"until {output.moment(now)} UTC")

    @contextmanager
    def _step(self, what: str) -> Iterator[Callable[[str], None]]:
        """A line that says how long a step took, and what came of it."""
        begun = self.client.clock.monotonic()
        said = [""]
        try:
            yield lambda text: said.__setitem__(0, text)
        except (ClientError, Unexpected) as error:
            said[0] = f"FAILED: {output.plain(str(error))}"
            raise
        except Stopped:
            said[0] = "interrupted"
            raise
        finally:
            click.echo(f"  {what:<45} {self.client.clock.monotonic() - begun:7.1f} s  {output.plain(said[0])}")


def _image_of(client: Client, wanted: str | None, boot_config: Mapping[str, str]) -> str:
    """The image to ask for: the one that was named, else the first that needs no more than what was given.

    Raises ClientError, Unexpected.
    """
    if wanted is not None:
        return wanted
    for image in client.images():
        if set(image.boot_config_keys) <= boot_config.keys():
            return image.name
    raise Unexpected("every image needs boot config keys: name one with --image, and its keys with --boot-config")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server", "servers", multiple=True, required=True, metavar="URL", help="A server; repeat for each one.")
@click.option("--device", default=ANY, show_default=True, help="Borrow this device.")
@click.option("--image", help="With this image.  [default: the first that needs no other boot config]")
@click.option(
    "--boot-config", "pairs", multiple=True, type=pair, metavar="KEY=VALUE", help="A key that the image needs."
)
@click.option("--within", type=duration, default="15m", show_default=True, help="How long a device may take.")
@click.option("--assignee", envvar="MOZPOOL_ASSIGNEE", help="For whom the devices are.  [default: user@host]")
def main(
    servers: tuple[str, ...],
    device: str,
    image: str | None,
    pairs: tuple[tuple[str, str], ...],
    within: float,
    assignee: str | None,
) -> None:
    """Borrow a device through each server of a live pool, look at it, and give it back.

    Exit status: 0 when all is as it should be, 1 when something is not, 128 + the signal's number when interrupted.
    Nothing stays taken, however it ends.
    """
    failed = 0
    try:
        with Signals():
            for server in servers:
                click.echo(server)
                try:
                    client = Client([server], assignee=assignee or f"smoke test of {default_assignee()}")
                except ValueError as error:
                    raise click.BadParameter(str(error), param_hint="--server") from None
                try:
                    Trial(client, device, _image_of(client, image, dict(pairs)), dict(pairs), within).run()
                except Unexpected as error:
                    failed += 1
                    output.error_line(str(error))
                except ClientError as error:
                    failed += 1
                    output.error_line(error.message)
    except Stopped as stopped:
        output.error_line("stopped: nothing is left taken")
        sys.exit(stopped.exit_code)
    click.echo(f"{len(servers) - failed} of {len(servers)} servers are as they should be")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(prog_name="smoke")
