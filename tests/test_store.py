"""The store: what is put in comes out, whole, whoever else writes or dies meanwhile; nothing goes but by gc."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pixfit import canonical, files, render, run
from pixfit.modelfile import Network
from pixfit.models import Siren
from pixfit.problem import Problem, Sealed
from pixfit.result import Result, Status
from pixfit.spec import Record, Spec
from pixfit.starts import Start
from pixfit.stopping import Steps
from pixfit.store import Flight, Store, StoreError
from tests.conftest import picture


@pytest.fixture(scope="module")
def result() -> Result:
    torch.set_num_threads(1)
    spec = Spec(Problem(picture(3, 12, 10)), Siren(1, 8), budget=Steps(4))
    return run.fit(spec, record=Record(every=1, keep=(0, 2, 4)))


def renamed(result: Result, seed: int) -> Result:
    """The same numbers as the result of another spec."""
    return replace(result, spec=replace(result.spec, seed=seed))


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fits(folder: Path) -> set[str]:
    return {name for name in listing(folder) if name.startswith("fits/")}


# --- round trip


def test_what_is_put_comes_back(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.put(result, name="waves", recipe="fast")
    for key in (result.spec, result.id, result.id[:6]):
        found = store.get(key)
        assert found is not None
        assert found.id == result.id
        assert found.status is result.status
        assert found.reason == result.reason
        for mine, theirs in ((result.weights, found.weights), (result.curves, found.curves)):
            assert set(mine) == set(theirs)
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
            assert all(value.dtype == theirs[name].dtype for name, value in mine.items())
        assert set(found.kept) == {0, 2, 4}
        for step, named in result.kept.items():
            assert all(torch.equal(value, found.kept[step][name]) for name, value in named.items())
        assert dict(found.metrics) == dict(result.metrics)
        for name in ("steps", "epochs", "seconds", "process_seconds", "evaluation_seconds", "device", "kernel"):
            assert getattr(found, name) == getattr(result, name)
        assert (found.threads, dict(found.versions)) == (result.threads, dict(result.versions))
        assert found.summary() == result.summary()
        assert found.estimate is None
        assert result.estimate is not None
        assert torch.equal(render.render(found), result.estimate)
        assert Network.of(found).record == Network.of(result).record


def test_a_fit_found_by_its_id_has_its_problem_sealed(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result)
    found = store.get(result.id)
    assert found is not None
    assert isinstance(found.spec.problem, Sealed)
    assert found.spec == result.spec
    whole = store.get(result.spec)
    assert whole is not None
    assert whole.spec is result.spec


def test_a_child_keeps_its_id_though_its_parent_is_known_by_name_alone(result: Result, tmp_path: Path) -> None:
    child = replace(result, spec=replace(result.spec, start=Start(weights=result.spec, step=2)))
    store = Store(tmp_path)
    store.put(child)
    found = store.get(child.id[:8])
    assert found is not None
    assert found.id == child.id != result.id
    assert found.spec.plain["start"]["weights"] == {"kind": "Spec", "id": result.id}


@pytest.mark.parametrize(
    "metrics",
    [
        {"psnr": math.inf, "psnr_8bit": math.inf, "ssim": None, "psnr_measured": 12.5},
        {"psnr": 0.1 + 0.2, "ssim": -0.25},
        {"psnr": -math.inf},
        {},
    ],
)
def test_scores_without_a_number_come_back(metrics: dict[str, float | None], result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(replace(result, metrics=metrics))
    found = store.get(result.id)
    assert found is not None
    assert dict(found.metrics) == metrics
    assert found.summary()["lossless"] is (math.inf in metrics.values())


def test_curves_that_are_not_finite_come_back(result: Result, tmp_path: Path) -> None:
    curves = {"loss": torch.tensor([1.0, torch.inf, torch.nan]), "psnr": torch.zeros(0)}
    store = Store(tmp_path)
    store.put(replace(result, curves=curves))
    found = store.get(result.id)
    assert found is not None
    assert torch.equal(found.curves["loss"].nan_to_num(7), curves["loss"].nan_to_num(7))
    assert found.curves["psnr"].shape == (0,)


def test_a_failed_fit_is_a_row_without_a_file(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(Result(result.spec, Status.FAILED, "ValueError: no", {}))
    found = store.get(result.spec)
    assert found is not None
    assert (found.status, found.reason, dict(found.weights)) == (Status.FAILED, "ValueError: no", {})
    assert not fits(tmp_path)


def test_rows_tell_of_every_fit_oldest_first(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in (3, 1, 2):
        store.put(renamed(result, seed), name=f"picture {seed}", recipe="fast")
    rows = store.rows()
    assert [row["name"] for row in rows] == ["picture 3", "picture 1", "picture 2"]
    assert [row["id"] for row in rows] == [renamed(result, seed).id for seed in (3, 1, 2)]
    assert all(row["recipe"] == "fast" and row["status"] == "done" for row in rows)
    assert rows[0]["spec"] == renamed(result, 3).spec.plain
    assert abs(rows[0]["finished"] - time.time()) < 60
    assert {**rows[1], **renamed(result, 1).summary()} == rows[1]


def test_a_second_result_of_one_id_replaces_the_first(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result, name="a")
    store.put(replace(result, reason="the second"), name="b")
    assert [row["name"] for row in store.rows()] == ["b"]
    found = store.get(result.id)
    assert found is not None
    assert found.reason == "the second"


# --- finding


def test_the_beginning_of_an_id_is_enough_while_it_is_clear(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = []
    for seed in range(20):  # more fits than hexadecimal digits: two must begin alike
        store.put(renamed(result, seed))
        ids.append(renamed(result, seed).id)
    firsts = [identity[0] for identity in ids]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    with pytest.raises(StoreError, match=f"several fits begin with '{twice}', such as {twice}.*; give more digits"):
        store.get(twice)
    for identity in ids:
        found = store.get(identity)
        assert found is not None
        assert found.id == identity


@pytest.mark.parametrize("key", ["0000", "%", "_", "' OR 1=1 --", "*", "é"])
def test_an_unknown_id_is_none(key: str, result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result)
    assert not result.id.startswith("0000")
    assert store.get(key) is None
    assert store.get(renamed(result, 99).spec) is None
    assert store.load_checkpoint("ab") is None


def test_reading_a_store_that_is_not_there_makes_nothing(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    assert store.get(result.id) is None
    assert store.get(result.spec) is None
    assert store.rows() == []
    assert store.flights() == []
    assert store.load_checkpoint(result.id) is None
    assert store.trash() == []
    assert store.gc() == []
    assert not list(tmp_path.iterdir())


# --- damage


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage"])
def test_a_damaged_file_is_said_by_name(damage: str, result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result)
    path = tmp_path / "fits" / f"{result.id}.safetensors"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": whole[:-5], "garbage": b"\xff" * 999}[damage])
    with pytest.raises(StoreError, match=rf"{result.id}\.safetensors: damaged or missing .*run the fit again"):
        store.get(result.id)
    assert len(store.rows()) == 1


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_checkpoint("ab", {"x": torch.arange(3)}, {"step": 3, "name": "é", "none": None})
    found = store.load_checkpoint("ab")
    assert found is not None
    assert torch.equal(found[0]["x"], torch.arange(3))
    assert found[1] == {"step": 3, "name": "é", "none": None}
    path = tmp_path / "checkpoints" / "ab.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"ab\.safetensors: damaged"):
        store.load_checkpoint("ab")


@pytest.mark.parametrize("data", [b"not a database, surely" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_an_index_that_is_none(data: bytes, result: Result, tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(data)
    store = Store(tmp_path)
    for call in (store.rows, store.flights, store.trash, store.gc, lambda: store.get(result.id)):
        with pytest.raises(StoreError, match=r"index\.sqlite: not a usable index .*move it away or name another store"):
            call()
    with pytest.raises(StoreError, match="not a usable index"):
        store.put(result)
    assert (tmp_path / "index.sqlite").read_bytes() == data


def test_an_index_of_another_program(result: Result, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("CREATE TABLE fits (song TEXT)")
    index.close()
    with pytest.raises(StoreError, match="not a usable index"):
        Store(tmp_path).rows()
    with pytest.raises(StoreError, match="not a usable index"):
        Store(tmp_path).put(result)


def test_a_store_that_is_a_file(result: Result, tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"mine")
    store = Store(tmp_path / "runs")
    for call in (store.rows, store.flights, store.trash, store.gc, lambda: store.get(result.id)):
        with pytest.raises(StoreError, match="runs: a file, not a store"):
            call()
    with pytest.raises(StoreError, match=r"could not be written|cannot be used as a store"):
        store.put(result)
    with pytest.raises(StoreError, match="cannot be used as a store"):
        store.note_flight("ab", "", 0, 0.0, None, None)
    assert (tmp_path / "runs").read_bytes() == b"mine"


# --- killed programs


def test_the_file_is_there_before_its_row(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_connect", fail)
    with pytest.raises(KeyboardInterrupt):
        store.put(result)
    monkeypatch.undo()
    assert fits(tmp_path) == {f"fits/{result.id}.safetensors"}
    assert store.get(result.id) is None


def test_no_row_without_its_file(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_bytes", fail)
    with pytest.raises(StoreError, match=r"could not be written .No space left on device"):
        store.put(result)
    monkeypatch.undo()
    assert store.rows() == []
    assert listing(tmp_path) <= {"index.sqlite"}


_WRITER = """
import sys, torch
from dataclasses import replace
torch.set_num_threads(1)
from pixfit import run
from pixfit.models import Siren
from pixfit.problem import Problem
from pixfit.spec import Spec
from pixfit.stopping import Steps
from pixfit.store import Store
from tests.conftest import picture

