// Sorts, filters and opens the rows of the table, and draws the charts. Without it the page shows the same rows.
(() => {
  const table = document.querySelector("#rows");
  if (table) {
    const bodies = () => [...table.tBodies];
    const search = document.querySelector("#search"), flagged = document.querySelector("#flagged");
    const shown = document.querySelector("#shown"), all = document.querySelector("#all");
    let group = null;
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const body of bodies()) {
        const text = body.textContent.toLowerCase();
        const fits = words.every((word) => text.includes(word)) && (!flagged.checked || body.dataset.flagged === "1")
          && (group === null || body.dataset.group === group);
        body.hidden = !fits;
        count += fits;
      }
      shown.textContent = `${count} of ${bodies().length} rows shown`;
      all.hidden = group === null;
    };
    search.addEventListener("input", filter);
    flagged.addEventListener("change", filter);
    all.addEventListener("click", () => { group = null; filter(); search.focus(); });
    for (const button of document.querySelectorAll(".pick")) {
      button.addEventListener("click", () => { group = button.dataset.group; filter(); table.scrollIntoView(); });
    }
    for (const button of table.querySelectorAll("th button")) {
      button.addEventListener("click", () => {
        const head = button.closest("th"), falling = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const key = button.dataset.key, sign = falling ? -1 : 1;
        const value = (body) => key === "row" ? body.dataset.row : Number(body.dataset[key]);
        bodies().sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0)).forEach((body) => table.append(body));
      });
    }
    for (const button of table.querySelectorAll(".open")) {
      const detail = document.getElementById(button.getAttribute("aria-controls"));
      const set = (open) => { button.setAttribute("aria-expanded", open); detail.hidden = !open; };
      set(false);
      button.addEventListener("click", () => set(detail.hidden));
      if (location.hash === `#${button.closest("tbody").id}`) set(true);
    }
    filter();
  }
  for (const place of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(`${place.id}-spec`).textContent);
    window.vegaEmbed(place, spec, { renderer: "svg", actions: false }).then(() => {
      const picture = place.querySelector("svg");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", place.dataset.words);
    });
  }
})();
