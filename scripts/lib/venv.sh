# shellcheck shell=bash
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# To be sourced by the scripts for people:
#
#   ROOT                     the top of the repository
#   say TEXT…                print to stderr
#   ensure_venv [EXTRAS]     make .venv and install Mozpool with its extras ("test,quality") in it;
#                            quick, silent and without network when that was done before
#   debian_install PACKAGE…  install Debian packages if that is allowed, else return 1
#
# $PYTHON names the Python to use (default: python3).

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

say() {
    printf '%s\n' "$*" >&2
}

debian_install() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    say "Installing Debian packages: $*"
    local log
    local -x DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # Fresh machines and containers come without package lists.
    if (apt-get install -y --no-install-recommends "$@" ||
        { apt-get update && apt-get install -y --no-install-recommends "$@"; }) \
        >"$log" 2>&1 </dev/null; then
        rm -f "$log"
        return 0
    fi
    say "That failed:"
    tail -n 5 "$log" >&2
    rm -f "$log"
    return 1
}

# Whether a Python ($1) can make virtual environments with pip in them. Debian splits that off its python3.
_can_make_venvs() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# Print the Python to use; say what is missing and return 1 when there is none.
_find_python() {
    local python=${PYTHON:-python3}
    if ! command -v "$python" >/dev/null && [ "$python" = python3 ]; then
        debian_install python3 python3-venv || true
    fi
    if ! command -v "$python" >/dev/null; then
        say "There is no $python here. Please install Python 3.11 or later (on Debian and Ubuntu: apt-get install python3 python3-venv)."
        return 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        say "$("$python" --version 2>&1) is too old: Mozpool needs 3.11 or later. Set PYTHON to another one."
        return 1
    fi
    if ! _can_make_venvs "$python"; then
        local package
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        debian_install "$package" || true
        if ! _can_make_venvs "$python"; then
            say "$python cannot make virtual environments. Please install the Debian package $package: apt-get install $package"
            return 1
        fi
    fi
    printf '%s\n' "$python"
}

# Run a command; show what it printed only when it failed.
_quietly() {
    local log=$ROOT/.venv/install.log
    if ! "$@" >"$log" 2>&1 </dev/null; then
        say "That failed:"
        tail -n 15 "$log" >&2
        say "(All of it is in $log.)"
        return 1
    fi
}

ensure_venv() {
    local extras=${1:-} venv=$ROOT/.venv bin=$ROOT/.venv/bin state stamps stamp
    # Installed means: for this description of the package. With extras there is all that there is without.
    state=$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | sha256sum)
    stamps=("$venv/.installed-${extras//,/-}")
    [ -n "$extras" ] || stamps+=("$venv"/.installed-*)

    # A virtual environment is of no use when its Python has gone, or when it was moved: its programs name its place.
    if "$bin/python" -m pip --version >/dev/null 2>&1 && grep -qF "$venv" "$bin/activate"; then
        for stamp in "${stamps[@]}"; do
            [ "$(cat "$stamp" 2>/dev/null)" != "$state" ] || return 0
        done
    else
        local python
        python=$(_find_python) || return 1
        say "Making a virtual environment in $venv"
        "$python" -m venv --clear "$venv" || return 1
    fi

    say "Installing Mozpool and the libraries it needs (this once)"
    # What builds the package is installed beside it, so that nothing is fetched when everything is there.
    local build
    mapfile -t build < <("$bin/python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")' "$ROOT/pyproject.toml")
    _quietly "$bin/python" -m pip install --disable-pip-version-check "${build[@]}" || return 1
    _quietly "$bin/python" -m pip install --disable-pip-version-check --no-build-isolation \
        --editable "$ROOT${extras:+[$extras]}" || return 1
    printf '%s\n' "$state" >"${stamps[0]}"
}
