#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# Second stage: Android from three tarballs. Boot config: androidbase (or b2gbase), the URL of their directory;
# without either, the kernel argument mozpool-base.

# shellcheck source=scripts/board/mozpool.sh
. "${MOZPOOL_ROOT:-}/lib/mozpool/mozpool.sh"

install_partitions android androidbase b2gbase
