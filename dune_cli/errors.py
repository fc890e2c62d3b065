"""The errors a user can meet. Each knows its exit code; `cli.py` prints its one sentence and leaves with that code.

Exit codes: 0; 1 the job failed; 2 usage; 3 weights missing; 4 optional package missing; 130 interrupted; 143 ended by
SIGTERM.
A message says what was received, what is allowed, and what to do next.
"""

from __future__ import annotations


class DuneError(Exception):
    """Base of all errors that end a command with one sentence on stderr."""

    exit_code = 1


class JobFailed(DuneError):
    """The inputs were fine and the job still gave no result (no pose, full disk, failed download)."""

    exit_code = 1


class UserError(DuneError, ValueError):
    """What the user handed over cannot be used: an option's value, an unreadable image, a file of the wrong kind."""

    exit_code = 2


class CheckpointError(UserError):
    """A weight file is corrupt, hostile, of another layout, or does not fit the network."""


class WeightsMissing(DuneError):
    """Weights are needed that are not on this machine. The message names the command that brings them."""

    exit_code = 3


class PackageMissing(DuneError):
    """An optional Python package is needed. The message names the command that installs it."""

    exit_code = 4
