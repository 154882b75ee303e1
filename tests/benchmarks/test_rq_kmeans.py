"""The contest is fair and says what it found: equal beams, the peer's final error, float64 as judge, keys as promised."""

import importlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import harness, rq_kmeans
from benchmarks.rq_kmeans import Plan, main
from benchmarks.rq_kmeans_data import Dataset, clustered, published, repeated_share, simulated
from benchmarks.rq_kmeans_kernels import VARIABLE, choose_kernel
from benchmarks.rq_kmeans_peers import faiss_kmeans, faiss_rq, sklearn_minibatch, superkmeans, unpacked
from benchmarks.rq_kmeans_quality import (
    BEAM_PEERS,
    GREEDY_PEERS,
    OURS,
    OURS_BEAM,
    PEERS,
    figures_of,
    of_trainings,
    score_published,
)
from benchmarks.rq_kmeans_refresh import changed_share
from benchmarks.rq_kmeans_speed import Growth, differences, seconds_until, squared_error, variance
from benchmarks.rq_kmeans_vae import Codebook, Training, nearest
from benchmarks.rq_kmeans_worker import TASKS, Answer, ChildFailed, Job, ask, with_codebooks
from tokenization.residual import decode

TINY = Plan(
    codes=8,
    items=200,
    clusters=(300, 16, 8),
    race=(400, 32, 8),
    growth=Growth(100, 4, 4, (1, 2, 4), 2, 1),
    iterations=4,
    epochs=2,
    large_epochs=2,
    rounds=1,
    descriptions=False,
    gpu=(300, 16, 8),
)


def answer_here(job, folder, environment=None):
    """What a child would answer, without its start."""
    module, _, name = TASKS[job.task].partition(":")
    answer = getattr(importlib.import_module(module), name)(np.load(job.vectors), job)
    return Answer(json.loads(json.dumps(answer.numbers)), answer.arrays)


@pytest.mark.slow
def test_the_closing_object_has_the_promised_figures(monkeypatch, capsys):
    def stand_in(folder, rows, sizes, seed):
        return replace(clustered(folder, rows, 16, sizes, seed), name="simulated")

    for module in ("kernels", "quality", "speed"):
        monkeypatch.setattr(f"benchmarks.rq_kmeans_{module}.ask", answer_here)
    monkeypatch.setattr("benchmarks.rq_kmeans.simulated", stand_in)
    monkeypatch.setattr("benchmarks.rq_kmeans.industrial", lambda *_told: None)
    monkeypatch.setattr(sys, "argv", ["rq_kmeans", "--quick"])
    main(TINY)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "rq_kmeans"
    figures = result["figures"]
    assert set(figures["fit_time_ratio"]) == {"faiss", "superkmeans", "sklearn", "sklearn_minibatch", "faiss_rq"}
    assert set(figures["encode_time_ratio"]) == {"faiss"}
    assert set(figures["error_ratio"]) == {"simulated", "clustered"}
    for name, ratios in figures["error_ratio"].items():
        assert set(ratios) == {"faiss_kmeans", "faiss_rq_beam1", "faiss_rq_beam5", "sklearn_minibatch", "rq_vae"}
        assert all(ratio > 0 for ratio in ratios.values())
        assert len(figures["utilization"][name]) == len(figures["entropy_ratio"][name]) == 3
        assert isinstance(figures["entropy_margin"][name], float)
        assert {"ours", *ratios} <= set(figures["collision_share"][name])
    assert 0 <= figures["churn_warm"] <= 1
    assert 0 <= figures["churn_cold"] <= 1
    assert {"faiss", "ours"} <= set(figures["kernels"])
    assert figures["encode"]["rows"] == 400


