"use strict";
// Accuracy against a cost, a point for each row in view. uPlot has the axes and the zoom; the points are drawn here.
function makePlot(data, everyRow, open, changed) {
  const get = (id) => document.getElementById(id);
  const [field, tip, cost, methods, about, whole] = ["field", "tip", "cost", "methods", "plot-about", "whole"].map(get);
  const column = (heading) => data.columns.indexOf(heading);
  const [ACCURACY, SPARSITY] = ["accuracy, %", "sparsity"].map(column);
  const FONT = "system-ui, sans-serif";
  const REACH = 30; // pixels from the pointer to a point that it picks
  const CROWDED = 300; // points from which on only the picked one is labelled
  // Of each group: corners of its marker and the turn of the first, in quarters; the same as a character.
  const SHAPES = [[3, 1, "▼"], [3, 3, "▲"], [24, 0, "●"], [4, 0, "◆"], [4, 0.5, "■"]];

  let rows = []; // of the page that is drawn
  let seen = []; // their points: x, y, spread, row
  let dense = null; // accuracy of the dense network
  let section = null;
  let off = new Set(); // methods that are switched off
  let zoom = null; // limits asked for: x from, x to, y from, y to
  let limits = [0.1, 1, 0, 100]; // those in force
  let picked = null;
  let tapped = null;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const groupOf = (row) => data.groups.indexOf(row.about.group);
  const name = (row) => row.about.name;

  // Axes

  function findLimits() {
    if (!seen.length) return [0.1, 1, 0, 100];
    const xs = seen.map((point) => point.x);
    const heights = seen.map((point) => point.y).sort((a, b) => a - b);
    const [quarter, , third] = [1, 2, 3].map((part) => heights[Math.floor((part * (heights.length - 1)) / 4)]);
    const fence = quarter - 4 * Math.max(third - quarter, 1); // what lies below would squeeze the rest into a line
    const ys = seen.filter((point) => point.y >= fence)
      .flatMap((point) => [Math.max(point.y - point.spread, fence), point.y + point.spread]);
    if (dense !== null) ys.push(dense);
    const least = (values) => values.reduce((one, other) => Math.min(one, other));
    const most = (values) => values.reduce((one, other) => Math.max(one, other));
    const [left, right, low, high] = [least(xs), most(xs), least(ys), most(ys)];
    const [far, gap] = [Math.max(right / left, 1.2) ** 0.08, Math.max(0.06 * (high - low), 0.1)];
    return [left / far, right * far, low - gap, Math.min(high, 100) + gap];
  }

  function findTicks(low, high, log) {
    const ticks = [];
    if (log && high / low > 3) {
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
        for (const digit of high / low > 5000 ? [1] : [1, 2, 5]) ticks.push(Number(`${digit}e${power}`));
      }
    } else {
      const rough = (high - low) / 5;
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 2.5, 5, 10].find((digit) => digit * power >= rough);
      for (let at = Math.ceil(low / step); at * step <= high; at += 1) ticks.push(at * step);
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  }

  const say = (number) => number.toLocaleString("en", { maximumSignificantDigits: 5 });

  function makeAxis(label, log) {
    return {
      label, labelSize: 20, size: log ? 34 : 52, font: `12px ${FONT}`, labelFont: `12px ${FONT}`,
      stroke: () => colour("--quiet"),
      grid: { stroke: () => colour("--rule"), width: 1 },
      ticks: { show: false },
      splits: (chart, axis, low, high) => findTicks(low, high, log),
      filter: (chart, ticks) => ticks,
      values: (chart, ticks) => ticks.map(say),
    };
  }

  // Where a point is drawn: one far below the others on the lower edge, unless the limits were asked for.
  const lift = (point) => (zoom ? point.y : Math.max(point.y, limits[2] + 0.015 * (limits[3] - limits[2])));

  // Points

  function drawShape(context, [corners, turn], x, y, radius) {
    context.beginPath();
    for (let corner = 0; corner < corners; corner += 1) {
      const angle = Math.PI * (turn / 2 + 2 * corner / corners);
      context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
    }
    context.closePath();
    context.fill();
    context.stroke();
  }

  function drawLabels(context, places, size, area) {
    const taken = places.map(({ x, y }) => [x - size / 3, y - size / 3, x + size / 3, y + size / 3]);
    const free = (box) => box[0] >= area.left && box[1] >= area.top && box[2] <= area.left + area.width
      && box[3] <= area.top + area.height
      && taken.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
    const told = new Set();
    const first = ({ row }) => (picked && name(row) === name(picked) ? 1 : 0);
    for (const place of [...places].sort((a, b) => first(b) - first(a) || a.y - b.y)) {
      const text = name(place.row);
      if (told.has(text) || (places.length > CROWDED && !first(place))) continue;
      const [width, gap] = [context.measureText(text).width, 0.7 * size];
      const boxes = [[gap, -size / 2], [-gap - width, -size / 2], [-width / 2, -gap - size], [-width / 2, gap]]
        .map(([dx, dy]) => [place.x + dx, place.y + dy, place.x + dx + width, place.y + dy + size]);
      const box = boxes.find(free) || (first(place) && boxes[place.x > area.left + area.width / 2 ? 1 : 0]);
      if (!box) continue;
      told.add(text);
      taken.push(box);
      context.globalAlpha = picked && !first(place) ? 0.3 : 1;
      for (const way of ["strokeText", "fillText"]) context[way](text, box[0], (box[1] + box[3]) / 2);
    }
  }

  function draw(chart) {
    const { ctx: context, bbox: area } = chart;
    const scale = devicePixelRatio;
    const [paper, ink, ...colours] = ["--paper", "--ink", ...data.groups.map((_, group) => `--group-${group}`)].map(colour);
    const upright = (value) => chart.valToPos(value, "y", true);
    const across = (value) => chart.valToPos(value, "x", true);
    const places = seen.map((point) => ({ ...point, x: across(point.x), y: upright(lift(point)), at: point }));
    const strong = ({ row }) => !picked || name(row) === name(picked);
    context.save();
    context.beginPath();
    context.rect(area.left, area.top, area.width, area.height);
    context.clip();
    context.lineWidth = scale;
    context.font = `${12 * scale}px ${FONT}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    if (dense !== null) {
      context.strokeStyle = colours[0];
      context.setLineDash([6 * scale, 4 * scale]);
      context.strokeRect(area.left - scale, upright(dense), area.width + 2 * scale, 0);
      context.setLineDash([]);
    }
    const last = new Map(); // the point before of each method: rows come by rising sparsity
    for (const place of places) {
      const before = last.get(name(place.row));
      last.set(name(place.row), place);
      context.strokeStyle = context.fillStyle = colours[groupOf(place.row)];
      context.globalAlpha = strong(place) ? (picked ? 1 : 0.4) : 0.1;
      context.beginPath();
      context.moveTo(place.x, upright(place.at.y - place.spread));
      context.lineTo(place.x, upright(place.at.y + place.spread));
      context.stroke();
      if (!before) continue;
      context.globalAlpha /= picked ? 1 : 2;
      context.beginPath();
      context.moveTo(before.x, before.y);
      context.lineTo(place.x, place.y);
      context.stroke();
    }
    for (const place of places) {
      context.fillStyle = colours[groupOf(place.row)];
      context.globalAlpha = strong(place) ? 1 : 0.25;
      if (lift(place.at) > place.at.y) context.fillStyle = paper; // it lies lower
      context.strokeStyle = colours[groupOf(place.row)];
      drawShape(context, SHAPES[groupOf(place.row)], place.x, place.y, (place.row === picked ? 8 : 5) * scale);
    }
    context.fillStyle = ink;
    context.strokeStyle = paper; // around each letter, over lines
    context.lineWidth = 3 * scale;
    context.lineJoin = "round";
    drawLabels(context, places.filter((place) => inView(place.at)), 12 * scale, area);
    context.restore();
  }

  // Picking

  function tell(row) {
    const text = (place) => row.node.cells[place].textContent;
    const lines = [ACCURACY, ...Array.from(cost.options, (option) => Number(option.value)), column("seeds")];
    const facts = lines.map((place) => [data.columns[place], text(place)]).filter(([, fact]) => fact !== "·");
    return [`${name(row)} at ${row.about.sparsity}`, ...facts.map(([heading, fact]) => `${heading}: ${fact}`)];
  }

  function pick(row) {
    picked = row;
    const point = seen.find((one) => one.row === row);
    tip.hidden = !point;
    field.setAttribute("aria-valuenow", point ? 1 + walk("x").indexOf(point) : 0);
    field.setAttribute("aria-valuetext", point ? tell(row).join("; ") : `${seen.length} points, none chosen`);
    if (point) {
      const [title, ...lines] = tell(row);
      const head = document.createElement("b");
      head.textContent = title;
      tip.replaceChildren(head, ...lines.map((line) => {
        const node = document.createElement("span");
        node.textContent = line;
        return node;
      }));
      const x = chart.over.offsetLeft + chart.valToPos(point.x, "x");
      const y = chart.over.offsetTop + chart.valToPos(lift(point), "y");
      const right = x + 14 + tip.offsetWidth <= field.clientWidth;
      tip.style.left = `${Math.max(0, right ? x + 14 : x - 14 - tip.offsetWidth)}px`;
      tip.style.top = `${Math.max(0, Math.min(y + 14, field.clientHeight - tip.offsetHeight))}px`;
    }
    chart.redraw(false);
  }

  const inView = (point) => {
    const [left, right, low, high] = limits;
    return point.x >= left && point.x <= right && lift(point) >= low && lift(point) <= high;
  };
  const walk = (axis) => seen.filter(inView).sort((a, b) => a[axis] - b[axis] || a.row.index - b.row.index);

  function hover(chart) {
    const { left, top } = chart.cursor;
    if (left < 0) {
      if (document.activeElement !== field && picked) pick(null);
      return;
    }
    let nearest = [REACH, null];
    for (const point of seen.filter(inView)) {
      const far = Math.hypot(chart.valToPos(point.x, "x") - left, chart.valToPos(lift(point), "y") - top);
      if (far < nearest[0]) nearest = [far, point.row];
    }
    if (nearest[1] !== picked) pick(nearest[1]);
  }

  function setZoom(limits) {
    zoom = limits;
    redraw();
    changed();
  }

  function scaleBy(factor) { // around the picked point, or the middle
    const [left, right, low, high] = limits;
    const point = seen.find((one) => one.row === picked);
    const [x, y] = point ? [point.x, point.y] : [Math.sqrt(left * right), (low + high) / 2];
    setZoom([x * (left / x) ** factor, x * (right / x) ** factor, y + (low - y) * factor, y + (high - y) * factor]);
  }

  function press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = { ArrowLeft: ["x", -1], ArrowRight: ["x", 1], ArrowDown: ["y", -1], ArrowUp: ["y", 1] }[event.key];
    const ends = { Home: 0, End: -1 }[event.key];
    if (step) {
      const points = walk(step[0]);
      const at = points.findIndex((point) => point.row === picked);
      const next = at < 0 ? (step[1] > 0 ? 0 : points.length - 1) : at + step[1];
      pick(points[Math.min(Math.max(next, 0), points.length - 1)]?.row ?? null);
    } else if (ends !== undefined) pick(walk("x").at(ends)?.row ?? null);
    else if (event.key === "Enter" && picked) open(picked);
    else if (event.key === "Escape") pick(null);
    else if (event.key === "+") scaleBy(0.5);
    else if (event.key === "-") scaleBy(2);
    else if (event.key === "0") setZoom(null);
    else return;
    event.preventDefault();
  }

  // Methods

  function makeSwitch(text, className, labels) {
    const [label, box] = [document.createElement("label"), document.createElement("input")];
    label.className = className;
    box.type = "checkbox";
    box.checked = labels.some((one) => !off.has(one));
    box.indeterminate = box.checked && labels.some((one) => off.has(one));
    box.addEventListener("change", () => {
      for (const one of labels) off[box.checked ? "delete" : "add"](one);
      refresh();
      changed();
    });
    label.append(box, text);
    return label;
  }

  function listMethods() {
    const focused = Array.from(methods.querySelectorAll("input")).indexOf(document.activeElement);
    const all = [...new Set(rows.map(name))];
    const list = [makeSwitch("all", "every", all)];
    data.groups.forEach((group, number) => {
      const labels = [...new Set(rows.filter((row) => groupOf(row) === number).map(name))];
      if (!labels.length) return;
      const mark = document.createElement("span");
      mark.textContent = SHAPES[number][2];
      mark.className = `mark group-${number}`;
      mark.setAttribute("aria-hidden", "true");
      const head = makeSwitch(group, "every", labels);
      head.append(mark);
      list.push(head, ...labels.map((label) => makeSwitch(label, "one", [label])));
    });
    methods.replaceChildren(...list);
    if (focused >= 0) methods.querySelectorAll("input")[focused]?.focus();
  }

  // What is drawn

  function refresh() {
    const priced = Number(cost.value);
    const reference = everyRow.find((row) => row.about.section === section && groupOf(row) === 0);
    dense = reference && !off.has(name(reference)) ? reference.about.raw[ACCURACY] : null;
    seen = rows.filter((row) => !off.has(name(row)))
      .map((row) => ({ row, x: row.about.raw[priced], y: row.about.raw[ACCURACY], spread: row.about.spread || 0 }))
      .filter((point) => point.x > 0 && point.y !== null);
    listMethods();
    redraw();
  }

  function redraw() {
    limits = zoom ?? findLimits();
    const [left, right, low, high] = limits;
    whole.hidden = zoom === null;
    field.setAttribute("aria-valuemin", 0);
    field.setAttribute("aria-valuemax", seen.filter(inView).length);
    field.setAttribute("aria-label", `accuracy against ${cost.selectedOptions[0].text}: points`);
    chart.axes[0].label = cost.selectedOptions[0].text;
    chart.setData([[left, right], [low, high]]);
    pick(seen.some((point) => point.row === picked) ? picked : null);
  }

  const chart = new uPlot({
    width: field.clientWidth || 600,
    height: field.clientHeight || 400,
    padding: [8, 8, 0, 0],
    scales: {
      x: { time: false, distr: 3, range: () => limits.slice(0, 2) },
      y: { range: () => limits.slice(2) },
    },
    axes: [makeAxis("cost", true), makeAxis(data.columns[ACCURACY], false)],
    series: [{}, { paths: () => null, points: { show: false } }],
    legend: { show: false },
    cursor: {
      x: false, y: false, points: { show: false }, drag: { x: true, y: true, setScale: false },
      bind: { dblclick: () => () => setZoom(null) },
    },
    hooks: {
      draw: [draw],
      setCursor: [hover],
      setSelect: [(chart) => {
        const { left, top, width, height } = chart.select;
        if (width < 5 || height < 5) return;
        const [x, y] = [(at) => chart.posToVal(at, "x"), (at) => chart.posToVal(at, "y")];
        chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        setZoom([x(left), x(left + width), y(top + height), y(top)]);
      }],
    },
  }, [[0.1, 1], [0, 100]], field);

  field.addEventListener("keydown", press);
  field.addEventListener("blur", () => pick(null));
  chart.over.addEventListener("click", (event) => {
    if (!picked) return;
    if (event.pointerType === "touch" && tapped !== picked) tapped = picked; // the first tap only tells
    else open(picked);
  });
  whole.addEventListener("click", () => setZoom(null));
  cost.addEventListener("change", () => {
    zoom = null;
    refresh();
    changed();
  });
  new ResizeObserver(() => {
    if (field.clientWidth) chart.setSize({ width: field.clientWidth, height: field.clientHeight });
  }).observe(field);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw(false));

  return {
    // Draw the matching rows of one page: the one that has most of them. Return that page.
    show(matching) {
      const counts = new Map();
      for (const row of matching) counts.set(row.about.section, 1 + (counts.get(row.about.section) || 0));
      const shown = [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? section;
      if (section !== null && shown !== section) zoom = null;
      section = shown;
      rows = matching.filter((row) => row.about.section === section)
        .sort((a, b) => a.about.raw[SPARSITY] - b.about.raw[SPARSITY] || a.index - b.index);
      const page = everyRow.find((row) => row.about.section === section)?.node.cells[column("page")].textContent;
      refresh();
      about.textContent = `${page}${counts.size > 1 ? " (other pages: choose one above)" : ""}. Bars: ± the standard `
        + `deviation over seeds${dense === null ? "" : "; dashed: the dense network"}`
        + `${seen.some((point) => lift(point) > point.y) ? "; hollow marks: below what is shown" : ""}.`;
      return section;
    },
    write(params) {
      const all = [...new Set(rows.map(name))];
      const hidden = all.filter((label) => off.has(label));
      const left = all.filter((label) => !off.has(label));
      if (cost.selectedIndex) params.set("cost", cost.selectedOptions[0].text);
      if (left.length < hidden.length) for (const label of left.length ? left : [""]) params.append("only", label);
      else for (const label of hidden) params.append("off", label);
      if (zoom) params.set("zoom", zoom.map((limit) => Number(limit.toPrecision(5))).join(","));
    },
    read(params) {
      const only = params.getAll("only");
      off = new Set(only.length ? everyRow.map(name).filter((label) => !only.includes(label)) : params.getAll("off"));
      cost.selectedIndex = Math.max(0, Array.from(cost.options, (option) => option.text).indexOf(params.get("cost")));
      const limits = (params.get("zoom") || "").split(",").map(Number);
      const good = limits.length === 4 && limits.every(Number.isFinite) && limits[0] > 0 && limits[0] < limits[1];
      zoom = good && limits[2] < limits[3] ? limits : null;
      section = null;
    },
  };
}
