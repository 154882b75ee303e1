"""Ray as the rollout service needs it: a small local cluster on the loopback address, or an existing one, joined for a while.

Ray leaves traces in the process that starts it (environment variables, the SIGTERM handler). A command may run inside a
long-lived worker beside a Spark session, so both are put back; its dashboard, metrics and usage statistics stay off, and
the driver's logs quiet. A local cluster's processes die with the process that started them, even when that is killed.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import BadInput

OBJECT_STORE_BYTES = 256 * 2**20
LOOPBACK = "127.0.0.2"
"""Ray takes 127.0.0.1 for "this machine's outward address"; any other address of the loopback network stays one."""
ANSWER_SECONDS = 5.0


@contextmanager
def local_cluster(cpus: int = 2) -> Iterator[str]:
    """Start a Ray cluster of this machine alone, yield its address, stop it at the end. Takes 4 to 6 s."""
    with _own_settings_kept():
        import ray

        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _node_ip_address=LOOPBACK,
        )
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        with _own_settings_kept():
            ray.shutdown()


@contextmanager
def joined_cluster(address: str) -> Iterator[str]:
    """Join a running Ray cluster, yield its address, leave it at the end; what was started in it stays.

    Raises BadInput when none answers there.
    """
    _knock(address)
    with _own_settings_kept():
        # Ray protects the clusters it starts here by this token, but joins without it unless told before its import.
        if (Path.home() / ".ray" / "auth_token").is_file():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray

        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise BadInput(f"{_no_cluster(address)} ({type(error).__name__})") from error
    try:
        yield address
    finally:
        with _own_settings_kept():
            ray.shutdown()


@contextmanager
def cluster(address: str | None, cpus: int = 2) -> Iterator[str]:
    """``joined_cluster`` with an address, ``local_cluster`` without."""
    with joined_cluster(address) if address else local_cluster(cpus) as where:
        yield where


def _knock(address: str) -> None:
    """Refuse an address where nothing listens at once; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    try:
        if not colon or not 0 < int(port) < 65536:
            raise ValueError
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except ValueError as error:
        raise BadInput(f"--address {address!r}: no address; write it like 127.0.0.2:6379") from error
    except OSError as error:
        raise BadInput(f"{_no_cluster(address)} ({error.strerror or error})") from error


def _no_cluster(address: str) -> str:
    return (
        f"--address {address}: no Ray cluster answers there; start one with `onerec rollout-service` and give the address "
        "it prints, or leave --address out"
    )


@contextmanager
def _own_settings_kept() -> Iterator[None]:
    """Environment variables and the SIGTERM handler are after the block what they were before it."""
    environment = dict(os.environ)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler: Any = signal.getsignal(signal.SIGTERM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        yield
    finally:
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGTERM, handler)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
