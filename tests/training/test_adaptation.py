"""Adapting a model: corrections, what is learnt from them, what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from shapely.geometry import LineString, Point, box
from typer.testing import CliRunner

from rsseg_cli import predict
from rsseg_cli.cli import app
from rsseg_cli.errors import DataError, OutputError, UsageError
from rsseg_cli.inference import domain
from rsseg_cli.models import BicorSeg, BicorSegConfig
from rsseg_cli.models.correction import Correction
from rsseg_cli.raster import Grid
from rsseg_cli.training import adapt, adaptation
from rsseg_cli.training.adaptation_data import ScenePatches
from rsseg_cli.training.adaptation_views import Pixels
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.corrections import read_corrections
from rsseg_cli.training.crops import draw_training_scenes
from rsseg_cli.weights import ModelSpec, load_model, save_model
from rsseg_cli.weights.registry import combine_models

NAMES = ("building", "land", "vegetation")
LEFT, TOP, SIDE = 500_000.0, 5_000_000.0, 640
COLOURS = np.array([(200, 60, 60), (190, 170, 120), (40, 120, 40)])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and lose much where other tests run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def grid() -> Grid:
    return Grid(
        crs=rasterio.CRS.from_epsg(32632), transform=from_origin(LEFT, TOP, 1, 1), width=SIDE, height=SIDE
    )


@pytest.fixture
def truth() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 3, (10, 10)), np.ones((64, 64), int)).astype(np.uint8)


@pytest.fixture
def scene(tmp_path: Path, truth: np.ndarray) -> Path:
    rng = np.random.default_rng(1)
    pixels = (COLOURS[truth] + rng.normal(0, 12, (*truth.shape, 3))).clip(0, 255).astype(np.uint8)
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": SIDE, "width": SIDE}
    with rasterio.open(
        path, "w", crs="EPSG:32632", transform=from_origin(LEFT, TOP, 1, 1), **profile
    ) as target:
        target.write(pixels.transpose(2, 0, 1))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small network that knows nothing yet."""
    torch.manual_seed(0)
    sizes = {"classes": 3, "encoder": "test_efficientnet", "channels": 32, "layers": 1, "neck": "conv"}
    network = BicorSeg(BicorSegConfig(**sizes)).eval()  # type: ignore[arg-type]
    spec = ModelSpec(name="small", architecture="bicor-seg", network=sizes, gsd_m=1.0, gsd_range_m=(0.5, 2.0),
                     classes=ModelSpec.for_network(classes=NAMES).classes)  # fmt: skip
    path = tmp_path / "small.safetensors"
    save_model(path, network, spec)
    return path


def patch(row: int, col: int, inset: float = 12) -> object:
    """The inside of one of the truth's squares of 64 px."""
    left, top = LEFT + 64 * col, TOP - 64 * row
    return box(left + inset, top - 64 + inset, left + 64 - inset, top - inset)


def write(path: Path, rows: list[tuple[object, object]], crs: int = 32632, field: str = "class") -> Path:
    frame = geopandas.GeoDataFrame(
        {field: [row[0] for row in rows]}, geometry=[row[1] for row in rows], crs=crs
    )
    frame.to_file(path)
    return path


def drawn(tmp_path: Path, truth: np.ndarray, count: int = 5) -> Path:
    """Corrections: some squares of each class."""
    rows = []
    for index, name in enumerate(NAMES):
        found = np.argwhere(truth[::64, ::64] == index)[:count]
        rows += [(name, patch(*pair)) for pair in found]
    return write(tmp_path / "corrections.gpkg", rows)


