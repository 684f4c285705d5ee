# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The projects file: which Taskcluster queue is served by which phones of a cloud. It is YAML::

    global:
      contract_device_count: 90
    projects:
      defaults: {TASKCLUSTER_CLIENT_ID: project/autophone/mozpool, USER_SCRIPTS_VERSION: "1"}
      a55-perf: {TC_WORKER_TYPE: t-lambda-perf-a55}
    device_groups:
      a55-perf: R5CY128X71B RZCXA0H3T9P

A project's phones are those of the device group of the same name. What cannot be meant is an error, which names file
and line; what can be meant but looks odd is an :class:`Oddity`, and no reason to stop.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mozpool.bmm.registration import device_name
from mozpool.errors import BadInput, MozpoolError

DEFAULTS = "defaults"
"""What stands for all projects that say nothing else, among the projects."""

SECTIONS = ("global", "projects", "device_groups")
GLOBAL_KEYS = ("contract_device_count",)
PROJECT_KEYS = (
    *("TASKCLUSTER_CLIENT_ID", "TC_WORKER_TYPE", "USER_SCRIPTS_VERSION"),
    *("disabled", "priority_group", "priority"),
)

PROJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
"""A name becomes an environment of Mozpool and a label of the cloud's jobs."""

WORKER_TYPE = re.compile(r"[a-z]([a-z0-9-]{0,36}[a-z0-9])?")
"""As Taskcluster has it."""

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")

_BOOLEAN, _NULL, _INTEGER = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "null", "int"))


class ProjectsError(MozpoolError):
    """The projects file cannot be used; the message has a line for each problem, ``FILE:LINE: what``."""

    code = "config_error"


@dataclass(frozen=True)
class Oddity:
    """Something that is allowed but may not be meant."""

    line: int
    text: str


@dataclass(frozen=True)
class Project:
    """A queue of Taskcluster, and what serves it."""

    name: str
    line: int
    client_id: str | None
    worker_type: str | None
    user_scripts_version: str | None
    disabled: bool
    priority_group: str | None
    priority: int
    """Among projects of the same priority group, higher ones are served first."""
    devices: tuple[str, ...]
    """The UDIDs of its phones."""
    group: str | None
    """The name of its device group; None where there is none."""
    lacks: tuple[str, ...]
    """What it would need to take part, in words."""
    token: str | None = field(default=None, repr=False)
    """Its Taskcluster access token."""

    @property
    def takes_part(self) -> bool:
        """Whether jobs are started for it; without its token that is refused."""
        return not self.disabled and not self.lacks

    @property
    def token_variable(self) -> str | None:
        """The environment variable that its access token is in; None where it has no worker type."""
        return None if self.worker_type is None else token_variable(self.worker_type)


@dataclass(frozen=True)
class Projects:
    """What a projects file says."""

    path: Path
    contract_device_count: int | None
    """How many phones are paid for."""
    projects: Mapping[str, Project]
    groups: Mapping[str, tuple[str, ...]]
    """Device group → UDIDs."""
    oddities: tuple[Oddity, ...]

    @property
    def taking_part(self) -> list[Project]:
        """Those that jobs are started for, in the order of the file."""
        return [project for project in self.projects.values() if project.takes_part]

    def projects_of(self, udid: str) -> list[Project]:
        """Those that take part and have this phone, the first to be served first."""
        found = [project for project in self.taking_part if udid in project.devices]
        return sorted(found, key=lambda project: -project.priority)

    def refusals(self) -> list[str]:
        """Why jobs can't be started at all, a line each."""
        return [
            f"{self.path}:{project.line}: project {project.name} takes part but has no Taskcluster access token: "
            f"the environment variable {project.token_variable} is not set"
            for project in self.taking_part
            if not project.token
        ]

    def check_start(self) -> None:
        """Raise ProjectsError unless every project that takes part has its token."""
        if wrong := self.refusals():
            raise ProjectsError("\n".join(wrong))

    def told(self) -> list[str]:
        """The oddities, a line each."""
        return [f"{self.path}:{oddity.line}: {oddity.text}" for oddity in self.oddities]


def token_variable(worker_type: str) -> str:
    """The environment variable that the Taskcluster access token of a worker type is in."""
    return worker_type.replace("-", "_")


