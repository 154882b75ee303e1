"""Saved models and training states: the same back, and one line for whatever is not ours."""

import json
import pickle
import shutil

import pytest
import torch

from schemas.errors import BadInput
from tests.trainer.made_batches import made_batch, small_config
from trainer.checkpoints import load_model, load_state, model_files, save_model, save_state
from trainer.model.onerec import OneRec
from trainer.sealed_weights import checksum_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OneRec(small_config())


@pytest.fixture
def folder(tmp_path, model):
    save_model(tmp_path / "model", model, {"codebook_version": "cb1"})
    return tmp_path / "model"


@pytest.mark.slow
def test_a_model_comes_back_with_its_metadata(model, folder):
    model.decoder.blocks[0].feed.bias_X.fill_(0.25)  # the balance is part of the model
    save_model(folder, model, {"codebook_version": "cb2"})
    saved = load_model(folder)
    batch = made_batch(model.config)
    assert saved.metadata == {"codebook_version": "cb2"}
    assert not saved.model.training
    assert torch.equal(saved.model.loss(batch)[0], model.eval().loss(batch)[0])
    saved.model.train().loss(batch)
    assert all(torch.isfinite(share).all() for share in saved.model.update_balance())


def test_saving_again_leaves_one_model(model, folder):
    before = set(model_files(folder))
    with torch.no_grad():
        model.decoder.begin.add_(1)
    after = set(save_model(folder, model, {}))
    assert before != after
    assert {path.name for path in folder.iterdir()} == after


def test_files_are_enough_to_load_elsewhere(model, folder, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name, path in model_files(folder).items():
        shutil.copy(path, other / name)
    assert load_model(other).model.config == model.config


def weights_of(folder):
    return next(folder.glob("*.safetensors"))


def edited(folder, change):
    path = folder / "model.json"
    body = json.loads(path.read_text())
    del body["checksum"]
    change(body)
    path.write_text(json.dumps({**body, "checksum": checksum_of(body)}))


def flipped(path, text):
    content = path.read_bytes()
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, bytes([text[0] ^ 1]) + text[1:]))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "model.json").unlink(), "no model here; run `onerec train`"),
        (lambda folder: (folder / "model.json").write_text("{"), "truncated or foreign"),
        (lambda folder: (folder / "model.json").write_text("[]"), "truncated or foreign"),
        (lambda folder: flipped(folder / "model.json", b"cb1"), "checksum"),
        (lambda folder: edited(folder, lambda body: body.update(version=9)), "version 9"),
        (lambda folder: edited(folder, lambda body: body["config"].update(d_model=1 << 20)), "not those of the sizes"),
        (lambda folder: edited(folder, lambda body: body["config"].pop("heads")), "sizes are missing"),
        (lambda folder: edited(folder, lambda body: body["config"].update(heads=[])), "heads"),
        (lambda folder: edited(folder, lambda body: body["config"].update(encoder_layers=10**9)), "encoder_layers"),
        (lambda folder: edited(folder, lambda body: body["weights"].update(path="../x.safetensors")), "outside its folder"),
        (lambda folder: edited(folder, lambda body: body["weights"].update(path="/etc/passwd")), "outside its folder"),
        (lambda folder: weights_of(folder).unlink(), "missing"),
        (lambda folder: weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-1]), "truncated or altered"),
        (lambda folder: weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-1] + b"x"), "sha256"),
    ],
)
def test_a_damaged_model_is_refused(folder, damage, complaint):
    damage(folder)
    with pytest.raises(BadInput, match=complaint) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_a_state_comes_back(tmp_path):
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    save_state(path, {"losses": [1.5], "plan": {"steps": 3}, "tensor": torch.arange(3)})
    state = load_state(path)
    assert state is not None
    assert (state["losses"], state["plan"], state["tensor"].tolist()) == ([1.5], {"steps": 3}, [0, 1, 2])
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


class Payload:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", pickle.dumps({"format": "onerec-training"}, 2), pickle.dumps(Payload(), 2)]
)
def test_a_state_that_is_none_of_ours(tmp_path, content, capsys):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="delete it to train afresh"):
        load_state(path)
    assert "unpickled" not in capsys.readouterr().out


def test_a_state_with_code_in_it_is_not_run(tmp_path, capsys):
    path = tmp_path / "state.pt"
    torch.save({"format": "onerec-training", "version": 1, "payload": Payload()}, path)
    with pytest.raises(BadInput, match="delete it"):
        load_state(path)
    assert "unpickled" not in capsys.readouterr().out
