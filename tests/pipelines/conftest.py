"""A text encoder of a few kilobytes, so that tests of the pipelines need not load a real one."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_text_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The encoder string of a random sentence-transformers model: one layer, 16 dimensions, words of the tests."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from tests.pipelines.content_lake import TOPICS

    folder = tmp_path_factory.mktemp("text-encoder")
    words = sorted(
        {word for topic in TOPICS for word in topic.split()} | {"number", *"0123456789"} | {f"##{n}" for n in range(10)}
    )
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    base: Path = folder / "bert"
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(base)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=16)
    SentenceTransformer(modules=[transformer, Pooling(16)]).save(str(folder / "model"))
    return f"sentence-transformers:{folder / 'model'}"
