"""One function for each request. Importing the package fills the table of `sfsd.rules.context`."""

from __future__ import annotations

import sfsd.operations.accounts
import sfsd.operations.changesets
import sfsd.operations.downloads
import sfsd.operations.files
import sfsd.operations.log
import sfsd.operations.login
import sfsd.operations.lost
import sfsd.operations.records
import sfsd.operations.rotation
import sfsd.operations.sharing
import sfsd.operations.uploads  # noqa: F401
