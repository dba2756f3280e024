// Draw rows with chosen axes and colors, and list the rows within a rectangle.
(() => {
  const {names, titles: shownNames, numbers, fields, rows, threshold, noun, has_row_pages} = JSON.parse(document.querySelector("#content").textContent);
  // Vega takes some characters of a column's name for syntax, so points have fields f0, f1, … with the name as title.
  const all = names.map((_, index) => `f${index}`), titles = Object.fromEntries(all.map((field, index) => [field, shownNames[index]]));
  const points = rows.map((row) => Object.fromEntries(row.map((value, index) => [`f${index}`, value])));
  const chosen = {x: document.querySelector("#x"), y: document.querySelector("#y"), color: document.querySelector("#color")};
  const most = 25, table = document.querySelector("#points"), status = document.querySelector("#chosen");
  const download = document.querySelector("#download"), base = location.pathname.replace(/latents$/, "row");
  const short = (value) => Number.isFinite(value) && !Number.isInteger(value) ? (Math.abs(value) < 1000 ? Number(value.toPrecision(4)) : Math.round(value)) : value;
  const encode = (field) => ({field, title: titles[field]});
  const list = (selected) => {
    const shown = [...selected].sort((a, b) => b[fields.score] - a[fields.score]);
    const wanted = [fields.row_id, fields.score, ...Object.values(chosen).map((each) => each.value), ...all];
    const unique = [...new Set(wanted)].slice(0, 8);
    table.tHead.rows[0].replaceChildren(...unique.map((field) => Object.assign(document.createElement("th"), {textContent: titles[field], scope: "col"})));
    table.tBodies[0].replaceChildren(...shown.slice(0, most).map((point) => {
      const line = document.createElement("tr");
      for (const field of unique) {
        const cell = line.insertCell();
        if (field === fields.row_id && has_row_pages) {
          const link = Object.assign(document.createElement("a"), {textContent: point[field]});
          link.href = `${base}?${new URLSearchParams({id: point[field], day: point[fields.day] ?? ""})}`;
          cell.append(link);
        } else {
          cell.textContent = short(point[field]) ?? "missing";
        }
      }
      return line;
    }));
    const text = [names, ...shown.map((point) => all.map((field) => point[field]))].map((line) => line.map(csvCell).join(",")).join("\n");
    download.href = `data:text/csv;charset=utf-8,${encodeURIComponent(text)}`;
    const listed = shown.length > most ? `, the ${most} highest scores are listed` : "";
    status.textContent = `${shown.length} of ${points.length} ${noun}${listed}`;
  };
  const draw = async () => {
    const [x, y, color] = [chosen.x.value, chosen.y.value, chosen.color.value];
    const isNumber = numbers.includes(color);
    const axis = {domainColor: "#8888", tickColor: "#8888", gridColor: "#8883"};
    const scale = isNumber || color === fields.day ? {range: ["#7da7d9", "#e0a030", "#d0312d"], interpolate: "rgb"} : {scheme: "tableau10"};
    const spec = {
      data: {values: points}, width: "container", height: 420, mark: {type: "point", filled: true},
      params: [{name: "brush", select: {type: "interval", encodings: ["x", "y"]}}],
      encoding: {
        x: {...encode(x), type: "quantitative", scale: {zero: false}}, y: {...encode(y), type: "quantitative", scale: {zero: false}},
        color: {...encode(color), type: isNumber ? "quantitative" : color === fields.day ? "temporal" : "nominal", scale, legend: {symbolLimit: 12}},
        shape: {condition: {test: `datum.${fields.is_anomaly}`, value: "triangle-up"}, value: "circle"},
        size: {condition: {test: `datum.${fields.is_anomaly}`, value: 90}, value: 24},
        tooltip: [...new Set([fields.row_id, fields.score, x, y, color])].map(encode),
      },
      config: {view: {stroke: null}, axis, background: "transparent", font: "system-ui, sans-serif"},
    };
    const {view} = await window.vegaEmbed("#map", spec, {renderer: "svg", actions: false});
    const svg = document.querySelector("#map svg");
    svg.setAttribute("role", "img");
    for (const mark of svg.querySelectorAll("[role^=graphics]")) mark.setAttribute("aria-hidden", "true");  // of the rectangle
    svg.setAttribute("aria-label", `${points.length} ${noun}: ${titles[y]} by ${titles[x]}, colored by ${titles[color]}; the threshold of the score is ${threshold.toFixed(2)}`);
    view.addSignalListener("brush", (_, area) => {
      const within = ([field, [low, high]]) => (point) => point[field] !== null && point[field] >= low && point[field] <= high;
      const tests = Object.entries(area).map(([field, range]) => [field, [Math.min(...range), Math.max(...range)]]).map(within);
      list(tests.length ? points.filter((point) => tests.every((test) => test(point))) : points);
    });
    list(points);
  };
  for (const each of Object.values(chosen)) each.addEventListener("change", draw);
  draw();
})();