def test_parts_are_kept_beside_those_that_were_there(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(rq_kmeans, "choose_kernel", lambda *_: ({}, {"chosen": "as installed"}))
    contest = {OURS: metrics(2.0, 3.0) | {"path": "float32"}, OURS_BEAM: metrics(1.0, 3.0)}
    contest |= {peer: of_trainings([metrics(4.0, 2.0)]) for peer in PEERS}
    monkeypatch.setattr(rq_kmeans.Contest, "run", lambda *_: contest)
    monkeypatch.setattr(rq_kmeans, "churn", lambda *_: {"churn_warm": 0.01})
    for number, parts in enumerate((["clusters"], ["refresh"], ["clusters", "refresh"])):
        monkeypatch.setattr(rq_kmeans, "stamp", lambda number=number: {"date": str(number)})
        monkeypatch.setattr(rq_kmeans, "simulated", lambda folder, rows, sizes, seed: clustered(folder, rows, 16, sizes, seed))
        monkeypatch.setattr(sys, "argv", ["rq_kmeans", "--keep", "--parts", *parts])
        main(TINY)
        kept = json.loads((tmp_path / "rq_kmeans.json").read_text())["figures"]
        expected = [{"clusters": "0"}, {"clusters": "0", "refresh": "1"}, {"clusters": "2", "refresh": "2"}][number]
        assert {part: stamp["date"] for part, stamp in kept["measured"].items()} == expected
        assert kept["error_ratio"]["clustered"]["rq_vae"] == 0.5
        assert kept.get("churn_warm") == (None if number == 0 else 0.01)


def test_the_time_counts_until_the_last_layer_is_as_good_as_the_peer():
    trace = [(1.0, 1, 1, 50.0), (2.0, 2, 1, 12.0), (3.0, 2, 2, 10.0), (4.0, 2, 3, 9.0)]
    assert seconds_until(trace, 2, 10.0) == 3.0
    assert seconds_until(trace, 2, 60.0) == 2.0  # the first layer does not count, however good
    assert seconds_until(trace, 2, 8.0) is None
    assert seconds_until([*trace, (5.0, 0, 1, 7.5)], 2, 8.0) == 5.0  # refined


def metrics(error, *entropies):
    layers = [{"utilization": 1.0, "entropy": entropy, "entropy_ratio": entropy / 4} for entropy in entropies]
    return {"reconstruction_error": error, "collision_share": 0.0, "layers": layers}


def test_errors_and_entropies_are_compared_at_equal_beam():
    table = {OURS: metrics(2.0, 3.0, 2.0), OURS_BEAM: metrics(1.0, 3.5, 2.5)}
    table |= {peer: of_trainings([metrics(4.0, 2.0, 2.2)]) for peer in GREEDY_PEERS}
    table |= {peer: of_trainings([metrics(4.0, 3.0, 2.0)]) for peer in BEAM_PEERS}
    figures = figures_of({"data": table})
    assert figures["error_ratio"]["data"] == {peer: 0.25 if peer in BEAM_PEERS else 0.5 for peer in PEERS}
    assert figures["entropy_margin"]["data"] == pytest.approx(min((5 - 4.2) / 2, (6 - 5) / 2))
    assert figures["entropy_margin_layers"]["data"] == pytest.approx([min(1, 0.5), min(-0.2, 0.5)])
    assert figures["entropy_ratio"]["data"] == [0.75, 0.5]


def test_a_peer_has_its_least_error_and_the_highest_entropies_of_all_its_trainings():
    table = {OURS: metrics(2.0, 4.0, 4.0), OURS_BEAM: metrics(2.0, 4.0, 4.0)}
    table |= {peer: of_trainings([metrics(4.0, 1.0, 1.0)]) for peer in PEERS}
    peer = GREEDY_PEERS[1]
    table[peer] = of_trainings([metrics(3.0, 3.5, 2.0), metrics(2.5, 2.5, 2.5), metrics(3.5, 2.0, 3.25)])
    figures = figures_of({"data": table})
    assert figures["error_ratio"]["data"][peer] == pytest.approx(2.0 / 2.5)
    assert figures["entropy_margin"]["data"] == pytest.approx(4 - (3.5 + 2) / 2)
    assert figures["entropy_margin_layers"]["data"] == pytest.approx([0.5, 0.75])


def test_float64_judges_codes_that_differ():
    books = [np.array([[0.0], [1.0]], np.float32), np.array([[0.0], [0.25]], np.float32)]
    vectors = np.array([[0.1], [1.2], [0.9]], np.float32)
    fitted = Answer({}, with_codebooks(books))
    ours = Answer({}, {"codes": np.array([[0, 0], [1, 1], [0, 0]], np.uint16)})
    theirs = Answer({}, {"codes": np.array([[0, 0], [1, 0], [1, 0]], np.uint16)})
    found = differences(vectors, fitted, ours, theirs)
    assert found == {"rows": 3, "different_codes": 2, "ours_nearer": 1, "faiss_nearer": 1}


@pytest.mark.slow
def test_simulated_items_are_embedded_with_their_true_subtopics(tmp_path):
    data = simulated(tmp_path, 12, (4,), seed=3)
    vectors = np.load(data.vectors)
    assert vectors.shape == (12, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert data.labels is not None
    assert {int(label) for label in data.labels} <= set(range(72))


@pytest.mark.slow
def test_published_codes_are_those_that_the_reference_measured(real_data):
    real_data("published-codebooks")
    found = {codes.name: score_published(codes) for codes in published()}
    distinct = {name: metrics["distinct_codes"] for name, metrics in found.items()}
    assert distinct["tiger_rqkmeans_beauty"] == 7840
    assert distinct["tiger_rqvae_beauty"] == 11412
    used = [layer["utilization"] * 256 for layer in found["minionerec_rqvae_industrial"]["layers"]]
    assert used == [48, 256, 256]


def test_published_codes_of_items_with_brands_say_how_much_of_the_brand_they_tell(tmp_path, monkeypatch):
    (folder := tmp_path / "amazon-industrial").mkdir()
    brands = ["a", "a", "b", "b", ""]  # of the last one nothing is known
    codes = [["<a_1>", "<b_0>"], ["<a_1>", "<b_7>"], ["<a_2>", "<b_0>"], ["<a_2>", "<b_7>"], ["<a_1>", "<b_7>"]]
    (folder / "index.json").write_text(json.dumps({str(number): [*code, "<c_3>"] for number, code in enumerate(codes)}))
    items = [{"title": "", "description": "", "brand": brand} for brand in brands]
    (folder / "item.json").write_text(json.dumps({str(number): row for number, row in enumerate(items)}))
    for name in ("valid.csv", "test.csv"):
        (folder / name).write_text("user_id,history_item_id,item_id\n")
    monkeypatch.setenv("ONEREC_REAL_DATA", str(tmp_path))
    (found,) = published()
    assert found.codes.tolist() == [[1, 0, 3], [1, 7, 3], [2, 0, 3], [2, 7, 3], [1, 7, 3]]
    assert score_published(found)["prefixes"][0]["nmi"] == pytest.approx(1)
    assert score_published(found)["prefixes"][2]["nmi"] == pytest.approx(2 / 3)
    (folder / "item.json").unlink()
    assert "nmi" not in score_published(published()[0])["prefixes"][0]


def test_equal_vectors_are_counted(tmp_path):
    np.save(tmp_path / "some.npy", np.array([[1, 2], [1, 2], [3, 4], [1, 2]], np.float32))
    assert repeated_share(Dataset("some", tmp_path / "some.npy", (2,))) == 0.75


@pytest.mark.parametrize("bits", [[8, 8, 8], [3, 5], [11, 11, 11], [1, 16]])
def test_faiss_codes_are_read_bit_by_bit(bits):
    codes = np.random.default_rng(0).integers(0, [2**width for width in bits], (20, len(bits)))
    places = np.cumsum([0, *bits[:-1]])
    whole = [sum(int(token) << int(place) for token, place in zip(row, places, strict=True)) for row in codes]
    packed = [list(number.to_bytes(-(-sum(bits) // 8), "little")) for number in whole]
    assert (unpacked(np.array(packed, np.uint8), bits) == codes).all()


@pytest.mark.parametrize(
    ("fit", "told"),
    [
        (faiss_kmeans, {"init": "RANDOM"}),
        (faiss_kmeans, {"init": "KMEANS_PLUS_PLUS"}),
        (superkmeans, {}),
        (faiss_rq, {"beam": 1}),
        (faiss_rq, {"beam": 5, "train_type": ["Train_default", "Train_refine_codebook"]}),
        (sklearn_minibatch, {}),
    ],
)
def test_every_peer_gives_codes_of_its_own_codebooks(fit, told, tmp_path):
    data = clustered(tmp_path, 400, 32, (8, 4), seed=1)
    vectors = np.load(data.vectors)
    answer = fit(vectors, Job("", "", data.sizes, 5, 0, threads=1, options=told))
    assert [book.shape for book in answer.codebooks] == [(8, 32), (4, 32)]
    decoded = decode(answer.arrays["codes"], answer.codebooks)
    error = squared_error(vectors, answer)
    assert error == pytest.approx(float(((vectors - decoded) ** 2).sum()), rel=1e-4)
    assert error < 0.9 * variance(vectors)


def test_vectors_depend_on_the_seed_alone(tmp_path):
    made = []
    for number, seed in enumerate((1, 1, 2)):
        (folder := tmp_path / str(number)).mkdir()
        made.append(np.load(clustered(folder, 70_000, 4, (4,), seed).vectors))
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()


def test_a_kernel_that_someone_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "Haswell")
    asked = []

    def answer(job, folder, environment):
        asked.append(environment)
        return Answer({"seconds": 1.0, "error": 0.0, "architecture": "Haswell"})

    monkeypatch.setattr("benchmarks.rq_kmeans_kernels.ask", answer)
    environment, report = choose_kernel("vectors.npy", tmp_path, 1)
    assert (environment, asked) == ({}, [{}])
    assert report["set_already"] == "Haswell"


def test_the_fastest_kernel_that_computes_right_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    seconds = {"Haswell": 2.0, "Zen": 3.0, "SkylakeX": 1.0}

    def answer(job, folder, environment):
        name = environment.get(VARIABLE, "as installed")
        if name in ("Cooperlake", "SapphireRapids"):
            raise ChildFailed("exit -4")
        return Answer({"seconds": seconds.get(name, 9.0), "error": float(name == "SkylakeX"), "architecture": name})

    monkeypatch.setattr("benchmarks.rq_kmeans_kernels.ask", answer)
    environment, report = choose_kernel("vectors.npy", tmp_path, 1)
    assert environment == {VARIABLE: "Haswell"}
    assert set(report["refused"]) == {"SkylakeX", "Cooperlake", "SapphireRapids"}


@pytest.mark.slow
def test_a_child_that_fails_says_why(tmp_path):
    with pytest.raises(ChildFailed, match="nowhere"):
        ask(Job("kernel", str(tmp_path / "nowhere.npy"), (4,)), tmp_path)


def test_a_child_answers_with_numbers_and_arrays(tmp_path):
    data = clustered(tmp_path, 100, 16, (4, 2), seed=1)
    (folder := tmp_path / "answers").mkdir()
    answer = ask(Job("faiss_kmeans", str(data.vectors), data.sizes, 3, threads=1), folder)
    assert answer.numbers["seconds"] > 0
    assert [book.shape for book in answer.codebooks] == [(4, 16), (2, 16)]
    assert answer.arrays["codes"].shape == (100, 2)


def test_churn_counts_items_of_which_any_token_changed():
    before = np.array([[1, 2], [1, 2], [1, 2], [1, 2]], np.uint16)
    assert changed_share(before, np.array([[1, 2], [1, 3], [0, 2], [0, 0]], np.uint16)) == 0.75


def test_the_vaes_nearest_code_is_the_nearest():
    random = np.random.default_rng(0)
    rows, codes = (random.standard_normal((size, 3)).astype(np.float32) for size in (50, 7))
    expected = ((rows[:, None] - codes) ** 2).sum(2).argmin(1)
    assert (nearest(torch.from_numpy(rows), torch.from_numpy(codes)).numpy() == expected).all()


def test_the_vaes_dead_codes_restart_at_rows():
    rows_NZ, codebook = torch.arange(12.0).reshape(6, 2), Codebook(3, 2)
    codebook.used_K[:] = torch.tensor([1.0, 0.0, 2.0])
    codebook.restart_dead(rows_NZ, torch.Generator().manual_seed(0))
    assert (codebook.codes_KZ[[0, 2]] == 0).all()
    assert any((codebook.codes_KZ[1] == row).all() for row in rows_NZ)


@pytest.mark.slow
def test_the_vae_learns_and_ends_in_its_best_state():
    x_ND = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32))
    training = Training(x_ND, (8, 8), seed=0)
    training.start_codebooks()
    before = training.error()
    training.run(5)
    assert training.error() < 0.9 * before
