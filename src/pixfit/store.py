"""Finished fits on disk: an SQLite index and one safetensors file a fit. Reading results needs no engine.

A row appears only after its file, a file only when it is whole. Nothing is deleted except by `Store.gc`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pixfit import canonical, files, modelfile
from pixfit.result import Result, Status
from pixfit.spec import Shown, Spec

__all__ = ["Entry", "Flight", "Row", "Store", "StoreError", "Trash"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS fits (
  id TEXT PRIMARY KEY, schema INTEGER NOT NULL, name TEXT NOT NULL, recipe TEXT NOT NULL, status TEXT NOT NULL,
  reason TEXT NOT NULL, finished REAL NOT NULL, summary TEXT NOT NULL, spec TEXT NOT NULL, file TEXT
);
CREATE TABLE IF NOT EXISTS flights (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, step INTEGER NOT NULL, fraction REAL NOT NULL, loss REAL, psnr REAL,
  process INTEGER NOT NULL, host TEXT NOT NULL, updated REAL NOT NULL
);
"""
Row = tuple[Any, ...]
"""A line of the index, as `Store.write` returns it and `Store.enter` takes it."""

_CURVE, _WEIGHT, _KEPT, _PICTURE, _SPREAD = "curve/", "weight/", "kept/", "picture", "spread"


class StoreError(ValueError):
    """A store that cannot be used, or an id that it does not hold."""


@dataclass(frozen=True)
class Flight:
    """A fit that is under way, or was when its program was killed (``alive`` tells)."""

    id: str
    name: str
    step: int
    fraction: float
    loss: float | None
    psnr: float | None
    alive: bool


@dataclass(frozen=True)
class Entry:
    """What the index alone knows of a fit: how it ended, whether its weights are kept, what it took."""

    status: Status
    reason: str
    weights: bool
    steps: int
    process_seconds: float


@dataclass(frozen=True)
class Trash:
    """A file that nothing needs: why, and how many bytes it frees."""

    path: Path
    why: str
    bytes: int


