# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The one place where the parts of an imaging server are put together, started and stopped."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from mozpool import __version__
from mozpool.access.audit import RETRY, Auditor
from mozpool.access.servers import keys
from mozpool.bmm.backends.lambdatest import LambdaTestLauncher
from mozpool.bmm.cutoff import Cutoff
from mozpool.bmm.interfaces import BackendContext
from mozpool.bmm.netboot import tftproot
from mozpool.bmm.netboot.boards import boards_of
from mozpool.bmm.netboot.service import LOOK_INTERVAL, NetbootService
from mozpool.bmm.registration import Registrar, RegistrationServer
from mozpool.bmm.registry import NOTHING_BUILT, Registry
from mozpool.bmm.service import BMM, POWER_LIMIT, STORAGE_LIMIT
from mozpool.bmm.syslog import SyslogServer
from mozpool.clock import Clock
from mozpool.config import ConfigError, Problem, Settings, check_state_names
from mozpool.db import devices, images, relay_boards, servers, upkeep
from mozpool.db.devices import Candidate, Device
from mozpool.db.engine import Database, reason
from mozpool.db.requests import END_STATES, Request
from mozpool.effects import Effects
from mozpool.errors import BadInput, DatabaseAway
from mozpool.lanes import Lanes, Timers
from mozpool.launcher import load_projects
from mozpool.launcher.queues import Taskcluster
from mozpool.launcher.service import LaunchLoop
from mozpool.lease import Lease, no_cut
from mozpool.lifeguard import notices as lifeguard_notices
from mozpool.lifeguard import sampling
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.lifeguard.inventory.background import Background
from mozpool.lifeguard.inventory.leaving import Leaving
from mozpool.lifeguard.inventory.sources import source_of
from mozpool.lifeguard.inventory.sync import InventorySync
from mozpool.lifeguard.operations import DeviceOperations
from mozpool.lifeguard.service import LifeGuard
from mozpool.lifeguard.states.hosted import JobRunning
from mozpool.lifeguard.store import DeviceStore
from mozpool.links import Links, Post, http_post
from mozpool.logbook import Logbook
from mozpool.metrics import Metrics
from mozpool.metronome import Metronome
from mozpool.notify import webhook
from mozpool.notify.events import Event, relay_board_failed, server_away, server_back
from mozpool.notify.outbox import Outbox
from mozpool.notify.targets import described
from mozpool.pool import notices as pool_notices
from mozpool.pool.allocation import MATCH_LANE, Matcher
from mozpool.pool.link import ABREAST, LinkError, lane_to
from mozpool.pool.notices import ExpiryWarnings
from mozpool.pool.operations import RequestOperations
from mozpool.pool.requestmachine import request_machine
from mozpool.pool.service import MozPool
from mozpool.pool.store import RequestStore
from mozpool.precedence import Precedence
from mozpool.presence import Presence
from mozpool.seen import Seen
from mozpool.statedriver import Change, Driver, Outcome
from mozpool.statemachine import Tuning
from mozpool.takeover import TAKEOVER_LANE, Takeover
from mozpool.watchdog import Watchdog, exit_now
from mozpool.web.peers import Peers
from mozpool.web.services import Services

if TYPE_CHECKING:
    from mozpool.fakes.rack import Rack

log = logging.getLogger("mozpool.daemon")

QUICK_WORKERS = 4
"""Threads for transitions, which wait for the database only."""

SCAN_HORIZON = 3.0
"""How many scan intervals ahead deadlines are loaded into the timers."""

RESCAN = 1.0
"""Seconds until a scan that the database did not answer is tried again."""

START_JITTER = 5.0
"""Seconds over which what is overdue at the start is spread."""

TELLERS = 16
"""Threads that tell others outside what has happened: webhooks, clients, mail servers."""

SEEN_LATELY = 60.0
"""Seconds within which another server's last sign of life, by its own clock, counts as one of a server that runs."""

