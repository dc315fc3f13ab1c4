"""A lock on an output folder: one process at a time."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError
from .json_files import read_json_object

LOCK = ".lock"
OWNER = ".lock.json"
#: Errors of cluster file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def only_process(folder: Path, what: str, part: str = "") -> Iterator[None]:
    """Lock `folder`, which is created if missing, for this process; `part`: only one part of the work in it.

    The operating system frees the lock when its process ends, also when it is killed. `what` names the folder
    in the message, such as "--output runs/a". Without locks in the file system there is only a warning.

    Errors:
        UserError while another process holds it; the message has its host, id and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner_file = FileLock(folder / (LOCK + part)), folder / (OWNER + part)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{what} is in use by {_owner(owner_file)}: wait until it has ended, or give another output"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {folder} cannot be locked ({error.strerror}); start nothing else in it",
            file=sys.stderr,
        )
    since = datetime.now().isoformat(" ", "seconds")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    try:
        owner_file.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        # The lock file itself stays: another process may be opening it, and would hold a file that is gone.
        owner_file.unlink(missing_ok=True)
        lock.release()


def _owner(file: Path) -> str:
    try:
        owner = read_json_object(file)
    except UserError:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