def test_shapes_become_labels_where_they_were_drawn(tmp_path: Path, grid: Grid) -> None:
    line = LineString([(LEFT + 100, TOP - 300.5), (LEFT + 200, TOP - 300.5)])
    rows = [
        ("building", patch(0, 0)),
        ("Land ", line),
        ("2", Point(LEFT + 400.5, TOP - 400.5)),
        ("", patch(5, 5)),
    ]
    path = write(tmp_path / "labels.geojson", rows)
    degrees = geopandas.read_file(path).to_crs(4326)
    degrees.to_file(tmp_path / "degrees.gpkg")

    for file in (path, tmp_path / "degrees.gpkg"):
        labels = read_corrections(file, grid, NAMES).labels(0, 0, SIDE, SIDE, held_out=False)
        expected = np.full((SIDE, SIDE), 255)
        expected[12:52, 12:52] = 0
        expected[300, 100:200], expected[400, 400] = 1, 2
        assert (labels[expected != 255] == expected[expected != 255]).all()
        assert np.count_nonzero(labels == 0) == 1600
        assert 200 <= np.count_nonzero(labels == 1) <= 320
        assert 9 <= np.count_nonzero(labels == 2) <= 21
        assert (labels[320:384, 320:384] == 255).all()


def test_whole_shapes_are_held_out_of_classes_with_three(tmp_path: Path, grid: Grid) -> None:
    rows = [("building", patch(0, col)) for col in range(6)] + [("land", patch(3, col)) for col in range(2)]
    corrections = read_corrections(write(tmp_path / "a.gpkg", rows), grid, NAMES, seed=3)

    held = [item for item in corrections.items if item.held_out]
    assert [item.index for item in held] == [0]
    learnt, scored = (corrections.labels(0, 0, SIDE, SIDE, held_out=flag) for flag in (False, True))
    assert np.count_nonzero(scored != 255) == 1600
    assert not ((learnt != 255) & (scored != 255)).any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("snow", patch(0, 0))], "snow in field 'class' is no class; needs one of building, land"),
        ([("land", patch(0, 0)), ("building", patch(0, 0, 2))], r"overlap: features 1 \(land\) and 2"),
        ([("land", box(0, 0, 9, 9))], "no label lies inside the scene"),
        ([("", patch(0, 0))], "is empty throughout"),
    ],
)  # fmt: skip
def test_wrong_labels_are_one_message(
    tmp_path: Path, grid: Grid, rows: list[tuple[object, object]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_corrections(write(tmp_path / "a.gpkg", rows), grid, NAMES)


def test_a_field_can_be_named(tmp_path: Path, grid: Grid) -> None:
    path = write(tmp_path / "a.shp", [("land", patch(0, 0))], field="kind")

    assert read_corrections(path, grid, NAMES, field="kind").items[0].index == 1
    with pytest.raises(DataError, match="Pass --label-field"):
        read_corrections(path, grid, NAMES)


def test_a_model_learns_what_was_drawn(tmp_path: Path, scene: Path, model: Path, truth: np.ndarray) -> None:
    labels = drawn(tmp_path, truth)
    config = AdaptConfig(model=str(model), steps=60, learning_rate=1e-2, replay=False)

    result = adapt([(scene, labels)], tmp_path / "mine.safetensors", config)

    assert result.held_out == 3
    assert result.before is not None
    assert result.after is not None
    assert result.after["miou"] > result.before["miou"] + 0.25
    assert result.labelled_m2 == {name: pytest.approx(5 * 1600, rel=0.01) for name in NAMES}
    adapted = load_model(tmp_path / "mine.safetensors")
    assert adapted.spec.training["adapted_from"] == "small"
    assert adapted.spec.scores["held_out"] == result.after
    card = (tmp_path / "mine.md").read_text()
    assert f"{result.after['iou'][0]:.3f}" in card
    assert "60 steps" in card
    maps = [tmp_path / f"{runtime}.tif" for runtime in ("torch", "openvino")]
    for path in maps:
        predict(scene, path, model=adapted, runtime=path.stem, dtype="float32", device="cpu")
    by_torch, by_openvino = (rasterio.open(path).read(1) for path in maps)
    assert len(np.unique(by_torch)) == len(NAMES)
    assert (by_torch == by_openvino).mean() > 0.999


def test_a_few_mistakes_do_not_turn_a_map_of_two_classes_over(
    tmp_path: Path, scene: Path, truth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = {"classes": 2, "encoder": "test_efficientnet", "channels": 32, "layers": 1, "neck": "conv"}
    network = BicorSeg(BicorSegConfig(**sizes)).eval()  # type: ignore[arg-type]
    spec = ModelSpec(name="two", architecture="bicor-seg", network=sizes, gsd_m=1.0, gsd_range_m=(0.5, 2.0),
                     classes=ModelSpec.for_network(classes=("background", "building")).classes)  # fmt: skip
    save_model(tmp_path / "two.safetensors", network, spec)
    roofs, ground = (np.argwhere((truth[::64, ::64] == 0) == flag) for flag in (True, False))

    def right_share(start: str, name: str, of_roofs: str, of_ground: str, chosen: slice) -> float:
        """Of the pixels mapped by a model that learned some squares under these names."""
        rows = [(of_roofs, patch(*pair)) for pair in roofs[chosen]]
        rows += [(of_ground, patch(*pair)) for pair in ground[chosen]]
        labels, made = write(tmp_path / f"{name}.gpkg", rows), tmp_path / f"{name}.safetensors"
        config = AdaptConfig(model=str(tmp_path / start), steps=100, learning_rate=1e-2, replay=False)
        adapt([(scene, labels)], made, config)
        predict(scene, tmp_path / f"{name}.tif", model=str(made), device="cpu")
        with rasterio.open(tmp_path / f"{name}.tif") as source:
            return float((source.read(1) == (truth == 0)).mean())

    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "KEEP", 0.0)  # the network knows nothing worth keeping yet
        before = right_share("two.safetensors", "right", "building", "background", slice(8))
    after = right_share("right.safetensors", "wrong", "background", "building", slice(-4, None))
    assert before > 0.9
    assert after > 0.9


def test_pixels_without_data_are_not_learnt(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    with rasterio.open(scene) as source:
        pixels, profile = source.read(), source.profile
    pixels[:, :, : SIDE // 2] = 0
    with rasterio.open(tmp_path / "half.tif", "w", **profile | {"nodata": 0}) as target:
        target.write(pixels)
    config = AdaptConfig(model=str(model), steps=2, replay=False)

    whole, half = (
        adapt([(path, drawn(tmp_path, truth, 100))], tmp_path / f"{path.stem}.safetensors", config)
        for path in (scene, tmp_path / "half.tif")
    )

    right = np.bincount(truth[::64, 5 * 64 :: 64].ravel(), minlength=3)
    for name, squares in zip(NAMES, right, strict=True):
        assert half.labelled_m2[name] == pytest.approx(1600 * squares, rel=0.01)
        assert half.labelled_m2[name] < whole.labelled_m2[name]


def test_a_scene_almost_without_data_can_be_learnt(tmp_path: Path, model: Path) -> None:
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 4000, "width": 4000, "nodata": 0}
    grid = {"crs": "EPSG:32632", "transform": from_origin(LEFT, TOP, 1, 1), "SPARSE_OK": True, "tiled": True}
    with rasterio.open(tmp_path / "corner.tif", "w", **profile, **grid) as target:
        corner = rng.integers(1, 255, (3, 64, 128), dtype=np.uint8)
        target.write(corner, window=rasterio.windows.Window(0, 0, 128, 64))
    labels = write(tmp_path / "two.gpkg", [("land", patch(0, 0)), ("building", patch(0, 1))])

    result = adapt(
        [(tmp_path / "corner.tif", labels)],
        tmp_path / "mine.safetensors",
        AdaptConfig(model=str(model), steps=2, replay=False),
    )

    assert result.steps == 2


@pytest.mark.parametrize(("gsd_m", "seen_m"), [(0.3, 1.0), (0.7, 0.7), (2.2, 1.0), (5.0, 2.0)])
def test_patches_have_the_resolution_of_prediction(
    tmp_path: Path, model: Path, gsd_m: float, seen_m: float
) -> None:
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 200, "width": 200}
    image = np.random.default_rng(0).integers(1, 255, (3, 200, 200), np.uint8)
    where = {"crs": "EPSG:32632", "transform": from_origin(LEFT, TOP, gsd_m, gsd_m)}
    with rasterio.open(tmp_path / "other.tif", "w", **profile, **where) as target:
        target.write(image)
    square = box(LEFT + 5 * gsd_m, TOP - 90 * gsd_m, LEFT + 90 * gsd_m, TOP - 5 * gsd_m)
    labels = write(tmp_path / "one.gpkg", [("land", square)])
    found = ScenePatches(
        tmp_path / "other.tif", labels, load_model(model).spec, AdaptConfig(model=str(model))
    )
    assert found.gsd_m == pytest.approx(seen_m, rel=0.01)
    assert found.areas_m2.sum() == pytest.approx(square.area, rel=0.05)
    result = predict(tmp_path / "other.tif", tmp_path / "map.tif", model=load_model(model))
    assert (f"read at {seen_m:g} m" in " ".join(result.notes)) == (seen_m != gsd_m)


def test_minutes_end_a_run(tmp_path: Path, scene: Path, model: Path, truth: np.ndarray) -> None:
    config = AdaptConfig(model=str(model), minutes=0.02, steps=100_000, replay=False)

    result = adapt([(scene, drawn(tmp_path, truth))], tmp_path / "mine.safetensors", config)

    assert result.seconds >= 1.2
    assert 0 < result.steps < 100_000
    assert not (tmp_path / "mine.safetensors.ckpt").exists()


def test_a_class_that_labels_refute_is_not_taught_where_the_model_gives_it() -> None:
    """The model gives class 0 to all but the last pixel; two of three labels there say class 1."""
    before = torch.tensor([[0.9, 0.1]] * 3 + [[0.2, 0.8]])
    scores = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    pixels = Pixels(torch.zeros(4, 4), scores, before, torch.tensor([0, 1, 1, 1]), torch.ones(4))
    assert pixels.refuted().tolist() == [True, False]
    head = Correction([1, 1], 2, 1, local=False)
    taught = pixels.sure(head, 0.9, pixels.refuted())
    assert taught.labels.tolist() == [1, 0]
    assert pixels.sure(head, 0.9, torch.zeros(2, dtype=torch.bool)).labels.tolist() == [0, 0, 1, 0]


def test_a_model_of_several_looks_is_adapted(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    start = combine_models(model, None, 2.0)
    path, output = tmp_path / "looks.safetensors", tmp_path / "mine.safetensors"
    save_model(path, start.network, start.spec, dtype="float32")
    adapt([(scene, drawn(tmp_path, truth))], output, AdaptConfig(model=str(path), steps=20, replay=False))
    network = load_model(output).network
    assert network.config.zoom == 2
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(network(image), start.network(image), atol=1e-3)
        network.correction = None
        torch.testing.assert_close(network(image), start.network(image), atol=0.1, rtol=0.1)


def test_a_class_that_labels_refute_does_not_spread_where_they_do_not_find_it() -> None:
    """The model calls vineyards and roofs building, and fields land: labels find no building there."""
    building, land, vegetation = range(3)
    given = [building] * 100 + [land] * 100
    labels = [vegetation] * 90 + [building] * 10 + [land] * 60 + [vegetation] * 40
    before = torch.full((200, 3), 0.1).scatter(1, torch.tensor(given)[:, None], 0.8)
    pixels = Pixels(torch.zeros(200, 5), before.log(), before, torch.tensor(labels), torch.ones(200))
    refuted = pixels.refuted()
    assert refuted.tolist() == [True, False, False]
    confirmed = pixels.confirmed(refuted)
    assert confirmed.tolist() == [[False] * 3, [True, False, False], [True, False, False]]
    head = Correction([1, 1], 3, 1, local=False).requires_grad_(False)
    part = pixels.at(torch.tensor([0, 100]))
    lowest = float(part.spread(head, confirmed))
    assert lowest == pytest.approx((-0.1 * np.log(0.1) - 0.9 * np.log(0.9)) / 2)  # the first pixel is free
    head.output.bias[building] = 2.0
    assert float(part.spread(head, confirmed)) > lowest + 0.1
    head.output.bias[building], head.output.bias[vegetation] = 0.0, 2.0
    assert float(part.spread(head, confirmed)) < lowest + 0.05


def test_new_classes_join_the_model(tmp_path: Path, scene: Path, model: Path) -> None:
    rows = [("solar", patch(0, col)) for col in range(4)]
    labels = write(tmp_path / "solar.gpkg", rows)

    with pytest.raises(DataError, match="--new-classes"):
        adapt([(scene, labels)], tmp_path / "a.safetensors", AdaptConfig(model=str(model), steps=1))
    config = AdaptConfig(model=str(model), steps=2, new_classes=("solar",), replay=False)
    adapt([(scene, labels)], tmp_path / "a.safetensors", config)

    assert load_model(tmp_path / "a.safetensors").spec.class_names == (*NAMES, "solar")
    with pytest.raises(UsageError, match="has that class already"):
        AdaptConfig(model=str(model), new_classes=("land",)) and adapt(
            [(scene, labels)],
            tmp_path / "b.safetensors",
            AdaptConfig(model=str(model), new_classes=("land",)),
        )


def test_a_stopped_run_keeps_its_best_and_continues(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    labels, output = drawn(tmp_path, truth), tmp_path / "mine.safetensors"

    shown: list[str] = []

    def stop(done: float, words: str) -> None:
        shown.append(words)
        if done >= 0.5:
            raise KeyboardInterrupt

    config = AdaptConfig(model=str(model), steps=8, replay=False)
    with pytest.raises(KeyboardInterrupt) as stopped:
        adapt([(scene, labels)], output, config, progress=stop)
    prepared = [words for words in shown if words.startswith("patch")]
    assert prepared == [f"patch {number} of {len(prepared)}" for number in range(1, len(prepared) + 1)]
    assert prepared
    assert "held-out mIoU" in shown[-1]
    assert load_model(output).spec.training["steps"] == 4
    assert "has not yet learned the labels that were held out" in output.with_suffix(".md").read_text()
    assert "--resume continues" in stopped.value.__notes__[0]
    with pytest.raises(OutputError, match="exists"):
        adapt([(scene, labels)], output, config)

    # it stopped between training without and with the labels held out
    again = AdaptConfig(model=str(model), steps=8, replay=False, resume=True, overwrite=True)
    result = adapt([(scene, labels)], output, again)
    assert result.steps == 8
    assert "has since learned the labels that were held out" in output.with_suffix(".md").read_text()
    assert not output.with_name("mine.safetensors.ckpt").exists()


def test_tiles_like_the_training_data_stay_as_they_were(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    start = load_model(model)
    rng = np.random.default_rng(3)
    familiar = rng.uniform(60, 90, (12, 3, 1, 1)) + rng.normal(0, 1, (12, 3, 256, 256)) * rng.uniform(
        3, 12, (12, 1, 1, 1)
    )
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (start.spec.mean, start.spec.std))
    tiles = (torch.from_numpy(familiar).float() / 255 - mean) / std
    with torch.no_grad():
        pooled = start.network.explain(tiles).pooled
    described = domain.descriptors(tiles, pooled)
    trained = tmp_path / "trained.safetensors"
    halves = ({kind: values[part] for kind, values in described.items()} for part in (slice(6), slice(6, 12)))
    described_start = start.spec.with_training_tiles(*halves)
    save_model(trained, start.network, described_start)

    config = AdaptConfig(model=str(trained), steps=60, learning_rate=1e-2, replay=False)
    result = adapt([(scene, drawn(tmp_path, truth))], tmp_path / "mine.safetensors", config)
    again = AdaptConfig(model=str(result.path), steps=2, replay=False)
    adapt([(scene, drawn(tmp_path, truth))], tmp_path / "again.safetensors", again)

    assert result.before is not None
    assert result.after is not None
    assert result.after["miou"] > result.before["miou"] + 0.25
    grown = load_model(tmp_path / "again.safetensors").spec
    with torch.no_grad(), rasterio.open(scene) as source:
        own = (torch.from_numpy(source.read()[None, :, :512, :512]) / 255 - mean) / std
        described = domain.descriptors(own, start.network.explain(own).pooled)
    assert (domain.TileDistances(described_start, torch.device("cpu")).of(described)).mean() > 1
    assert (domain.TileDistances(grown, torch.device("cpu")).of(described)).mean() < 1
    for path in (tmp_path / "mine.safetensors", tmp_path / "again.safetensors"):
        adapted = load_model(path)
        with torch.no_grad():
            familiar_change, own_change = (
                (adapted.network(images) - start.network(images)).abs().max() for images in (tiles, own)
            )
        assert familiar_change < 0.05
        assert own_change > 1


def test_the_command_takes_one_scene_or_a_list(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    labels = drawn(tmp_path, truth)
    (tmp_path / "list.csv").write_text(f"image,labels\n{scene.name},{labels.name}\n")
    runner, common = CliRunner(), ["--model", str(model), "--steps", "2", "--no-replay", "--quiet", "--json"]

    one = runner.invoke(
        app, ["adapt", str(scene), str(labels), "-o", str(tmp_path / "a.safetensors"), *common]
    )
    many = runner.invoke(
        app, ["adapt", "--scenes", str(tmp_path / "list.csv"), "-o", str(tmp_path / "b.safetensors"), *common]
    )
    none = runner.invoke(app, ["adapt", "-o", str(tmp_path / "c.safetensors"), *common])

    assert (one.exit_code, many.exit_code, none.exit_code) == (0, 0, 2)
    first, second = json.loads(one.stdout), json.loads(many.stdout)
    assert first["steps"] == second["steps"] == 2
    assert first["before"] == second["before"]


def test_labels_of_one_class_leave_most_of_the_map(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    squares = np.argwhere(truth[::64, ::64] == 2)[:5]
    labels = write(tmp_path / "one.gpkg", [("vegetation", patch(*square)) for square in squares])
    config = AdaptConfig(model=str(model), steps=60, learning_rate=1e-2, replay=False)

    result = adapt([(scene, labels)], tmp_path / "mine.safetensors", config)

    assert 0 < result.changed_share <= 0.2


@pytest.mark.slow
def test_little_is_lost_on_artificial_scenes(
    tmp_path: Path, scene: Path, model: Path, truth: np.ndarray
) -> None:
    config = AdaptConfig(model=str(model), steps=30, learning_rate=1e-2)
    adapt([(scene, drawn(tmp_path, truth))], tmp_path / "mine.safetensors", config)

    before, after = load_model(model), load_model(tmp_path / "mine.safetensors")
    assert all(
        torch.equal(*pair)
        for pair in zip(before.network.encoder.parameters(), after.network.encoder.parameters(), strict=True)
    )
    right = lost = 0
    for item in draw_training_scenes(before.spec, count=6, gsd_m=1.0, size=384, seed=7000):
        image = (
            torch.from_numpy(item.image)[None] / 255 - torch.tensor(before.spec.mean).view(1, 3, 1, 1)
        ) / (torch.tensor(before.spec.std).view(1, 3, 1, 1))
        with torch.no_grad():
            was, now = (used.network(image)[0].argmax(0).numpy() == item.labels for used in (before, after))
        right, lost = right + was.sum(), lost + (was & ~now).sum()
    assert lost <= 0.021 * right
