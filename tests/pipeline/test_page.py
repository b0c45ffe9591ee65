"""The page of a prediction: what is in it, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import torch
from networks import CLASSES, Local, OneHot, one_hot, trained
from PIL import Image

from rsseg_cli import PredictConfig, VectorConfig, predict
from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline import passes
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel

torch.set_num_threads(1)
SMALL = {"tile_size": 64, "overlap": 16}
HOSTILE = "</script><img src=x onerror=document.title='bad'>&amp;"
BROWSER = shutil.which("chromium")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


class TwoParts(OneHot):
    """Two classes: the second where the first band is bright."""

    def forward(self, pixels):
        return torch.cat([0.5 - pixels[:, :1], pixels[:, :1] - 0.5], 1) * 20


def half_scene(make_raster, name="scene.tif", **more):
    """Dark to the left of column 60, bright to the right."""
    array = np.full((3, 80, 120), 20, np.uint8)
    array[:, :, 60:] = 240
    return make_raster(name, array=array, **more)


def two_parts(names=("dark", "bright")):
    classes = [ClassSpec(names[0], (200, 30, 30)), ClassSpec(names[1], (30, 30, 200))]
    return TrainedModel(TwoParts(), ModelSpec.for_network(classes=classes, name="halves"))


def polygons_of(page):
    """The number of the polygon in each pixel of the page, and the areas, confidences and classes of all."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])["polygons"]
    raw = zlib.decompress(base64.b64decode(data["data"]))
    size, count = data["width"] * data["height"], data["count"]
    numbers = np.frombuffer(raw, "<i4", size).reshape(data["height"], data["width"]).cumsum(0)
    areas, confidences = np.frombuffer(raw, "<f4", 2 * count, 4 * size).reshape(2, count)
    return numbers, areas, confidences, np.frombuffer(raw, "<u2", count, 4 * size + 8 * count)


