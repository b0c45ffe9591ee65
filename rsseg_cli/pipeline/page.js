"use strict";
(() => {
  const at = id => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const view = at("view"), stage = at("stage"), map = at("map"), swipe = at("swipe"), divider = at("divider");
  const outline = at("outline"), tip = at("tip"), status = at("status"), scale = at("scale");
  const MAX_ZOOM = 16;
  let zoom = 1, chosen = -1;

  const fit = () => Math.min(view.clientWidth / data.width, view.clientHeight / data.height);

  function showSplit() {
    const share = swipe.value / swipe.max;
    const x = view.scrollLeft + share * view.clientWidth - stage.offsetLeft;
    const part = Math.min(1, Math.max(0, x / stage.offsetWidth));
    map.style.clipPath = `inset(0 0 0 ${100 * part}%)`;
    divider.style.left = `${100 * share}%`;
    swipe.setAttribute("aria-valuetext", `${Math.round(100 * (1 - share))} % map`);
  }

  function showScale() {
    if (!data.metres) return;
    const perPixel = data.metres / stage.offsetWidth, limit = 120 * perPixel;
    const power = 10 ** Math.floor(Math.log10(limit));
    const length = [5, 2, 1].map(step => step * power).find(step => step <= limit);
    scale.style.width = `${length / perPixel}px`;
    scale.textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
    scale.hidden = false;
  }

  function setZoom(value, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    const old = stage.offsetWidth || 1;
    const fromLeft = (view.scrollLeft + x - stage.offsetLeft) / old;
    const fromTop = (view.scrollTop + y) / old;
    zoom = Math.min(MAX_ZOOM, Math.max(1, value));
    stage.style.width = `${Math.floor(data.width * fit() * zoom)}px`;
    view.scrollLeft = fromLeft * stage.offsetWidth + stage.offsetLeft - x;
    view.scrollTop = fromTop * stage.offsetWidth - y;
    showSplit();
    showScale();
  }

  const area = m2 => m2 >= 1e6 ? `${(m2 / 1e6).toFixed(2)} km²` : m2 >= 1e4 ? `${(m2 / 1e4).toFixed(2)} ha`
    : `${m2.toFixed(1)} m²`;

  function words(item) {
    const parts = [data.names[item.class] ?? `class ${item.class}`];
    if (item.area_m2 !== null) parts.push(area(item.area_m2));
    if (item.confidence !== null) parts.push(`confidence ${item.confidence.toFixed(2)}`);
    return parts.join(", ");
  }

  const paths = new Map(), canvas = document.createElement("canvas").getContext("2d");
  function pathOf(index) {
    if (!paths.has(index)) paths.set(index, new Path2D(data.polygons[index].path));
    return paths.get(index);
  }

  function find(x, y) {
    return data.polygons.findIndex(({box}, index) => x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3]
      && canvas.isPointInPath(pathOf(index), x, y, "evenodd"));
  }

  function choose(index, x, y) {
    tip.hidden = index < 0 || x === undefined;
    if (!tip.hidden) {
      tip.style.left = `${Math.min(x + 14, view.clientWidth - 160)}px`;
      tip.style.top = `${Math.min(y + 14, view.clientHeight - 40)}px`;
    }
    if (index === chosen) return;
    chosen = index;
    outline.setAttribute("d", index < 0 ? "" : data.polygons[index].path);
    tip.textContent = status.textContent = index < 0 ? "" : words(data.polygons[index]);
  }

  function point(event) {
    const box = stage.getBoundingClientRect(), frame = view.getBoundingClientRect();
    const perPixel = data.steps * data.width / box.width;
    const x = (event.clientX - box.left) * perPixel, y = (event.clientY - box.top) * perPixel;
    choose(find(x, y), event.clientX - frame.left, event.clientY - frame.top);
  }

  function step(by) {
    const count = data.polygons.length;
    const index = chosen < 0 ? (by > 0 ? 0 : count - 1) : (chosen + by + count) % count;
    const {box} = data.polygons[index], perPixel = stage.offsetWidth / (data.steps * data.width);
    view.scrollLeft = (box[0] + box[2]) / 2 * perPixel + stage.offsetLeft - view.clientWidth / 2;
    view.scrollTop = (box[1] + box[3]) / 2 * perPixel - view.clientHeight / 2;
    choose(index);
  }

  swipe.addEventListener("input", showSplit);
  view.addEventListener("scroll", showSplit);
  at("opacity").addEventListener("input", event => { map.style.opacity = event.target.value / 100; });
  at("larger").addEventListener("click", () => setZoom(zoom * 1.5));
  at("smaller").addEventListener("click", () => setZoom(zoom / 1.5));
  at("whole").addEventListener("click", () => setZoom(1));
  view.addEventListener("keydown", event => {
    const known = {"+": () => setZoom(zoom * 1.5), "=": () => setZoom(zoom * 1.5), "-": () => setZoom(zoom / 1.5),
      "0": () => setZoom(1)};
    if (data.polygons.length) Object.assign(known, {n: () => step(1), p: () => step(-1)});
    if (event.ctrlKey || event.metaKey || event.altKey || !known[event.key]) return;
    known[event.key]();
    event.preventDefault();
  });
  view.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    const box = view.getBoundingClientRect();
    setZoom(zoom * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
    event.preventDefault();
  }, {passive: false});
  divider.addEventListener("pointerdown", event => divider.setPointerCapture(event.pointerId));
  divider.addEventListener("pointermove", event => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const box = view.getBoundingClientRect();
    swipe.value = swipe.max * (event.clientX - box.left) / view.clientWidth;
    showSplit();
  });
  if (data.polygons.length) {
    stage.addEventListener("pointermove", point);
    stage.addEventListener("click", point);
    stage.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") choose(-1); });
    at("next").addEventListener("click", () => step(1));
    at("previous").addEventListener("click", () => step(-1));
    at("steps").hidden = false;
  }
  map.style.opacity = at("opacity").value / 100;
  window.addEventListener("resize", () => setZoom(zoom));
  divider.hidden = at("controls").hidden = false;
  setZoom(1);
})();
