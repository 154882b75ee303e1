"""``onerec rollout-service``: the service as a command, in a cluster of its own until interrupted, or left in another's."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from schemas.errors import BadInput
from schemas.lake import Lake
from trainer.checkpoints import load_model, model_files
from trainer.rollout.cluster import cluster, joined_cluster
from trainer.rollout.service import RolloutService, namespace_of
from trainer.training import training_folder


def serve(lake: Lake, stage: str, address: str | None, workers: int, announce: Callable[[str, dict[str, Any]], None]) -> None:
    """Start the service of a lake with a stage's model, and say where it is.

    With an address: leave it in that cluster (it goes on by itself). Without: start a local cluster and stay until SIGTERM
    or Ctrl-C. Raises BadInput without a model, without a cluster at the address, or if a service of other sizes runs there.
    """
    folder = training_folder(lake, stage)
    model = load_model(folder).model
    version = next(name for name in model_files(folder) if name.endswith(".safetensors")).removesuffix(".safetensors")
    with cluster(address, cpus=workers + 1) as where:
        service = RolloutService.start_or_find(namespace_of(lake.root), model, version, workers)
        announce(where, {"stage": stage, "weights": version, "workers": len(service.actors)})
        if address is None:
            _until_told()


def stop(lake: Lake, address: str) -> str:
    """End the service of a lake in a cluster. Raises BadInput if none runs there."""
    with joined_cluster(address):
        service = RolloutService.find(namespace_of(lake.root))
        if service is None:
            raise BadInput(f"--address {address}: no rollout service of {lake.root} runs there")
        service.stop()
    return "stopped"


def _until_told() -> None:
    """Wait for SIGTERM or Ctrl-C."""
    told = threading.Event()
    former = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        told.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
