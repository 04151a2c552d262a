from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

from sqlalchemy import text

from app.store import Ledger, Store
from app.store.database import Database
from tests.store.conftest import NewUrl
from tests.store.samples import IDENTITY, OTHER_IDENTITY

ROOT = Path(__file__).parents[2]
HOLDER = (
    "import sys; from app.store import Store; from tests.store.samples import IDENTITY\n"
    "lock = Store.open(sys.argv[1]).ledger(IDENTITY).queue_lock()\n"
    "print(lock.try_acquire(), flush=True); sys.stdin.read()"
)


def test_one_holds_the_queue_and_the_other_does_not(ledger: Ledger) -> None:
    with ledger.working() as first, ledger.working() as second:
        assert (first, second) == (True, False)


def test_a_queue_let_go_can_be_held_by_another(ledger: Ledger) -> None:
    with ledger.working():
        pass
    with ledger.working() as held:
        assert held


def test_whoever_holds_the_queue_goes_on_holding_it(ledger: Ledger) -> None:
    lock = ledger.queue_lock()
    assert lock.try_acquire()
    assert lock.try_acquire()
    assert lock.held()
    lock.release()
    assert not lock.held()
    with ledger.working() as held:
        assert held


def test_a_lock_that_was_not_got_is_not_held(ledger: Ledger) -> None:
    with ledger.working():
        lock = ledger.queue_lock()
        assert not lock.try_acquire()
        assert not lock.held()
        lock.release()
        with ledger.working() as held:
            assert not held


def test_another_thread_may_let_go(ledger: Ledger) -> None:
    lock = ledger.queue_lock()
    taking = Thread(target=lock.try_acquire)
    taking.start()
    taking.join()
    assert lock.held()
    lock.release()
    with ledger.working() as held:
        assert held


def test_each_model_has_a_lock_of_its_own(ledger: Ledger, store: Store) -> None:
    with ledger.working() as first, store.ledger(OTHER_IDENTITY).working() as second:
        assert (first, second) == (True, True)


def test_the_queue_is_free_again_once_the_process_that_held_it_is_killed(url: str, ledger: Ledger) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        lock = ledger.queue_lock()
        assert not lock.try_acquire()
        holder.kill()
    deadline = time.monotonic() + 10  # a server needs a moment to see that its client is gone
    while not lock.try_acquire():
        assert time.monotonic() < deadline
    lock.release()


def test_a_lock_whose_connection_is_lost_is_not_held_and_can_be_taken_again(postgresql_migrated: NewUrl) -> None:
    url = postgresql_migrated()
    store, database = Store.open(url), Database(url)
    lock = store.ledger(IDENTITY).queue_lock()
    assert lock.try_acquire()
    with database.writing() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
    assert not lock.held()
    assert lock.try_acquire()
    lock.release()
    store.close()
    database.close()
