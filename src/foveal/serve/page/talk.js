// How a conversation looks. A turn is {role, text, media, regions, seen, note}; media are {name, kind, url}.

import { corners, cut, draw, link } from "./regions.js";
import { say } from "./words.js";

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function shown(medium) {
  const figure = element("figure");
  const view = document.createElement(medium.kind === "video" ? "video" : "img");
  view.src = medium.url;
  if (medium.kind === "video") view.controls = true;
  else view.alt = medium.name;
  figure.append(view, element("figcaption", "", medium.name));
  return figure;
}

export function showTurn(talk, turn) {
  const article = element("article", turn.role);
  article.append(element("h2", "", say(turn.role === "user" ? "you" : "model")));
  if (turn.media?.length) {
    const row = element("div", "media");
    row.append(...turn.media.map(shown));
    article.append(row);
  }
  article.append(element("div", "text"), element("p", "note"));
  talk.append(article);
  update(article, turn);
  return article;
}

/** Words and note of a turn; called as its answer grows. */
export function update(article, turn) {
  article.querySelector(".text").textContent = turn.text;
  article.querySelector(".note").textContent = turn.note ?? "";
  article.setAttribute("aria-busy", turn.busy ? "true" : "false");
}

/** The regions of an answer: over the pictures of the whole talk, and linked with their words. */
export function showRegions(talk, article, turn) {
  const figures = [...talk.querySelectorAll("figure")];
  const groups = turn.regions.map(() => []);
  for (const [index, figure] of figures.entries()) {
    const here = turn.regions.map((region, number) => ({ region, number })).filter(({ region }) => region.image === index);
    const size = turn.seen?.[index]?.original_size;
    figure.querySelectorAll(".over, .tag").forEach((old) => old.remove());
    if (!here.length || !size || !figure.querySelector("img")) continue;
    draw(figure, here, size).forEach((drawn, i) => groups[here[i].number].push(...drawn));
  }
  const text = article.querySelector(".text");
  text.replaceChildren();
  for (const piece of cut(turn.text, turn.regions)) {
    if (!piece.numbers.length) {
      text.append(piece.text);
      continue;
    }
    const mark = element("mark", `c${piece.numbers[0] % 8}`, piece.text);
    mark.tabIndex = 0;
    mark.title = piece.numbers.map((n) => corners(turn.regions[n]).map(Math.round).join(", ")).join(" · ");
    text.append(mark);
    piece.numbers.forEach((n) => groups[n].push(mark));
  }
  const list = element("ul", "places");
  turn.regions.forEach((region, number) => {
    const place = corners(region).map(Math.round).join(", ");
    const item = element("li", `c${number % 8}`, `${region.label || number + 1}: ${place}`);
    item.tabIndex = 0;
    item.setAttribute("aria-label", say("region", region.label || number + 1, place));
    if (!groups[number].some((e) => e.tagName === "MARK")) item.append(element("small", "", ` (${say("noRegion")})`));
    list.append(item);
    link([item, ...groups[number]]);
  });
  article.querySelector(".places")?.remove();
  if (turn.regions.length) text.after(list);
}