OLD_NEWS = timedelta(days=3)
"""Of an imaging server that is away for longer nobody is told again when this one starts."""

SAMPLE_INTERVAL = 30.0
"""Seconds between two looks whether this minute's sample of the pool has been taken: short enough to miss none."""

UPKEEP_INTERVAL = 3600.0
"""Seconds between two rounds of clearing away what is too old."""

LAUNCHER_LIMIT = 2.0
"""Seconds of these that the launcher gets for the request that it is making."""

STOP_LIMIT = 8.0
FINISH_LIMIT = 3.0
"""Seconds that running work gets to end when the daemon stops."""


def _check_backends(settings: Settings, registry: Registry, defaults: Mapping[str, str]) -> None:
    """Raise ConfigError when ``[bmm]`` names a backend that is not installed."""
    problems = [
        Problem(
            settings.source or Path("config.ini"),
            settings.lines.get(("bmm", interface)),
            "bmm",
            interface,
            f"there is no {interface} backend {name!r}; there are: {', '.join(registry.names(interface))}",
        )
        for interface, name in defaults.items()
        if name not in registry.names(interface)
    ]
    if problems:
        raise ConfigError(problems)


def _tries(settings: Settings) -> Mapping[str, int]:
    """How often the steps of states may fail; a job may run on as often as makes ``job_limit`` seconds."""
    step = settings.timeouts.get(JobRunning.name, JobRunning.timeout)
    return {JobRunning.name: max(1, math.ceil(settings.lambdatest.job_limit / step)), **settings.tries}


