# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the documents name is there: commands, options, files, links, settings."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import shlex
from pathlib import Path

import click
import pytest

from mozpool import resources
from mozpool.config import NAMED, SECTIONS, keys, spec_of
from mozpool.db.tables import metadata
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.pool.requestmachine import request_machine

if resources.CHECKOUT is None:
    pytest.skip("the documents are in the checkout", allow_module_level=True)

ROOT = resources.CHECKOUT
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "UPGRADING.md", *(ROOT / "docs").glob("*.md")])
GENERATED = {"benchmarks.md", "metrics.md", "states.md"}


def ids(path: Path) -> str:
    """How a test names a document."""
    return str(path.relative_to(ROOT))


def console_scripts() -> dict[str, str]:
    """The commands that an installation brings: name to MODULE:FUNCTION."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): where.strip() for name, where in (line.split("=") for line in lines)}


def command(name: str) -> click.Command:
    """The command behind a console script."""
    module, function = console_scripts()[name].split(":")
    found = getattr(importlib.import_module(module), function)
    assert isinstance(found, click.Command)
    return found


def without_code(text: str) -> str:
    """A document without its code blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    """All anchors of a document; a heading that comes again gets a number."""
    found: dict[str, int] = {}
    result = set()
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        name = anchor(heading)
        count = found.get(name, 0)
        found[name] = count + 1
        result.add(name if count == 0 else f"{name}-{count}")
    return result


def used_commands() -> list[tuple[str, str]]:
    """(document, command line) for each use of one of our commands in a code block or a code span."""
    names = "|".join(sorted(console_scripts(), key=len, reverse=True))
    use = re.compile(rf"^(?:[A-Z_]+=\S+ )*(?:\S*/bin/)?((?:{names})(?: .*)?)$")
    found = []
    for document in DOCUMENTS:
        if document.name in GENERATED:
            continue
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.M | re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        for line in lines:
            match = use.match(line.strip().removeprefix("$ "))
            if match is not None and not line.startswith("mozpool-server: "):
                found.append((ids(document), match[1].split("  ")[0].split(" > ")[0]))
    return sorted(set(found))


# Links and paths


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_its_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"https?:", target):
            continue
        path, _, fragment = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{target} is not there"
        if fragment:
            assert fragment in anchors(found), f"{target} leads to no heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_it_names_no_place_of_the_machine_it_was_written_on(document):
    text = document.read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.])/(?:home|tmp|work|Users)/\S*", text)
    assert str(ROOT) not in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_files_of_the_project_that_it_names_exist(document):
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:mozpool|scripts|sql|docs|templates|static|tests)/[\w./-]*)`", text):
        assert "NNNN" in name or (ROOT / name).exists(), name


def test_the_two_commands_of_the_readme_can_be_run():
    text = README.read_text(encoding="utf-8")
    for name in ("scripts/demo", "scripts/test"):
        assert f"`{name}`" in text
        assert os.access(ROOT / name, os.X_OK), name


# Commands


def test_the_readme_names_every_command():
    text = README.read_text(encoding="utf-8")
    for name in console_scripts():
        assert re.search(rf"(?m)(?:`|^\$ ){re.escape(name)}(?![\w-])", text), name


def test_the_client_document_describes_every_subcommand_and_no_other():
    text = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    group = command("mozpool")
    assert isinstance(group, click.Group)
    described = set(re.findall(r"(?m)^\| `([a-z]+)[ `]", text))
    assert described == set(group.commands)


def test_the_readme_describes_every_subcommand_of_mozpool_db_and_no_other():
    group = command("mozpool-db")
    assert isinstance(group, click.Group)
    described = set(re.findall(r"(?m)^\| `mozpool-db ([a-z-]+)", README.read_text(encoding="utf-8")))
    assert described == set(group.commands)


@pytest.mark.parametrize(("document", "line"), used_commands())
def test_a_command_that_a_document_uses_exists(document, line):
    words = [word for word in shlex.split(line.replace("…", "...")) if word != "..."]
    found, words = command(words[0]), words[1:]
    # Options of the group come first; a value may follow each of them.
    while isinstance(found, click.Group) and words:
        if words[0].startswith("-"):
            assert takes(found, words[0]), f"{document}: {line}"
            words = words[1:] if is_flag(found, words[0]) else words[2:]
            continue
        assert words[0] in found.commands, f"{document}: there is no {line}"
        found, words = found.commands[words[0]], words[1:]
    if found.context_settings.get("ignore_unknown_options"):
        return  # what follows is for a script
    for word in words:
        if word == "--":
            break
        if word.startswith("-"):
            assert takes(found, word), f"{document}: {line} has no {word}"


