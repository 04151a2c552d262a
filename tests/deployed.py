"""Tiny random models as folders that any Hugging Face model could be: weights, config, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

LABELS = ("red", "green", "blue", "yellow")
WORDS = tuple(f"w{number}" for number in range(90))
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
WRITING = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('Unknown role ' + message['role']) }}{% endif %}"
    "<|{{ message['role'] }}|> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A conversation as `<s><|user|> w1 w2 <|assistant|>`."""

GENERATING = {
    "Bart": "BartForConditionalGeneration",
    "T5": "T5ForConditionalGeneration",
    "Llama": "LlamaForCausalLM",
    "GPT2": "GPT2LMHeadModel",
}
"""Families that write, each with its class in transformers; every other family classifies."""
FRAMES = {"Bart": "<s> $A </s>", "T5": "$A </s>", "Llama": "<s> $A"}
"""What the tokenizer puts around a text."""


def deploy(
    folder: Path,
    *,
    family: str = "Bert",
    seed: int = 0,
    max_tokens: int = 40,
    chat_template: str | None = None,
    bytewise: bool = False,
) -> Path:
    """Save a random model of hidden size 32 with a tokenizer of the words w0 to w89.

    A family of GENERATING writes, and may have a chat template, and a tokenizer of bytes instead of words; any other
    is a `<family>ForSequenceClassification`.
    """
    special = [*WRITING.values(), *ROLES] if family in GENERATING else [*SPECIAL.values()]
    words = sorted(pre_tokenizers.ByteLevel.alphabet()) if bytewise else WORDS
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    torch.manual_seed(seed)
    name = GENERATING.get(family, f"{family}ForSequenceClassification")
    config = (_writing if family in GENERATING else _classifying)(family, len(vocabulary), max_tokens)
    getattr(transformers, name)(config).save_pretrained(folder)
    if family in GENERATING:
        tokenizer = _writing_tokenizer(family, vocabulary, max_tokens, bytewise=bytewise)
        tokenizer.chat_template = chat_template
    else:
        tokenizer = _classifying_tokenizer(vocabulary, max_tokens)
    tokenizer.save_pretrained(folder)
    return folder


def _classifying(family: str, vocabulary: int, max_tokens: int) -> transformers.PretrainedConfig:
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "initializer_range": 0.3, **named}
    if family == "DistilBert":
        return transformers.DistilBertConfig(
            **common, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=max_tokens
        )
    config = getattr(transformers, f"{family}Config")
    return config(
        **common,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=max_tokens + (1 if family == "Roberta" else 0),
    )


def _writing(family: str, vocabulary: int, max_tokens: int) -> transformers.PretrainedConfig:
    pad, start, end = (list(WRITING).index(name) for name in ("pad_token", "bos_token", "eos_token"))
    common: dict[str, Any] = {"vocab_size": vocabulary, "pad_token_id": pad, "eos_token_id": end}
    begun: dict[str, Any] = {"bos_token_id": start, "initializer_range": 0.3}
    if family == "Bart":
        both = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
        sides = {f"{side}_{size}": value for side in ("encoder", "decoder") for size, value in both.items()}
        ends = {"decoder_start_token_id": end, "forced_eos_token_id": None}
        return transformers.BartConfig(
            **common, **begun, **sides, **ends, d_model=32, max_position_embeddings=max_tokens
        )
    if family == "T5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0}
        return transformers.T5Config(**common, **sizes, decoder_start_token_id=pad)
    if family == "GPT2":
        return transformers.GPT2Config(**common, **begun, n_embd=32, n_layer=2, n_head=4, n_positions=max_tokens)
    return transformers.LlamaConfig(
        **common,
        **begun,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_tokens,
    )


def _classifying_tokenizer(vocabulary: dict[str, int], max_tokens: int) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **SPECIAL)


def _writing_tokenizer(
    family: str, vocabulary: dict[str, int], max_tokens: int, *, bytewise: bool
) -> transformers.PreTrainedTokenizerFast:
    if bytewise:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if family in FRAMES:
        ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=FRAMES[family], special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        extra_special_tokens=list(ROLES),
        **WRITING,
    )
