"""From errors to exit codes: what goes wrong in a command becomes one line for each fault, here and nowhere else.

0: done. 1: it could not be finished, through no fault of the input. 2: what the user can mend. 128 + number: a signal.
No torch here: a command that is called wrongly answers at once.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from ssd.config import ConfigError
from ssd.system.errors import Failure, UserError, first_line
from ssd.system.stop import Stopped

P = ParamSpec("P")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command(resume: str = "", less_memory: str = "") -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Makes a function the main function of a command: it returns the exit code whatever happens within.

    Args:
        resume: what to tell a user whose command was ended before its time, where it can be resumed.
        less_memory: what to tell one whose device has too little memory, where something helps.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def answered(*args: P.args, **kwargs: P.kwargs) -> int:
            if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or a file may lack the letters of a class or a file name
                sys.stdout.reconfigure(errors="backslashreplace")
            try:
                return main(*args, **kwargs)
            except (Exception, KeyboardInterrupt) as error:
                answer = explain(error, resume, less_memory)
                if answer is None:
                    raise
                lines, code = answer
                if _is_first_to_say(lines):
                    for line in lines:
                        print(line, file=sys.stdout if isinstance(error, Stopped) else sys.stderr, flush=True)
                return code

        return answered

    return decorate


def explain(error: BaseException, resume: str = "", less_memory: str = "") -> tuple[list[str], int] | None:
    """The lines to print of an error, and the exit code; None where the error is a fault of the program."""
    hint = f"; {resume}" if resume else ""
    if isinstance(error, Stopped):
        return [f"{error}{hint}"], error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return [f"stopped by SIGINT{hint}"], 130
    if isinstance(error, (ConfigError, UserError)):
        return _lines(error), 2
    if isinstance(error, Failure):
        return _lines(f"{error}{hint if error.can_resume else ''}"), 1
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        full = f"; make room{' and ' + resume if resume else ''}" if error.errno in DISK_FULL else ""
        return _lines(f"{text}{full}"), 1
    if isinstance(error, ImportError) and ((error.name or "").partition(".")[0] == "cv2" or "libGL" in str(error)):
        return _lines(
            f"OpenCV cannot be loaded ({first_line(error)}); a machine without a display takes opencv-python-headless in place "
            "of opencv-python: uninstall both by pip, then pip install opencv-python-headless"
        ), 2
    if isinstance(error, RuntimeError):
        reason = _of_pytorch(error, less_memory)
        return None if reason is None else (_lines(f"{reason}{hint}"), 1)
    return None


def _is_first_to_say(lines: list[str]) -> bool:
    """Whether no other process of the run has said the same."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from ssd.system.distributed import first_to_say

    return first_to_say("\n".join(lines))


def _lines(error: object) -> list[str]:
    return [f"error: {line}" for line in str(error).splitlines()]


def _of_pytorch(error: RuntimeError, less_memory: str) -> str | None:
    """What an error of PyTorch means, where it is not a fault of the program."""
    # PyTorch is loaded already where such an error comes from.
    from ssd.system.distributed import is_lost_peer, world_from_environment
    from ssd.system.memory import is_out_of_memory

    text, world = first_line(error), world_from_environment()
    if is_out_of_memory(error):
        return f"{text.removesuffix('.')}{'; ' if less_memory else ''}{less_memory}"
    compiling = sys.modules.get("torch._dynamo.exc")  # loaded where anything was compiled
    if compiling and isinstance(error, compiling.TorchDynamoException):
        return f"torch.compile failed ({text}); do without it"
    if is_lost_peer(error, world):
        return f"process {world.rank} of {world.size}: another process of this run has ended; its own message says why"
    return None