class Store:
    """A folder of finished fits, made when first written to.

    Args:
        folder: where the index, the fits and the checkpoints lie.

    Raises:
        StoreError: a folder that cannot be made, or an index that is not one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # ------------------------------------------------------------------------------------------------------- results

    def put(self, result: Result, *, name: str = "", recipe: str = "") -> None:
        """Adds a result, or replaces the one with its id; a finished one is never replaced by one that is not."""
        self.enter(self.write(result, name=name, recipe=recipe))

    def write(self, result: Result, *, name: str = "", recipe: str = "", weights: bool = True) -> Row:
        """Writes the file of a result without telling the index of it; `enter` does that, perhaps in another process.

        Args:
            weights: False files the curves alone, of a fit that nobody will render or start from.
        """
        tensors = {_CURVE + key: value for key, value in result.curves.items()}
        weights = weights and bool(result.weights)
        if weights:
            tensors |= {_WEIGHT + key: value for key, value in result.weights.items()}
            tensors |= {f"{_KEPT}{step}/{key}": t for step, named in result.kept.items() for key, t in named.items()}
            if isinstance(result.spec.estimate, Shown) and result.estimate is not None:
                tensors[_PICTURE] = result.estimate
            if result.spread is not None:
                tensors[_SPREAD] = result.spread
        file = f"fits/{result.id}.safetensors" if tensors and result.weights else None
        if file is not None and self._may_replace(result):
            self._write_tensors(self.folder / file, tensors, {})
        summary = {
            **result.summary(),
            "metrics": _jsonable(result.metrics),
            "threads": result.threads,
            "versions": dict(result.versions),
            "stored_weights": weights,
        }
        return (
            result.id, canonical.SCHEMA, name, recipe, result.status.value, result.reason, time.time(),
            json.dumps(summary), json.dumps(result.spec.plain), file,
        )  # fmt: skip

    def enter(self, row: Row) -> None:
        """Adds the row of a file that `write` has written, and forgets that the fit is under way."""
        identity, status = row[0], Status(row[4])
        with self._connect() as index:
            found = index.execute("SELECT status FROM fits WHERE id = ?", (identity,)).fetchone()
            if status.finished or found is None or not Status(found[0]).finished:
                index.execute("INSERT OR REPLACE INTO fits VALUES (?,?,?,?,?,?,?,?,?,?)", row)
            index.execute("DELETE FROM flights WHERE id = ?", (identity,))

    def land(self, *identities: str) -> None:
        """Forgets that these fits are under way."""
        with self._connect() as index:
            index.executemany("DELETE FROM flights WHERE id = ?", [(identity,) for identity in identities])

    def get(self, fit: Spec | str) -> Result | None:
        """The result of a spec, or of an id or the beginning of one; None where the store has none.

        Its picture is stored only where it is not what the weights show; else `pixfit.render` makes it. With an id the
        spec's problem is `Sealed`.

        Raises:
            StoreError: several ids begin so, or the fit's file is damaged.
        """
        if not self._exists():
            return None
        key = fit.id if isinstance(fit, Spec) else fit
        with self._connect() as index:
            found = index.execute(
                "SELECT id, status, reason, summary, spec, file FROM fits WHERE substr(id, 1, ?) = ? LIMIT 3",
                (len(key), key),
            ).fetchall()
        if len(found) > 1:
            raise StoreError(
                f"several fits begin with {key!r}, such as {found[0][0]} and {found[1][0]}; give more digits"
            )
        if not found:
            return None
        identity, status, reason, summary_text, plain, file = found[0]
        summary = json.loads(summary_text)
        tensors = {} if file is None else self._read_tensors(self.folder / file)[0]
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(_KEPT):
                step, _, key = name.removeprefix(_KEPT).partition("/")
                kept.setdefault(int(step), {})[key] = value
        spec = fit if isinstance(fit, Spec) else _filed(identity, json.loads(plain))
        names = (
            "steps",
            "epochs",
            "seconds",
            "process_seconds",
            "evaluation_seconds",
            "device",
            "kernel",
            "threads",
            "versions",
        )
        return Result(
            spec=spec, status=Status(status), reason=reason, kept=kept, metrics=_numbers(summary["metrics"]),
            weights={n.removeprefix(_WEIGHT): t for n, t in tensors.items() if n.startswith(_WEIGHT)},
            curves={n.removeprefix(_CURVE): t for n, t in tensors.items() if n.startswith(_CURVE)},
            estimate=tensors.get(_PICTURE), spread=tensors.get(_SPREAD),
            **{name: summary[name] for name in names},
        )  # fmt: skip

    def entries(self) -> dict[str, Entry]:
        """What the index knows of every fit, by id; no file is opened."""
        if not self._exists():
            return {}
        with self._connect() as index:
            found = index.execute("SELECT id, status, reason, summary, file FROM fits").fetchall()
        entries = {}
        for identity, status, reason, text, file in found:
            summary = json.loads(text)
            weights = bool(summary.get("stored_weights", file is not None))
            entries[identity] = Entry(
                Status(status), reason, weights, summary["steps"], summary["process_seconds"]
            )  # fmt: skip
        return entries

    def unfinished(self, specs: Iterable[Spec]) -> list[Spec]:
        """Of these specs and the parents that they start from, those still to be fitted, parents before children.

        A finished fit whose weights were not kept is among them where an unfinished one starts from it.
        """
        entries = self.entries()
        found: dict[str, Spec] = {}

        def add(spec: Spec, weights: bool) -> None:
            entry = entries.get(spec.id)
            done = entry is not None and entry.status.finished and (entry.weights or not weights)
            if done or spec.id in found:
                return
            if isinstance(parent := spec.start.weights, Spec):
                add(parent, True)
            found[spec.id] = spec

        for spec in specs:
            add(spec, False)
        return list(found.values())

    @contextlib.contextmanager
    def held_open(self) -> Iterator[None]:
        """Keeps the index open meanwhile, which makes writing many rows several times faster."""
        with self._connect():
            yield

    def curve(self, identity: str, name: str = "loss") -> Tensor | None:
        """One curve of a fit (see `Result.curves`) without its weights; None where the store has none.

        Raises:
            StoreError: the fit's file is damaged.
        """
        path = self.folder / "fits" / f"{identity}.safetensors"
        return self._read_tensors(path, only=_CURVE + name)[0].get(_CURVE + name) if path.is_file() else None

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a fit, oldest first: id, name, recipe, status, finished (seconds since 1970) and its summary."""
        if not self._exists():
            return []
        with self._connect() as index:
            found = index.execute(
                "SELECT id, name, recipe, finished, summary, spec FROM fits ORDER BY finished"
            ).fetchall()
        return [
            {
                **json.loads(summary),
                "id": identity,
                "name": name,
                "recipe": recipe,
                "finished": finished,
                "spec": json.loads(spec),
            }
            for identity, name, recipe, finished, summary, spec in found
        ]

    # ------------------------------------------------------------------------------------------------ fits in flight

    def note_flight(
        self, identity: str, name: str, step: int, fraction: float, loss: float | None, psnr: float | None
    ) -> None:
        """Tells every other reader of the store how far a fit is."""
        row = (identity, name, step, fraction, loss, psnr, os.getpid(), platform.node(), time.time())
        with self._connect() as index:
            index.execute("INSERT OR REPLACE INTO flights VALUES (?,?,?,?,?,?,?,?,?)", row)

    def flights(self) -> list[Flight]:
        """Fits that have begun and not ended."""
        if not self._exists():
            return []
        with self._connect() as index:
            found = index.execute(
                "SELECT id, name, step, fraction, loss, psnr, process, host, updated FROM flights"
            ).fetchall()
        return [
            Flight(identity, name, step, fraction, loss, psnr, _alive(process, host, updated))
            for identity, name, step, fraction, loss, psnr, process, host, updated in found
        ]

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, key: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        self._write_tensors(self._checkpoint(key), tensors, scalars)

    def load_checkpoint(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last state saved under the key, or None. Raises StoreError where its file is damaged."""
        path = self._checkpoint(key)
        return self._read_tensors(path) if path.is_file() else None

    def _checkpoint(self, key: str) -> Path:
        return self.folder / "checkpoints" / f"{key}.safetensors"

    # ------------------------------------------------------------------------------------------------------ clean-up

    def trash(self) -> list[Trash]:
        """What `gc` would delete: unfinished files, checkpoints of finished fits, and files that no row names."""
        if not self._exists():
            return []
        # In this order: a fit that ends meanwhile was still in flight at the second look, or has its row at the third.
        paths = sorted(self.folder.rglob("*"))
        busy = {flight.id for flight in self.flights() if flight.alive}
        rows = self.rows()
        finished = {row["id"] for row in rows if Status(row["status"]).finished}
        named = {f"{row['id']}.safetensors" for row in rows}
        found = []
        for path in paths:
            if not path.is_file():
                continue
            why = None
            if path.name.endswith(files.TEMPORARY):
                why = "left unfinished by a killed program" if time.time() - path.stat().st_mtime > 60 else None
            elif path.parent.name == "checkpoints" and path.stem in finished - busy:
                why = "checkpoint of a finished fit"
            elif path.parent.name == "fits" and path.name not in named and path.stem not in busy:
                why = "no row of the index names it"
            if why is not None:
                found.append(Trash(path, why, path.stat().st_size))
        return found

    def gc(self) -> list[Trash]:
        """Deletes what `trash` lists, and the notes of fits whose program is gone; returns what it deleted."""
        found = self.trash()
        for item in found:
            item.path.unlink(missing_ok=True)
        dead = [flight.id for flight in self.flights() if not flight.alive]
        if dead:
            with self._connect() as index:
                index.executemany("DELETE FROM flights WHERE id = ?", [(identity,) for identity in dead])
        return found

    # --------------------------------------------------------------------------------------------------------- files

    def _exists(self) -> bool:
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder}: a file, not a store; name a folder with --store")
        return (self.folder / "index.sqlite").is_file()

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.folder / "index.sqlite", timeout=60)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.folder}: cannot be used as a store ({error}); name another with --store") from None
        try:
            _make_tables(connection)
            with connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.folder / 'index.sqlite'}: not a usable index ({error}); move it away or name another store"
            ) from None
        finally:
            connection.close()

    def _write_tensors(self, path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        from safetensors.torch import save as to_safetensors

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            plain = {name: value.contiguous() for name, value in tensors.items()}
            files.write_bytes(path, to_safetensors(plain, {"scalars": json.dumps(scalars)}))
        except OSError as error:
            raise StoreError(f"{path}: could not be written ({error.strerror or error})") from None

    def _may_replace(self, result: Result) -> bool:
        """Whether the result's file may take the place of the one with its id."""
        return result.status.finished or (before := self.get(result.spec)) is None or not before.status.finished

    def _read_tensors(self, path: Path, only: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as stored:
                names = [name for name in stored.keys() if name.startswith(only)]  # noqa: SIM118
                tensors = {name: stored.get_tensor(name) for name in names}
                return tensors, json.loads((stored.metadata() or {}).get("scalars", "{}"))
        except (SafetensorError, OSError, ValueError) as error:
            raise StoreError(f"{path}: damaged or missing ({error}); run the fit again with --again") from None


def _make_tables(connection: sqlite3.Connection) -> None:
    """Asks again for a minute: SQLite does not wait for a program that is making the same index at this moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_SCHEMA)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _filed(identity: str, plain: dict[str, Any]) -> Spec:
    """A spec read back from its row, under its old id: a parent known by its id alone cannot be hashed again."""
    spec = modelfile.decode_spec(plain)
    vars(spec).update(plain=plain, id=identity)
    return spec


def _jsonable(metrics: Mapping[str, float | None]) -> dict[str, float | str | None]:
    return {name: "inf" if value == float("inf") else value for name, value in metrics.items()}


def _numbers(metrics: Mapping[str, float | str | None]) -> dict[str, float | None]:
    return {name: float(value) if isinstance(value, str) else value for name, value in metrics.items()}


def _alive(process: int, host: str, updated: float) -> bool:
    """Whether the program that noted a flight still runs; on another host, whether it noted anything lately."""
    if host != platform.node():
        return time.time() - updated < 120
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