folder, first, count, width = sys.argv[1], *map(int, sys.argv[2:])
result = run.fit(Spec(Problem(picture(3, 12, 10)), Siren(1, width), budget=Steps(1)))
store = Store(folder)
print("ready", flush=True)
sys.stdin.readline()
for seed in range(first, first + count):
    store.put(replace(result, spec=replace(result.spec, seed=seed)), name=str(seed))
print("done", flush=True)
sys.stdin.readline()
"""


def started(*arguments: object, program: str = _WRITER) -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    return process


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def nudge(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str], *, kill: bool = False) -> int:
    if kill:
        process.send_signal(signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    return process.wait(timeout=60)


def check_whole(folder: Path) -> int:
    """Every row has its file, every file under a final name is whole; the number of rows."""
    store = Store(folder)
    rows = store.rows()
    for row in rows:
        found = store.get(row["id"])
        assert found is not None
        assert found.weights
    for name in fits(folder):
        if not name.endswith(files.TEMPORARY):
            with safe_open(folder / name, framework="pt") as stored:
                assert all(stored.get_tensor(key) is not None for key in stored.keys())  # noqa: SIM118
    return len(rows)


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """SIGKILL in the middle of a loop of puts; another program then goes on with the same store."""
    process = started(tmp_path / "runs", 0, 100_000, 64)
    assert told(process) == "ready"
    nudge(process)
    while len(fits(tmp_path / "runs")) < 3 and process.poll() is None:
        time.sleep(0.001)
    time.sleep(0.05)
    assert ended(process, kill=True) == -signal.SIGKILL
    before = check_whole(tmp_path / "runs")
    assert before >= 2
    again = started(tmp_path / "runs", 500_000, 3, 64)
    assert told(again) == "ready"
    nudge(again)
    assert told(again) == "done"
    assert ended(again) == 0
    assert check_whole(tmp_path / "runs") == before + 3


def test_killed_at_any_system_call(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks that die without clean-up at each step of a put: the file's write, sync and rename, and the row."""
    steps = ["open", "fsync", "replace", "connect"]
    for number, step in enumerate(steps):
        store = Store(tmp_path / step)
        store.put(renamed(result, 100))
        child = os.fork()
        if child == 0:
            owner = {"open": files.secrets, "fsync": files.os, "replace": files.os, "connect": sqlite3}[step]
            setattr(owner, "token_hex" if step == "open" else step, lambda *a, **k: os._exit(9))
            try:
                store.put(renamed(result, number))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert check_whole(tmp_path / step) == 1
        left = [name for name in fits(tmp_path / step) if name.endswith(files.TEMPORARY)]
        assert len(left) == (1 if step in ("fsync", "replace") else 0)
        store.put(renamed(result, number))
        assert check_whole(tmp_path / step) == 2


