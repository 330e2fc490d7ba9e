"""Errors that a user can fix: they name the thing, the rule, the value and the way out."""

from __future__ import annotations

import difflib
import errno
import inspect
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the request, shown as one message without a traceback.

    Raised before the first batch wherever possible; nothing has been written to the records when it is raised.
    """


class RunningError(UserError):
    """Another process is training the run that was asked for."""


class PassingError(UserError):
    """What a system refused and may grant the next time, such as a network file system in trouble: tried again."""


# What may be otherwise a moment later, with the same request.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN, errno.EBUSY, errno.ENOSPC}
PASSING |= {errno.EDQUOT, errno.EINTR}


def kind_of(error: BaseException) -> type[UserError]:
    """Return what an error becomes for users: PassingError if it may pass, else UserError."""
    return PassingError if isinstance(error, OSError) and error.errno in PASSING else UserError


# What a disk or a network file system may answer at any time: no space, no permission, gone, failing.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR}
REFUSALS |= {errno.EFBIG, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}


def explain(error: BaseException) -> str:
    """Return the text for an error: its message, what the disk refused, or else the traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return f"{error.strerror}: {error.filename or 'while writing'}; what was finished before is kept"
    return "".join(traceback.format_exception(error))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `: did you mean 'x'?` for the known name closest to `name`, capitals aside, or an empty string."""
    names = {one.casefold(): one for one in sorted(known)}
    close = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6)
    return f": did you mean '{names[close[0]]}'?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    return f"unknown {kind} '{name}'{nearest(name, names) or ';'} available: {', '.join(names)}"


def reason(error: BaseException) -> str:
    """Return another library's error in one line: its text, or its type if that is empty."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def describe_failure(error: BaseException, plugin: type | str = "") -> str:
    """Return what a plugin's own code raised, and where: `TypeError: reason (line 3 of my_method.py)`.

    `plugin`: its class or its file, whose last line on the way to the error is named; without one, or where the error
    never came by it, the line that raised it, in whatever library.
    """
    try:
        file = plugin if isinstance(plugin, str) else inspect.getfile(plugin)
    except (TypeError, OSError):  # defined in a shell
        file = ""
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if frame.filename == file][-1:] or frames[-1:]
    return f"{type(error).__name__}: {error} (line {where[0].lineno} of {where[0].filename})"
