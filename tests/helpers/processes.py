"""Real processes for tests that do not import PyTorch again.

`python train.py` takes seconds until its first line runs. Here a server forks instead, with the libraries already imported. The
new process is like any other (output, exit code, signals, session, children), and imports the project's own modules itself.
The server computes nothing, since threads would not survive a fork.
"""

import array
import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

LIBRARIES = (
    "cv2", "filelock", "matplotlib.backends.backend_agg", "matplotlib.figure", "psutil", "pydantic", "torch._dynamo",
    "torch.distributed.launcher.api", "torch.utils.tensorboard", "torchvision.ops", "tqdm", "yaml",
)  # fmt: skip
MAX_REQUEST = 2**17  # bytes
PDEATHSIG, SUBREAPER = 1, 36  # prctl(2): signal when the parent ends; adopt orphans


class Process(subprocess.Popen):
    """`subprocess.Popen` for `python FILE ...`, `python -m MODULE ...` and `python -c TEXT ...`.

    Other commands, and options beyond a folder, an environment, pipes and a session, start a process as usual.
    """

    server: ClassVar[socket.socket | None] = None

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(super()._execute_child).bind(*given).arguments  # pyright: ignore[reportAttributeAccessIssue]
        words = asked["args"]
        python = not isinstance(words, str) and words[0] == sys.executable
        if sys.platform != "linux" or not python or asked["preexec_fn"] or asked["pass_fds"] or asked["shell"]:
            super()._execute_child(*given)  # pyright: ignore[reportAttributeAccessIssue]
            return
        request = {
            "words": [os.fspath(word) for word in words[1:]],
            "folder": os.fspath(asked["cwd"] or Path.cwd()),
            "environment": dict(asked["env"] or os.environ),
            "new_session": asked["start_new_session"],
        }
        theirs = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        self.pid = ask(request, [file if file != -1 else number for number, file in enumerate(theirs)])
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[pipe] for pipe in pipes))  # pyright: ignore[reportAttributeAccessIssue]


def start(words: list[str], **options: Any) -> Process:
    """Start a `Process` whose output and errors are pipes of text."""
    return Process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def completed(words: list[str], timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a `Process` to its end, and kill it after `timeout` seconds."""
    with start(words, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def ask(request: dict[str, Any], files: list[int]) -> int:
    """Let the server start a process, which becomes a child of this one. Return its id."""
    Process.server = Process.server or start_server()
    libc = ctypes.CDLL(None)
    answer, theirs = os.pipe()
    passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [*files, theirs]))
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        Process.server.sendmsg([json.dumps(request).encode()], [passed])
        os.close(theirs)
        with open(answer, "rb") as file:
            return int(file.read())
    finally:
        libc.prctl(SUBREAPER, 0, 0, 0, 0)


def start_server() -> socket.socket:
    """Start a server that ends with this process, and return a connection to it."""
    ours, theirs = connections()
    command = [sys.executable, __file__, str(theirs.fileno())]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    theirs.close()
    return ours


def connections() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection that preserves message boundaries."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork at every request. Return it only in the new process."""
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    while True:
        content, files, *_ = socket.recv_fds(connection, MAX_REQUEST, 4)
        if not content:  # all possible clients have ended
            os._exit(0)
        child = os.fork()
        if child == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:  # until the client has adopted this process
                time.sleep(0.001)
            connection.close()
            request = json.loads(content)
            if request["new_session"]:
                os.setsid()
            *streams, answer = files
            for number, file in enumerate(streams):
                os.dup2(file, number)
            os.write(answer, str(os.getpid()).encode())
            for file in files:
                os.close(file)
            return request
        for file in files:
            os.close(file)
        os.waitpid(child, 0)


def begin(words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Do the same as `python *words`."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if environment.get("OMP_NUM_THREADS", threads) != threads:
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (the server's own takes it for /dev/null, where it could seek)
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # pyright: ignore[reportAttributeAccessIssue]
        words = words[1:]
    sys.argv = words[1:] if words[0] == "-m" else words
    if words[0] == "-m":
        sys.path[0] = folder
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def leave() -> None:
    """Exit without tearing down every module, which takes longest."""
    if exit_codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_codes[0])


if __name__ == "__main__":
    exit_codes: list[int] = []
    atexit.register(leave)  # registered first, so it runs last
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise, a collection in a child would write to every page and so copy it
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted["words"][:2] == ["-m", "torch.distributed.run"]:
        # Processes of torchrun do not import PyTorch again either: torchrun's own server starts them.
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        Process.server, own = connections()
        if os.fork() == 0:
            wanted = serve(own)
        else:
            subprocess_handler.Popen = Process
    try:
        begin(wanted["words"], wanted["folder"], wanted["environment"])
    except SystemExit as end:
        exit_codes += [end.code] * isinstance(end.code, int)
        raise