def test_two_programs_write_at_once(tmp_path: Path) -> None:
    """Both make the store, too: nobody is told that the index is locked."""
    writers = [started(tmp_path / "runs", 1000 * number, 25, 8) for number in range(2)]
    assert [told(process) for process in writers] == ["ready", "ready"]
    for process in writers:
        nudge(process)
    assert [told(process) for process in writers] == ["done", "done"]
    assert [ended(process) for process in writers] == [0, 0]
    assert check_whole(tmp_path / "runs") == 50


def test_many_programs_make_one_store_at_the_same_moment(tmp_path: Path) -> None:
    for number in range(25):
        store, start = Store(tmp_path / str(number)), time.time() + 0.03
        children = []
        for child in range(4):
            children.append(os.fork())
            if children[-1] == 0:
                while time.time() < start:
                    pass
                try:
                    store.note_flight(str(child), "", 0, 0.0, None, None)
                    os._exit(0)
                finally:
                    os._exit(1)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
        assert len(store.flights()) == 4


# --- flights


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that has noted the flight of a fit ``ab`` and waits."""
    program = """
    import sys
    from pixfit.store import Store
    Store(sys.argv[1]).note_flight("ab", "waves", 7, 0.25, 0.5, None)
    print("noted", flush=True)
    sys.stdin.readline()
    """
    process = started(tmp_path, program=program)
    assert told(process) == "noted"
    yield process
    if process.poll() is None:
        ended(process, kill=True)


def test_flights_are_alive_until_their_program_is_killed(other: subprocess.Popen[str], tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.flights() == [Flight("ab", "waves", 7, 0.25, 0.5, None, alive=True)]
    assert store.gc() == []
    assert len(store.flights()) == 1
    ended(other, kill=True)
    assert store.flights() == [Flight("ab", "waves", 7, 0.25, 0.5, None, alive=False)]
    store.gc()
    assert store.flights() == []


def test_a_flight_ends_with_its_result(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.note_flight(result.id, "a", 1, 0.1, None, 20.0)
    store.note_flight(result.id, "a", 2, 0.2, None, 21.0)
    store.note_flight("cd", "b", 1, 0.1, None, None)
    assert [(flight.id, flight.step, flight.alive) for flight in store.flights()] == [
        (result.id, 2, True),
        ("cd", 1, True),
    ]
    store.put(result)
    assert [flight.id for flight in store.flights()] == ["cd"]


def test_a_flight_on_another_machine_is_alive_while_it_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixfit.store.platform.node", lambda: "elsewhere")
    store = Store(tmp_path)
    store.note_flight("ab", "", 1, 0.1, None, None)
    monkeypatch.undo()
    assert [flight.alive for flight in store.flights()] == [True]
    later = time.time() + 3600
    monkeypatch.setattr("pixfit.store.time.time", lambda: later)
    assert [flight.alive for flight in store.flights()] == [False]


# --- clean-up


def test_gc_deletes_what_nothing_needs_and_keeps_the_rest(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result)
    cancelled = replace(renamed(result, 1), status=Status.CANCELLED)
    store.put(cancelled)
    old = time.time() - 120

    def make(name: str, size: int, *, aged: bool = False) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        if aged:
            os.utime(path, (old, old))
        return name

    useless = {
        make(f"fits/.a.1{files.TEMPORARY}", 10, aged=True),
        make(f"checkpoints/.b.2{files.TEMPORARY}", 20, aged=True),
        make(f"checkpoints/{result.id}.safetensors", 30),
        make("fits/0123.safetensors", 40),
    }
    kept = {
        make(f"fits/.c.3{files.TEMPORARY}", 50),  # may be of a program that is writing now
        make(f"checkpoints/{cancelled.id}.safetensors", 60),
        make("checkpoints/fedc.safetensors", 70),  # of a fit that was killed: it goes on from here
        make("notes.txt", 80),
        f"fits/{result.id}.safetensors",
        f"fits/{cancelled.id}.safetensors",
        "index.sqlite",
    }
    planned = store.trash()
    assert {item.path.relative_to(tmp_path).as_posix(): item.bytes for item in planned} == {
        name: (tmp_path / name).stat().st_size for name in useless
    }
    assert sum(item.bytes for item in planned) == 100
    assert all(item.why for item in planned)
    assert useless | kept <= listing(tmp_path)
    assert store.gc() == planned
    assert {name for name in listing(tmp_path) if not name.startswith("index.sqlite-")} == kept
    assert store.gc() == []
    assert check_whole(tmp_path) == 2


def test_gc_leaves_fits_alone_that_are_under_way(result: Result, tmp_path: Path) -> None:
    """A finished fit that runs again, and one that has written its file and not yet its row."""
    store = Store(tmp_path)
    store.put(result)
    store.save_checkpoint(result.id, {"x": torch.zeros(1)}, {})
    store.note_flight(result.id, "", 1, 0.5, None, None)
    store.note_flight("0123", "", 9, 1.0, None, None)
    (tmp_path / "fits" / "0123.safetensors").write_bytes(b"x")
    assert store.gc() == []
    assert {"fits/0123.safetensors", f"checkpoints/{result.id}.safetensors"} <= listing(tmp_path)


def test_gc_keeps_a_fit_that_ends_while_it_looks(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `trash` reads first, a result that is put between two of its looks is not an orphan."""
    for moment in ("rows", "flights"):
        folder = tmp_path / moment
        store, writer = Store(folder), Store(folder)
        store.put(renamed(result, 1))
        store.note_flight(result.id, "", 3, 0.9, None, None)
        original = getattr(store, moment)

        def look(original: object = original, writer: Store = writer) -> object:
            seen = original()  # type: ignore[operator]
            writer.put(result)
            return seen

        with monkeypatch.context() as patch:
            patch.setattr(store, moment, look)
            assert store.trash() == []
        assert check_whole(folder) == 2


def test_nothing_but_gc_deletes(result: Result, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result)
    store.save_checkpoint(result.id, {"x": torch.zeros(1)}, {})
    (tmp_path / "fits" / f".a{files.TEMPORARY}").write_bytes(b"x")
    os.utime(tmp_path / "fits" / f".a{files.TEMPORARY}", (0, 0))
    (tmp_path / "fits" / "ff.safetensors").write_bytes(b"x")
    before = listing(tmp_path)
    store.put(renamed(result, 1))
    store.put(Result(result.spec, Status.FAILED, "no", {}))
    store.get(result.id)
    store.rows()
    store.flights()
    store.trash()
    store.load_checkpoint(result.id)
    assert {name for name in before if not name.startswith("index.sqlite-")} <= listing(tmp_path)


def test_the_schema_of_a_row_is_the_canonical_forms(result: Result, tmp_path: Path) -> None:
    Store(tmp_path).put(result)
    index = sqlite3.connect(tmp_path / "index.sqlite")
    assert index.execute("SELECT schema FROM fits").fetchall() == [(canonical.SCHEMA,)]
    index.close()
