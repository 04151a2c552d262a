"""Where the parts are joined: the only module that knows them all. Imported by the command line and by tests."""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from app import heap
from app.audit import Finding, audit
from app.editing import Editing, Worker
from app.editing.events import Listeners
from app.editing.workshop import Workshop
from app.engine import Engine, Live
from app.engine.traffic import Reservoir
from app.errors import BaselineEditor
from app.follower import Follower
from app.guarding import Guarding, Source
from app.hits import Hits
from app.judge import Judge, Required
from app.memory import Guard, Known, KnownInput, Memory, learn, read_inputs
from app.model import Decoding, Model, load
from app.model.builtin import builtin, intents
from app.observe import Metrics, set_up_logging
from app.routes import Service, add_routes
from app.routes.service import Parts as Serving
from app.settings import BUILTIN, Settings
from app.store import Ledger, ModelIdentity, Store
from editors.composition import Composition
from editors.errors import BadOptions
from editors.layers import LayerSite
from editors.registry import editor_named, editors, options_of
from editors.types import Editor

FOLLOW_SECONDS = 1.0
HITS_SECONDS = 2.0
GRACE_SECONDS = 10
"""How long a stopping server waits for the requests under way."""
SWITCH_SECONDS = 0.001
"""How long one thread may keep Python from another. The device thread needs it for a moment between any two products,
while others read requests and write answers; Python's own 5 ms are as long as a layer takes.
"""

log = structlog.get_logger()


