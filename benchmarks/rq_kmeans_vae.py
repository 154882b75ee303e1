"""A small RQ-VAE (Lee et al. 2022; the tokenizer of TIGER), the method that RQ-KMeans replaces, trained to convergence.

Shapes: N rows, D their dimension, Z the latent's, K a layer's codes. An MLP encodes x_ND to z_NZ, residual codebooks quantise
it greedily (straight through), a mirrored MLP decodes. Codebooks start from k-means of the first latents and then follow an
exponential moving average of what they are given; a code that an epoch did not use restarts at a latent residual of that
epoch. The error is taken of all rows where it counts, in the vectors' own space. One row in twenty is held out, and training
ends where its error has stopped falling at the last of a few learning rates; the best state of all epochs is kept.
"""

import copy
import time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.rq_kmeans_worker import Answer, Job

HIDDEN = (512, 256)
LATENT = 64
BATCHES_AN_EPOCH = 32
SMALLEST_BATCH, LARGEST_BATCH = 64, 4096
COMMITMENT = 0.25
DECAY = 0.99
HELD_OUT = 20
PATIENCE = 5
RATES = (1e-3, 3e-4, 1e-4)
LARGEST_HELD_OUT = 20_000
_SAMPLE = 20_000
_LEAST_GAIN = 1e-3


