"""Starting real programs on loopback, and ending exactly those."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def fail(text):
    """Ends the check with what is wrong."""
    print(f"deploy/check: {text}", file=sys.stderr)
    sys.exit(1)


def binary(name):
    """Returns the path of a program of this workspace."""
    folder = Path(os.environ.get("MERIT_BINS", ROOT / "target" / "release"))
    path = folder / name
    if not path.exists():
        fail(f"{path} is missing: cargo build --release --workspace --bins --features merit-sidecar/full, "
             "or name its folder in MERIT_BINS")
    return str(path)


def free_port():
    """Returns a port that nobody has on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, *, method=None, headers=None, body=None, timeout=5):
    """Returns (status, text) of a request; status 0 when nobody answers."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (urllib.error.URLError, OSError) as error:
        return 0, str(error)


def until(what, seconds, condition):
    """Waits until `condition` returns something true, and returns it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            fail(f"{what}: not within {seconds} s")
        time.sleep(0.2)


class Programs(contextlib.AbstractContextManager):
    """Programs that end when the block does, in reverse order."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.running = []

    def start(self, name, command, env=None, cwd=None):
        log = open(self.folder / f"{name}.log", "ab")
        whole = {**os.environ, **(env or {})}
        program = subprocess.Popen(command, env=whole, cwd=cwd or self.folder, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)
        self.running.append((name, program))
        return program

    def stop(self, program, how=signal.SIGTERM, seconds=20):
        self.running = [(name, other) for name, other in self.running if other is not program]
        if program.poll() is None:
            program.send_signal(how)
            try:
                program.wait(seconds)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        return program.returncode

    def check(self):
        """Fails when a program has ended that nobody stopped."""
        for name, program in self.running:
            if program.poll() is not None:
                tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                fail(f"{name} ended with {program.returncode}:\n{tail}")

    def __exit__(self, *_):
        for _, program in self.running[::-1]:
            self.stop(program)
