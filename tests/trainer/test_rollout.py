"""The rollout service: what travels, what the actors answer, and a service that outlives its trainer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onerec.command_line import run as onerec
from schemas.errors import BadInput
from tests.trainer.made_batches import made_batch, small_config
from trainer.checkpoints import save_model
from trainer.generation import sample
from trainer.model.onerec import OneRec
from trainer.rollout.cluster import joined_cluster, local_cluster
from trainer.rollout.generator import Generator
from trainer.rollout.service import CONTEXTS_PER_CALL, RolloutService
from trainer.rollout.wire import contexts_from_arrays, contexts_to_arrays, weights_from_arrays, weights_to_arrays


def small_model(seed: int = 0) -> OneRec:
    torch.manual_seed(seed)
    return OneRec(small_config()).eval()


class TestWire:
    def test_the_model_sees_the_same_context_after_the_journey(self) -> None:
        batch, model = made_batch(small_config()), small_model()
        arrived = contexts_from_arrays(contexts_to_arrays(batch))
        torch.testing.assert_close(model.encode(arrived), model.encode(batch), rtol=0, atol=0)

    def test_no_target_label_or_name_travels(self) -> None:
        arrived = contexts_from_arrays(contexts_to_arrays(made_batch(small_config())))
        assert arrived.tokens_BTL.shape[1] == arrived.feedback_BT.shape[1] == 0
        assert set(arrived.user_ids) == {""}

    def test_weights_of_half_precision_arrive_exactly(self) -> None:
        state = {"weight": torch.randn(5, 3).bfloat16(), "count": torch.arange(3)}
        arrays = weights_to_arrays(state)
        assert arrays["weight"].dtype == "float32"
        back = weights_from_arrays(arrays)
        assert torch.equal(back["weight"].bfloat16(), state["weight"])
        assert torch.equal(back["count"], state["count"])


class TestGenerator:
    def test_samples_are_those_of_its_weights_and_the_seed(self) -> None:
        model, other, batch = small_model(), small_model(1), made_batch(small_config())
        generator = Generator(model.config.to_json(), "a", weights_to_arrays(model.state_dict()))
        contexts = contexts_to_arrays(batch)
        first = generator.generate(contexts, 6, 1.0, 5)
        codes, log_probs = sample(model, batch, 6, 1.0, torch.Generator().manual_seed(5))
        assert first["version"] == "a"
        assert first["codes"].tolist() == codes.tolist()
        torch.testing.assert_close(torch.from_numpy(first["log_probs"]), log_probs)
        assert generator.load_weights("b", weights_to_arrays(other.state_dict())) == "b"
        second = generator.generate(contexts, 6, 1.0, 5)
        assert second["version"] == "b"
        assert second["log_probs"].tolist() != first["log_probs"].tolist()

    def test_its_module_brings_nothing_heavy(self) -> None:
        code = "import sys, trainer.rollout.generator; print({'torch', 'ray', 'pyarrow'} & set(sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("address", "said"), [("127.0.0.1:1", "no Ray cluster answers"), ("nonsense", "no address"), ("127.0.0.1:x", "no address")]
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, said: str) -> None:
    with pytest.raises(BadInput, match=said), joined_cluster(address):
        pass


@pytest.mark.slow
def test_a_pool_generates_the_same_whatever_its_size_and_leaves_no_trace() -> None:
    batch, model = made_batch(small_config(), requests=CONTEXTS_PER_CALL * 2 + 3), small_model()
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    results = []
    for workers in (1, 2):  # twice in one process, as a long-lived worker does
        with local_cluster(cpus=2) as address:
            assert address.startswith("127.")
            service = RolloutService.start_or_find("test", model, "first", workers)
            rollouts = service.generate(batch, 4, 1.0, 3)
            assert rollouts.versions == ("first",)
            service.load_weights("second", small_model(1))
            after = service.generate(batch, 4, 1.0, 3)
            assert after.versions == ("second",)
            results.append((rollouts.codes_BGL, after.codes_BGL))
            with pytest.raises(BadInput, match="other sizes"):
                RolloutService.start_or_find("test", OneRec(small_config(d_model=32)), "third", 1)
    assert results[0][0].shape == (len(batch), 4, 3)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
def test_the_service_outlives_the_trainers_that_use_it(make_lake) -> None:
    """Two trainers come and go; the pool stays, with the weights of the last, until the service is stopped."""
    lake = make_lake()
    save_model(lake.local_path("training", "rsft"), small_model(), {})
    command = [sys.executable, "-m", "onerec", "rollout-service", "--lake", lake.root, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        trainer = f"""
import sys
from tests.trainer.test_rollout import *
from trainer.rollout.service import namespace_of
with joined_cluster({address!r}):
    service = RolloutService.find(namespace_of({lake.root!r}))
    print(service.describe()[0]["version"])
    service.load_weights(sys.argv[1], small_model(1))
    service.generate(made_batch(small_config()), 2, 1.0, 0)
"""
        seen = [
            subprocess.run(
                [sys.executable, "-c", trainer, name], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
            ).stdout.strip()
            for name in ("one", "two")
        ]
        assert seen[0].startswith("model-")
        assert seen[1] == "one"
        assert onerec(["rollout-service", "--lake", lake.root, "--address", address, "--stop"]) == 0
        assert onerec(["rollout-service", "--lake", lake.root, "--address", address, "--stop"]) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
