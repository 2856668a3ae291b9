"""A Ray of our own, started and watched over in a process of its own; run as a script, never imported by a worker.

`ray.init()` starts a cluster inside the calling process, where Ctrl-C waits for C++ calls that take seconds, or tears them and
leaves processes behind.  Here it happens in a child that can be killed at any moment; and when racevisor ends in a way that
nobody can catch, the child sees the end of its standard input and takes Ray with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Start Ray as the JSON of the first argument says; print its address; last as long as standard input does."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    threading.Thread(target=watch, args=(options["_temp_dir"],), daemon=True).start()
    try:
        import ray
        import ray._private.ray_constants as ray_constants

        # On Linux Ray offers itself to the network even for a local ray.init(), and turns 127.0.0.1 into another address when
        # told to use it.  This switch, meant for macOS and Windows, keeps it at home.
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(address="local", **options)
        say({"address": ray.get_runtime_context().gcs_address})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
    threading.Event().wait()


def say(what: dict[str, str]) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def watch(directory: str) -> None:
    """When the parent is gone, so are we, and all that we started."""
    sys.stdin.read()
    try:
        end(os.getpid(), directory)
    finally:  # also when Ray is not even imported yet, and there is nothing to end
        os._exit(0)


def end(session: int, directory: str) -> None:
    """Kill all processes of a session but the calling one, wait until they are gone, and remove Ray's files.

    They are found by their session, which workers and agents keep whatever becomes of their parents.  They hold nothing that is
    worth the graceful second that ray.shutdown() gives to each kind of them.
    """
    for one in _members(session):
        with contextlib.suppress(Exception):
            one.suspend()  # so that it starts nothing more while we look for what it has started
    members = _members(session)
    for one in members:
        with contextlib.suppress(Exception):
            one.kill()
    for _ in range(100):
        members = [one for one in members if _lives(one)]
        if not members:
            break
        time.sleep(0.01)
    shutil.rmtree(directory, ignore_errors=True)


def _members(session: int) -> list[Any]:
    import psutil  # type: ignore[import-untyped, import-not-found, unused-ignore]  # Ray's own, on the path once it is imported

    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(one.pid) == session and one.pid != os.getpid():
                found.append(one)
    return found


def _lives(process: Any) -> bool:
    """Is it more than an entry that its parent, or init, has not collected yet?"""
    try:
        return bool(process.is_running() and process.status() != "zombie")
    except Exception:  # it went away while it was looked at
        return False


if __name__ == "__main__":
    main()
