"""Check that a tokenizer belongs to a text encoder."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .encoders import text_encoder

# A wrong id in CLIP's first configs, among them OpenAI's: https://github.com/huggingface/transformers/pull/24773.
_LEGACY_END_TOKEN = 2
_CLIP_VOCABULARY = 49_408


def check_tokenizer(config: PreTrainedConfig, tokenizer: Any, pad_token_id: int) -> None:
    """Raise a ValueError if a tokenizer does not belong to a text encoder.

    Args:
        config: the text encoder's config.
        tokenizer: the tokenizer.
        pad_token_id: id of the padding token that the model masks.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer: expected a tokenizer of transformers, got {type(tokenizer).__name__}; load it with "
            "AutoTokenizer.from_pretrained."
        )
    name, settings = tokenizer.name_or_path or type(tokenizer).__name__, text_encoder(config)
    fix = "pass the text encoder's own tokenizer (--tokenizer)"
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if size > config.vocab_size:
        raise ValueError(
            f"tokenizer {name}: expected at most {config.vocab_size} tokens, the vocabulary of the text encoder, got "
            f"{size}; {fix}, or resize the text encoder's embeddings."
        )
    if settings.sentence_from == "end token":
        _check_end_token(config, tokenizer, size, pad_token_id, name, fix)
    elif settings.masks_padding and tokenizer.pad_token_id not in (None, pad_token_id):
        raise ValueError(
            f"tokenizer {name}: expected pad_token_id={pad_token_id}, as in the model's config, got "
            f"{tokenizer.pad_token_id}; {fix}, or set pad_token_id in the config."
        )


def _check_end_token(config: Any, tokenizer: Any, size: int, pad_token_id: int, name: str, fix: str) -> None:
    end, expected = tokenizer.eos_token_id, config.eos_token_id
    if expected == _LEGACY_END_TOKEN:  # the last token of CLIP's vocabulary, unless tokens were added to it
        expected = end if size == config.vocab_size else min(config.vocab_size, _CLIP_VOCABULARY) - 1
    if end is None or end != expected:
        raise ValueError(
            f"tokenizer {name}: expected eos_token_id={expected}, as in the text encoder's config, got {end}; the "
            f"sentence state is read at the end token: {fix}, or correct eos_token_id in that config."
        )
    if tokenizer("a")["input_ids"][-1:] != [end]:
        raise ValueError(
            f"tokenizer {name}: expected one that ends a sentence with its end token (id {end}), at which the "
            f"sentence state is read, got one that does not; {fix}."
        )
    if pad_token_id == end != config.eos_token_id:
        raise ValueError(
            f"pad_token_id={pad_token_id}: expected another id than that of the end token, which marks the end of a "
            "sentence; set pad_token_id=0 in the model's config."
        )
