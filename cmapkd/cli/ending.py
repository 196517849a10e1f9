"""How a command ends when something is wrong: with words for what a user can mend, with a traceback for a mistake of ours."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from cmapkd import commands as printed
from cmapkd.cli.options import dataset_named
from cmapkd.errors import UserError, told_by_system

INTERRUPTED = 128 + signal.SIGINT  # as typer ends


@contextmanager
def told_to_users() -> Iterator[None]:
    """Print a user's error, or one of the operating system about a file, as a message, and exit with code 2."""
    try:
        yield
    except UserError as error:
        _leave(printed.completed(str(error), dataset=dataset_named(error)))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave("interrupted\n  fix: start the same command again", INTERRUPTED)
        raise
    except UnicodeDecodeError as error:
        _leave(f"a file that was read is not UTF-8 text: {error}\n  fix: save it as UTF-8")
    except OSError as error:
        if (told := told_by_system(error)) is None:
            raise
        _leave(str(told))


def _leave(message: str, code: int = 2) -> NoReturn:
    # Names of files may hold bytes that are not text.
    sys.stderr.write(f"error: {message}\n".encode(errors="backslashreplace").decode())
    raise SystemExit(code) from None
