# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Phones in LambdaTest's private cloud, which run HyperExecute jobs."""

from mozpool.bmm.backends.lambdatest.account import Account, Job, Phone
from mozpool.bmm.backends.lambdatest.launcher import LambdaTestLauncher, LambdaTestProbe, OwnJob

__all__ = ["Account", "Job", "LambdaTestLauncher", "LambdaTestProbe", "OwnJob", "Phone"]
