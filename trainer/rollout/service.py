"""The trainer's side of the rollout service: finds or starts its actors, asks for rollouts, pushes weights.

The actors are named, detached and in a namespace of their lake, so they outlive the trainer that started them and the next
one finds them again. Weights go once into Ray's object store, whatever the number of actors. Each rollout says which weights
made it. Work is cut into pieces of CONTEXTS_PER_CALL contexts, each with a seed of its own, so that the number of actors
changes the speed and not one sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import BadInput, OnerecError
from schemas.registry import text_sha256
from trainer.batches import RequestBatch
from trainer.model.onerec import OneRec
from trainer.rollout.generator import Generator
from trainer.rollout.wire import contexts_to_arrays, rows_of, weights_to_arrays

CONTEXTS_PER_CALL = 8
CALL_SECONDS = 300.0


@dataclass(frozen=True)
class Rollouts:
    """Samples of one call: B contexts, G samples each, L layers."""

    codes_BGL: torch.Tensor
    """int64."""
    log_probs_BGL: torch.Tensor
    """float32, of each token, by the weights that sampled it."""
    versions: tuple[str, ...]
    """The weights that were used, each once."""


@dataclass(frozen=True)
class PendingRollouts:
    """Rollouts under way."""

    references: Sequence[Any]


def namespace_of(lake_root: str) -> str:
    """Ray's namespace for a lake's actors."""
    return f"onerec-{text_sha256(lake_root)[:12]}"


class RolloutService:
    """A pool of generating actors in the cluster that this process has joined."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)

    @classmethod
    def start_or_find(cls, namespace: str, model: OneRec, version: str, workers: int) -> "RolloutService":
        """The pool of a namespace, the one that runs or a new one of ``workers`` actors, with these weights.

        Raises BadInput if a running pool serves a model of other sizes.
        """
        found = cls.find(namespace)
        if found is not None:
            served = found.describe()[0]["config"]
            if served != model.config.to_json():
                raise BadInput(
                    f"the rollout service serves a model of other sizes (preset {served.get('preset')!r}); "
                    "stop it with `onerec rollout-service --stop` and run again"
                )
            found.load_weights(version, model)
            return found
        import ray

        weights = ray.put(weights_to_arrays(model.state_dict()))
        remote: Any = ray.remote(Generator)
        actors = [
            # One that is left of a pool whose first died is taken over. None restarts by itself: it would come back with
            # the weights it began with.
            remote.options(name=_name(number), namespace=namespace, lifetime="detached", num_cpus=0, get_if_exists=True).remote(
                model.config.to_json(), version, weights
            )
            for number in range(workers)
        ]
        pool = cls(actors)
        pool.load_weights(version, model)
        return pool

    @classmethod
    def find(cls, namespace: str) -> "RolloutService | None":
        """The running pool of a namespace, None if there is none."""
        import ray

        actors: list[Any] = []
        while True:
            try:
                actors.append(ray.get_actor(_name(len(actors)), namespace=namespace))
            except ValueError:  # what Ray raises for a name that nobody has
                return cls(actors) if actors else None

    def describe(self) -> list[dict[str, Any]]:
        """Model sizes and weights' version of each actor; waits until all are ready."""
        answers: list[dict[str, Any]] = self._get([actor.describe.remote() for actor in self.actors])
        return answers

    def load_weights(self, version: str, model: OneRec) -> None:
        """Give every actor these weights under this name; rollouts asked for later come from them."""
        import ray

        weights = ray.put(weights_to_arrays(model.state_dict()))
        self._get([actor.load_weights.remote(version, weights) for actor in self.actors])

    def submit(self, contexts: RequestBatch, group_size: int, temperature: float, seed: int) -> PendingRollouts:
        """Begin rollouts of ``group_size`` samples a context; they come from the weights pushed so far."""
        arrays = contexts_to_arrays(contexts)
        references = []
        for number, start in enumerate(range(0, len(contexts), CONTEXTS_PER_CALL)):
            actor = self.actors[number % len(self.actors)]
            part = rows_of(arrays, start, start + CONTEXTS_PER_CALL)
            references.append(actor.generate.remote(part, group_size, temperature, _seed(seed, number)))
        return PendingRollouts(references)

    def collect(self, pending: PendingRollouts) -> Rollouts:
        """Wait for rollouts. Raises OnerecError when an actor died or does not answer in time."""
        parts = self._get(pending.references)
        return Rollouts(
            torch.from_numpy(np.concatenate([_array(part["codes"]) for part in parts]).astype(np.int64)),
            torch.from_numpy(np.concatenate([_array(part["log_probs"]) for part in parts]).astype(np.float32)),
            tuple(sorted({part["version"] for part in parts})),
        )

    def generate(self, contexts: RequestBatch, group_size: int, temperature: float, seed: int) -> Rollouts:
        """Submit and collect."""
        return self.collect(self.submit(contexts, group_size, temperature, seed))

    def stop(self) -> None:
        """End the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def _get(self, references: Sequence[Any]) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            return ray.get(list(references), timeout=CALL_SECONDS)
        except RayActorError as error:
            raise OnerecError(
                f"a rollout actor died ({type(error).__name__}); see Ray's logs under /tmp/ray, then run the command again"
            ) from error
        except GetTimeoutError as error:
            raise OnerecError(f"the rollout service did not answer within {CALL_SECONDS:.0f} s; stop it and run again") from error


def _name(number: int) -> str:
    return f"generator-{number}"


def _seed(seed: int, number: int) -> int:
    """A seed of its own for each piece of work, the same on every machine."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


def _array(value: Any) -> NDArray[np.generic]:
    return np.asarray(value)