def takes(found: click.Command, option: str) -> bool:
    """Whether a command has an option."""
    with click.Context(found, **found.context_settings) as context:
        return any(option.split("=")[0] in parameter.opts for parameter in found.get_params(context))


def is_flag(found: click.Command, option: str) -> bool:
    """Whether an option takes no value."""
    if "=" in option:
        return True
    with click.Context(found, **found.context_settings) as context:
        parameters = [parameter for parameter in found.get_params(context) if option in parameter.opts]
    return isinstance(parameters[0], click.Option) and parameters[0].is_flag


def every_command() -> list[tuple[str, click.Command]]:
    """All commands and subcommands by the words that call them."""
    found = []
    for name in console_scripts():
        one = command(name)
        found.append((name, one))
        if isinstance(one, click.Group):
            found += [(f"{name} {sub}", subcommand) for sub, subcommand in one.commands.items()]
    return found


@pytest.mark.parametrize(("name", "found"), every_command(), ids=[name for name, _ in every_command()])
def test_a_command_explains_itself(name, found):
    with click.Context(found, info_name=name, **found.context_settings) as context:
        shown = found.get_help(context)
    assert shown.startswith(f"Usage: {name}")
    assert found.help


# Settings, states, calls, tables


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_settings_that_it_names_exist(document):
    for section, key in re.findall(r"`\[(\w+)\](?: (\w+))?", document.read_text(encoding="utf-8")):
        assert section in SECTIONS, section
        spec = SECTIONS[section]
        if key and isinstance(spec, type):
            assert key in keys(spec), f"[{section}] {key}"


def test_upgrading_names_every_setting():
    text = (ROOT / "UPGRADING.md").read_text(encoding="utf-8")
    named = {f"{word} NAME": kind.section for word, (_, kind) in NAMED.items()}
    for section, spec in {**SECTIONS, **named}.items():
        assert f"[{section}]" in text
        for key in keys(spec) if isinstance(spec, type) else ():
            assert f"`{key}`" in text or key in ("engine", "fqdn", "run_fakes", "url", "tftp_root") or "fake_" in key, (
                key
            )


def test_upgrading_names_every_table_and_column_that_is_new():
    text = (ROOT / "UPGRADING.md").read_text(encoding="utf-8")
    old = (ROOT / "sql" / "schema-4.2.1.sql").read_text(encoding="utf-8")
    for name, table in metadata.tables.items():
        before = re.search(rf"CREATE TABLE {name} \((.*?)^\)", old, re.M | re.S)
        if before is None:
            assert f"`{name}`" in text, name
            continue
        for column in table.columns:
            is_old = re.search(rf"^\s+{column.name} ", before[1], re.M)
            assert is_old or f"`{column.name}`" in text, f"{name}.{column.name}"


def test_configuration_samples_can_be_read():
    for block in re.findall(r"^```ini\n(.*?)^```", all_text(), re.M | re.S):
        parser = configparser.RawConfigParser()
        parser.read_string(block)
        for section in parser.sections():
            spec = spec_of(section)
            assert spec is not None, section
            assert not isinstance(spec, type) or set(parser[section]) <= set(keys(spec))


def test_python_samples_are_python():
    for block in re.findall(r"^```python\n(.*?)^```", all_text(), re.M | re.S):
        compile(block, "sample", "exec")


def test_calls_that_the_documents_name_exist():
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    known = [(re.compile(re.sub(r"\{\w+\}", r"[^/]+", path)), methods) for path, methods in paths.items()]
    for verb, path in re.findall(r"`(GET|POST) (/api/(?:\{[^}]*\}|[^`?\s])*)", all_text()):
        path = re.sub(r"\{[^}]*\}", "x", path)
        assert any(pattern.fullmatch(path) and verb.lower() in methods for pattern, methods in known), f"{verb} {path}"


def test_states_of_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    (picture,) = re.findall(r"```mermaid\n(.*?)```", text, re.S)
    states = {state for pair in re.findall(r"(\w+) --> (\w+)", picture) for state in pair}
    assert states - {"failed"} <= set(request_machine().states)
    assert "A device has fifty-one states" in " ".join(text.split())
    assert len(device_machine().states) == 51


def all_text() -> str:
    """All documents that people have written."""
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name not in GENERATED)
