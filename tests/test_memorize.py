"""Many pictures in one network as a person meets it: similarity and pairs, paths, recipes, pages, and the commands."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from torch import Tensor

import pixfit as pf
from pixfit import embedding, images, memorize, paths, render, run, similarity
from pixfit.models import Coordinates, LearnedCode, Memory, RingCode, Siren, Wire
from pixfit.optim import Adam
from tests.conftest import picture
from tests.test_cli import as_json, one_line, pixfit

SIDE = 8
PICTURES = [replace(picture(3, SIDE, SIDE, seed=number), name=f"icon-{number}") for number in range(7)]
SMALL = ("-s", "model.inner.hidden_features=16")


def made(inner: Any = None, steps: int = 60, pictures: Any = PICTURES, **code: Any) -> pf.Network:
    gallery = pf.Gallery(pictures, held_out=0.1)
    model = Memory(inner or Siren.bottleneck(20, 10), code.get("code", RingCode()), gallery.sizes)
    spec = pf.Spec(gallery, model, batches=pf.PictureBatches(3), optimiser=Adam(2e-3), budget=pf.Steps(steps))
    return pf.Network.of(pf.fit(spec, device="cpu"))


@pytest.fixture(scope="module")
def ring() -> pf.Network:
    """Seven pictures on a ring, in a network with a bottleneck."""
    torch.set_num_threads(1)
    return made()


# --- similarity


def test_measures_against_their_definitions() -> None:
    rows = torch.randn(5, 70_000, generator=torch.Generator().manual_seed(1))  # more than one part
    for measure in similarity.MEASURES:
        found = similarity.matrix(rows, measure)
        assert torch.equal(found, found.T)
        for i in range(5):
            for j in range(5):
                a, b = rows[i].double(), rows[j].double()
                expected = {
                    "cosine": a @ b / (a.norm() * b.norm()), "dot": a @ b, "euclidean": -(a - b).norm(),
                }[measure]  # fmt: skip
                assert float(found[i, j]) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)
    assert similarity.matrix(torch.zeros(2, 3)).eq(0).all()
    with pytest.raises(ValueError, match="it may be cosine, euclidean, dot"):
        similarity.matrix(rows, "manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"allowed \(pictures, numbers\)"):
        similarity.matrix(rows[0])


def symmetric(size: int, pairs: dict[tuple[int, int], float], diagonal: float = 1.0) -> Tensor:
    matrix = torch.eye(size, dtype=torch.float64) * diagonal
    for (i, j), value in pairs.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def test_the_published_suppression_by_hand() -> None:
    """Five pictures. The sum is 5 · 1 + 2 · 5.9 = 16.8 and the mean 16.8 / 25 = 0.672.

    The two least, 0.1 of (0, 4) and 0.2 of (1, 3), become 0.672, as the diagonal does. Of the rest, the six smallest
    entries are those of (2, 3), (0, 1) and (1, 2), and the six largest those of (2, 4), (3, 4) and (0, 2).
    """
    values = {
        (0, 1): 0.4, (0, 2): 0.85, (0, 3): 0.7, (0, 4): 0.1, (1, 2): 0.5, (1, 3): 0.2, (1, 4): 0.75, (2, 3): 0.3,
        (2, 4): 0.95, (3, 4): 0.9,
    }  # fmt: skip
    matrix = symmetric(5, values)
    before = matrix.clone()
    assert similarity.published_pairs(matrix, most=False) == [(2, 3), (0, 1), (1, 2)]
    assert similarity.published_pairs(matrix, most=True) == [(2, 4), (3, 4), (0, 2)]
    assert torch.equal(matrix, before)
    assert similarity.greedy_pairs(matrix, most=False) == [(0, 4), (1, 3)]
    assert similarity.greedy_pairs(matrix, most=True) == [(2, 4), (0, 3)]  # (3, 4) and (0, 2) would repeat a picture
    # With three pictures two of three pairs are left out, and the mean stands for them and for the diagonal.
    few = symmetric(3, {(0, 1): 0.1, (0, 2): 0.9, (1, 2): 0.2}, diagonal=0.5)
    assert similarity.published_pairs(few, most=True) == [(0, 2)]
    assert similarity.published_pairs(few, most=False) == []


def matrices() -> st.SearchStrategy[Tensor]:
    """Symmetric, of a few whole numbers, so that many entries are equal."""

    def of(size: int) -> st.SearchStrategy[Tensor]:
        numbers = st.lists(st.integers(-3, 3), min_size=size * size, max_size=size * size)
        return numbers.map(lambda drawn: (m := torch.tensor(drawn, dtype=torch.float64).view(size, size)) + m.T)

    return st.integers(1, 9).flatmap(of)


@given(matrices(), st.booleans(), st.integers(0, 6))
def test_greedy_pairs_are_of_distinct_pictures(matrix: Tensor, most: bool, count: int) -> None:
    pairs = similarity.greedy_pairs(matrix, most, count)
    assert len(pairs) == min(count, len(matrix) // 2)
    assert len({one for pair in pairs for one in pair}) == 2 * len(pairs)
    free = set(range(len(matrix)))
    for i, j in pairs:
        assert i < j
        rest = [float(matrix[a, b]) for a in free for b in free if a < b]
        assert float(matrix[i, j]) == (max(rest) if most else min(rest))
        free -= {i, j}


@given(matrices(), st.booleans())
def test_published_pairs_are_pairs(matrix: Tensor, most: bool) -> None:
    pairs = similarity.published_pairs(matrix, most)
    assert len(pairs) == len(set(pairs)) <= 3
    assert all(0 <= i < j < len(matrix) for i, j in pairs)


@given(matrices(), st.integers(0, 8), st.integers(1, 9))
def test_the_nearest_come_first(matrix: Tensor, number: int, count: int) -> None:
    number %= len(matrix)
    found = similarity.nearest(matrix, number, count)
    assert len(found) == len(set(found)) == min(count, len(matrix) - 1)
    assert number not in found
    levels = [float(matrix[number, one]) for one in found]
    others = sorted((float(matrix[number, one]) for one in range(len(matrix)) if one != number), reverse=True)
    assert levels == others[: len(levels)]


def test_what_is_no_similarity() -> None:
    skew = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    for refused in (
        lambda: similarity.greedy_pairs(skew, True), lambda: similarity.published_pairs(skew, True),
        lambda: similarity.nearest(skew, 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"allowed symmetric \(N, N\)"):
            refused()
    with pytest.raises(ValueError, match="the pictures are those from 0 to 1"):
        similarity.nearest(torch.eye(2), 2)
    with pytest.raises(ValueError, match="count is -1"):
        similarity.greedy_pairs(torch.eye(2), True, -1)


def test_embeddings_are_the_fields_of_the_pictures(ring: pf.Network) -> None:
    whole, pooled = similarity.embeddings(ring), similarity.embeddings(ring, pooled=True)
    assert whole.shape == (7, SIDE * SIDE * 20)
    for number in range(7):
        field = embedding.field(ring.one(number))
        assert torch.equal(whole[number], field.flatten())
        torch.testing.assert_close(pooled[number], field.mean(dim=0))
    assert similarity.embeddings(ring, layer="narrowest", size=(3, 5)).shape == (7, 15 * 2)


def test_pictures_of_unequal_sizes_are_compared_pooled_or_at_one_size() -> None:
    network = made(Siren(1, 8), 2, [picture(3, 4, 6), picture(3, 6, 4), picture(3, 5, 5)], code=LearnedCode(3))
    with pytest.raises(ValueError, match=r"have 3 sizes.*give one size for all, or use pooled"):
        similarity.embeddings(network)
    assert similarity.embeddings(network, pooled=True).shape == (3, 8)
    assert similarity.embeddings(network, size=(4, 4)).shape == (3, 128)
    with pytest.raises(ValueError, match="the two pictures are 6x4 and 4x6; give one size for both"):
        paths.blend(network, 0, 1, "code")
    assert paths.blend(network, 0, 1, "hidden", size=(7, 3), steps=4).shape == (4, 3, 3, 7)


# --- paths


def test_the_spaces_of_a_memory(ring: pf.Network) -> None:
    assert paths.spaces(ring) == paths.SPACES
    assert paths.spaces(made(Siren(1, 8), 1, code=LearnedCode(3))) == ("pixels", "hidden", "code")
    assert paths.spaces(made(Wire(1, 6), 1)) == ("pixels", "code", "arc")
    assert paths.spaces(made(Siren(1, (16, 4)), 1)) == ("pixels", "hidden", "code", "arc")  # the last one is no neck


@pytest.mark.parametrize("space", paths.SPACES)
@pytest.mark.parametrize("size", [None, (11, 6)])
def test_every_path_begins_and_ends_with_its_pictures(ring: pf.Network, space: Any, size: Any) -> None:
    path = paths.blend(ring, "icon-1", 4, space, steps=5, size=size)
    width, height = size or (SIDE, SIDE)
    assert path.shape == (5, 3, height, width)
    ends = [render.render(ring.one(number), size=size) for number in (1, 4)]
    torch.testing.assert_close(path[0], ends[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(path[-1], ends[1], rtol=0, atol=1e-5)


def test_only_bends_of_the_last_layer_are_alpha_blends(ring: pf.Network) -> None:
    """An affine map follows the last hidden layer; after a bottleneck come two more layers of sines."""
    walks = {space: memorize.walk(ring, 1, 4, space, steps=11) for space in paths.SPACES}
    for space in ("pixels", "hidden"):
        assert walks[space].farthest < 1e-5
        assert walks[space].smoothness == pytest.approx(0, abs=1e-6)
    for space in ("bottleneck", "code", "arc"):
        assert float(walks[space].from_alpha[5]) > 0.01  # the midpoint
        assert walks[space].farthest == float(walks[space].from_alpha.max())
        smoothness = walks[space].smoothness
        assert smoothness is not None
        assert smoothness > 1e-4
    assert memorize.walk(ring, 1, 4, "code", steps=2).smoothness is None


def test_codes_on_the_way(ring: pf.Network) -> None:
    codes = ring.codes
    middle = render.render(ring.shown(0.5 * codes[1] + 0.5 * codes[4], SIDE, SIDE))
    torch.testing.assert_close(paths.blend(ring, 1, 4, "code", steps=3)[1], middle, rtol=0, atol=1e-5)
    weights = paths.blend_weights(ring.one(1), ring.one(4), steps=3)
    torch.testing.assert_close(weights[1], middle, rtol=0, atol=1e-4)  # the weights differ by what is linear in codes
    on_ring = paths.arc(codes[0], codes[5], 5)
    torch.testing.assert_close(on_ring.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(on_ring[[0, -1]], codes[[0, 5]])
    steps = (on_ring[1:] - on_ring[:-1]).norm(dim=1)
    torch.testing.assert_close(steps, steps[0].expand(4))
    assert float(steps.sum()) < math.pi  # from 0 back to 5 over 6, not over 1, 2, 3 and 4
    with pytest.raises(ValueError, match="an arc goes around 0"):
        paths.arc(torch.zeros(2), codes[0], 3)
    with pytest.raises(ValueError, match="networks with the same settings"):
        paths.blend_weights(ring.one(1), made(Siren(1, 8), 1).one(1))


def test_numbers_of_a_path_by_hand() -> None:
    a, b = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    path = torch.stack([a, torch.tensor([[[0.5, 0.8]]]), b])
    assert paths.from_alpha(path, a, b).tolist() == pytest.approx([0, math.sqrt(0.3**2 / 2), 0])
    assert paths.smoothness(path) == pytest.approx(math.sqrt((0**2 + 0.6**2) / 2))
    assert paths.smoothness(paths.line(a, b, 9)) == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="needs at least 3 pictures, got 2"):
        paths.smoothness(path[:2])
    with pytest.raises(ValueError, match="steps is 1; it must be a whole number from 2"):
        paths.line(a, b, 1)


def test_what_is_no_path(ring: pf.Network) -> None:
    plain = made(Siren(1, 8), 1, code=LearnedCode(3))
    for network, a, space, says in (
        (ring, 0, "latent", "space is 'latent'; it may be pixels, hidden, bottleneck, code, arc"),
        (ring, 7, "code", "those from 0 to 6"),
        (ring, "icn-1", "code", "did you mean 'icon-1'"),
        (plain, 0, "bottleneck", "has no bottleneck; this memory has the spaces pixels, hidden, code"),
        (plain, 0, "arc", "codes are not on a ring"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            paths.blend(network, a, 1, space)  # type: ignore[arg-type]
    kept = Siren(1, 8, coordinates=Coordinates(aspect="keep"))
    network = made(kept, 1, [picture(3, 4, 8), picture(3, 8, 4), picture(3, 8, 8)])
    with pytest.raises(ValueError, match="no code leads from one to the other"):
        paths.blend(network, 0, 1, "code", size=(8, 8))
    assert paths.blend(network, 0, 1, "hidden", size=(8, 8)).shape == (10, 3, 8, 8)


# --- recipes, scores and pages


def test_the_published_recipe() -> None:
    pictures = [picture(3, 48, 48, seed=number) for number in range(100)]
    spec = memorize.spec(pictures, recipe="exercise-published")
    assert spec.model.parameters_count() == 698_883
    assert (spec.budget, spec.optimiser, spec.batches) == (pf.Epochs(801), Adam(1e-4), pf.PictureBatches(16))
    assert isinstance(spec.problem, pf.Gallery)
    assert (spec.problem.rule, spec.problem.held_out) == ("published", 0.1)
    assert memorize.steps_per_epoch(spec) == 7
    assert spec.estimate == pf.BestHeldOut(7)
    assert memorize.record(spec).keep == (50 * 7, 200 * 7, 801 * 7)
    assert memorize.record(spec, [50, 750]).keep == (350, 5250)


@pytest.mark.parametrize("recipe", memorize.RECIPES)
@pytest.mark.parametrize("code", memorize.CODES)
def test_recipes_learn_with_every_code(recipe: str, code: str) -> None:
    widths = "[16, 16, 8, 16, 16]" if recipe == "bottleneck" else "16"
    settings = {"model.inner.hidden_features": widths, "optimiser.lr": "3e-3", "optimiser.schedule": "Constant"}
    spec = memorize.spec(PICTURES, recipe=recipe, code=code, settings=settings, budget=pf.Steps(150))
    result = pf.fit(spec, device="cpu")
    assert result.status is pf.Status.DONE, result.reason
    losses, held_out = result.curves["loss"], result.curves["held_out_loss"]
    assert float(losses[-7:].mean()) < 0.8 * float(losses[:7].mean())
    assert float(held_out.min()) < float(held_out[0])


def test_what_the_recipes_are_given() -> None:
    grey, clear = picture(1, 5, 4, seed=3), pf.Image(picture(4, 4, 4).data, alpha="keep")
    mixed = memorize.spec([grey, PICTURES[0], clear]).problem
    assert isinstance(mixed, pf.Gallery)
    parts = mixed.split(mixed.image.data)
    assert [tuple(part.shape) for part in parts] == [(4, 5, 4), (4, 8, 8), (4, 4, 4)]
    assert all(torch.equal(part, grey.data[0]) for part in parts[0][:3])
    assert bool((parts[0][3] == 1).all())
    assert bool((parts[1][3] == 1).all())
    assert torch.equal(parts[2], clear.data)
    for settings, says in (
        ({"pictures": PICTURES[:1]}, "at least two pictures, got 1; `pixfit fit`"),
        ({"recipe": "quik"}, "no recipe for memories is called 'quik'; did you mean 'quick'"),
        ({"code": "rng"}, "did you mean 'ring'"),
        ({"code": "hash"}, "there are binary, axis, ring, learned"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"settings": {"model.inner.hiden_features": "3"}}, r"did you mean 'model\.inner\.hidden_features'"),
    ):
        with pytest.raises(ValueError, match=says):
            memorize.spec(**{"pictures": PICTURES, **settings})  # type: ignore[arg-type]
    assert memorize.spec(PICTURES, held_out=0).estimate == pf.Last()
    assert memorize.record(memorize.spec(PICTURES, budget=pf.Seconds(3))).keep == ()
    assert memorize.record(memorize.spec(PICTURES, budget=pf.Steps(0))).keep == ()


def test_scores_are_those_of_each_picture() -> None:
    pictures = [*PICTURES[:3], replace(picture(3, 2, 4), name="tiny")]  # too small to have a held-out pixel
    spec = memorize.spec(pictures, settings={"model.inner.hidden_features": "16"}, budget=pf.Steps(10))
    result = pf.fit(spec, device="cpu")
    found = memorize.scores(result)
    assert isinstance(spec.problem, pf.Gallery)
    assert spec.problem.view.held_out is not None
    masks = spec.problem.split(spec.problem.view.held_out)
    assert found.names == ("icon-0", "icon-1", "icon-2", "tiny")
    for number, (shown, one, mask) in enumerate(zip(result.pictures, pictures, masks, strict=True)):
        errors = (shown.clamp(0, 1) - one.data).square()
        levels = [-10 * math.log10(float(errors[:, part].mean())) for part in (~mask[0], mask[0]) if bool(part.any())]
        assert found.fitted[number] == pytest.approx(levels[0], abs=1e-3)
        assert found.whole[number] == pytest.approx(pf.metrics.psnr(shown, one.data), abs=1e-6)
        if number < 3:
            assert found.held_out[number] == pytest.approx(levels[1], abs=1e-3)
    assert math.isnan(found.held_out[3])
    assert [found.whole[number] for number in found.order()] == sorted(found.whole)
    with pytest.raises(ValueError, match="not of a gallery"):
        memorize.scores(pf.fit(pf.Spec(pf.Problem(PICTURES[0]), Siren(1, 8), budget=pf.Steps(1))))


def test_progress_tells_both_levels() -> None:
    seen: list[run.Progress] = []
    spec = memorize.spec(PICTURES, settings={"model.inner.hidden_features": "16"}, budget=pf.Steps(20))
    result = pf.fit(spec, device="cpu", on_progress=seen.append, record=pf.Record(every=10))
    last = [now for now in seen if now.stage == "fitting"][-1]
    assert last.fitted is not None
    assert last.held_out is not None
    assert last.psnr is not None
    assert min(last.fitted, last.held_out) <= last.psnr <= max(last.fitted, last.held_out)
    assert last.held_out == pytest.approx(float(result.curves["held_out_psnr"].max()), abs=1)


# --- commands


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXFIT_STORE", raising=False)
    (tmp_path / "icons").mkdir()
    for one in PICTURES:
        images.save(one, tmp_path / "icons" / f"{one.name}.png")
    return tmp_path


@pytest.fixture
def memory(elsewhere: Path, ring: pf.Network) -> Path:
    pf.modelfile.save(ring, elsewhere / "ring.safetensors")
    return elsewhere


def test_memorize_from_folder_to_pictures(elsewhere: Path) -> None:
    command = ("memorize", "icons", "-o", "m.safetensors", *SMALL, "--epochs", "32", "--pages", "pages")
    said = as_json(*command, "--seed", "5")
    assert (said["pictures"], said["status"], said["epochs"], said["recipe"]) == (7, "done", 32, "quick")
    assert [row["name"] for row in said["scores"]] == [f"icon-{number}" for number in range(7)]
    assert said["psnr_held_out"] == pytest.approx(sum(row["psnr_held_out"] for row in said["scores"]) / 7)
    assert [Path(page).name for page in said["pages"]] == [
        "step-000002.png", "step-000008.png", "step-000032.png", "answer.png", "curves.png",
    ]  # fmt: skip
    page = images.load(elsewhere / "pages" / "answer.png")
    assert (page.width, page.height) > (7 * 96, 3 * 96)
    network = pf.load("m.safetensors")
    assert network.names == tuple(f"icon-{number}" for number in range(7))
    again = pixfit(*command, "--seed", "5", "--json")
    assert "taken from" in again.stderr
    assert json.loads(again.stdout)["scores"] == said["scores"]  # with its pages, from the store
    assert "fitted anew" in pixfit(*command, "--seed", "5", "--at", "3").stderr
    assert (elsewhere / "pages" / "step-000003.png").is_file()
    text = pixfit(*command, "--seed", "5", "--alpha", "drop").stdout
    for word in ("7 pictures of 448 pixels", "dB held out", "worst", "best", "parameters", "pages"):
        assert word in text
    assert as_json(*command, "--dry-run")["spec"]["seed"] == 0
    other = as_json("memorize", "icons", *SMALL, "--steps", "4", "--code", "ring", "--held-out", "0", "--quiet")
    assert (other["psnr_held_out"], other["model"], other["steps"]) == (None, None, 4)


def test_one_picture_of_a_memory_is_rendered(memory: Path, ring: pf.Network) -> None:
    made = as_json("render", "ring.safetensors", "-o", "one.png", "--picture", "icon-4", "--size", "20x12")
    assert (made["width"], made["height"]) == (20, 12)
    expected = render.render(ring.one(4), size=(20, 12)).clamp(0, 1)
    assert float((images.load("one.png").data - expected).abs().max()) < 0.51 / 255
    pixfit("render", "ring.safetensors", "-o", "number.png", "--picture", "4", "--size", "20x12")
    assert as_json("export", "ring.safetensors", "-o", "one.py", "--picture", "4")["files"][0] == "one.py"
    assert images.load("number.png").hash == images.load("one.png").hash
    pixfit("render", "ring.safetensors", "-o", "sheet.png", "--scale", "2")
    assert images.load("sheet.png").width > 2 * 3 * SIDE


def test_strips_grids_and_animations(memory: Path) -> None:
    one = as_json("interpolate", "ring.safetensors", "icon-1", "4", "-o", "strip.png", "--steps", "6")
    assert list(one["spaces"]) == ["code"]
    assert (one["width"], one["height"]) == (6 * (SIDE + 2) + 2, SIDE + 4)
    every = as_json("interpolate", "ring.safetensors", "1", "4", "-o", "all.png", "--space", "all", "--size", "24x16")
    assert list(every["spaces"]) == list(paths.SPACES)
    assert every["spaces"]["hidden"]["from_alpha_max"] < 1e-5
    assert every["spaces"]["bottleneck"]["from_alpha_max"] > 0.01
    assert len(every["spaces"]["arc"]["from_alpha"]) == 10
    assert images.load("all.png").width == every["width"]
    for name, space, width in (("a.gif", "code", 24), ("b.webp", "arc", 24), ("c.gif", "all", 5 * 26 + 2)):
        pixfit("interpolate", "ring.safetensors", "1", "4", "-o", name, "--space", space, "--size", "24x16")
        with PillowImage.open(name) as film:
            assert film.n_frames == 10  # type: ignore[attr-defined]
            assert film.width == width
    text = pixfit("interpolate", "ring.safetensors", "1", "4", "-o", "all.png", "--space", "all").stdout
    assert [line.split()[0] for line in text.splitlines()[2:7]] == list(paths.SPACES)


def test_the_first_and_last_frames_are_the_pictures(memory: Path, ring: pf.Network) -> None:
    pixfit("interpolate", "ring.safetensors", "1", "4", "-o", "film.webp", "--size", "32x32", "--space", "code")
    with PillowImage.open("film.webp") as film:
        for frame, number in ((0, 1), (9, 4)):
            film.seek(frame)
            shown = images.Image.from_array(np.array(film.convert("RGB")))
            assert pf.metrics.psnr(render.render(ring.one(number), size=(32, 32)), shown.data) > 45  # of 8 bits


def test_who_is_alike(memory: Path, ring: pf.Network) -> None:
    said = as_json("neighbours", "ring.safetensors", "-o", "m.png", "--of", "icon-2", "--count", "2")
    assert (said["pictures"], said["embedding"], said["layer"]) == (7, "field", "last")
    assert list(said["measures"]) == ["cosine", "euclidean", "dot"]
    matrix = similarity.matrix(similarity.embeddings(ring))
    for key, most in (("most_similar", True), ("least_similar", False)):
        pairs = similarity.greedy_pairs(matrix, most, 2)
        assert [(row["a"], row["b"]) for row in said["measures"]["cosine"][key]] == [
            (f"icon-{i}", f"icon-{j}") for i, j in pairs
        ]
        published = said["measures"]["cosine"][f"published_{key}"]
        assert [(row["a"], row["b"]) for row in published] == [
            (f"icon-{i}", f"icon-{j}") for i, j in similarity.published_pairs(matrix, most)
        ]
    distances = said["measures"]["euclidean"]
    assert 0 < distances["min"] <= distances["most_similar"][0]["value"] <= distances["least_similar"][0]["value"]
    nearest = said["of"]["neighbours"]
    assert [row["name"] for row in nearest] == [f"icon-{one}" for one in similarity.nearest(matrix, 2, 2)]
    assert images.load("m.png").width > 200
    text = pixfit("neighbours", "ring.safetensors", "--of", "3", "--measure", "dot", "--embedding", "pooled").stdout
    assert "pooled of the layer last" in text
    assert "neighbours  of icon-3 by dot" in text
    assert as_json("neighbours", "ring.safetensors", "--layer", "narrowest", "--size", "4x4")["layer"] == "narrowest"


WRONG = {
    "no folder": (["memorize", "nope", "-o", "x.safetensors"], "no such folder"),
    "a single picture": (["memorize", "single"], "at least two pictures, got 1"),
    "a typo of a recipe": (["memorize", "icons", "--recipe", "exercise"], "mean 'exercise-published'"),
    "a typo of a code": (["memorize", "icons", "--code", "binry"], "did you mean 'binary'"),
    "a typo of a setting": (["memorize", "icons", "-s", "model.inner.width=3"], "no setting 'model.inner.width'"),
    "a wrong alpha": (["memorize", "icons", "--alpha", "blue"], "blue"),
    "a model named as a picture": (["memorize", "icons", "-o", "x.png"], "ends in .safetensors"),
    "no epochs": (["memorize", "icons", "--at", "soon"], "--at takes epochs"),
    "an unknown picture": (["interpolate", "ring.safetensors", "icon-11", "2", "-o", "x.png"], "did you mean 'icon-1'"),
    "a number too large": (["interpolate", "ring.safetensors", "9", "2", "-o", "x.png"], "from 0 to 6"),
    "an unknown space": (["interpolate", "ring.safetensors", "1", "2", "-o", "x.png", "--space", "z"], "space is 'z'"),
    "a wrong suffix": (["interpolate", "ring.safetensors", "1", "2", "-o", "x.mp4"], "suffix"),
    "a film in no folder": (["interpolate", "ring.safetensors", "1", "2", "-o", "none/x.gif"], "does not exist"),
    "a wrong size": (["interpolate", "ring.safetensors", "1", "2", "-o", "x.png", "--size", "5"], "WxH"),
    "no memory to go through": (["interpolate", "one.safetensors", "0", "1", "-o", "x.png"], "only a Memory"),
    "no memory to compare": (["neighbours", "one.safetensors"], "only a Memory has several"),
    "no memory to take from": (["render", "one.safetensors", "-o", "x.png", "--picture", "0"], "holds one picture"),
    "a memory as one picture": (["render", "ring.safetensors", "-o", "x.png", "--size", "5x5"], "--picture NAME"),
    "a picture for a folder": (["memorize", "single/a.png"], "give the folder it is in"),
    "a memory to export": (["export", "ring.safetensors", "-o", "x.py"], "--picture NAME"),
    "an unknown neighbour": (["neighbours", "ring.safetensors", "--of", "icn-3"], "did you mean 'icon-3'"),
    "an unknown measure": (["neighbours", "ring.safetensors", "--measure", "l1"], "cosine, euclidean, dot"),
    "an unknown embedding": (["neighbours", "ring.safetensors", "--embedding", "mean"], "field or pooled"),
    "an unknown layer": (["neighbours", "ring.safetensors", "--layer", "9"], "from 0 to 4"),
    "a matrix that is no picture": (["neighbours", "ring.safetensors", "-o", "m.csv"], ".png"),
    "nobody to compare with": (["neighbours", "lonely.safetensors"], "which has no neighbours"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_line_and_writes_nothing(memory: Path, ring: pf.Network, case: str) -> None:
    arguments, words = WRONG[case]
    (memory / "single").mkdir()
    images.save(PICTURES[0], memory / "single" / "a.png")
    pf.modelfile.save(ring.one(0), memory / "one.safetensors")
    if "lonely.safetensors" in arguments:
        pf.modelfile.save(made(Siren(1, 8), 1, PICTURES[:1]), memory / "lonely.safetensors")
    before = sorted(path for path in memory.rglob("*") if path.is_file())
    assert words in one_line(pixfit(*arguments, code=2))
    assert sorted(path for path in memory.rglob("*") if path.is_file()) == before


def test_every_command_has_help_with_an_example() -> None:
    for command in ("memorize", "interpolate", "neighbours"):
        assert "Example:" in pixfit(command, "--help").stdout