class Codebook(nn.Module):
    """One layer: codes_KZ, with moving counts and sums of the rows they were given."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codes_KZ", torch.zeros(size, dim))
        self.register_buffer("counts_K", torch.ones(size))
        self.register_buffer("sums_KZ", torch.zeros(size, dim))
        self.register_buffer("used_K", torch.zeros(size))

    def start(self, rows_NZ: Tensor, generator: torch.Generator, steps: int = 10) -> None:
        """k-means of rows from random ones of them; an empty code takes another row."""
        size = len(self.codes_KZ)
        codes_KZ = rows_NZ[torch.randint(len(rows_NZ), (size,), generator=generator)].clone()
        for _ in range(steps):
            labels_N = nearest(rows_NZ, codes_KZ)
            counts_K = torch.bincount(labels_N, minlength=size).float()
            sums_KZ = torch.zeros_like(codes_KZ).index_add_(0, labels_N, rows_NZ)
            codes_KZ = sums_KZ / counts_K.clamp_min(1)[:, None]
            empty = torch.nonzero(counts_K == 0)[:, 0]
            codes_KZ[empty] = rows_NZ[torch.randint(len(rows_NZ), (len(empty),), generator=generator)]
        self.codes_KZ.copy_(codes_KZ)
        self.sums_KZ.copy_(codes_KZ)
        self.counts_K.fill_(1.0)

    def follow(self, rows_NZ: Tensor, labels_N: Tensor) -> None:
        """Move the codes towards the rows they were given."""
        size = len(self.codes_KZ)
        given_K = torch.bincount(labels_N, minlength=size).float()
        self.used_K += given_K
        self.counts_K.mul_(DECAY).add_(given_K, alpha=1 - DECAY)
        self.sums_KZ.mul_(DECAY).add_(torch.zeros_like(self.sums_KZ).index_add_(0, labels_N, rows_NZ), alpha=1 - DECAY)
        self.codes_KZ.copy_(self.sums_KZ / self.counts_K.clamp_min(1e-5)[:, None])

    def restart_dead(self, rows_NZ: Tensor, generator: torch.Generator) -> None:
        """Put the codes that nothing used since the last call on random rows."""
        dead = torch.nonzero(self.used_K == 0)[:, 0]
        chosen_NZ = rows_NZ[torch.randint(len(rows_NZ), (len(dead),), generator=generator)]
        self.codes_KZ[dead] = chosen_NZ
        self.sums_KZ[dead] = chosen_NZ
        self.counts_K[dead] = 1.0
        self.used_K.zero_()


class RQVAE(nn.Module):
    """Encoder, residual codebooks and decoder."""

    def __init__(self, dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        latent = min(LATENT, dim)
        self.encoder = mlp((dim, *HIDDEN, latent))
        self.decoder = mlp((latent, *reversed(HIDDEN), dim))
        self.codebooks = nn.ModuleList(Codebook(size, latent) for size in sizes)

    def quantise(self, z_NZ: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Sum of codes_NZ, tokens_NL, and what each layer was given."""
        left_NZ, whole_NZ, tokens, given = z_NZ, torch.zeros_like(z_NZ), [], []
        for codebook in self.codebooks:
            given.append(left_NZ)
            labels_N = nearest(left_NZ, codebook.codes_KZ)
            tokens.append(labels_N)
            whole_NZ = whole_NZ + codebook.codes_KZ[labels_N]
            left_NZ = z_NZ - whole_NZ
        return whole_NZ, torch.stack(tokens, 1), given

    def loss(self, x_ND: Tensor) -> Tensor:
        """Reconstruction and commitment; the codebooks follow without a gradient."""
        z_NZ = self.encoder(x_ND)
        with torch.no_grad():
            whole_NZ, tokens_NL, given = self.quantise(z_NZ)
            for layer, codebook in enumerate(self.codebooks):
                codebook.follow(given[layer], tokens_NL[:, layer])
        decoded_ND = self.decoder(z_NZ + (whole_NZ - z_NZ).detach())
        scale = x_ND.shape[1] / z_NZ.shape[1]
        fidelity = ((decoded_ND - x_ND) ** 2).mean() * scale
        return fidelity + COMMITMENT * ((z_NZ - whole_NZ) ** 2).mean()

    @torch.no_grad()
    def answer(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens_NL and decoded_ND."""
        whole_NZ, tokens_NL, _ = self.quantise(self.encoder(x_ND))
        return tokens_NL, self.decoder(whole_NZ)


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def nearest(rows_NZ: Tensor, codes_KZ: Tensor) -> Tensor:
    """Label of the nearest code of each row."""
    return torch.addmm((codes_KZ**2).sum(1), rows_NZ, codes_KZ.T, alpha=-2).argmin(1)


class Training:
    """A seeded run over rows that are already at mean 0 and a mean variance of 1."""

    def __init__(self, x_ND: Tensor, sizes: tuple[int, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x_ND), generator=self.generator)
        held = min(len(x_ND) // HELD_OUT, LARGEST_HELD_OUT)
        self.x_ND, self.held, self.kept = x_ND, order[:held], order[held:]
        self.model = RQVAE(x_ND.shape[1], sizes)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATES[0], weight_decay=1e-4)

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """k-means of the untrained encoder's latents, layer by layer."""
        left_NZ = self.model.encoder(self.x_ND[self.kept[:_SAMPLE]])
        for codebook in self.model.codebooks:
            codebook.start(left_NZ, self.generator)
            left_NZ = left_NZ - codebook.codes_KZ[nearest(left_NZ, codebook.codes_KZ)]

    def run(self, most_epochs: int) -> int:
        """Train until each learning rate stops helping; the model ends in its best state. Returns the epochs."""
        self.start_codebooks()
        best, state, waited, rate = self.error(), copy.deepcopy(self.model.state_dict()), 0, 0
        for self.epochs in range(1, most_epochs + 1):
            self.epoch()
            error = self.error()
            waited = 0 if error < best * (1 - _LEAST_GAIN) else waited + 1
            if error < best:
                best, state = error, copy.deepcopy(self.model.state_dict())
            if waited >= PATIENCE:
                rate, waited = rate + 1, 0
                if rate == len(RATES):
                    break
                self.model.load_state_dict(state)
                self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATES[rate], weight_decay=1e-4)
        self.model.load_state_dict(state)
        return self.epochs

    def epoch(self) -> None:
        """One pass in a new order, and the restart of what it did not use."""
        order = self.kept[torch.randperm(len(self.kept), generator=self.generator)]
        batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, len(order) // BATCHES_AN_EPOCH))
        for rows in order.split(batch):
            self.optimiser.zero_grad(set_to_none=True)
            self.model.loss(self.x_ND[rows]).backward()
            self.optimiser.step()
        with torch.no_grad():
            given = self.model.quantise(self.model.encoder(self.x_ND[order[:_SAMPLE]]))[2]
        for codebook, rows_NZ in zip(self.model.codebooks, given, strict=True):
            codebook.restart_dead(rows_NZ, self.generator)

    def error(self) -> float:
        """Mean squared error of the rows held out."""
        rows_ND = self.x_ND[self.held]
        return float(((self.model.answer(rows_ND)[1] - rows_ND) ** 2).mean())


def fit(vectors: npt.NDArray[np.float32], job: Job) -> Answer:
    """Train on the vectors; codes and decoded vectors of all of them. The option ``epochs`` bounds the run."""
    torch.set_num_threads(job.threads)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = float(np.sqrt(((vectors - mean) ** 2).mean(dtype=np.float64))) or 1.0
    x_ND = torch.from_numpy((vectors - mean) / np.float32(scale))
    training = Training(x_ND, job.sizes, job.seed)
    started = time.perf_counter()
    epochs = training.run(job.options["epochs"])
    seconds = time.perf_counter() - started
    codes = np.empty((len(vectors), len(job.sizes)), np.uint16)
    decoded = np.empty_like(vectors)
    for start in range(0, len(vectors), 16_384):
        tokens_NL, decoded_ND = training.model.answer(x_ND[start : start + 16_384])
        codes[start : start + 16_384] = tokens_NL.numpy()
        decoded[start : start + 16_384] = decoded_ND.numpy() * np.float32(scale) + mean
    numbers: dict[str, Any] = {"seconds": seconds, "epochs": epochs, "stopped": epochs < job.options["epochs"]}
    return Answer(numbers, {"codes": codes, "decoded": decoded})
