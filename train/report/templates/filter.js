"use strict";
// Without this script the page shows all errors, and no filter.
const FEW = 24;
for (const errors of document.querySelectorAll(".errors:has(.filter)")) {
  const filter = errors.querySelector(".filter");
  const [set, kind, words] = ["set", "kind", "words"].map((n) => filter.querySelector(`[name=${n}]`));
  const whole = new Set();

  function show() {
    const wanted = words.value.toLowerCase();
    for (const ofSet of errors.querySelectorAll(".of-set")) {
      const cards = [...ofSet.querySelectorAll(".card")];
      const found = cards.filter((card) =>
        (!kind.value || card.dataset.kinds.split(",").includes(kind.value)) &&
        card.dataset.words.toLowerCase().includes(wanted));
      const shown = new Set(whole.has(ofSet) ? found : found.slice(0, FEW));
      for (const card of cards) card.hidden = !shown.has(card);
      ofSet.hidden = set.value !== "" && set.value !== ofSet.dataset.set;
      const isFiltered = kind.value || wanted;
      ofSet.querySelector(".matching").textContent = isFiltered ? `${found.length} of these match.` : "";
      const more = ofSet.querySelector(".more");
      more.hidden = shown.size === found.length;
      more.textContent = `Show all ${found.length}`;
    }
  }

  for (const ofSet of errors.querySelectorAll(".of-set")) {
    ofSet.querySelector(".more").addEventListener("click", () => { whole.add(ofSet); show(); });
  }
  filter.addEventListener("input", show);
  filter.hidden = false;
  show();
}
