#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# Second stage: Firefox OS from three tarballs. Boot config: b2gbase, the URL of their directory.

# shellcheck source=scripts/board/mozpool.sh
. "${MOZPOOL_ROOT:-}/lib/mozpool/mozpool.sh"

install_partitions b2g b2gbase
