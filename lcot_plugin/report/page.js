"use strict";
// What a chart says at a place, below it: for fingers and keys, which a tooltip does not serve.
for (const figure of document.querySelectorAll("figure.chart")) {
  const places = [...figure.querySelectorAll(".chart-readings rect")];
  if (!places.length) continue;
  const reading = document.createElement("div");
  reading.className = "chart-reading";
  reading.setAttribute("aria-live", "polite");
  figure.append(reading);
  const drawing = figure.querySelector("svg");
  drawing.setAttribute("tabindex", "0");
  let at = -1;
  const show = index => {
    if (at >= 0) places[at].removeAttribute("style");
    at = index;
    reading.textContent = at < 0 ? "" : places[at].textContent.split("\n").join(" \u00b7 ");
    if (at >= 0) places[at].style.fill = "rgba(128,128,128,.18)";
  };
  const touched = event => { if (event.pointerType !== "mouse") show(places.indexOf(event.target)); };
  drawing.addEventListener("pointermove", touched);
  drawing.addEventListener("pointerdown", touched);
  drawing.addEventListener("blur", () => show(-1));
  drawing.addEventListener("keydown", event => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
    if (!steps) return;
    event.preventDefault();
    show(Math.min(places.length - 1, Math.max(0, (at < 0 && steps > 0 ? -1 : at) + steps)));
  });
}
// Paper cannot be opened: what is folded is printed open, and folded again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
// A link into something folded opens it.
const unfold = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