def run_browser(*options):
    base = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1200,900",
    ]
    done = subprocess.run([*base, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def probe(page: Path, script: str) -> dict:
    """Open the page, run a script in it, and return what it gives to `tell`; the policy stays in force."""
    head = """window.broken = [];
        addEventListener('securitypolicyviolation', event => broken.push(event.violatedDirective));"""
    tail = f"""const report = value => document.body.setAttribute('seen', JSON.stringify(value));
        const at = id => document.getElementById(id);
        const probe = () => {{ {script} }};
        const ready = () => JSON.parse(at("data").textContent).polygons.count && at("steps").hidden
          ? setTimeout(ready, 20) : probe();
        ready();"""
    text = page.read_text(encoding="utf-8")
    for code in (head, tail):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    text = text.replace("<title>", f"<script>{head}</script><title>", 1)
    text = text.replace("</body>", f"<script>{tail}</script></body>", 1)
    copy = page.with_name("probed.html")
    copy.write_text(text, encoding="utf-8")
    dom = run_browser("--dump-dom", "--virtual-time-budget=20000", copy.as_uri())
    seen = re.search(r'seen="([^"]*)"', dom)
    assert seen is not None, dom[:2000]
    import html

    return json.loads(html.unescape(seen[1]))


def test_the_page_is_one_file_that_names_no_address(make_raster, tmp_path):
    page = tmp_path / "map.html"
    result = predict(
        half_scene(make_raster), tmp_path / "map.tif", model=two_parts(), html=page,
        vector=tmp_path / "map.gpkg", **SMALL,
    )  # fmt: skip
    assert result.paths["html"] == page
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[\w.]", re.sub(r"base64,[\w+/=]*", "", text))
    assert not re.findall(r"<(?:link|iframe|object|embed|form|base)\b|\bon\w+=|style=", text)
    assert "default-src 'none'; img-src data:" in text
    assert text.count("50.00%") == 2
    assert text.count("<td>1,200.96</td>") == 2  # m2, of 60 x 80 px of 0.5 m, by the scale of UTM
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert data["metres"] == pytest.approx(60, abs=0.1)
    frame = pyogrio.read_dataframe(tmp_path / "map.gpkg", layer="map")
    numbers, areas, _, classes = polygons_of(page)
    assert sorted(classes) == [0, 1]
    for row in frame.itertuples():
        assert areas[classes == row.class_index] == pytest.approx(row.area_m2, abs=0.1)
    assert (classes[numbers - 1] == np.repeat([[0, 1]], 60, axis=1)).all()
    assert numbers.shape == (80, 120)


def test_polygons_in_another_crs_lie_where_the_map_has_them(make_raster, tmp_path):
    config = VectorConfig(dst_crs="EPSG:4326")
    predict(
        half_scene(make_raster), tmp_path / "map.tif", model=two_parts(), html=tmp_path / "map.html",
        vector=tmp_path / "map.geojson", vector_config=config, **SMALL,
    )  # fmt: skip
    numbers, _, _, classes = polygons_of(tmp_path / "map.html")
    assert (classes[numbers - 1] == np.repeat([[0, 1]], 60, axis=1)).all()


def test_every_polygon_has_a_pixel_of_the_page(make_raster, tmp_path):
    """Also those so small that they lie between the centres of the picture's pixels."""
    array = np.full((3, 90, 3000), 20, np.uint8)
    array[:, 1::7, 1:2000:5] = 240  # single pixels; the picture has two for three
    array[:, 9:81, 2100:2400] = 240
    array[:, 30:60, 2200:2300] = 20
    predict(
        make_raster(array=array), tmp_path / "map.tif", model=two_parts(), html=tmp_path / "map.html",
        vector=tmp_path / "map.fgb", **SMALL,
    )  # fmt: skip
    numbers, areas, _, classes = polygons_of(tmp_path / "map.html")
    assert len(areas) == 13 * 400 + 3
    assert set(np.unique(numbers)) == set(range(1, len(areas) + 1))
    assert len(areas) == pyogrio.read_info(tmp_path / "map.fgb")["features"]
    assert np.bincount(numbers.ravel()).argmax() == 1  # the largest
    picture = classes[numbers - 1]
    assert picture[6:54, 1400:1466].all()
    assert not picture[20:40, 1467:1533].any()  # the hole


def test_names_are_escaped(make_raster, tmp_path):
    scene = half_scene(make_raster, "a&<b>'x.tif")
    predict(
        scene, tmp_path / "map.tif", model=two_parts((HOSTILE, "b\"'<")), html=tmp_path / "map.html",
        vector=tmp_path / "map.gpkg", **SMALL,
    )  # fmt: skip
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert text.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert data["names"] == [HOSTILE, "b\"'<"]


@pytest.mark.slow
def test_the_page_is_bounded(make_raster, tmp_path):
    """Noise, which no format makes small, with a polygon at every pixel."""
    array = np.random.default_rng(0).integers(0, CLASSES, (3, 2400, 2300), np.uint8)
    array[:, ::9, ::7] *= 6
    scene = make_raster(array=np.kron(array[:, :600, :575], np.ones((1, 4, 4), np.uint8)))
    predict(
        scene, tmp_path / "map.tif", model=one_hot(), html=tmp_path / "map.html",
        vector=tmp_path / "map.fgb", tile_size=512, overlap=0,
    )  # fmt: skip
    size = (tmp_path / "map.html").stat().st_size
    assert 2_000_000 < size < 10_000_000
    shown = len(polygons_of(tmp_path / "map.html")[1])
    left_out = pyogrio.read_info(tmp_path / "map.fgb")["features"] - shown
    assert shown > 100_000
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert (f"{left_out} smaller polygons are in the vector file alone" in text) == (left_out > 0)


def test_a_stopped_run_resumes_to_the_same_page(make_raster, tmp_path):
    class Stopping(passes.Passes):
        def map(self, job, rows, state):
            def write(row, values):
                if row > 60:
                    raise KeyboardInterrupt
                rows.write(row, values)

            super().map(job, replace(rows, write=write), state)

    scene, model = make_raster(shape=(200, 90)), trained(Local(), 5)
    pages = []
    for stop in (False, True):
        folder = tmp_path / f"{stop}"
        (folder / "pages").mkdir(parents=True)
        outputs = {"html": folder / "pages" / "map.html", "vector": folder / "map.gpkg"}
        config = PredictConfig(**SMALL, checkpoint_s=0)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                predict(
                    scene, folder / "map.tif", model=model, config=config, passes=Stopping(model), **outputs
                )
        result = predict(scene, folder / "map.tif", model=model, config=config, resume=stop, **outputs)
        assert result.paths["html"].exists()
        assert {file.name for file in (folder / "pages").iterdir()} == {"map.html"}
        pages.append(outputs["html"].read_bytes())
    assert pages[0] == pages[1]


def test_a_page_of_another_ending_is_refused(make_raster, tmp_path):
    with pytest.raises(OutputError, match=r"the html is written as HTML; its name ends in \.html"):
        predict(half_scene(make_raster), tmp_path / "m.tif", model=two_parts(), html=tmp_path / "m.pdf")


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_scene_and_map_beside_a_divider(make_raster, tmp_path):
    scene = half_scene(make_raster)
    predict(
        scene, tmp_path / "map.tif", model=two_parts((HOSTILE, "bright")), html=tmp_path / "map.html", **SMALL
    )
    shot = tmp_path / "shot.png"
    run_browser(f"--screenshot={shot}", (tmp_path / "map.html").as_uri())
    seen = probe(
        tmp_path / "map.html",
        """const box = at("view").getBoundingClientRect();
        report({box: [box.left, box.top, box.width, box.height], images: document.images.length,
          title: document.title, broken, clip: at("map").style.clipPath, stage: at("stage").offsetWidth,
          left: at("stage").getBoundingClientRect().left});""",
    )
    assert seen["images"] == 2
    assert seen["broken"] == []
    assert seen["title"] == "scene.tif"
    assert seen["clip"] == "inset(0px 0px 0px 50%)"
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    left, _, width = seen["left"], seen["box"][0], seen["stage"]
    row = round(seen["box"][1] + seen["box"][3] * 0.3)
    dark, bright = picture[row, round(left + 0.2 * width)], picture[row, round(left + 0.8 * width)]
    assert np.abs(dark - 20).max() < 8  # the scene
    assert np.abs(bright - (0.25 * 240 + 0.75 * np.array([30, 30, 200]))).max() < 8  # the map over it


@needs_browser
@pytest.mark.slow
def test_a_browser_names_polygons_and_moves_the_divider(make_raster, tmp_path):
    predict(
        half_scene(make_raster), tmp_path / "map.tif", model=two_parts((HOSTILE, "bright")),
        html=tmp_path / "map.html", vector=tmp_path / "map.gpkg", confidence=tmp_path / "c.tif", **SMALL,
    )  # fmt: skip
    seen = probe(
        tmp_path / "map.html",
        """const stage = at("stage").getBoundingClientRect(), said = [], clips = [];
        const over = (x, y) => { at("stage").dispatchEvent(new PointerEvent("pointermove",
          {clientX: stage.left + x * stage.width, clientY: stage.top + y * stage.height, bubbles: true}));
          said.push(at("status").textContent); };
        over(0.25, 0.5); over(0.75, 0.5); over(1.2, 0.5);
        const key = name => at("view").dispatchEvent(new KeyboardEvent("keydown", {key: name}));
        key("n"); said.push(at("status").textContent);
        for (const value of [0, 250, 1000]) { at("swipe").value = value;
          at("swipe").dispatchEvent(new Event("input")); clips.push(at("map").style.clipPath); }
        const before = at("stage").offsetWidth; key("+"); key("+");
        report({said, clips, zoom: at("stage").offsetWidth / before, images: document.images.length, broken,
          white: [...at("shape").getContext("2d").getImageData(0, 0, 120, 80).data].filter((value, i) =>
            i % 4 === 3 && value > 0).length});""",
    )
    assert seen["said"][0].startswith(f"{HOSTILE}, 1201.0 m²")
    assert re.fullmatch(r"bright, 1201\.0 m², confidence 1\.00", seen["said"][1])
    assert seen["said"][2] == ""
    assert seen["said"][3] in seen["said"][:2]
    assert seen["clips"] == ["inset(0px 0px 0px 0%)", "inset(0px 0px 0px 25%)", "inset(0px 0px 0px 100%)"]
    assert seen["zoom"] == pytest.approx(2.25, rel=0.01)
    assert seen["images"] == 2
    assert seen["broken"] == []
    assert seen["white"] == 60 * 80
