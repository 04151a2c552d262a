"""A model's own settings of decoding: which of them count here, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from transformers import GenerationConfig, PreTrainedTokenizerBase

log = structlog.get_logger()

FORM = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
SHAPING = (
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("min_length", "min_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("forced_bos_token_id", "exponential_decay_length_penalty", "renormalize_logits", "remove_invalid_values"),
)
"""Settings that act on the logits of a single row, whatever else is in its batch. They are kept."""
NEUTRAL: Mapping[str, Any] = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0}
"""Values that do nothing; elsewhere nothing, zero and false are those."""
OTHERWISE = (
    *("num_beams", "num_beam_groups", "penalty_alpha", "dola_layers", "guidance_scale", "watermarking_config"),
    *("prompt_lookup_num_tokens", "token_healing", "force_words_ids", "constraints", "assistant_early_exit", "use_mtp"),
    *("low_memory", "cache_implementation"),
)
"""Other ways to decode. Draws are asked for in a request; these are left out, and said to be."""


def greedy(given: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> GenerationConfig:
    """Greedy decoding with those of the model's own settings that shape the logits of a row."""
    own = given.to_diff_dict() if given is not None else {}
    left_out = {name: own[name] for name in OTHERWISE if own.get(name) not in (None, False, 1)}
    if left_out:
        log.warning("the model's own way to decode is not used here: answers are greedy, or drawn", **left_out)
    config = GenerationConfig(**{name: own[name] for name in (*FORM, *SHAPING) if own.get(name) is not None})
    config.eos_token_id = list(ends)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    config.use_cache = True
    return config


def shaping(config: GenerationConfig) -> dict[str, Any]:
    """The settings that shape logits: a target that they do not let through cannot be written."""
    found = {name: getattr(config, name, None) for name in SHAPING}
    return {name: value for name, value in found.items() if value and value != NEUTRAL.get(name)}


def counts_padding(config: GenerationConfig) -> bool:
    """Whether a setting looks at all tokens so far: of a padded prompt it would see the padding."""
    looking = ("repetition_penalty", "no_repeat_ngram_size", "min_length", "exponential_decay_length_penalty")
    return any(name in shaping(config) for name in looking)


def described(config: GenerationConfig) -> dict[str, Any]:
    """All that can change answers, for the fingerprint; not which version of the library wrote it."""
    tokens = {name: getattr(config, name) for name in (*FORM, "eos_token_id")}
    return {**tokens, **shaping(config)}
