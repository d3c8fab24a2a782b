"""Estimates and rules that need the running statistics of what the steps show, against plain loops over these."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import pixfit as pf
from pixfit import canonical, engine, modelfile, render, run
from pixfit.models import Hourglass, Siren
from pixfit.optim import Adam, Langevin
from pixfit.spec import AveragedOutput, PosteriorMean
from pixfit.stopping import MovingVariance, WindowVariance
from tests.conftest import picture

TINY = Hourglass(channels=(6, 6), code_channels=4)


def spec_of(**changes: Any) -> pf.Spec:
    problem = pf.Problem(picture(3, 13, 10), noise=pf.GaussianNoise(0.1))
    options = {"optimiser": Langevin(), "budget": pf.Steps(23), "seed": 5, "precision": "float64", **changes}
    return pf.Spec(problem, options.pop("model", TINY), **options)


def shown(spec: pf.Spec) -> list[Tensor]:
    """What each step showed (C, H, W): the average of which the last step is all."""
    whole = dataclasses.replace(spec, estimate=AveragedOutput(0.0), stopping=pf.Never())
    states = list(engine.fit([run._job(whole, {}, ())], save_every=-1.0))
    kept = {state.step: state.tensors["shown"][0].reshape(-1, 3).T.reshape(3, 13, 10) for state in states}
    return [kept[step] for step in range(1, (spec.budget.steps or 0) + 1)]


def outcome(spec: pf.Spec) -> Any:
    outcomes = list(engine.fit([run._job(spec, {}, ())]))[-1].outcomes
    assert outcomes is not None
    return outcomes[0]


@pytest.mark.parametrize(("burn_in", "every"), [(7, 4), (0, 1), (22, 5)])
def test_the_posterior_mean_is_of_every_so_many_outputs(burn_in: int, every: int) -> None:
    spec = spec_of(estimate=PosteriorMean(burn_in, every))
    found, counted = outcome(spec), torch.stack(shown(spec)[burn_in::every]).double()
    torch.testing.assert_close(found.picture.double(), counted.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.spread.double(), counted.std(dim=0, correction=0), rtol=0, atol=1e-6)
    assert (float(found.spread.max()) > 0) == (len(counted) > 1)


def test_before_the_burn_in_ends_it_is_the_last_output() -> None:
    spec = spec_of(estimate=PosteriorMean(100, 5))
    found = outcome(spec)
    torch.testing.assert_close(found.picture.double(), shown(spec)[-1].double(), rtol=0, atol=1e-6)
    assert not found.spread.any()


def test_the_spread_is_in_units_of_pixels() -> None:
    signed = dataclasses.replace(TINY, output="linear", target_range="signed")
    spec = spec_of(model=signed, estimate=PosteriorMean(3, 2))
    counted = 0.5 + 0.5 * torch.stack(shown(spec)[3::2]).double()
    torch.testing.assert_close(outcome(spec).spread.double(), counted.std(dim=0, correction=0), rtol=0, atol=1e-6)


def test_a_result_tells_how_sure_it_is_and_a_store_keeps_that(tmp_path: Any) -> None:
    spec, kept = spec_of(estimate=PosteriorMean(3, 2), precision="float32"), pf.Store(tmp_path)
    result = pf.fit(spec, store=kept)
    counted = torch.stack(shown(spec)[3::2]).double()
    again = kept.get(spec)
    assert result.spread is not None
    assert again is not None
    assert again.spread is not None
    torch.testing.assert_close(result.spread.double(), counted.std(dim=0, correction=0), rtol=0, atol=1e-6)
    assert torch.equal(again.spread, result.spread)
    assert result._repr_html_().count("<figcaption>") == pf.fit(spec_of())._repr_html_().count("<figcaption>") + 1
    assert pf.fit(spec_of(estimate=AveragedOutput())).spread is None


CASES: dict[str, dict[str, Any]] = {
    "posterior": {"estimate": PosteriorMean(4, 3)},
    "window": {"stopping": WindowVariance(5, 100, 6), "estimate": AveragedOutput(0.5)},
    "moving": {"stopping": MovingVariance(0.1, 100, 6)},
}


@pytest.mark.parametrize("name", CASES)
def test_a_fit_that_goes_on_ends_bit_identical(name: str) -> None:
    jobs = [run._job(spec_of(seed=seed, precision="float32", **CASES[name]), {}, ()) for seed in (1, 2)]
    states = {state.step: state for state in engine.fit(jobs, save_every=-1.0)}
    whole = states[23].outcomes
    assert whole is not None
    for step in (1, 11):
        saved = dataclasses.replace(states[step], scalars=json.loads(json.dumps(states[step].scalars)))
        again = list(engine.fit(jobs, state=type(saved).join(saved.split())))[-1].outcomes
        assert again is not None
        for ours, theirs in zip(again, whole, strict=True):
            assert torch.equal(ours.losses, theirs.losses)
            assert all(torch.equal(ours.weights[key], value) for key, value in theirs.weights.items())
            for attribute in ("picture", "spread"):
                first, second = getattr(ours, attribute), getattr(theirs, attribute)
                assert (first is None) == (second is None)
                assert first is None or torch.equal(first, second)


@pytest.mark.parametrize("rule", [WindowVariance(5, 9, 6), MovingVariance(0.3, 9, 6)], ids=str)
def test_the_answer_is_that_of_the_least_variance(rule: Any) -> None:
    spec = spec_of(optimiser=Adam(lr=0.05), stopping=rule, estimate=AveragedOutput(0.5), budget=pf.Steps(60))
    pictures = [each.double() for each in shown(spec)]
    variances = []
    if isinstance(rule, WindowVariance):
        for step in range(len(pictures)):
            last = torch.stack(pictures[max(0, step - 4) : step + 1])
            variances.append(float(last.var(dim=0, correction=0).mean()) if step >= 4 else float("inf"))
    else:
        mean, variance = pictures[0], 0.0
        for step, each in enumerate(pictures):
            away = each - mean
            mean = mean + 0.3 * away
            variance = 0.7 * (variance + 0.3 * float(away.square().mean()))
            variances.append(variance if step else float("inf"))
    best, stop = 0, 60
    for step in range(7, 61):  # updates made; the first that count are after the warm-up
        if best == 0 or variances[step - 1] < variances[best - 1]:
            best = step
        if step - best >= 9:
            stop = step
            break
    average = pictures[0]
    for each in pictures[1:best]:
        average = 0.5 * average + 0.5 * each
    found = outcome(spec)
    assert (found.steps, found.reason) == (stop, "variance" if stop < 60 else "steps")
    torch.testing.assert_close(found.picture.double(), average, rtol=0, atol=1e-5)


def test_settings_survive_json_and_files(tmp_path: Any) -> None:
    for settings in (PosteriorMean(3, 2), WindowVariance(), MovingVariance()):
        assert modelfile.decode(json.loads(canonical.text(settings))) == settings
    result = pf.fit(spec_of(estimate=PosteriorMean(3, 2), precision="float32"))
    modelfile.save(result, tmp_path / "model.safetensors")
    assert result.estimate is not None
    assert torch.equal(render.render(modelfile.load(tmp_path / "model.safetensors")), result.estimate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Siren(1, 8), "estimate": PosteriorMean()}, "estimate PosteriorMean needs the whole"),
        ({"model": Siren(1, 8), "stopping": WindowVariance()}, "rule WindowVariance needs the whole"),
        ({"estimate": lambda: PosteriorMean(burn_in=-1)}, "estimate.burn_in is -1"),
        ({"estimate": lambda: PosteriorMean(every=0)}, "estimate.every is 0"),
    ],
)  # fmt: skip
def test_wrong_specs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**{name: value() if callable(value) else value for name, value in changes.items()})
