// Draw rows with chosen axes and colors, and list the rows within a rectangle.
(() => {
  const {names, numbers, rows, threshold} = JSON.parse(document.querySelector("#content").textContent);
  const points = rows.map((row) => Object.fromEntries(row.map((value, index) => [names[index], value])));
  const chosen = {x: document.querySelector("#x"), y: document.querySelector("#y"), color: document.querySelector("#color")};
  const most = 25, table = document.querySelector("#points"), status = document.querySelector("#chosen");
  const download = document.querySelector("#download"), base = location.pathname.replace(/latents$/, "row");
  const field = (name) => ({field: name.replace(/[.[\]\\]/g, "\\$&"), title: name});
  const csv = (value) => /[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : value ?? "";
  const list = (selected) => {
    const shown = [...selected].sort((a, b) => b.score - a.score);
    const columns = ["row_id", ...new Set(["score", ...Object.values(chosen).map((each) => each.value), ...names])].slice(0, 8);
    const unique = [...new Set(columns)];
    table.tHead.rows[0].replaceChildren(...unique.map((name) => Object.assign(document.createElement("th"), {textContent: name, scope: "col"})));
    table.tBodies[0].replaceChildren(...shown.slice(0, most).map((point) => {
      const line = document.createElement("tr");
      for (const name of unique) {
        const cell = line.insertCell();
        if (name === "row_id") {
          const link = Object.assign(document.createElement("a"), {textContent: point.row_id});
          link.href = `${base}?${new URLSearchParams({id: point.row_id, day: point.day ?? ""})}`;
          cell.append(link);
        } else {
          cell.textContent = point[name] ?? "missing";
        }
      }
      return line;
    }));
    const text = [names, ...shown.map((point) => names.map((name) => point[name]))].map((line) => line.map(csv).join(",")).join("\n");
    download.href = `data:text/csv;charset=utf-8,${encodeURIComponent(text)}`;
    const listed = shown.length > most ? `, the ${most} highest scores are listed` : "";
    status.textContent = `${shown.length} of ${points.length} rows${listed}`;
  };
  const draw = async () => {
    const [x, y, color] = [chosen.x.value, chosen.y.value, chosen.color.value];
    const isNumber = numbers.includes(color);
    const axis = {domainColor: "#8888", tickColor: "#8888", gridColor: "#8883"};
    const scale = isNumber || color === "day" ? {range: ["#7da7d9", "#e0a030", "#d0312d"], interpolate: "rgb"} : {scheme: "tableau10"};
    const spec = {
      data: {values: points}, width: "container", height: 420, mark: {type: "point", filled: true},
      params: [{name: "brush", select: {type: "interval", encodings: ["x", "y"]}}],
      encoding: {
        x: {...field(x), type: "quantitative", scale: {zero: false}}, y: {...field(y), type: "quantitative", scale: {zero: false}},
        color: {...field(color), type: isNumber ? "quantitative" : color === "day" ? "temporal" : "nominal", scale, legend: {symbolLimit: 12}},
        shape: {condition: {test: "datum.is_anomaly", value: "triangle-up"}, value: "circle"},
        size: {condition: {test: "datum.is_anomaly", value: 90}, value: 24},
        tooltip: [...new Set(["row_id", "score", x, y, color])].map((name) => ({...field(name)})),
      },
      config: {view: {stroke: null}, axis, background: "transparent", font: "system-ui, sans-serif"},
    };
    const {view} = await window.vegaEmbed("#map", spec, {renderer: "svg", actions: false});
    const svg = document.querySelector("#map svg");
    svg.setAttribute("role", "img");
    for (const mark of svg.querySelectorAll("[role^=graphics]")) mark.setAttribute("aria-hidden", "true");  // of the rectangle
    svg.setAttribute("aria-label", `${points.length} rows: ${y} by ${x}, colored by ${color}; the threshold of the score is ${threshold.toFixed(2)}`);
    view.addSignalListener("brush", (_, area) => {
      const within = ([name, [low, high]]) => (point) => point[name] >= low && point[name] <= high;
      const tests = Object.entries(area).map(([name, range]) => [name.replace(/\\/g, ""), [Math.min(...range), Math.max(...range)]]).map(within);
      list(tests.length ? points.filter((point) => tests.every((test) => test(point))) : points);
    });
    list(points);
  };
  for (const each of Object.values(chosen)) each.addEventListener("change", draw);
  draw();
})();