def create_app(
    settings: Settings,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> FastAPI:
    """The service as an ASGI application.

    It answers at once; requests that need the model get 503 until it is loaded and has caught up. `on_ready` is told
    when they are about to be answered, `on_failure` if that comes to nothing.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        running = asyncio.create_task(_run(settings, app.state.service, stopping, on_ready))
        running.add_done_callback(lambda task: _report_failure(task, on_failure))
        yield
        stopping.set()
        with suppress(Exception):  # reported by the callback
            await running

    app = FastAPI(
        title="Errata",
        summary="Report a mistake of a deployed model, and have it corrected.",
        version=metadata.version("errata"),
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = Service(metrics=Metrics(), settings=settings)
    add_routes(app, settings)
    return app


async def _run(settings: Settings, service: Service, stopping: asyncio.Event, on_ready: Callable[[], None]) -> None:
    """Open store and model, catch up, work until told to stop; close in the reverse order."""
    store = await asyncio.to_thread(_open_store, settings.database_url)
    try:
        loaded = await asyncio.to_thread(_load, settings)
        ledger = await asyncio.to_thread(store.ledger, loaded.identity)
        parts = await _join(settings, loaded, ledger, service.metrics)
        live = await parts.follower.catch_up()
        hits, engine = parts.serving.hits, parts.serving.engine
        beside = [
            asyncio.create_task(parts.follower.follow(FOLLOW_SECONDS)),
            asyncio.create_task(parts.serving.guarding.follow(FOLLOW_SECONDS)),
            asyncio.create_task(hits.write_every(HITS_SECONDS)),
        ]
        working = asyncio.create_task(parts.worker.run())
        on_ready()
        service.open(parts.serving)
        log.info("ready", model=engine.model.name, revision=live.revision)
        await stopping.wait()
        service.close()
        parts.serving.guarding.stop()
        parts.worker.stop()
        await working
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await hits.write()
        await asyncio.to_thread(engine.close)
    finally:
        store.close()


def _report_failure(task: asyncio.Task[None], on_failure: Callable[[BaseException], None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        on_failure(error)


def serve(settings: Settings) -> None:
    """Run the service until it is told to stop."""
    set_up_logging(settings.log_level, settings.log_format)
    _default_editor(settings, editors())  # one that cannot be it is told before the model is loaded
    if not _is_loopback(settings.host):
        log.warning(
            "listening beyond this machine: whoever reaches this address can read, change and revert edits",
            host=settings.host,
        )
    _open_store(settings.database_url).close()  # a database that cannot be used is told before anything else
    if settings.model == BUILTIN:
        builtin(settings.cache_dir)  # in this thread, so that an interrupt ends it
    heap.keep()
    sys.setswitchinterval(SWITCH_SECONDS)
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_ready=heap.settle, on_failure=stop)
    server = _Server(
        app.state.service,
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        ),
    )
    server.run()
    if failures:
        raise failures[0]


class _Server(uvicorn.Server):
    """Lets those who wait for an edit go as soon as it is told to stop; requests under way are still answered."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stop_waiting()
        super().handle_exit(sig, frame)


def verify(settings: Settings) -> list[Finding]:
    """Check the database against its hashes, and its recorded answers against the model. Starts no service."""
    set_up_logging("warning", settings.log_format)
    return asyncio.run(_verify(settings))


async def _verify(settings: Settings) -> list[Finding]:
    store = Store.open(settings.database_url)
    try:
        loaded = await asyncio.to_thread(_load, settings)
        if not await asyncio.to_thread(store.holds, loaded.identity):
            missing = f"{settings.database_url} holds no edits of {loaded.model.name} ({loaded.model.fingerprint})."
            return [Finding("ledger", False, missing)]
        parts = await _join(settings, loaded, store.ledger(loaded.identity), Metrics())
        try:
            serving = parts.serving
            return await audit(serving.ledger, serving.engine, parts.follower, new_tokens=settings.new_tokens)
        finally:
            parts.serving.engine.close()
    finally:
        store.close()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The model, its memory file and its guard file, and which of these the guard came from."""

    model: Model
    known: list[KnownInput]
    guard: list[KnownInput]
    guard_source: Source

    @property
    def identity(self) -> ModelIdentity:
        model = self.model
        return ModelIdentity(model.fingerprint, model.name, model.task, model.site.name, model.dtype)


@dataclass(frozen=True, slots=True)
class _Parts:
    """One process's parts, joined: what answers need, and what works beside them."""

    serving: Serving
    follower: Follower
    worker: Worker


async def _join(settings: Settings, loaded: _Loaded, ledger: Ledger, metrics: Metrics) -> _Parts:
    """Everything joined, at revision 0: nothing has been followed yet."""
    every = dict(editors())
    default = _default_editor(settings, every)
    model = loaded.model
    traffic = Reservoir(settings.max_traffic_rows) if settings.memory_from_traffic else None
    overlay = Composition(every, model.sites, model.device, model.features)
    engine = Engine(
        model,
        Live(0, overlay, ()),
        metrics,
        max_batch=settings.max_batch,
        fit_share=settings.fit_share,
        traffic=traffic,
        max_waiting=settings.max_waiting_inputs,
        max_queue_seconds=settings.max_queue_seconds,
    )
    read = partial(_known, engine, settings=settings, keys_at=_layer_sites(every, model))
    known = await read(loaded.known)
    guard = known if loaded.guard == loaded.known else await read(loaded.guard)
    memory = Memory(known, Guard.of(guard), traffic, limit=settings.max_memory_rows)
    guarding = Guarding(
        ledger,
        engine,
        memory,
        read,
        source=loaded.guard_source,
        limit=settings.max_guard_rows,
        max_characters=settings.max_input_characters,
    )
    follower = Follower(ledger, engine, memory, every, metrics)
    judge = Judge(memory, model, _required(settings))
    hits = Hits(ledger)
    shop = Workshop(ledger, engine, follower, judge, memory, guarding, every, Listeners(), settings.new_tokens)
    worker = Worker(shop, metrics, rounds=settings.judge_rounds)
    editing = Editing(
        shop,
        worker,
        hits,
        default_editor=default.name,
        baselines=settings.baselines,
        max_queued=settings.max_queued_edits,
        refits=settings.refit_after_revert,
    )
    return _Parts(Serving(engine, ledger, editing, every, hits, memory, guarding), follower, worker)


def _required(settings: Settings) -> Required:
    return Required(
        rephrases_hold=settings.rephrases_required,
        guard_unchanged=settings.guard_required,
        guard_fires=settings.guard_fires_allowed,
        other_edits_hold=settings.edits_required,
    )


def _default_editor(settings: Settings, every: Mapping[str, Editor]) -> Editor:
    """The editor of edits that name none. Raises UnknownEditor, and BaselineEditor for one that may not go live."""
    editor = editor_named(settings.editor, every)
    if editor.baseline and not settings.baselines:
        raise BaselineEditor(editor.name)
    return editor


def _open_store(url: str) -> Store:
    store = Store.open(url)
    store.migrate()
    return store


def _load(settings: Settings) -> _Loaded:
    """The model, its memory file and its guard file; the built-in model brings both."""
    if settings.model == BUILTIN:
        source: str | Path = builtin(settings.cache_dir)
        known = [KnownInput(input=each.text, target=each.label) for each in intents("train")]
    else:
        source, known = settings.model, []
    if settings.memory_file is not None:
        known = read_inputs(settings.memory_file, limit=settings.max_memory_rows)
    guard, guard_source = known[: settings.max_guard_rows], _source(known)
    if settings.guard_file is not None:
        guard, guard_source = read_inputs(settings.guard_file, limit=settings.max_guard_rows), "guard file"
    model = load(
        source,
        name=settings.model,
        revision=settings.model_revision,
        task=settings.task,
        device=settings.device,
        dtype=settings.dtype,
    )
    return _Loaded(model, known, guard, guard_source)


def _source(known: Sequence[KnownInput]) -> Source:
    return "memory file" if known else "none"


def _layer_sites(every: Mapping[str, Editor], model: Model) -> list[LayerSite]:
    """Where editors meet inner layers of this model by default; keys of what is known are taken there at the start."""
    found = []
    for editor in every.values():
        with suppress(BadOptions):  # an editor that this model cannot have
            site = editor.site(model.sites, options_of(editor, {}, model.sites.family))
            found += [site] if isinstance(site, LayerSite) else []
    return found


async def _known(
    engine: Engine, inputs: Sequence[KnownInput], *, settings: Settings, keys_at: Sequence[LayerSite]
) -> Known:
    """The inputs with the unedited model's activations and answers."""
    decoding = Decoding(settings.new_tokens) if engine.model.writes else None
    known = await learn(engine, inputs, decoding=decoding, cache=settings.cache_dir / "activations", keys_at=keys_at)
    if known.missed or known.left_out:
        log.info(
            "the model gets some known inputs wrong", wrong=known.missed, cannot_say=known.left_out, inputs=len(inputs)
        )
    return known


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
