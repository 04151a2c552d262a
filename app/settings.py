"""Every setting of the service, and the only reader of the environment.

Each field is the environment variable ERRATA_<NAME>. A variable with that prefix that is no setting is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from platformdirs import user_cache_path
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ERRATA_"
FOR_CLIENTS = frozenset({"ERRATA_URL"})
"""Variables that the client commands read, not the service."""

BUILTIN = "builtin"


class Settings(BaseSettings):
    """Read once, at start, and handed down as plain values."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: str = Field(BUILTIN, description="Folder or hub id of the deployed model, or `builtin`.")
    model_revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    task: Literal["auto", "classification", "seq2seq", "causal"] = Field(
        "auto", description="What the model does; `auto` asks its config.json."
    )
    database_url: str = Field("sqlite:///errata.db", description="SQLite or PostgreSQL, as an SQLAlchemy URL.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Where the model runs.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="What the model computes in.")
    editor: str = Field("transformer-patcher", description="The editor of edits that name none.")
    baselines: bool = Field(False, description="Whether edits by baseline editors may go live.")
    memory_file: Path | None = Field(
        None, description="JSON Lines (`input`, optional `target`) that the model is known to get right."
    )
    guard_file: Path | None = Field(
        None, description="JSON Lines of inputs whose answers must not change; the memory file when not given."
    )
    memory_from_traffic: bool = Field(True, description="Whether confident answers join the memory (activations only).")
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("errata"), description="Where the built-in model and activations stay."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    max_inputs: int = Field(256, ge=1, description="Inputs in one prediction request.")
    max_input_characters: int = Field(20_000, ge=1, description="Characters in one text.")
    max_rephrases: int = Field(64, ge=0, description="Rephrases, and texts to keep, of one edit.")
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="Bytes in the body of one request.")
    max_import_bytes: int = Field(128 * 2**20, ge=1024, description="Bytes in the body of one import.")
    max_new_tokens: int = Field(512, ge=1, description="Tokens in one generated answer.")
    new_tokens: int = Field(32, ge=1, description="Tokens in a generated answer when the request does not say.")
    max_queued_edits: int = Field(1_000, ge=1, description="Edits waiting; one more is answered with 429.")
    max_wait_seconds: float = Field(60.0, ge=0, description="The longest `Prefer: wait`.")
    max_waiting_inputs: int = Field(
        1_024, ge=1, description="Inputs accepted and not answered yet; a request beyond that is answered with 429."
    )
    max_queue_seconds: float = Field(
        10.0, gt=0, description="The longest wait for a forward pass; then the answer is 503."
    )
    request_seconds: float = Field(
        120.0, gt=0, description="The longest time for a whole answer that is not streamed; then it is 504."
    )
    max_requests: int = Field(2_048, ge=1, description="Requests at once; one more is answered with 429.")
    max_buffered_bytes: int = Field(
        512 * 2**20, ge=1024, description="Bytes in the bodies of all requests at once; more are answered with 429."
    )
    max_page: int = Field(500, ge=1, description="The largest `limit` of a listing.")
    max_batch: int = Field(32, ge=1, description="Inputs in one forward pass.")
    max_memory_rows: int = Field(40_000, ge=0, description="Rows that a fit remembers.")
    max_traffic_rows: int = Field(5_000, ge=0, description="Rows remembered from traffic.")
    max_guard_rows: int = Field(50_000, ge=0, description="Rows of the guard.")

    rephrases_required: float = Field(0.8, ge=0, le=1, description="Share of an edit's rephrases that must hold.")
    guard_required: float = Field(0.999, ge=0, le=1, description="Share of the guard that must be unchanged.")
    guard_fires_allowed: float = Field(0.005, ge=0, le=1, description="Share of the guard a patch may fire on.")
    edits_required: float = Field(1.0, ge=0, le=1, description="Share of the other live edits that must hold.")
    refit_after_revert: bool = Field(False, description="Whether edits that a revert breaks are fitted again.")
    judge_rounds: int = Field(3, ge=1, description="How often an edit is fitted before its failed gates reject it.")
    fit_share: float = Field(0.3, gt=0, lt=1, description="Share of the device that a fit gets under full load.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, given: Any) -> Any:
        known = {PREFIX + name.upper() for name in cls.model_fields} | FOR_CLIENTS
        unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no setting of Errata.")
        return given

    @model_validator(mode="after")
    def _let_the_largest_request_in(self) -> Self:
        """What one request may hold fits into what all may hold, or it could never be answered."""
        for one, all_ in (
            ("max_inputs", "max_waiting_inputs"),
            ("max_body_bytes", "max_buffered_bytes"),
            ("max_import_bytes", "max_buffered_bytes"),
        ):
            if getattr(self, all_) < getattr(self, one):
                raise ValueError(f"{all_} is {getattr(self, all_)}, less than {one}, {getattr(self, one)}.")
        return self
