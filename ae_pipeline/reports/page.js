// Sort, filter and expand the rows of the table, and render the charts. Without scripts, all rows and details are visible.
(() => {
  const number = (count) => count.toLocaleString("en-US");
  const table = document.querySelector("#rows");
  if (table) {
    const bodies = () => [...table.tBodies];
    const search = document.querySelector("#search"), flagged = document.querySelector("#flagged");
    const shown = document.querySelector("#shown"), all = document.querySelector("#all");
    let picked = null, most = Number(table.dataset.most);
    const more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.addEventListener("click", () => { most = Infinity; filter(); });
    table.parentElement.after(more);
    // What is searched: the text of a row without what is the same in all rows, such as buttons to copy and headings.
    const texts = new Map();
    const searched = (body) => {
      if (!texts.has(body)) {
        const copy = body.cloneNode(true);
        for (const each of copy.querySelectorAll("button:not(.open), thead, .mark, .served")) each.remove();
        texts.set(body, copy.textContent.toLowerCase());
      }
      return texts.get(body);
    };
    const filter = () => {
      const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      // A search shows all matches. Otherwise the first rows are enough, and a linked row is always shown.
      const limit = terms.length || flagged.checked || picked !== null ? Infinity : most;
      let count = 0;
      for (const body of bodies()) {
        const matches = terms.every((term) => searched(body).includes(term)) && (!flagged.checked || body.dataset.flagged === "1")
          && (picked === null || body.dataset[picked.by] === picked.value);
        body.hidden = !matches || (count >= limit && location.hash !== `#${body.id}`);
        count += matches;
      }
      more.hidden = count <= limit;
      more.textContent = `Show all ${number(count)} ${table.dataset.noun}`;
      shown.textContent = `${number(Math.min(count, limit))} of ${number(bodies().length)} ${table.dataset.noun} shown`;
      all.hidden = picked === null;
    };
    search.addEventListener("input", filter);
    flagged.addEventListener("change", filter);
    all.addEventListener("click", () => { picked = null; filter(); search.focus(); });
    for (const button of document.querySelectorAll(".pick")) {
      button.addEventListener("click", () => { const by = button.dataset.entity ? "entity" : "group"; picked = {by, value: button.dataset[by]}; filter(); table.scrollIntoView(); });
    }
    for (const button of table.querySelectorAll("th button")) {
      button.addEventListener("click", () => {
        const head = button.closest("th"), descending = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const key = button.dataset.key, sign = descending ? -1 : 1;
        const value = (body) => key === "row" ? body.dataset.row : Number(body.dataset[key]);
        bodies().sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0)).forEach((body) => table.append(body));
        filter();
      });
    }
    for (const button of table.querySelectorAll(".open")) {
      const detail = document.getElementById(button.getAttribute("aria-controls"));
      const set = (open) => { button.setAttribute("aria-expanded", open); detail.hidden = !open; };
      set(false);
      button.addEventListener("click", () => set(detail.hidden));
      const linked = () => { if (location.hash === `#${button.closest("tbody").id}`) { filter(); set(true); button.closest("tbody").scrollIntoView(); } };
      window.addEventListener("hashchange", linked);
      linked();
    }
    filter();
  }
  // Long lists start with the first entries.
  for (const list of document.querySelectorAll("[data-first]")) {
    const entries = list.tBodies ? list.tBodies[0].rows : list.children;
    const rest = [...entries].slice(Number(list.dataset.first));
    if (rest.length < 2) continue;
    const more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.textContent = `Show ${number(rest.length)} more ${list.dataset.noun}`;
    const show = (open) => { for (const row of rest) row.hidden = !open; more.hidden = open; };
    more.addEventListener("click", () => show(true));
    (list.tBodies ? list.parentElement : list).after(more);
    show(false);
  }
  // Each table can be saved as CSV, also the rows that are not shown. A cell has its text, or `data-value` as it is. What the
  // cells show beside their values, such as flags, are columns at the end: `data-also` of the table names attributes of the rows.
  const value = (cell) => cell.dataset.value ?? cell.textContent.replace(/\s+/g, " ").trim();
  for (const saved of document.querySelectorAll("table[data-csv]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "csv";
    button.textContent = "CSV";
    button.setAttribute("aria-label", `Download ${saved.dataset.csv} as CSV`);
    button.addEventListener("click", () => {
      const rows = [saved.tHead.rows[0], ...[...saved.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.classList.contains("detail"))];
      const also = saved.dataset.also?.split(" ") ?? [];
      const lines = rows.map((row, index) => [
        ...[...row.cells].filter((each) => !each.querySelector(".pick") && each.dataset.csv !== "no").map(value),
        ...also.map((name) => index ? row.dataset[name] : name),
      ]);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.map((cells) => cells.map(csvCell).join(",") + "\r\n").join("")], { type: "text/csv" }));
      link.download = `${saved.dataset.csv}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    });
    saved.parentElement.after(button);
  }
  // A page in a sandbox, or opened as a file, may not use the clipboard directly.
  const copy = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const source of document.querySelectorAll(".copy")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copies";
    button.textContent = "copy";
    const text = source.dataset.copy ?? source.textContent;
    button.setAttribute("aria-label", `Copy ${text}`);
    button.addEventListener("click", () => { button.textContent = copy(text) ? "copied" : "not copied"; button.focus(); });
    source.after(" ", button);
  }
  // Marks are posted to the server of the page. A page that is opened as a file shows the command instead.
  if (location.protocol !== "file:") {
    for (const link of document.querySelectorAll(".served")) link.hidden = false;
    for (const text of document.querySelectorAll(".opened")) text.hidden = true;
    for (const day of document.querySelectorAll("[data-href]")) day.href = day.dataset.href;
  }
  const bars = document.querySelector(".year");
  if (bars) {
    bars.addEventListener("click", (event) => {
      const day = event.target.dataset.day, links = document.querySelectorAll(".calendar a[href]");
      if (day) [...links].find((link) => link.href.endsWith(`/${day}.html`))?.click();
    });
  }
  for (const container of document.querySelectorAll(".chart")) {
    const spec = JSON.parse(document.getElementById(`${container.id}-spec`).textContent);
    window.vegaEmbed(container, spec, { renderer: "svg", actions: false }).then(() => {
      const svg = container.querySelector("svg");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", container.dataset.description);
    });
  }
})();
