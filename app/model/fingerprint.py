"""The name of a set of weights: what a patch was learned for, and all it may be put on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """`sha256:...` over every tensor (name, dtype, shape, bytes) and over `settings`.

    weights: a state dict in the dtype that is served, so that one model in two dtypes has two names.
    settings: what else the answers depend on, as JSON: labels, the tokenizer.
    """
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        tensors = list(pool.map(_hash_tensor, weights.values()))
    described = {
        "weights": dict(sorted(zip(weights, tensors, strict=True))),
        "settings": settings,
    }
    return "sha256:" + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _hash_tensor(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data.data).hexdigest()}"
