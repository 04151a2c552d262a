"""A tiny random classifier as a folder that any Hugging Face model could be: weights, config, tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LABELS = ("red", "green", "blue", "yellow")
WORDS = tuple(f"w{number}" for number in range(90))
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def deploy(folder: Path, *, family: str = "Bert", seed: int = 0, max_tokens: int = 40) -> Path:
    """Save a random `<family>ForSequenceClassification` of hidden size 32 with a tokenizer of the words w0 to w89."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *WORDS])}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForSequenceClassification")(_config(family, len(vocabulary), max_tokens))
    model.save_pretrained(folder)
    _tokenizer(vocabulary, max_tokens).save_pretrained(folder)
    return folder


def _config(family: str, vocabulary: int, max_tokens: int) -> transformers.PretrainedConfig:
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


def _tokenizer(vocabulary: dict[str, int], max_tokens: int) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **SPECIAL)
