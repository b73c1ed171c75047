"""The one place that turns errors into messages and exit codes.

Exit codes: 0: success. 1: failure that is not the user's. 2: an error that the user can correct. 128 + number: a signal.
No torch here, so that wrong arguments are reported at once.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from ssd.config import ConfigError
from ssd.system.errors import Failure, UserError, first_line, is_saved
from ssd.system.output import tolerant_output
from ssd.system.stop import Interrupt, Stopped, interrupts

P = ParamSpec("P")
EXPORT_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")  # the extra `export` of pyproject.toml
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command(
    resume: str = "", less_memory: str = "", prints_result: bool = False
) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Make a function the main function of a command. It then returns an exit code, whatever happens within.

    Args:
        resume: advice after an interruption, if the command can be resumed.
        less_memory: advice when the device is out of memory.
        prints_result: standard output is the result of the command. By default it is progress, which may be lost.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def answered(*args: P.args, **kwargs: P.kwargs) -> int:
            with tolerant_output() as output, interrupts() as received:
                try:
                    code = main(*args, **kwargs)
                    if prints_result:
                        output.require_whole()
                    code = 128 + received[0] if received else code
                except (Exception, KeyboardInterrupt, Stopped) as error:
                    code = _answer(error, resume, less_memory)
                    # A regular exit would deadlock: Python and NCCL wait for processes that wait for this one.
                    if _is_connected():
                        output.flush()
                        os._exit(code)
            return code

        return answered

    return decorate


def _answer(error: Exception | KeyboardInterrupt | Stopped, resume: str, less_memory: str) -> int:
    """Print the message for an error and return the exit code."""
    answer = explain(error, resume, less_memory)
    if answer is None:  # a fault of the program
        if resume and is_saved(error):
            error.add_note(resume)
        if not _is_connected():
            raise error
        traceback.print_exception(error)
        return 1
    lines, code = answer
    if _is_first_to_say(lines):
        for line in lines:
            print(line, file=sys.stdout if isinstance(error, Stopped) else sys.stderr, flush=True)
    return code


def explain(error: BaseException, resume: str = "", less_memory: str = "") -> tuple[list[str], int] | None:
    """Return the lines to print for an error, and the exit code; None for a fault of the program."""
    hint = f"; {resume}" if resume else ""
    if_saved = hint if is_saved(error) or getattr(error, "can_resume", False) else ""
    if isinstance(error, Stopped):
        return [f"{error}{hint}"], error.exit_code
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Interrupt) else signal.SIGINT
        return [f"stopped by {signal.Signals(number).name}{hint}"], 128 + number
    if isinstance(error, (ConfigError, UserError)):
        return _lines(f"{error}{if_saved}"), 2
    if isinstance(error, Failure):
        return _lines(f"{error}{if_saved}"), 1
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        full = f"; make room{' and ' + resume if resume else ''}"
        return _lines(f"{text}{full if error.errno in DISK_FULL else if_saved}"), 1
    if isinstance(error, ImportError) and ((error.name or "").partition(".")[0] == "cv2" or "libGL" in str(error)):
        return _lines(
            f"OpenCV cannot be loaded ({first_line(error)}); on a machine without a display, use opencv-python-headless: "
            "uninstall opencv-python and opencv-python-headless, then pip install opencv-python-headless"
        ), 2
    if isinstance(error, ModuleNotFoundError) and error.name in EXPORT_LIBRARIES:
        return _lines(f"{error.name} is not installed, which this needs; pip install {' '.join(EXPORT_LIBRARIES)}"), 2
    if isinstance(error, RuntimeError):
        reason = _of_pytorch(error, less_memory)
        return None if reason is None else (_lines(f"{reason}{hint}"), 1)
    return None


def _is_connected() -> bool:
    """Return whether this process is connected to others."""
    distributed = sys.modules.get("torch.distributed")  # loaded if they are connected
    return getattr(distributed, "is_initialized", bool)()


def _is_first_to_say(lines: list[str]) -> bool:
    """Return whether no other process of the run has printed the same message."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from ssd.system.distributed import first_to_say

    return first_to_say("\n".join(lines))


def _lines(error: object) -> list[str]:
    return [f"error: {line}" for line in str(error).splitlines()]


def _of_pytorch(error: RuntimeError, less_memory: str) -> str | None:
    """Return the message for an error of PyTorch; None for a fault of the program."""
    # These import torch, which is loaded already if the error is one of its own.
    from ssd.system.distributed import is_lost_peer, world_from_environment
    from ssd.system.memory import is_out_of_memory

    text, world = first_line(error), world_from_environment()
    if is_out_of_memory(error):
        return f"{text.removesuffix('.')}{'; ' if less_memory else ''}{less_memory}"
    compiling = sys.modules.get("torch._dynamo.exc")  # loaded if anything was compiled
    if compiling and isinstance(error, compiling.TorchDynamoException):
        return f"torch.compile failed ({text}); turn it off"
    if is_lost_peer(error, world):
        return f"process {world.rank} of {world.size}: another process of this run has ended; see its message"
    return None
