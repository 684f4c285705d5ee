# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A wheel, an editable install and a bare checkout all find what belongs to Mozpool, whatever the working directory."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from mozpool import resources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(resources.CHECKOUT is None, reason="needs a checkout to build from"),
]

FOLDERS = ("scripts", "sql", "static", "templates")


def run(*command: str | Path, **environ: str) -> str:
    """Run a command in / and return what it prints."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MOZPOOL_CONFIG")}
    done = subprocess.run(
        [str(part) for part in command], cwd="/", env=env | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path) -> None:
    """Run pip without network; what builds the package comes from this environment."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


def in_tree(root: Path, *folders: str) -> set[str]:
    """The files below ``folders``, relative to ``root``, without hidden and compiled ones."""
    files = (path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    return {
        str(path)
        for path in files
        if path.suffix != ".pyc" and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the checkout, so that building leaves no traces in it."""
    assert resources.CHECKOUT is not None
    copy = tmp_path_factory.mktemp("copy") / "mozpool"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "htmlcov", "tests")
    shutil.copytree(resources.CHECKOUT, copy, ignore=ignored)
    (copy / "config.ini").unlink(missing_ok=True)
    return copy


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel built from that copy."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree)
    (found,) = folder.glob("*.whl")
    return found


def new_environment(folder: Path) -> Path:
    """A virtual environment without anything in it; returns its Python."""
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def borrow_libraries(python: Path) -> None:
    """Let an environment see this one's libraries, but not its Mozpool: editable installs are not handed on."""
    (site_packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    libraries = {str(Path(pytest.__file__).parent.parent), *(path for path in sys.path if path.endswith("-packages"))}
    (site_packages / "borrowed.pth").write_text("\n".join(sorted(libraries)))


@pytest.fixture(scope="module", params=["wheel", "editable", "checkout"])
def installed(request, tmp_path_factory):
    """Runs a piece of Python from / with Mozpool installed in one of the three ways; also says where it is."""
    tree = request.getfixturevalue("tree")
    home = tmp_path_factory.mktemp("home")
    python = new_environment(tmp_path_factory.mktemp("venv"))
    environ = {"HOME": str(home)}
    if request.param == "wheel":
        pip("--python", python, "install", "--quiet", "--no-index", "--no-deps", request.getfixturevalue("wheel"))
        borrow_libraries(python)
    elif request.param == "editable":
        borrow_libraries(python)
        pip("--python", python, "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-e", tree)
    else:
        borrow_libraries(python)
        environ["PYTHONPATH"] = str(tree)
    place = python.parent.parent if request.param == "wheel" else tree

    def execute(code: str, *arguments: str) -> str:
        return run(python, "-c", code, *arguments, **environ)

    return execute, place


def test_it_finds_its_files_from_any_directory(installed, tree):
    execute, place = installed
    wanted = [*sorted(in_tree(tree, *FOLDERS)), "config.ini.dist", "lambdatest.yml.dist", "sql/migrations"]
    code = (
        "import sys\nfrom mozpool import resources\nfor name in sys.argv[1:]: print(resources.path(*name.split('/')))"
    )
    found = execute(code, *wanted).splitlines()
    assert len(found) == len(wanted)
    for name, path in zip(wanted, found, strict=True):
        assert Path(path).is_relative_to(place.resolve())
        original = tree / name
        if original.is_file():
            assert Path(path).read_bytes() == original.read_bytes()


def test_it_says_what_an_incomplete_installation_lacks(installed):
    execute, _ = installed
    code = (
        "from mozpool import resources\n"
        "try: resources.path('templates', 'missing.html')\n"
        "except FileNotFoundError as error: print(error)"
    )
    assert "templates/missing.html" in execute(code)


def test_it_loads_the_defaults_from_any_directory(installed):
    execute, _ = installed
    assert execute("from mozpool import config; print(config.load().source)") == "None\n"


def test_its_commands_and_backends_can_be_loaded(installed, request):
    execute, _ = installed
    if request.node.callspec.params["installed"] == "checkout":
        pytest.skip("a bare checkout has no entry points")
    code = (
        "from importlib.metadata import distribution\n"
        "for entry in distribution('mozpool').entry_points: entry.load(); print(entry.group, entry.name)"
    )
    loaded = set(execute(code).splitlines())
    assert {"console_scripts mozpool-server", "mozpool.power proxr", "mozpool.probe echo"} <= loaded


def test_the_wheel_holds_the_whole_tree_and_nothing_else(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = in_tree(tree, "mozpool") | {f"mozpool/{name}" for name in in_tree(tree, *FOLDERS)}
    assert packed == expected | {"mozpool/toplevel/config.ini.dist", "mozpool/toplevel/lambdatest.yml.dist"}


def test_scripts_stay_executable(installed):
    execute, _ = installed
    code = "import os\nfrom mozpool import resources\nprint(os.access(resources.path('scripts', 'test'), os.X_OK))"
    assert execute(code) == "True\n"


def test_the_build_requirement_is_the_same_everywhere():
    assert resources.CHECKOUT is not None
    pyproject = tomllib.loads((resources.CHECKOUT / "pyproject.toml").read_text())
    setup = configparser.RawConfigParser()
    setup.read(resources.CHECKOUT / "setup.cfg")
    (requirement,) = pyproject["build-system"]["requires"]
    assert requirement in setup["options.extras_require"]["test"].split()
