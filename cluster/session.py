"""Ray itself: join the cluster that is named, use the one that is there, or start an embedded one; and leave no trace of it.

The embedded Ray (`cluster.embedded`) listens on 127.0.0.1 only, keeps its files in a directory of its own, and goes with us.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray._private.ray_constants as ray_constants
from ray.exceptions import AuthenticationError

import actors
import cluster
import racevisor
from cluster import embedded
from cluster.pulse import PATIENCE, Pulse, pulse_here
from racevisor.errors import ClusterError

#: Ray's sockets live below its temporary directory, and the path of a Unix socket has at most 103 (macOS) or 107 characters.
LONGEST_TEMP_DIR = 34
OBJECT_STORE_BYTES = 80 * 2**20
#: How long a Ray of our own may take to start: 3 s here, more on a machine that is busy.
EMBEDDED_TIMEOUT = 60.0
#: An address that starts so goes by way of Ray Client: the driver is no part of the cluster, and may be anywhere.
CLIENT = "ray://"
#: Ray does not say that a secret is missing or wrong; it goes on asking.
TOKEN = "  if it has a secret, it is wanted here too:  RAY_AUTH_MODE=token, and the cluster's ~/.ray/auth_token\n"
LOOPBACKS = ("127.0.0.1", "localhost", "::1")
#: How long leaving a cluster that is gone may take, in seconds, before we go on without Ray's consent and tell the results; and
#: before this process ends, or opens the next, for which Ray has to have let go of the one before.
LEAVE, LET_GO = 0.5, 10.0


class Session:
    """A context: Ray is usable inside.  `address` (or RAY_ADDRESS) names a cluster; without one Ray is started here."""

    def __init__(self, address: str | None = None, *, start_timeout: float = 20.0) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or None
        self.start_timeout = start_timeout
        self.reused = False
        self.directory: Path | None = None
        self.child: subprocess.Popen[str] | None = None
        self.pulse = Pulse()

    @property
    def joined(self) -> bool:
        """Is this somebody else's cluster, whose machines may not have our packages?"""
        return self.address is not None and not self.reused

    @property
    def client(self) -> bool:
        """Is it reached through Ray Client?  Then this machine is no part of it, and its machines may not reach this one."""
        return self.address is not None and self.address.startswith(CLIENT) and not self.reused

    def open(self) -> None:
        """Connect or start; ClusterError if that does not succeed in time."""
        _let_go()
        if ray.is_initialized():
            self.reused = True
            return
        # Ray prints the post-mortem of every worker on our standard output; what there is to say, we say.
        ray._private.worker.print_to_stdstream = _say_nothing
        # Ray puts the driver's working directory in front of every worker's sys.path, and a user's folder may well hold an
        # `actors/` or a `cluster/` of its own.  An empty directory holds none.
        self.directory = _short_directory()
        try:
            with _working_directory(self.directory):
                if self.address is None:
                    self._embed(self.directory)
                else:
                    self._join(self.address)
            child = self.child
            self.pulse = pulse_here(
                (lambda: child.poll() is not None) if child is not None else (lambda: False),
                0.0 if child is not None else PATIENCE,  # nobody starts again what we started
            )
        except BaseException:
            self.close()
            raise

    def _embed(self, directory: Path) -> None:
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        options = {
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "critical",
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(directory),
        }
        with _environment({**quiet, **_python_path(), **_token()}):
            self.child = subprocess.Popen(
                [sys.executable, "-P", embedded.__file__, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C on the terminal is for us alone
            )
            assert self.child.stdout is not None
            ready, _, _ = select.select([self.child.stdout], [], [], EMBEDDED_TIMEOUT)
            said = json.loads(self.child.stdout.readline() or "{}") if ready else {"error": "it takes too long"}
            if "address" not in said:
                raise ClusterError(
                    f"Ray did not start on this machine: {said.get('error', 'its process ended')}\n"
                    f"  a cluster that runs already:  --address HOST:PORT"
                )
            raylet: Any = ray._raylet
            raylet.Config.initialize("")  # Ray read its environment when it was imported, before it had the secret
            try:
                with _at_home(), later():
                    ray.init(address=said["address"], log_to_driver=False, logging_level=logging.CRITICAL)
            except RuntimeError as error:
                raise ClusterError(f"cannot connect to the Ray that was started here: {error}") from error

    def _join(self, address: str) -> None:
        deadline = time.monotonic() + self.start_timeout
        self._knock(address)
        failure: list[BaseException] = []

        def connect() -> None:
            try:
                with _at_home() if _host(address) in LOOPBACKS else contextlib.nullcontext():
                    ray.init(
                        address=address,
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                        runtime_env={"py_modules": _packages()},
                    )
            except BaseException as error:
                failure.append(error)

        # ray.init() can retry for minutes and cannot be told not to.  A daemon thread can be left behind.
        thread = threading.Thread(target=connect, name="ray.init", daemon=True)
        thread.start()
        try:
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(0.1)  # in small pieces, so that Ctrl-C gets through
        except KeyboardInterrupt:
            thread.join(1.0)  # connected properly, it disconnects properly
            raise
        if thread.is_alive():
            raise _no_answer(address, f"it did not answer within {self.start_timeout:g} s", TOKEN)
        if failure:
            error = failure[0]
            said = (str(error).strip() or "nothing more").splitlines()[0].partition(". ")[0]
            hint = TOKEN if isinstance(error, AuthenticationError) else ""
            raise _no_answer(address, f"{type(error).__name__}: {said}", hint) from error

    def _knock(self, address: str) -> None:
        """Is anybody at that host and port?  Sooner and clearer than what ray.init() says."""
        if address.startswith(CLIENT) and importlib.util.find_spec("grpc") is None:
            raise ClusterError(
                f"{address} is an address of Ray Client, which needs gRPC, and racevisor does not install that\n"
                f"  install it:      pip install 'ray[client]=={ray.__version__}'    (on the head of the cluster too)\n"
                f"  or without it:   racevisor ... --address auto, typed on a machine of the cluster"
            )
        host, colon, port = address.removeprefix(CLIENT).rpartition(":")
        if not colon or not port.isdigit():
            if "://" in address or address in ("auto", "local"):
                return
            raise ClusterError(
                f"{address!r} is no address of a Ray cluster\n  --address HOST:PORT (ray start prints it), or auto"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=min(5.0, self.start_timeout)).close()
        except (OSError, OverflowError) as error:
            raise _no_answer(address, str(error)) from error

    def close(self) -> None:
        """Leave the cluster; end the embedded one with all its processes.  Takes half a second, and no Ctrl-C shortens it."""
        if self.reused or self.directory is None:  # somebody else's, or never opened: what there is may be somebody else's
            return
        with later():
            if ray.is_initialized():
                if self.pulse.lost:
                    _leave()
                else:
                    ray.shutdown()
            if self.child is not None:
                _end_child(self.child, str(self.directory))
                self.child = None
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None
            ray._private.worker.print_to_stdstream = _PRINT


_PRINT = ray._private.worker.print_to_stdstream


def _say_nothing(data: Any, ignore_prefix: bool) -> None:
    """In the place of Ray's print_to_stdstream()."""


#: What still tries to leave a cluster that is gone.
_leaving: list[threading.Thread] = []


def _leave() -> None:
    """ray.shutdown() from a cluster that is gone: it asks, with all of a CPU, what nobody answers, some seconds or for ever."""
    thread = threading.Thread(target=ray.shutdown, name="ray.shutdown", daemon=True)
    thread.start()
    thread.join(LEAVE)
    if thread.is_alive():  # else Ray would wait for the same once more when Python exits
        atexit.unregister(ray.shutdown)
        _leaving.append(thread)
        atexit.register(_let_go)


def _let_go() -> None:
    """Wait for what still leaves: to exit, or to open Ray again, under the feet of its C++ code is a segmentation fault."""
    while _leaving:
        _leaving.pop().join(LET_GO)


def _end_child(child: subprocess.Popen[str], directory: str) -> None:
    embedded.end(child.pid, directory)
    child.communicate()


def _packages() -> list[str]:
    """Ours, as they are here: workers get a copy.  Folders, for Ray cannot merge modules with what a Ray job asks for."""
    return [str(Path(str(package.__file__)).resolve().parent) for package in (actors, racevisor, cluster)]


def _host(address: str) -> str:
    """The host of HOST:PORT, of ray://HOST:PORT too; "" if there is none."""
    return address.removeprefix(CLIENT).rpartition(":")[0].strip("[]")


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Ray leaves 127.0.0.1 as it is.  Else it looks for the address that others would reach this machine by.

    Nobody may listen there.  The switch is meant for macOS and Windows; see cluster.embedded.
    """
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _no_answer(address: str, why: str, hint: str = "") -> ClusterError:
    return ClusterError(
        f"no Ray cluster at {address}: {why}\n"
        f"{hint}"
        f"  is it up?  ray status --address {address}\n"
        f"  without a cluster, on this machine:  leave out --address and unset RAY_ADDRESS"
    )


def _short_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="racevisor-")
    if len(directory) > LONGEST_TEMP_DIR and os.name == "posix":
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="racevisor-", dir="/tmp")
    return Path(directory)


def _python_path() -> dict[str, str]:
    """For packages that a worker would not find by itself: neither installed nor installed editable."""
    root = str(Path(racevisor.__file__).resolve().parent.parent)
    if Path(root).name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


#: One secret for all embedded clusters of this process: Ray reads it once.
_SECRET = secrets.token_hex(32)


def _token() -> dict[str, str]:
    """A secret for Ray's processes, unless the user has settled that; without one Ray leaves one in the home directory."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    settled = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return {"RAY_AUTH_MODE": "token", **({} if settled else {"RAY_AUTH_TOKEN": _SECRET})}


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started inside."""
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _working_directory(directory: Path) -> Iterator[None]:
    """contextlib.chdir, for a working directory that may not exist any more."""
    try:
        before = os.getcwd()
    except OSError:
        before = "/"
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Ctrl-C has its effect at the end of this block, for what would leave a mess when it is torn, and takes a moment only."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])
