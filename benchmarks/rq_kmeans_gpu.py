"""Which of the GPU's peers are here: flash-kmeans, fastkmeans and faiss's GPU build."""

import importlib.util

from benchmarks.harness import progress

PACKAGES = {"flash-kmeans": "flash_kmeans", "fastkmeans": "fastkmeans"}


def absent_peers() -> dict[str, str]:
    """GPU peer → why it is not compared; told in one line."""
    import faiss
    import torch

    if not torch.cuda.is_available():
        why = dict.fromkeys([*PACKAGES, "faiss-gpu"], "no CUDA device")
    else:
        why = {name: "not installed" for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None}
        if not hasattr(faiss, "StandardGpuResources"):
            why["faiss-gpu"] = "not installed"
    if why:
        progress("not compared: " + ", ".join(f"{name} ({reason})" for name, reason in why.items()))
    return why
