"""The fusion model: masked attention, exact artefacts, training that resumes, and retrieval better than any one modality."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from schemas.config import Config, FusionSection, parse_config
from schemas.errors import BadInput
from schemas.registry import Registry
from tokenization import fusion_training
from tokenization.encoders import KINDS, unit_rows
from tokenization.fusion_model import FUSION_FILE, FusionModel, FusionShape, fusion_bytes, load_fusion
from tokenization.fusion_training import FusionData, pair_recall, split_pairs, train_fusion
from tokenization.modalities import presence, vector_matrix

SHAPE = FusionShape({"text": 12, "image": 7, "audio": 5}, dim=16, queries=3, layers=2, heads=2)


def random_inputs(items: int = 9) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(1)
    vectors = {kind: unit_rows(random.normal(size=(items, dim))) for kind, dim in SHAPE.inputs.items()}
    present = random.random((items, 3)) < 0.6
    present[:, 0] |= ~present.any(axis=1)
    return vectors, present


def correlated_items(items: int = 240) -> tuple[FusionData, list[str]]:
    """Items whose latent taste is seen half by text, half by image, with noise; pairs are the nearest in taste."""
    random = np.random.default_rng(3)
    tastes = np.repeat(random.normal(size=(24, 8)), items // 24, axis=0) + 0.4 * random.normal(size=(items, 8))
    views = {}
    for kind, seen, dim in (("text", slice(0, 4), 48), ("image", slice(4, 8), 40)):
        views[kind] = unit_rows(tastes[:, seen] @ random.normal(size=(4, dim)) + 1.2 * random.normal(size=(items, dim)))
    distance = ((tastes[:, None] - tastes[None]) ** 2).sum(axis=-1)
    nearest = distance.argsort(axis=1)[:, 1:7]
    pairs = np.unique(np.sort(np.stack([np.repeat(np.arange(items), 6), nearest.ravel()], axis=1), axis=1), axis=0)
    present = np.ones((items, 2), bool)
    present[::9, 1] = False
    views["image"][~present[:, 1]] = 0
    return FusionData(views, present, pairs), [f"i{n}" for n in range(items)]


class TestModel:
    def test_vectors_are_of_unit_length_and_do_not_depend_on_the_batch(self) -> None:
        vectors, present = random_inputs()
        model = FusionModel(SHAPE)
        torch.nn.init.normal_(model.join.weight)
        fused = model.fuse(vectors, present)
        assert fused.shape == (9, 16)
        assert fused.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(model.fuse(vectors, present, batch_size=2), fused, atol=1e-6)
        assert model.fuse({kind: rows[:0] for kind, rows in vectors.items()}, present[:0]).shape == (0, 16)

    def test_what_is_absent_makes_no_difference(self) -> None:
        vectors, present = random_inputs()
        model = FusionModel(SHAPE)
        torch.nn.init.normal_(model.join.weight)
        other = {kind: np.where(present[:, [i]], rows, 9.0).astype(np.float32) for i, (kind, rows) in enumerate(vectors.items())}
        np.testing.assert_array_equal(model.fuse(other, present), model.fuse(vectors, present))

    def test_what_is_present_does(self) -> None:
        vectors, present = random_inputs()
        model = FusionModel(SHAPE)
        turned = vectors | {"text": np.roll(vectors["text"], 1, axis=1)}
        changed = np.abs(model.fuse(turned, present) - model.fuse(vectors, present)).max(axis=1) > 1e-3
        np.testing.assert_array_equal(changed, present[:, 0])

    def test_the_kinds_are_in_the_order_of_the_mask(self) -> None:
        assert FusionShape({"audio": 5, "text": 12}, dim=16).kinds == ("text", "audio")
        np.testing.assert_array_equal(presence([0b101, 0b010], ("text", "audio"), KINDS), [[True, True], [False, False]])

    def test_a_dimension_that_the_heads_do_not_divide(self) -> None:
        with pytest.raises(BadInput, match=r"fusion\.dim 10 is not a multiple of fusion\.heads 4"):
            FusionShape({"text": 3}, dim=10)


class TestArtefact:
    def test_round_trip(self, tmp_path: Path) -> None:
        vectors, present = random_inputs()
        model = FusionModel(SHAPE)
        registry = Registry(tmp_path)
        assert fusion_bytes(model) == fusion_bytes(model)
        registry.publish("fusion", {"shape": SHAPE.to_json()}, {FUSION_FILE: fusion_bytes(model)})
        artefact, loaded = load_fusion(registry)
        assert artefact.metadata["shape"]["dim"] == 16
        np.testing.assert_array_equal(loaded.fuse(vectors, present), model.fuse(vectors, present))

    @pytest.mark.parametrize(
        "shape",
        [
            {"inputs": {"text": 12}},
            SHAPE.to_json() | {"dim": 32},
            SHAPE.to_json() | {"inputs": {"text": 2**50, "image": 7, "audio": 5}},
            SHAPE.to_json() | {"layers": 10**9},
            SHAPE.to_json() | {"unknown": 1},
        ],
    )
    def test_a_shape_that_is_not_the_weights(self, tmp_path: Path, shape: dict[str, object]) -> None:
        registry = Registry(tmp_path)
        registry.publish("fusion", {"shape": shape}, {FUSION_FILE: fusion_bytes(FusionModel(SHAPE))})
        with pytest.raises(BadInput, match="not a fusion model of this version"):
            load_fusion(registry)

    def test_bytes_that_are_no_weights(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path)
        registry.publish("fusion", {"shape": SHAPE.to_json()}, {FUSION_FILE: b"\x80\x04not safetensors"})
        with pytest.raises(BadInput, match="not a fusion model of this version"):
            load_fusion(registry)


class TestPairs:
    def test_the_held_out_share_is_stable_and_goes_by_ids(self) -> None:
        pairs = np.array([(a, b) for a in range(40) for b in range(a + 1, 40)])
        ids = [f"i{n}" for n in range(40)]
        training, held = split_pairs(pairs, ids)
        assert 0.05 < len(held) / len(pairs) < 0.16
        assert len(training) + len(held) == len(pairs)
        backwards = split_pairs(39 - pairs, ids[::-1])[1]
        assert {frozenset(pair) for pair in (39 - backwards).tolist()} == {frozenset(pair) for pair in held.tolist()}

    def test_few_pairs_are_all_for_training(self) -> None:
        pairs = np.array([(0, 1), (1, 2)])
        training, held = split_pairs(pairs, ["a", "b", "c"])
        assert len(training) == 2
        assert pair_recall(np.eye(3, dtype=np.float32), training, held) is None

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10_000), st.integers(2, 14), st.integers(1, 6))
    def test_recall_against_its_definition(self, seed: int, items: int, k: int) -> None:
        random = np.random.default_rng(seed)
        vectors = random.integers(-2, 3, (items, 2)).astype(np.float32)
        every = np.array([(a, b) for a in range(items) for b in range(a + 1, items)])
        random.shuffle(every)
        held, training = every[: 1 + len(every) // 3], every[1 + len(every) // 3 :]
        hits = 0
        for a, b in np.concatenate([held, held[:, ::-1]]).tolist():
            partners = {x for pair in training.tolist() if a in pair for x in pair}
            rivals = [i for i in range(items) if i not in partners | {a, b} and vectors[i].any()]
            better = sum(vectors[a] @ vectors[i] >= vectors[a] @ vectors[b] for i in rivals)
            hits += bool(vectors[a].any() and vectors[b].any() and better < k)
        assert pair_recall(vectors, training, held, k) == pytest.approx(hits / (2 * len(held)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_similarity_that_is_no_number_finds_nothing(self, bad: float) -> None:
        pairs = np.array([(0, 1), (2, 3)])
        vectors = np.eye(4, dtype=np.float32)
        vectors[2] = bad
        with np.errstate(invalid="ignore"):
            assert pair_recall(vectors, pairs[:0], pairs, 50) == 0.5, "the other pair is found, both ways"
            assert pair_recall(np.full((4, 4), bad, np.float32), pairs[:0], pairs, 50) == 0


class TestDivergence:
    SECTION = FusionSection(dim=16, queries=2, layers=1, heads=2, steps=3, batch_size=32)

    def trained(self, section: FusionSection, **more: Any) -> None:
        data, _ = correlated_items(48)
        dims = {kind: rows.shape[1] for kind, rows in data.vectors.items()}
        train_fusion(FusionShape(dims, section.dim, section.queries, section.layers, section.heads), data, section, **more)

    @pytest.mark.parametrize("setting", ["temperature", "learning_rate"])
    @pytest.mark.parametrize("value", ["0", "-0.1"])
    def test_settings_that_cannot_train_are_refused(self, setting: str, value: str) -> None:
        with pytest.raises(BadInput, match=rf"--set: fusion\.{setting}: .*greater than 0"):
            parse_config(Config().to_yaml(), "onerec.yaml", [f"fusion.{setting}={value}"])

    def test_the_first_loss_that_is_not_finite_ends_the_training(self, tmp_path: Path) -> None:
        heard: list[float] = []
        without = self.SECTION.model_copy(update={"temperature": 0.0})  # what the configuration refuses
        with pytest.raises(BadInput, match=r"diverged: its loss is nan at step 1 of 3; lower fusion\.learning_rate"):
            self.trained(without, checkpoints=tmp_path, progress=lambda _, loss: heard.append(loss))
        assert heard == []
        assert not list(tmp_path.iterdir())

    def test_weights_that_the_last_step_spoilt_are_no_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fusion_training, "CHECKPOINT_STEPS", 3)
        self.trained(self.SECTION, checkpoints=tmp_path)
        [path] = tmp_path.iterdir()
        tensors = load(path.read_bytes())
        name = min(one for one in tensors if one.startswith("model."))
        path.write_bytes(save(tensors | {name: torch.full_like(tensors[name], torch.nan)}, {"step": "3"}))
        with pytest.raises(BadInput, match="diverged: its weights are not finite after step 3"):
            self.trained(self.SECTION, checkpoints=tmp_path)


class TestVectorMatrix:
    def test_nulls_are_zero_rows_and_slices_are_respected(self) -> None:
        column = pa.chunked_array([pa.array([[9.0], [1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32())).slice(1)])
        np.testing.assert_array_equal(vector_matrix(column), [[1, 2], [0, 0], [3, 4]])
        np.testing.assert_array_equal(vector_matrix(pa.array([None], pa.list_(pa.float32())), 3), [[0, 0, 0]])

    def test_chunks_follow_each_other_whatever_they_hold(self) -> None:
        kind = pa.list_(pa.float32())
        parts = [[[1.0, 2.0]], [], [None, None], [[3.0, 4.0], None, [5.0, 6.0]]]
        column = pa.chunked_array([pa.array(part, kind) for part in parts], kind)
        np.testing.assert_array_equal(vector_matrix(column), [[1, 2], [0, 0], [0, 0], [3, 4], [0, 0], [5, 6]])
        assert vector_matrix(pa.chunked_array([], kind), 3).shape == (0, 3)

    def test_more_numbers_than_32_bit_offsets_count_are_read(self) -> None:
        """A mebibyte that stands for 2 GiB, of lists too long: the case costs no memory, since their lengths are refused."""
        chunk = pa.ListArray.from_arrays(pa.array([0, 2**20], pa.int32()), pa.array(np.zeros(2**20, np.int8)))
        with pytest.raises(BadInput, match=r"lengths \[1048576\] where 4 was expected"):
            vector_matrix(pa.chunked_array([chunk] * 2**11), 4)

    def test_other_lengths_are_refused(self) -> None:
        with pytest.raises(BadInput, match="lengths"):
            vector_matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())))
        with pytest.raises(BadInput, match="where 4 was expected"):
            vector_matrix(pa.array([[1.0]], pa.list_(pa.float32())), 4)


@pytest.mark.slow
class TestTraining:
    SECTION = FusionSection(dim=32, queries=2, layers=1, heads=2, steps=120, batch_size=128)

    def shape(self, data: FusionData) -> FusionShape:
        section = self.SECTION
        dims = {kind: rows.shape[1] for kind, rows in data.vectors.items()}
        return FusionShape(dims, section.dim, section.queries, section.layers, section.heads)

    def test_fused_vectors_retrieve_held_out_pairs_better_than_any_modality(self) -> None:
        data, ids = correlated_items()
        training, held = split_pairs(data.pairs, ids)
        model, losses = train_fusion(self.shape(data), FusionData(data.vectors, data.present, training), self.SECTION)
        assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
        fused = pair_recall(model.fuse(data.vectors, data.present), training, held, 10)
        alone = [pair_recall(rows, training, held, 10) for rows in data.vectors.values()]
        assert fused is not None
        assert fused > 1.1 * max(recall for recall in alone if recall is not None)

    def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_one_alone(self) -> None:
        data, _ = correlated_items(48)
        section = self.SECTION.model_copy(update={"steps": 5})
        torch.manual_seed(77)
        before = torch.random.get_rng_state()
        one, other = (fusion_bytes(train_fusion(self.shape(data), data, section)[0]) for _ in range(2))
        assert one == other
        assert torch.equal(before, torch.random.get_rng_state())
        changed = train_fusion(self.shape(data), data, section.model_copy(update={"seed": 1}))[0]
        assert fusion_bytes(changed) != one

    def test_a_run_that_was_killed_ends_in_the_weights_of_one_that_was_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, _ = correlated_items(48)
        section = self.SECTION.model_copy(update={"steps": 12})
        monkeypatch.setattr(fusion_training, "CHECKPOINT_STEPS", 5)

        def kill(done: int, _: float) -> None:
            if done == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_fusion(self.shape(data), data, section, checkpoints=tmp_path, progress=kill)
        resumed, losses = train_fusion(self.shape(data), data, section, checkpoints=tmp_path)
        assert len(losses) == 7
        assert fusion_bytes(resumed) == fusion_bytes(train_fusion(self.shape(data), data, section)[0])

    def test_a_damaged_checkpoint_means_a_start_from_nothing(self, tmp_path: Path) -> None:
        data, _ = correlated_items(48)
        section = self.SECTION.model_copy(update={"steps": 3})
        (tmp_path / fusion_training.CHECKPOINT_FILE).write_bytes(b"half a file")
        assert len(train_fusion(self.shape(data), data, section, checkpoints=tmp_path)[1]) == 3
