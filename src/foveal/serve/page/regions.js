// Boxes and points over a picture, and the words that name them.

const SVG = "http://www.w3.org/2000/svg";
export const COLOURS = 8;

function shape(name, values) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
}

/** Corners in pixels of the picture: [left, top, right, bottom]. A point is a box without a size. */
export function corners(region) {
  if (region.box_px) return region.box_px;
  const [x, y] = region.point_px;
  return [x, y, x, y];
}

/** Draws regions over `figure`, which holds a picture of `size` pixels; gives one group of elements a region. */
export function draw(figure, regions, size) {
  figure.querySelectorAll(".over, .tag").forEach((old) => old.remove());
  const [width, height] = size;
  const over = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "over", "aria-hidden": "true" });
  figure.append(over);
  return regions.map(({ region, number }) => {
    const [left, top, right, bottom] = corners(region);
    const colour = `c${number % COLOURS}`;
    const outline = region.points_px
      ? shape("polygon", { points: region.points_px.map((p) => [].concat(p).join(",")).join(" ") })
      : region.point_px
        ? shape("circle", { cx: left, cy: top, r: Math.max(width, height) / 90 })
        : shape("rect", { x: left, y: top, width: right - left, height: bottom - top });
    outline.setAttribute("class", colour);
    over.append(outline);
    const tag = document.createElement("span");
    tag.className = `tag ${colour}`;
    tag.textContent = region.label || `${number + 1}`;
    tag.style.left = `${(100 * left) / width}%`;
    tag.style.top = `${(100 * top) / height}%`;
    if (top < height / 12) tag.classList.add("below");
    figure.append(tag);
    return [outline, tag];
  });
}

/** Cuts a text at the labels of its regions, in order: pieces of {text, numbers}, no number for plain words. */
export function cut(text, regions) {
  const pieces = [];
  let at = 0;
  let last = null;
  regions.forEach((region, number) => {
    if (!region.label) return;
    if (last && last.label === region.label) {
      last.piece.numbers.push(number); // several places of one name
      return;
    }
    const found = text.indexOf(region.label, at);
    if (found < 0) return;
    if (found > at) pieces.push({ text: text.slice(at, found), numbers: [] });
    const piece = { text: region.label, numbers: [number] };
    pieces.push(piece);
    last = { label: region.label, piece };
    at = found + region.label.length;
  });
  if (at < text.length) pieces.push({ text: text.slice(at), numbers: [] });
  return pieces;
}

/** Whichever of these is pointed at or focused lights all of them. */
export function link(elements) {
  const light = (on) => elements.forEach((element) => element.classList.toggle("lit", on));
  for (const element of elements) {
    element.addEventListener("pointerenter", () => light(true));
    element.addEventListener("pointerleave", () => light(false));
    element.addEventListener("focus", () => light(true));
    element.addEventListener("blur", () => light(false));
  }
}
