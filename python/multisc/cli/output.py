"""What becomes of a program whose output nobody reads any more, such as in front of ``| head -1``."""

from __future__ import annotations

import os
import select

EXIT_UNREAD = 141  # what a shell says of a program that SIGPIPE has ended
_STDOUT = 1


def nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader; if so, whatever is still printed goes nowhere.

    To be asked after a ``BrokenPipeError``, which may also be that of another pipe.
    """
    poll = select.poll()
    poll.register(_STDOUT, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)  # so that Python's last flush does not complain
    os.close(nowhere)
    return True
