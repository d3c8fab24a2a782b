"""The command of the studies: ``pixfit study NAME plan|run|status|report``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixfit.cli.options import STORE, Device, Json, Quiet, StoreDir, bar, command, emit, fail, say, settings_of

if TYPE_CHECKING:
    from pixfit.store import Store
    from pixfit.studies import Study
    from pixfit.workers import Tally

__all__ = ["study"]

_VERBS = ("plan", "run", "status", "report")


@command
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, such as prefit.")],
    verb: Annotated[str, typer.Argument(metavar="plan|run|status|report", help="What to do.")] = "status",
    profile: Annotated[str, typer.Option(help="smoke (seconds), laptop (hours) or published (all).")] = "laptop",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that fit.", show_default="one a core; one on a GPU")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change a setting of the study.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the report.", show_default="STORE/studies/NAME-PROFILE"),
    ] = None,
    store: StoreDir = STORE,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Runs a study of many fits, or says what it would take, how far it is, and what it has found.

    plan counts the fits and estimates their time; run makes those that are missing, and can be interrupted and run
    again; status and report work at any moment, also while it runs. A search ends with its report and a recipe file.

    Example:  pixfit study prefit plan --profile laptop
              pixfit study prefit run --profile smoke && pixfit study prefit report --profile smoke
              pixfit study climb run -s search.seconds=5 -s search.parameters=500000
    """
    from pixfit.store import Store
    from pixfit.studies import STUDIES, ClimbStudy

    if name not in STUDIES:
        fail(f"no study is called {name!r}; there are {', '.join(STUDIES)}")
    if verb not in _VERBS:
        fail(f"a study can {', '.join(_VERBS)}; got {verb!r}")
    chosen, kept = STUDIES[name].of(profile, settings_of(settings or [])), Store(store)
    searching = isinstance(chosen, ClimbStudy) and chosen.search.on
    folder = output or store / "studies" / f"{chosen.label}-{profile}"
    began = time.monotonic()
    extra: dict[str, Any] = {}
    files: list[Path] = []
    if verb == "plan":
        extra = _plan(chosen, kept, workers, device, quiet=quiet, show=not as_json)
    elif verb == "run":
        _run(chosen, kept, workers, device, quiet)
    if verb == "report" or (verb == "run" and searching):
        with bar(quiet, "drawing") as show:
            files = chosen.report(kept, folder, progress=lambda fraction: show(fraction, ""))
    recipe = next((path for path in files if path.suffix == ".json"), None)
    counts = chosen.counts(kept)
    answer = chosen.answer(kept) if verb in ("run", "report") else None
    if as_json:
        extra |= {"page": str(files[0])} if files else {}
        extra |= {"recipe": str(recipe)} if recipe is not None else {}
        names = {} if answer is None else {key: list(table.rows) for key, table in answer.tables.items()}
        emit(
            {
                "study": name, "profile": profile, "fits": counts.fits, "done": counts.done, "failed": counts.failed,
                "seconds": time.monotonic() - began, **extra,
                "tables": names, "figures": [str(path) for path in files if path.parent.name == "figures"],
            }
        )  # fmt: skip
    elif verb != "plan":
        if answer is not None and answer.summary:
            print(answer.summary)
        _print_counts(chosen, kept)
        if files:
            print(f"{'report':<11} {files[0]}")
        if recipe is not None:
            print(f"{'recipe':<11} {recipe}")
    if verb == "run" and counts.failed:
        raise typer.Exit(1)


def _plan(study: Study, store: Store, workers: int | None, device: str, *, quiet: bool, show: bool) -> dict[str, Any]:
    """Prints how many fits are wanted, and what they take in time and on disk."""
    from pixfit import run
    from pixfit import workers as working
    from pixfit.studies import ClimbStudy

    chosen = run.choose_device(device)
    count = workers or _processes(str(chosen))
    wanted, counts = study.specs(store), study.counts(store)
    with bar(quiet, "timing") as tell:
        whole = working.estimate(
            wanted, device=str(chosen), record=study.record, progress=lambda fraction: tell(fraction, "")
        )
    seconds = whole / count
    parents = {spec.start.weights.id for spec in wanted if hasattr(spec.start.weights, "id")}
    numbers = sum(spec.budget.steps or 0 for spec in wanted)
    for spec in wanted:
        kept = len(study.record(spec).keep)
        if kept or spec.id in parents:
            numbers += (1 + kept) * spec.model.parameters_count(out_features=3)
    disk = 4 * numbers + 6000 * len(wanted)
    if show:
        print(f"{'study':<11} {study.name}, {study.profile} profile")
        print(f"{'fits':<11} {len(wanted)} to make, {counts.done} of {counts.fits} done")
        print(f"{'time':<11} about {_duration(seconds)} with {count} processes on {chosen}")
        print(f"{'disk':<11} about {disk / 1e6:.0f} MB in {store.folder}")
        if isinstance(study, ClimbStudy) and study.searching is not None:
            fits, budgets = study.searching.size
            print(f"{'search':<11} these come first; in all about {fits} fits, as long as {budgets:.0f} whole budgets")
    return {"wanted": len(wanted), "estimated_seconds": seconds, "estimated_bytes": disk, "workers": count}


def _run(study: Study, store: Store, workers: int | None, device: str, quiet: bool) -> None:
    from pixfit import run
    from pixfit.workers import Pool

    chosen = str(run.choose_device(device))
    tried: set[str] = set()
    began = time.monotonic()
    count = workers or _processes(chosen)
    with Pool(count, store, device=chosen, record=study.record) as pool, bar(quiet, study.name) as show:

        def on_progress(at: Tally) -> None:
            under_way = ", ".join(f"{fraction:.0%}" for fraction in at.current.values())
            note = f"{at.done} of {at.fits} fits" + (f", now {under_way}" if under_way else "")
            show(at.fraction, note + (f", {at.failed} failed" if at.failed else ""))
            if not quiet and not sys.stderr.isatty():
                tell(at, note)

        told = [began]

        def tell(at: Tally, note: str) -> None:
            """A line a minute where nobody looks at a bar."""
            now = time.monotonic()
            if now - told[0] >= 60 and at.fraction > 0:
                told[0] = now
                left = (now - began) * (1 - at.fraction) / at.fraction
                print(f"{study.name}: {at.fraction:.1%}, {note}, {_duration(left)} left", file=sys.stderr, flush=True)

        # A study may want more once it has seen results; what has failed is not tried twice in one run.
        while wanted := [spec for spec in study.specs(store) if spec.id not in tried]:
            tried |= {spec.id for spec in wanted}
            say(quiet, f"{study.name}: {len(wanted)} fits to make")
            pool.fit(wanted, on_progress, recipe=f"study {study.name}")


def _print_counts(study: Study, store: Store) -> None:
    counts = study.counts(store)
    state = f"{counts.done} of {counts.fits} done"
    for number, word in ((counts.failed, "failed"), (counts.diverged, "of them diverged")):
        state += f", {number} {word}" if number else ""
    print(f"{'fits':<11} {state}")
    print(f"{'time':<11} {_duration(counts.seconds)} of one core in training")
    wanted = {spec.id for spec in study.fits(store)}
    for flight in store.flights():
        if flight.alive and flight.id in wanted:
            print(f"{'running':<11} {flight.id[:10]}  step {flight.step} ({flight.fraction:.0%})")


def _processes(device: str) -> int:
    """One a core; on a GPU one, which fits stacks."""
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
