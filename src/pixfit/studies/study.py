"""What every study is: settings, the fits that it wants, and the answer that it makes of finished ones.

A study never fits anything: `pixfit.workers` runs what `Study.specs` names, and asks again when results have arrived.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pixfit import files, plots
from pixfit.spec import Record, Spec
from pixfit.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Answer", "Counts", "Study", "StudyError", "Table"]


class StudyError(ValueError):
    """A study, profile or setting that does not exist or does not fit; the text says what is allowed."""


@dataclass(frozen=True)
class Counts:
    """How far a study is: fits in all, finished, failed (an error, not a divergence), and ended in no good way.

    Args:
        seconds: of processor time in the training of the finished fits, added up.
    """

    fits: int
    done: int
    failed: int
    diverged: int
    seconds: float


@dataclass(frozen=True)
class Table:
    """Rows of plain numbers and texts under one heading; a cell that has no value is None.

    Args:
        notes: what a reader must know to read the columns.
        shown: whether the page of a report shows it; False: it is too long, and is a file alone.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: str = ""
    shown: bool = True

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def markdown(self) -> str:
        """A pipe table with its title and notes."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(_cell(row.get(name)) for name in self.columns) + " |" for row in self.rows]
        return "\n".join([f"## {self.title}", "", *([self.notes, ""] if self.notes else []), *lines, ""])

    def csv(self) -> str:
        """Comma-separated values, numbers in full; no value is an empty cell."""
        import csv
        import io

        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in self.rows)
        return out.getvalue()


@dataclass(frozen=True)
class Answer:
    """What a study says: a few sentences of Markdown, and tables, figures and films by file name.

    Figures and films (the bytes of a WebP file) are made when called.
    """

    summary: str
    tables: Mapping[str, Table]
    figures: Mapping[str, Callable[[], Figure]]
    films: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study(ABC):
    """Base of the studies: its fields are the study's settings, with the published protocol as their defaults.

    A study is a value that is made from a profile and changed settings by `of`. Everything it says is a pure function
    of its settings and of the finished fits in a store.
    """

    name: ClassVar[str]
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]]
    """The changed settings of each profile: ``smoke`` (seconds), ``laptop`` and ``published``."""

    profile: str = field(default="published", kw_only=True)

    @classmethod
    def of(cls, profile: str = "laptop", settings: Mapping[str, Any] | None = None) -> Self:
        """The study of a profile with settings changed by name, dotted where a setting has settings of its own.

        Values may be texts as typed on a command line: numbers, ``true`` and ``null`` are read as JSON; several values
        are separated by commas.

        Raises:
            StudyError: no such profile or setting (with the nearest one), or a value that the setting refuses.
        """
        if profile not in cls.profiles:
            raise StudyError(f"no profile {profile!r} of the study {cls.name}; there are {', '.join(cls.profiles)}")
        study = dataclasses.replace(cls(profile=profile), **cls.profiles[profile])
        return study.changed(settings or {})

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """The study with other settings, see `of`."""
        changes: dict[str, Any] = {}
        for dotted, value in settings.items():
            first, _, rest = dotted.partition(".")
            known = list(self.settings())
            if first not in known:
                close = difflib.get_close_matches(first, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
                raise StudyError(f"no setting {dotted!r} in the study {self.name}; {hint}")
            changes[first] = _set(changes.get(first, getattr(self, first)), rest, value, dotted)
        try:
            return dataclasses.replace(self, **changes)
        except (ValueError, TypeError) as error:
            raise StudyError(str(error)) from None

    @property
    def label(self) -> str:
        """The study's name, with what is asked of it where it can be asked different things: a report's folder."""
        return self.name

    @abstractmethod
    def fits(self, store: Store) -> list[Spec]:
        """Every fit that the study knows by now to need, finished or not, parents before children."""

    @abstractmethod
    def answer(self, store: Store) -> Answer:
        """What the finished fits say, at any moment."""

    def tables(self, store: Store) -> dict[str, Table]:
        """The answer in numbers, by file name."""
        return dict(self.answer(store).tables)

    def figures(self, store: Store) -> dict[str, Figure]:
        """The answer in pictures, by file name."""
        return {name: draw() for name, draw in self.answer(store).figures.items()}

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for a report."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "profile"}

    def record(self, spec: Spec) -> Record:
        """What to write down during one of the fits: by default a curve of about 40 points, and no weights."""
        return Record()

    def specs(self, store: Store) -> list[Spec]:
        """The fits that are still wanted, parents before children; asked again when results have arrived."""
        return store.unfinished(self.fits(store))

    def counts(self, store: Store) -> Counts:
        """How far the study is, from the index alone."""
        entries, wanted = store.entries(), self.fits(store)
        found = [entries[spec.id] for spec in wanted if spec.id in entries]
        done = [entry for entry in found if entry.status.finished]
        return Counts(
            fits=len(wanted), done=len(done), failed=sum(entry.status.value == "failed" for entry in found),
            diverged=sum(entry.status.value == "diverged" for entry in done),
            seconds=sum(entry.process_seconds for entry in done),
        )  # fmt: skip

    def report(
        self, store: Store, folder: str | Path, progress: Callable[[float], None] = lambda fraction: None
    ) -> list[Path]:
        """Writes ``report.md``, every table as CSV, every figure as PNG and SVG, and every film as WebP.

        Returns:
            the files, the page first.

        Raises:
            OSError: the folder cannot be written.
        """
        place = Path(folder)
        (place / "figures").mkdir(parents=True, exist_ok=True)
        answer, counts = self.answer(store), self.counts(store)
        written = [place / "report.md"]
        for name, table in answer.tables.items():
            written.append(place / f"{name}.csv")
            files.write_bytes(written[-1], table.csv().encode())
        drawings = len(answer.figures) + len(answer.films)
        for index, (name, draw) in enumerate(answer.figures.items()):
            progress(index / drawings)
            figure = draw()
            for suffix, data in ((".png", plots.png(figure)), (".svg", plots.svg(figure))):
                written.append(place / "figures" / f"{name}{suffix}")
                files.write_bytes(written[-1], data)
        for index, (name, shoot) in enumerate(answer.films.items(), start=len(answer.figures)):
            progress(index / drawings)
            written.append(place / "figures" / f"{name}.webp")
            files.write_bytes(written[-1], shoot())
        settings = [f"* `{name}` = {_cell(value)}" for name, value in self.settings().items()]
        state = f"{counts.done} of {counts.fits} fits are finished"
        state += f", {counts.failed} failed" if counts.failed else ""
        state += f", {counts.diverged} diverged" if counts.diverged else ""
        page = [
            f"# {type(self).__name__.removesuffix('Study')} study: {self.profile} profile", "",
            f"{state}; {counts.seconds / 3600:.2f} processor hours of training.", "",
            *([answer.summary, ""] if answer.summary else []),
            *(table.markdown() for table in answer.tables.values() if table.shown),
            *(["## Figures", ""] if drawings else []),
            *(f"![{name}](figures/{name}.png)\n" for name in answer.figures),
            *(f"![{name}](figures/{name}.webp)\n" for name in answer.films),
            "## Settings", "", *settings, "",
        ]  # fmt: skip
        files.write_bytes(written[0], "\n".join(page).encode())
        return written


def _set(old: Any, rest: str, value: Any, dotted: str) -> Any:
    """The setting with a new value, or with one of its own settings changed."""
    if rest:
        if not dataclasses.is_dataclass(old) or isinstance(old, type):
            raise StudyError(f"{dotted.removesuffix('.' + rest)!r} is {_cell(old)} and has no settings of its own")
        first, _, deeper = rest.partition(".")
        known = [f.name for f in fields(old)]
        if first not in known:
            close = difflib.get_close_matches(first, known, n=1)
            above = dotted.removesuffix(rest)
            hint = f"did you mean {above + close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise StudyError(f"no setting {dotted!r}; {hint}")
        return dataclasses.replace(old, **{first: _set(getattr(old, first), deeper, value, dotted)})
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    if isinstance(old, tuple):
        return tuple(_plain(part.strip()) for part in value.strip("[]").split(",") if part.strip())
    return _plain(value) if not isinstance(old, str) else value


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return ", ".join(_cell(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
