"""A pytest plugin that takes over the process before a test is collected."""

import safespawn

safespawn.install()