class Daemon:
    """An imaging server: built without threads, brought to life by :meth:`start`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        database: Database | None = None,
        metronome: Metronome | None = None,
        backends: Mapping[tuple[str, str], object] = NOTHING_BUILT,
        post: Post | None = None,
        tell: webhook.Post = webhook.post,
        checkpoint: Callable[[str], None] = lambda point: None,
        end_process: Callable[[], None] = exit_now,
        dry: bool = False,
    ) -> None:
        """Put the parts together; needs the database for this server's id.

        What a simulation replaces: ``database`` instead of the configured one, ``metronome``, BMM's ``backends`` by
        interface and name beside those that are installed, ``post`` for calls to other imaging servers, ``tell`` for
        those to webhooks and callback URLs, and ``checkpoint``, which is called between the steps of a transition.
        ``end_process`` is what the watchdog does when nothing moves any more. ``dry``: no job is started on hosted
        devices; the launcher says what it would start.

        Raises ConfigError, DatabaseAway, MozpoolError when the database knows no imaging server of this name and none
        can be added.
        """
        self.settings = settings
        self.clock = clock or Clock()
        self.rng = rng or random.Random()
        speed = settings.testing.speed
        tuning = Tuning(settings.timeouts, _tries(settings), speed)
        machines = (device_machine(tuning), request_machine(tuning))
        check_state_names(settings, [name for machine in machines for name in machine.states])
        bmm_defaults = {name: getattr(settings.bmm, name) for name in ("power", "boot", "probe", "agent")}
        tftp_root = settings.paths.tftp_root
        takeover_after = None if settings.server.group is None else settings.server.takeover_after
        self.cutoff = Cutoff()
        cut = no_cut if takeover_after is None else self.cutoff.after
        self.lease = Lease(self.clock, takeover_after, cut, self.cutoff.leash)
        context = BackendContext(
            clock=self.clock,
            tftp_root=None if tftp_root is None else str(tftp_root),
            speed=speed,
            settings=settings.bmm,
            commands=settings.commands,
            lambdatest=settings.lambdatest,
            say=self._say,
            lease=self.lease,
        )
        registry = Registry(context, bmm_defaults, backends)
        _check_backends(settings, registry, bmm_defaults)
        self.metrics = Metrics(settings.server.fqdn)
        self.database = database or Database.of(settings.database, clock=self.clock, rng=self.rng)
        self.database.on_work = self.metrics.database_work
        self.database.on_retry = self.metrics.database_retry
        self.server_id = self.database.run(
            lambda conn: images.ensure_imaging_server(conn, settings.server.fqdn), repeatable=True
        )
        self._check_server_key()
        self.logbook = Logbook(self.database, self.clock)
        self.auditor = Auditor(self.database, self.clock, settings.server.fqdn, settings.auth.audit_log)
        self.timers = Timers(self.clock)
        self.auditor.on_late = self._audit_later
        self.precedence = Precedence(self.clock)
        self.auditor.serving = lambda: self.precedence.calls
        urgent = frozenset({MATCH_LANE, TAKEOVER_LANE})
        self.quick = Lanes("quick", QUICK_WORKERS, self.clock, precedence=self.precedence, urgent=urgent)
        self.hardware = Lanes("hardware", settings.lifeguard.workers, self.clock, precedence=self.precedence)
        self.calls = Lanes(
            "calls", max(2 * ABREAST, settings.lifeguard.workers // 2), self.clock, precedence=self.precedence
        )

        self.bmm = BMM(
            registry,
            self.database,
            self.clock,
            settings.server.ipaddress,
            settings.boards_url,
            self.lease,
            on_no_token=self._boots_without_token,
        )
        self.seen = Seen(self.clock)
        self.tellers = Lanes("notify", TELLERS, self.clock, precedence=self.precedence)
        self.outbox = Outbox(
            settings,
            self.database,
            self.server_id,
            clock=self.clock,
            rng=self.rng,
            timers=self.timers,
            quick=self.quick,
            workers=self.tellers,
            post=tell,
        )
        self.peers = Peers(settings, self.clock)
        self.links = links = Links(settings.server.fqdn, self.database, post or partial(http_post, self.peers))
        common = {
            "clock": self.clock,
            "rng": self.rng,
            "timers": self.timers,
            "quick": self.quick,
            "logbook": self.logbook,
            "checkpoint": checkpoint,
        }
        device_store = DeviceStore(self.server_id, default_power=settings.bmm.power, note=self._note_device)
        self.devices = Driver(machines[0], device_store, self.database, **common)  # type: ignore[arg-type]
        self.requests = Driver(
            machines[1],
            RequestStore(self.server_id, verify_on_return=settings.pool.verify_on_return, note=self._note_request),
            self.database,
            **common,  # type: ignore[arg-type]
        )
        operations = DeviceOperations(self.bmm, links, self.database, self.clock, speed=speed)
        self.device_effects = Effects(
            self.devices,
            operations,
            self.hardware,
            breaker_failures=settings.lifeguard.breaker_failures,
            breaker_probe=settings.lifeguard.breaker_probe,
            on_lane=self._lane_changed,
            before_look=self.lease.look,
            on_done=self.metrics.effect,
            together=operations.power_cycles,
            # What came of joint cycles is told at their end: a board that boots before that would not be heard.
            most_together=1,
            speed=speed,
        )
        self.request_effects = Effects(
            self.requests,
            RequestOperations(links, settings.server.fqdn),
            self.calls,
            on_done=self.metrics.effect,
            speed=speed,
        )
        self.presence = Presence(
            self.database,
            self.clock,
            self.server_id,
            interval=settings.server.heartbeat_interval,
            away_after=settings.server.away_after,
            load=lambda: self.hardware.load,
            lease=self.lease,
            group=settings.server.group,
            takeover_after=takeover_after,
        )
        self.presence.on_usurped.append(end_process)
        self.presence.on_away.append(lambda server_id, beat: self._tell_of_server(server_id, beat, server_away))
        self.presence.on_back.append(lambda server_id, beat: self._tell_of_server(server_id, beat, server_back))
        self.presence.on_lapse += [self.devices.forget_all, self.requests.forget_all]
        self.takeover = Takeover(
            self.database,
            self.clock,
            self.presence,
            self.quick,
            self.server_id,
            {"device": self.devices, "request": self.requests},
            self._rows_changed,
            self.bmm.let_go,
            self.bmm.hold,
        )
        self.leaving = Leaving(
            self.devices, self.quick, self.server_id, self.bmm.let_go, self.bmm.hold, self._rows_changed
        )
        self.matcher = Matcher(self.requests, self.database, self.rng, self.quick, away=self.presence.away)
        self.presence.on_change.append(self.matcher.wake)
        self.lifeguard = LifeGuard(self.devices)
        self.mozpool = MozPool(
            self.requests,
            self.matcher,
            self.database,
            clock=self.clock,
            rng=self.rng,
            server_id=self.server_id,
            priority_interval=settings.pool.priority_interval,
            default_wait=settings.pool.default_wait,
            max_duration=settings.pool.max_duration,
            speed=speed,
        )
        self.warnings = ExpiryWarnings(
            self.database,
            self.clock,
            self.outbox,
            self.server_id,
            settings.notify.expiry_warning,
            self.presence.away,
        )
        links.connect(self.lifeguard, self.mozpool)
        self.launcher = self._launcher(registry, dry=dry) if settings.lambdatest.enabled else None
        more_lanes = [] if self.launcher is None else [self.launcher.lanes]
        self.devices.observers += [self._device_changed, self.metrics.transitions("device")]
        self.requests.observers += [self._request_changed, self.metrics.transitions("request")]
        self.watchdog = Watchdog(
            self.clock,
            self.timers,
            self.quick,
            [self.hardware, self.calls, self.tellers, *more_lanes],
            stuck_after=settings.lifeguard.stuck_after,
            exit_after=settings.lifeguard.exit_after,
            longest_operation=max(STORAGE_LIMIT, POWER_LIMIT, settings.email.timeout),
            heartbeat_file=settings.server.heartbeat_file,
            end_process=end_process,
        )
        self.metrics.watch(
            [self.quick, self.hardware, self.calls, self.tellers, *more_lanes],
            self.watchdog.stuck,
            self.device_effects.held,
        )
        self._stopped = threading.Event()
        self.services = Services(
            settings=settings,
            database=self.database,
            clock=self.clock,
            server_id=self.server_id,
            logbook=self.logbook,
            bmm=self.bmm,
            lifeguard=self.lifeguard,
            mozpool=self.mozpool,
            presence=self.presence,
            peers=self.peers,
            lease=self.lease,
            device_effects=self.device_effects,
            hardware=self.hardware,
            precedence=self.precedence,
            seen=self.seen,
            metrics=self.metrics,
            watchdog=self.watchdog,
            auditor=self.auditor,
            stopping=self._stopped.is_set,
        )
        self.metronome = metronome or Metronome(self.clock)
        self.netboot = self._netboot() if settings.netboot.run_dnsmasq else None
        registrar = Registrar(
            settings.registration, devices, self.database, self.logbook, self.clock, self.rng, self.server_id
        )
        self.registration = RegistrationServer(settings.registration, registrar.register, self.clock)
        self.inventory = self._inventory(registry)
        self.syslog = SyslogServer(settings.syslog, self.database, self.clock)
        self.rack: Rack | None = None

    def _check_server_key(self) -> None:
        """Raise ConfigError when other servers of the pool run, and would take no call of this one."""
        settings = self.settings
        if settings.auth_mode == "open" or keys(settings):
            return
        with self.database.read() as conn:
            found = [server for server in servers.find(conn) if server.id != self.server_id and server.presence]
        since = self.clock.now() - timedelta(seconds=max(settings.server.away_after, SEEN_LATELY))
        up = [each.fqdn for each in found if each.presence and not each.presence.stopped and each.presence.seen > since]
        problem = "is not set: the imaging servers of a pool sign their calls to each other with it; {} {}"
        if up:
            file = settings.source or Path("config.ini")
            line = settings.lines.get(("auth", "server_key"))
            raise ConfigError([Problem(file, line, "auth", "server_key", problem.format(", ".join(up), "is running"))])
        if found:
            names = ", ".join(each.fqdn for each in found)
            log.warning("[auth] server_key %s", problem.format(names, "was in this pool, too"))

    def _netboot(self) -> NetbootService:
        within_lease: dict[str, Any] = {}
        if self.settings.server.group is not None:
            # What it looks at in time to go on within the lease is renewed by signs of life.
            interval = min(LOOK_INTERVAL, self.settings.server.heartbeat_interval)
            within_lease = {"interval": interval, "lease": self.lease}
        return NetbootService(
            self.settings, lambda: boards_of(self.database, self.server_id), self.clock, **within_lease
        )

    def _launcher(self, registry: Registry, *, dry: bool) -> LaunchLoop:
        """What starts jobs for Taskcluster's queues. Raises ConfigError, MozpoolError."""
        settings = self.settings.lambdatest
        file = self.settings.source or Path("config.ini")
        if settings.projects is None:
            line = self.settings.lines.get(("lambdatest", "enabled"))
            problem = "is not set: expected the YAML file with the projects (lambdatest.yml.dist is a sample)"
            raise ConfigError([Problem(file, line, "lambdatest", "projects", problem)])
        cloud = registry.launcher("lambdatest")
        assert isinstance(cloud, LambdaTestLauncher)
        if dry:
            cloud.refuse("mld --debug starts no job")
        try:
            return LaunchLoop(
                settings,
                lambda path: load_projects(settings, path),
                cloud,
                Taskcluster(settings.taskcluster, settings.provisioner),
                self.mozpool,
                self.devices,
                self.database,
                account=cloud.account.place,
                holder=self.settings.server.fqdn,
                server_id=self.server_id,
                clock=self.clock,
                rng=self.rng,
                timers=self.timers,
                logbook=self.logbook,
                speed=self.settings.testing.speed,
                dry=dry,
                on_new_phones=self._inventory_changed,
            )
        except BadInput as error:
            line = self.settings.lines.get(("pool", "max_duration"))
            raise ConfigError(
                [Problem(file, line, "pool", "max_duration", f"is too short for jobs: {error}")]
            ) from error

    def _inventory(self, registry: Registry) -> Background | None:
        """What reads the inventory now and then; None where only mozpool-inventorysync does."""
        settings = self.settings.inventory
        if not settings.sync_interval:
            return None
        source = source_of(settings)
        sync = InventorySync(
            source, self.database, self.clock, self.rng, self.settings, registry, self.logbook, by_hand=False
        )
        return Background(sync, self.clock, settings.sync_interval, self._inventory_changed)

    def _inventory_changed(self) -> None:
        """Devices came, went or changed by other hands than their drivers'."""
        self.devices.forget_all()
        self._rows_changed()
        self.quick.submit(None, self.scan, "scan")

    # What is told of a transition: noted within it, delivered after it

    def _note_device(self, conn: Connection, row: Device, change: Change) -> None:
        if self.outbox.targets and lifeguard_notices.is_told(row, change):
            meaning = self.devices.machine.meaning_of(change.target)
            self.outbox.note(conn, self.outbox.letters(lifeguard_notices.failed(row, change, meaning)))

    def _note_request(self, conn: Connection, row: Request, change: Change) -> None:
        if not pool_notices.is_told(row, change):
            return
        letters = []
        if row.callback_url:
            body = pool_notices.callback_body(row, change)
            letters.append(self.outbox.callback(row.callback_url, pool_notices.key_of(row, change), body))
        event = pool_notices.event_of(row, change) if self.outbox.targets else None
        if event is not None:
            letters += self.outbox.letters(event)
        self.outbox.note(conn, letters)

    def _tell_of_server(
        self, server_id: int, beat: int, event_of: Callable[[servers.Server, int, datetime], Event]
    ) -> None:
        """Signs of life don't wait for it to be noted that one of the others gives none, or does again."""
        if not self.outbox.targets:
            return

        def note() -> None:
            now = self.clock.now()
            try:
                with self.database.read() as conn:
                    found = next((server for server in servers.find(conn) if server.id == server_id), None)
                if found is None or found.presence is None or now - found.presence.seen > OLD_NEWS:
                    return
                self.outbox.note_once(event_of(found, beat, now))
            except DatabaseAway as error:
                log.info("what became of imaging server %d is told later: %s", server_id, error)
                self.timers.set(("tell of server", server_id, beat, event_of), RESCAN, again)

        def again() -> None:
            self.quick.submit(None, note, f"telling of imaging server {server_id}")

        again()

    # What follows a commit

    def _device_changed(self, outcome: Outcome[Any]) -> None:
        """A device that became free is matched with the queue, or goes; of one that failed people are told."""
        decision = outcome.decision
        if decision is None or outcome.row is None:
            return
        if outcome.row.leaving and decision.is_change:
            self.leaving.look_soon()
        if (
            self.outbox.targets
            and outcome.change is not None
            and lifeguard_notices.is_told(outcome.row, outcome.change)
        ):
            self.outbox.wake()
        is_free = getattr(outcome.row, "claim_id", None) is None
        if decision.target == "ready" and decision.is_change and is_free:
            self.matcher.wake()
            if self.launcher is not None and outcome.row.is_hosted:
                self.launcher.wake()

    def _request_changed(self, outcome: Outcome[Any]) -> None:
        """A request that gave its device back, or looks for one again, sets the queue in motion; some are told of."""
        decision = outcome.decision
        if decision is None or outcome.row is None or not decision.path:
            return
        is_heard = bool(outcome.row.callback_url or self.outbox.targets)
        if is_heard and outcome.change is not None and pool_notices.is_told(outcome.row, outcome.change):
            self.outbox.wake()
        had_device = getattr(outcome.row, "claim_id", None) is not None
        if decision.writes:
            self._claim_changed(outcome)
        if decision.event == "device_found" and outcome.row.owner_id != self.server_id:
            self._tell_owner(outcome.row, None if outcome.after is None else outcome.after.claim_id)
        if self.launcher is not None and had_device and decision.target in END_STATES:
            self.launcher.request_ended()
        looks_again = decision.target == "finding_device" and decision.is_change
        if looks_again or (had_device and decision.target not in ("pending", "ready", "contacting_lifeguard")):
            self.matcher.wake()

    def _tell_owner(self, request: Request, claim_id: int | None) -> None:
        """A device was found for another server's request: it need not wait for that server's next scan."""
        if request.owner_id in self.presence.away():
            return

        def tell() -> None:
            try:
                self.links.claimed(request.owner, request.id, claim_id)
            except LinkError as error:
                log.info("request %d was given a device, which its server will notice by itself: %s", request.id, error)

        self.calls.submit(lane_to(request.owner, request.id), tell, f"telling {request.owner}")

    def _claim_changed(self, outcome: Outcome[Request]) -> None:
        """A claim or a release wrote the device's row, too: what is remembered of it goes along."""
        before, after = outcome.row, outcome.after
        if before is None or outcome.decision is None:
            return
        if before.device_id is not None:
            device = self.devices.remembered(before.device_id)
            if device is None or device.leaving:
                self.leaving.look_soon()
            # Some are due at once then, which only their rows tell.
            is_due = device is None or device.state == "maintenance_mode" or device.is_hosted
            is_due = is_due or outcome.decision.event == "revoke"
            if not is_due and not self.settings.pool.verify_on_return:
                self.devices.amend(
                    before.device_id,
                    lambda device: device.claim_id == before.claim_id,
                    claim_id=None,
                    request_id=None,
                    imaging_result=None,
                )
            else:
                self.devices.forget(before.device_id)
        found = outcome.decision.args.get("device")
        if after is not None and isinstance(found, Candidate):
            self.devices.amend(
                found.id,
                lambda device: device.version == found.version,
                claim_id=after.claim_id,
                request_id=after.id,
                imaging_result=None,
                operation_claim_id=None,
            )

    def _lane_changed(self, lane: str, state: str, reason: str | None) -> None:
        """Keep what is known of a relay board or another power switch in its row, for people."""
        if lane.startswith("device:"):
            return
        now = self.clock.now()

        def work(conn: Connection) -> None:
            is_new = relay_boards.set_state_by_lane(conn, lane, state, reason, now, self.server_id)
            board = relay_boards.by_lane(conn, lane) if is_new and state == "failed" else None
            if board is not None:
                self.outbox.note(conn, self.outbox.letters(relay_board_failed(board, now)))

        try:
            try:
                self.database.run(work, repeatable=True)
            except IntegrityError:
                self.database.run(work, repeatable=True)  # another server has just added the row
            if state == "failed" and self.outbox.targets:
                self.outbox.wake()
        except DatabaseAway as error:
            log.warning("%s is %s (%s), which could not be noted: %s", lane, state, reason, error)

    def _rows_changed(self) -> None:
        """Devices and requests have come to this server, or gone: they can be matched with others than before.

        Network boot is for the devices that it acts on.
        """
        self.matcher.wake()
        if self.netboot is not None:
            self.netboot.look_now()

    def give_sign(self) -> None:
        """Give a sign of life, and see to what the others' signs, or their absence, ask for."""
        if self.presence.beat():
            self.takeover.look_soon()

    # Life

    def start(self) -> None:
        """Start the threads: from now on due timeouts fire, effects run and the queue is matched."""
        log.info("mozpool %s on %s starts", __version__, self.settings.server.fqdn)
        for line in described(self.settings.targets):
            log.info("%s", line)
        if self.settings.testing.run_fakes:
            self._start_fakes()
        if self.netboot is not None:
            assert self.settings.paths.tftp_root is not None  # the service has checked it
            tftproot.prepare(self.settings.paths.tftp_root, self.settings.netboot.boot_loader)
            self.netboot.start()
        self.registration.start()
        self.syslog.start()
        self.logbook.start()
        self.timers.start()
        if self.auditor.late:
            self._audit_later()
        interval = self.settings.pool.scan_interval
        self.metronome.every(self.settings.server.heartbeat_interval, self.give_sign, "presence", now=True)
        self.metronome.every(interval, self.scan, "scan")
        self.metronome.every(interval, self.matcher.wake, "match")
        if self.inventory is not None:
            self.metronome.every(self.inventory.look_interval, self.inventory.look, "inventory", now=True)
        self.metronome.every(interval, self.outbox.wake, "outbox", now=True)
        if self.launcher is not None:
            self.metronome.every(self.launcher.interval, self.launcher.wake, "launcher", now=True)
        if self.warnings.is_wanted:
            self.metronome.every(
                interval,
                lambda: self.quick.submit("expiring", self.warnings.look, "what ends soon"),
                "expiring",
                now=True,
            )
        self.metronome.every(UPKEEP_INTERVAL, self.tidy_up, "upkeep", now=True)
        self.metronome.every(
            SAMPLE_INTERVAL, lambda: self.quick.submit("sample", self.take_sample, "sample"), "sample", now=True
        )
        self.metronome.start()
        self.watchdog.start()
        self.quick.submit(None, self._first_scan, "first scan")
        self.matcher.wake()

    def _first_scan(self) -> None:
        """Go on where the process before this one ended."""
        try:
            with self.database.read() as conn:
                boards = relay_boards.find(conn)
        except DatabaseAway as error:
            log.warning("what failed before the start is not known: %s", error)
        else:
            for board in boards:
                if board.state != "ok" and board.imaging_server == self.settings.server.fqdn:
                    self.device_effects.hold(board.lane)
        self.scan(START_JITTER)

    def scan(self, jitter: float = 0.0) -> None:
        """Load what is due soon into the timers; devices that are to leave may have become free."""
        horizon = SCAN_HORIZON * self.settings.pool.scan_interval
        try:
            self.devices.scan(horizon, jitter=jitter, ahead=self.settings.pool.scan_interval)
            self.requests.scan(horizon, jitter=jitter)
        except DatabaseAway as error:
            log.warning("deadlines are not looked up: %s", error)
            # Until the next scan is too long for what only a scan finds.
            self.timers.set("scan", RESCAN, lambda: self.quick.submit(None, lambda: self.scan(jitter), "scan"))
        else:
            self.leaving.look_soon()

    def _say(self, device: str, line: str) -> None:
        """What a backend has to tell of a device comes into its log; without the database, into this server's."""
        try:
            with self.database.read() as conn:
                found = devices.key_by_name(conn, device)
        except (DatabaseAway, DBAPIError):
            found = None
        if found is None:
            log.info("%s: %s", device, line)
        else:
            self.logbook.add("device", found.id, device, "bmm", line)

    def _boots_without_token(self, device: str, pxe_config: str) -> None:
        if self.settings.device_events == "token":
            why = "no event of this boot will be taken ([auth] device_events = token)"
            self._say(device, f"PXE config {pxe_config} has no %TOKEN%: {why}")

    def _audit_later(self) -> None:
        """Rows of the audit that the database did not take are tried again."""
        self.timers.set(
            "audit", RETRY, lambda: self.quick.submit("audit", self.auditor.retry, "late rows of the audit")
        )

    def tidy_up(self) -> None:
        """Let what is too old go: log lines, histories, requests that ended long ago."""
        try:
            self.outbox.give_up_old()
            upkeep.run(self.database, self.clock)
        except DatabaseAway as error:
            log.warning("old rows are not cleared away: %s", error)
        except DBAPIError as error:
            log.error("old rows are not cleared away: %s (does the schema need mozpool-db upgrade?)", reason(error))

    def take_sample(self) -> None:
        """Note how the pool is doing, once a minute."""
        try:
            sampling.take(self.database, self.clock.now(), self.presence.away())
        except DatabaseAway as error:
            log.info("it is not noted how the pool is doing: %s", error)

    def _start_fakes(self) -> None:
        from mozpool.fakes.pool import boards_of
        from mozpool.fakes.rack import Rack

        server = self.settings.server
        specs = boards_of(self.database, self.server_id)
        self.rack = Rack.from_settings(self.settings, specs, server_url=server.listen_url)
        self.rack.start()
        log.info("%d simulated boards are up", len(specs))

    def stop(self) -> None:
        """Take no more work, let what runs end within some seconds, and end the threads. May be called twice."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        log.info("mozpool on %s stops", self.settings.server.fqdn)
        self.metronome.stop()
        self.presence.leave()
        self.registration.stop()
        self.syslog.stop()
        self.watchdog.stop()
        self.timers.stop()
        self.devices.stop()
        self.requests.stop()
        end = self.clock.monotonic() + STOP_LIMIT
        if self.launcher is not None:
            self.launcher.stop(LAUNCHER_LIMIT)
        for lanes in (self.quick, self.calls, self.tellers, self.hardware):
            if not lanes.stop(max(0.0, end - self.clock.monotonic())):
                log.warning("some work of %s has not ended: its rows have deadlines", lanes.name)
        self.bmm.finish(max(FINISH_LIMIT, end - self.clock.monotonic()))
        self.lease.end()
        if self.rack is not None:
            self.rack.stop()
        if self.netboot is not None:
            self.netboot.stop()
        self.cutoff.close()
        self.auditor.stop()
        self.logbook.stop()
        self.database.dispose()