def load(
    path: Path, environ: Mapping[str, str], *, has_scripts: Callable[[str], bool] = lambda version: True
) -> Projects:
    """Read a projects file; the tokens are taken from ``environ``.

    ``has_scripts`` tells whether there are user scripts of a version. Raises ProjectsError.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ProjectsError(f"{path}: {reason}") from error
    return _Reader(path, environ, has_scripts).read(text)


@dataclass(frozen=True)
class _Entry:
    """A device group as the file has it."""

    line: int
    udids: Mapping[str, int]
    """UDID → the line where it stands."""


@dataclass(frozen=True)
class _Values:
    """The keys of a project or of the defaults."""

    line: int
    texts: Mapping[str, str | None]
    disabled: bool | None
    priority: int | None


class _Reader:
    """Collects all problems of one file before it gives up."""

    def __init__(self, path: Path, environ: Mapping[str, str], has_scripts: Callable[[str], bool]) -> None:
        self._path = path
        self._environ = environ
        self._has_scripts = has_scripts
        self._problems: list[tuple[int, str]] = []
        self._oddities: list[Oddity] = []

    def read(self, text: str) -> Projects:
        """What the file says. Raises ProjectsError."""
        sections = self._sections(text)
        contract, contract_line = self._contract(sections.get("global"))
        values = self._projects(sections.get("projects"))
        groups = {name: self._group(name, *place) for name, place in self._groups(sections.get("device_groups"))}
        projects = {
            name: self._project(name, values.get(DEFAULTS), own, groups.get(name))
            for name, own in values.items()
            if name != DEFAULTS
        }
        self._check_groups(projects, groups)
        count = len({udid for entry in groups.values() for udid in entry.udids})
        if contract is not None and count > contract:
            self._odd(contract_line, f"the device groups have {count} phones, and the contract is for {contract}")
        if self._problems:
            lines = [f"{self._path}:{line}: {what}" for line, what in sorted(set(self._problems))]
            raise ProjectsError("\n".join(lines))
        return Projects(
            self._path,
            contract,
            projects,
            {name: tuple(entry.udids) for name, entry in groups.items()},
            tuple(sorted(self._oddities, key=lambda oddity: oddity.line)),
        )

    def _wrong(self, node: yaml.Node, what: str) -> None:
        self._problems.append((_line(node), what))

    def _odd(self, line: int, text: str) -> None:
        self._oddities.append(Oddity(line, text))

    # The nodes

    def _sections(self, text: str) -> dict[str, yaml.Node]:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = "" if mark is None else f":{mark.line + 1}"
            raise ProjectsError(f"{self._path}{place}: is not YAML: {error.problem or error.context}") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise ProjectsError(f"{self._path}: is not YAML that can be read ({type(error).__name__})") from error
        if root is None:
            raise ProjectsError(f"{self._path}:1: is empty; expected {', '.join(SECTIONS)}")
        found = {key: value for key, _, value in self._mapping(root, "the file", SECTIONS)}
        if "projects" not in found and not self._problems:
            self._wrong(root, "there are no projects; expected a section projects")
        return found

    def _mapping(
        self, node: yaml.Node | None, what: str, known: Collection[str] | None = None
    ) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Key, its node and the value's, of a mapping or nothing; keys that are wrong are noted and left out."""
        if node is None or _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, f"{what}: {_shown(node)} is not right; expected a mapping (KEY: VALUE)")
            return
        first: dict[str, int] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(key_node, f"{what}: a key must be a word")
                continue
            key = str(key_node.value)
            if key in first:
                self._wrong(key_node, f"{what}: {key} is already there in line {first[key]}")
                continue
            first[key] = _line(key_node)
            if known is not None and key not in known:
                self._wrong(key_node, f"{what}: there is no such key {key!r}{_did_you_mean(key, known)}")
                continue
            yield key, key_node, value

    def _text(self, node: yaml.Node, what: str, pattern: re.Pattern[str], expected: str) -> str | None:
        """A word or a number as it is written; nothing is None."""
        if _is_null(node) or (isinstance(node, yaml.ScalarNode) and not node.value.strip()):
            return None
        if not isinstance(node, yaml.ScalarNode) or node.tag == _BOOLEAN or not pattern.fullmatch(node.value):
            self._wrong(node, f"{what}: {_shown(node)} is not right; expected {expected}")
            return None
        return str(node.value)

    def _integer(self, node: yaml.Node, what: str, low: int, high: int) -> int | None:
        if _is_null(node):
            return None
        is_number = isinstance(node, yaml.ScalarNode) and node.tag == _INTEGER
        if is_number and re.fullmatch(r"-?\d{1,9}", node.value) and low <= int(node.value) <= high:
            return int(node.value)
        self._wrong(node, f"{what}: {_shown(node)} is not right; expected a whole number from {low} to {high}")
        return None

    def _boolean(self, node: yaml.Node, what: str) -> bool | None:
        if _is_null(node):
            return None
        if isinstance(node, yaml.ScalarNode) and node.tag == _BOOLEAN:
            return node.value.lower() in ("yes", "true", "on")
        self._wrong(node, f"{what}: {_shown(node)} is not right; expected true or false")
        return None

    # The sections

    def _contract(self, node: yaml.Node | None) -> tuple[int | None, int]:
        """The number and the line where it stands."""
        for key, _, value in self._mapping(node, "global", GLOBAL_KEYS):
            return self._integer(value, f"global: {key}", 0, 100_000), _line(value)
        return None, 0

    def _projects(self, node: yaml.Node | None) -> dict[str, _Values]:
        found = {}
        for name, key, value in self._mapping(node, "projects"):
            if not PROJECT_NAME.fullmatch(name):
                expected = "1 to 32 letters, digits, '.', '_' and '-'"
                self._wrong(key, f"projects: {name!r} is not right as a name; expected {expected}")
                continue
            found[name] = self._values(name, _line(key), value)
        return found

    def _values(self, name: str, line: int, node: yaml.Node) -> _Values:
        what = DEFAULTS if name == DEFAULTS else f"project {name}"
        kinds = {
            "TASKCLUSTER_CLIENT_ID": (re.compile(r"[!-~]{1,255}"), "a client id of Taskcluster"),
            "TC_WORKER_TYPE": (
                WORKER_TYPE,
                "a worker type: up to 38 small letters, digits and -, which begins with a letter",
            ),
            "USER_SCRIPTS_VERSION": (VERSION, "the name of a folder or a revision: letters, digits and . _ / -"),
            "priority_group": (PROJECT_NAME, "1 to 32 letters, digits, '.', '_' and '-'"),
        }
        texts: dict[str, str | None] = {}
        disabled, priority = None, None
        for key, _, value in self._mapping(node, what, PROJECT_KEYS):
            if key == "disabled":
                disabled = self._boolean(value, f"{what}: {key}")
            elif key == "priority":
                priority = self._integer(value, f"{what}: {key}", -1000, 1000)
            else:
                texts[key] = self._text(value, f"{what}: {key}", *kinds[key])
        return _Values(line, texts, disabled, priority)

    def _groups(self, node: yaml.Node | None) -> Iterator[tuple[str, tuple[int, yaml.Node]]]:
        for name, key, value in self._mapping(node, "device_groups"):
            yield name, (_line(key), value)

    def _group(self, name: str, line: int, node: yaml.Node) -> _Entry:
        """A mapping (what stands behind a UDID is a note for people), a list, words, or nothing."""
        what = f"device group {name}"
        words: list[tuple[str, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            words = [(_word(key), key) for key, _ in node.value]
        elif isinstance(node, yaml.SequenceNode):
            words = [(_word(item), item) for item in node.value]
        elif isinstance(node, yaml.ScalarNode) and not _is_null(node):
            words = [(word, node) for word in node.value.split()]
        found: dict[str, int] = {}
        for word, place in words:
            try:
                udid = device_name(word, what)
            except BadInput as error:
                self._wrong(place, f"{error.message}, as a UDID must be")
                continue
            if udid in found:
                self._odd(_line(place), f"{what}: {udid} stands there twice; it counts once")
            else:
                found[udid] = _line(place)
        return _Entry(line, found)

    def _project(self, name: str, defaults: _Values | None, own: _Values, group: _Entry | None) -> Project:
        def text(key: str) -> str | None:
            value = own.texts.get(key)
            return value if value is not None or defaults is None or key in own.texts else defaults.texts.get(key)

        def either(mine: bool | int | None, usual: bool | int | None) -> bool | int | None:
            return usual if mine is None else mine

        client_id, worker_type = text("TASKCLUSTER_CLIENT_ID"), text("TC_WORKER_TYPE")
        version = text("USER_SCRIPTS_VERSION")
        priority = either(own.priority, defaults.priority if defaults else None)
        lacks = []
        if group is None:
            lacks.append(f"phones: there is no device group {name}")
        elif not group.udids:
            lacks.append(f"phones: device group {name} is empty")
        if worker_type is None:
            lacks.append("a worker type: TC_WORKER_TYPE is not set")
        if client_id is None:
            lacks.append("a client id: TASKCLUSTER_CLIENT_ID is not set")
        if version is None:
            lacks.append("user scripts: USER_SCRIPTS_VERSION is not set")
        elif not self._has_scripts(version):
            lacks.append(f"user scripts: there are none of version {version}")
        return Project(
            name=name,
            line=own.line,
            client_id=client_id,
            worker_type=worker_type,
            user_scripts_version=version,
            disabled=bool(either(own.disabled, defaults.disabled if defaults else None)),
            priority_group=text("priority_group"),
            priority=1 if priority is None else priority,
            devices=tuple(group.udids) if group else (),
            group=name if group else None,
            lacks=tuple(lacks),
            token=(self._environ.get(token_variable(worker_type)) or None) if worker_type else None,
        )

    # What belongs together

    def _check_groups(self, projects: Mapping[str, Project], groups: Mapping[str, _Entry]) -> None:
        for project in projects.values():
            self._explain(project, groups.get(project.name))
        for name, entry in groups.items():
            if name not in projects:
                close = _did_you_mean(name, projects)
                serve = f"its {_phones(len(entry.udids))} serve nobody" if entry.udids else "and it is empty"
                self._odd(entry.line, f"device group {name}: there is no project of this name: {serve}{close}")
        self._check_udids(projects, groups)
        self._check_worker_types(projects)
        self._check_priority_groups(projects)

    def _explain(self, project: Project, group: _Entry | None) -> None:
        line, what = project.line, f"project {project.name}"
        if project.disabled:
            rest = f" with its {_phones(len(project.devices))}" if project.devices else ""
            self._odd(line, f"{what} is disabled and does not take part{rest}")
        if group is not None and not group.udids:
            self._odd(group.line, f"device group {project.name} is empty, which switches its project off")
        elif project.lacks:
            self._odd(line, f"{what} does not take part: it lacks {'; '.join(project.lacks)}")
        if not project.takes_part and project.worker_type and not project.token:
            self._odd(line, f"{what} has no access token either: {project.token_variable} is not set")

    def _check_udids(self, projects: Mapping[str, Project], groups: Mapping[str, _Entry]) -> None:
        places: dict[str, list[str]] = defaultdict(list)
        for name, entry in groups.items():
            for udid in entry.udids:
                places[udid].append(name)
        for udid, names in places.items():
            for earlier, later in ((a, b) for at, b in enumerate(names) for a in names[:at]):
                first, second = projects.get(earlier), projects.get(later)
                line = groups[later].udids[udid]
                where = f"device group {later}: {udid} is in device group {earlier}, too (line "
                where += f"{groups[earlier].udids[udid]})"
                if first is None or second is None or not (first.takes_part and second.takes_part):
                    idle = later if second is None or not second.takes_part else earlier
                    self._odd(line, f"{where}; {idle} does not take part")
                elif first.priority_group is None or first.priority_group != second.priority_group:
                    expected = "expected another phone, or the same priority_group for both projects"
                    self._problems.append((line, f"{where}; {expected}"))

    def _check_worker_types(self, projects: Mapping[str, Project]) -> None:
        seen: dict[str, Project] = {}
        for project in projects.values():
            if project.takes_part and project.worker_type is not None:
                other = seen.setdefault(project.worker_type, project)
                if other is not project:
                    what = f"project {project.name} has the TC_WORKER_TYPE of project {other.name} (line {other.line})"
                    self._problems.append((project.line, f"{what}: each task would be counted twice"))

    def _check_priority_groups(self, projects: Mapping[str, Project]) -> None:
        members: dict[str, list[Project]] = defaultdict(list)
        for project in projects.values():
            if project.priority_group is not None:
                members[project.priority_group].append(project)
        for name, found in members.items():
            if len(found) == 1:
                self._odd(found[0].line, f"project {found[0].name} is alone in priority group {name}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _word(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ""


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        shown = repr(node.value)
        return shown if len(shown) <= 80 else shown[:77] + "..."
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _phones(number: int) -> str:
    return "1 phone" if number == 1 else f"{number} phones"


def _did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1) or [each for each in known if each.lower() == word.lower()]
    return f"; did you mean {close[0]}?" if close else ""
