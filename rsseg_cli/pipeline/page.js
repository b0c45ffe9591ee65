"use strict";
(() => {
  const at = id => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const view = at("view"), stage = at("stage"), map = at("map"), swipe = at("swipe"), divider = at("divider");
  const shape = at("shape"), tip = at("tip"), status = at("status"), scale = at("scale");
  const MAX_ZOOM = 16;
  let zoom = 1, chosen = 0, polygons = null;

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

  function words(number) {
    const kind = polygons.classes[number - 1], m2 = polygons.areas[number - 1];
    const confidence = polygons.confidences[number - 1];
    const parts = [data.names[kind] ?? `class ${kind}`];
    if (!isNaN(m2)) parts.push(area(m2));
    if (!isNaN(confidence)) parts.push(`confidence ${confidence.toFixed(2)}`);
    return parts.join(", ");
  }

  async function unpack({width, height, count, data}) {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer(), pixels = width * height;
    const numbers = new Int32Array(buffer, 0, pixels);
    const areas = new Float32Array(buffer, 4 * pixels, count);
    const confidences = new Float32Array(buffer, 4 * (pixels + count), count);
    const classes = new Uint16Array(buffer, 4 * (pixels + 2 * count), count);
    const boxes = Array.from({length: count + 1}, () => [width, height, 0, 0]);  // x, y: first, last
    for (let i = 0; i < pixels; i++) {
      if (i >= width) numbers[i] += numbers[i - width];
      const box = boxes[numbers[i]], x = i % width, y = (i - x) / width;
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x);
      box[3] = Math.max(box[3], y);
    }
    return {width, height, count, numbers, areas, confidences, classes, boxes};
  }

  function draw(number) {
    const {width, height, numbers, boxes} = polygons, pen = shape.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (!number) return;
    const [left, top, right, bottom] = boxes[number];
    const image = pen.createImageData(right - left + 1, bottom - top + 1);
    const inside = (x, y) => x >= left && x <= right && y >= top && y <= bottom && numbers[y * width + x] === number;
    for (let y = top, i = 0; y <= bottom; y++) {
      for (let x = left; x <= right; x++, i += 4) {
        if (!inside(x, y)) continue;
        const inner = inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1);
        image.data.set([255, 255, 255, inner ? 85 : 255], i);
      }
    }
    pen.putImageData(image, left, top);
  }

  function choose(number, x, y) {
    tip.hidden = !number || x === undefined;
    if (!tip.hidden) {
      tip.style.left = `${Math.min(x + 14, view.clientWidth - 160)}px`;
      tip.style.top = `${Math.min(y + 14, view.clientHeight - 40)}px`;
    }
    if (number === chosen) return;
    chosen = number;
    draw(number);
    tip.textContent = status.textContent = number ? words(number) : "";
  }

  function point(event) {
    const box = stage.getBoundingClientRect(), frame = view.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * polygons.width);
    const y = Math.floor((event.clientY - box.top) / box.height * polygons.height);
    const inside = x >= 0 && x < polygons.width && y >= 0 && y < polygons.height;
    choose(inside ? polygons.numbers[y * polygons.width + x] : 0, event.clientX - frame.left, event.clientY - frame.top);
  }

  function step(by) {
    const number = chosen ? (chosen - 1 + by + polygons.count) % polygons.count + 1 : by > 0 ? 1 : polygons.count;
    const [left, top, right, bottom] = polygons.boxes[number], perPixel = stage.offsetWidth / polygons.width;
    view.scrollLeft = (left + right + 1) / 2 * perPixel + stage.offsetLeft - view.clientWidth / 2;
    view.scrollTop = (top + bottom + 1) / 2 * perPixel - view.clientHeight / 2;
    choose(number);
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
    if (polygons) Object.assign(known, {n: () => step(1), p: () => step(-1)});
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
  if (data.polygons.count) unpack(data.polygons).then(unpacked => {
    polygons = unpacked;
    shape.width = polygons.width;
    shape.height = polygons.height;
    stage.addEventListener("pointermove", point);
    stage.addEventListener("click", point);
    stage.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") choose(0); });
    at("next").addEventListener("click", () => step(1));
    at("previous").addEventListener("click", () => step(-1));
    at("steps").hidden = false;
  });
  map.style.opacity = at("opacity").value / 100;
  window.addEventListener("resize", () => setZoom(zoom));
  divider.hidden = at("controls").hidden = false;
  setZoom(1);
})();
