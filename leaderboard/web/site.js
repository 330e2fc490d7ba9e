"use strict";
// The table is in the page already; this sorts it, filters it and opens the runs of a row, and the picture follows.
// The address says what is in view. Text is only set as text.
(() => {
  const table = document.getElementById("board");
  if (!table) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const most = 200; // rows shown at once until more are asked for: a browser takes its time to lay out thousands
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(body.rows, (node, index) => {
    const about = data.rows[index];
    return { node, about, index, detail: null, button: null, text: about.search.toLowerCase() };
  });
  const byNode = new Map(rows.map((row) => [row.node, row]));

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function wrap(cell, className) {
    const button = make("button", className);
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    return button;
  }

  // Copying

  function select(node) {
    const range = document.createRange();
    range.selectNodeContents(node);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  async function copy(code, button) {
    let done = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      done = true;
    } catch {
      select(code); // no access to the clipboard: the text is selected, ready to be copied by hand
      done = document.execCommand("copy");
    }
    button.textContent = done ? "copied" : "selected";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }

  function makeCommand(title, text) {
    const block = make("div", "command", title);
    const line = make("div");
    const code = make("code", "", text);
    const button = make("button", "copy", "copy");
    button.type = "button";
    button.setAttribute("aria-label", `copy: ${title}`);
    button.addEventListener("click", () => copy(code, button));
    line.append(code, button);
    block.append(line);
    return block;
  }

  // The runs of a row

  function makeCard(run) {
    const card = make("section", "card");
    const title = make("h3", "", `seed ${run.seed}`);
    for (const [badge, kind] of run.badges) title.append(make("span", `badge ${kind}`, badge));
    const list = make("dl");
    run.values.forEach((value, index) => {
      if (value !== "") list.append(make("dt", "", data.labels[index]), make("dd", "", value));
    });
    const file = make("dd");
    const link = make("a", "", run.file);
    link.href = run.link;
    file.append(link);
    list.append(make("dt", "", "record"), file);
    card.append(title, list, makeCommand("the command it was run with", run.command));
    return card;
  }

  function makeDetail(row) {
    const detail = make("tr", "detail");
    const cell = make("td");
    const runs = make("div", "runs");
    const cards = make("div", "cards");
    cell.colSpan = headers.length;
    detail.id = `runs-${row.index}`;
    runs.append(make("p", "about", row.about.about));
    for (const command of row.about.repeat) runs.append(makeCommand("to repeat these runs", command));
    cards.append(...row.about.runs.map(makeCard));
    runs.append(cards);
    cell.append(runs);
    detail.append(cell);
    return detail;
  }

  function toggle(row) {
    if (row.detail) {
      row.detail.remove();
      row.detail = null;
      row.button.removeAttribute("aria-controls");
    } else {
      row.detail = makeDetail(row);
      row.node.after(row.detail);
      row.button.setAttribute("aria-controls", row.detail.id);
    }
    row.button.setAttribute("aria-expanded", String(row.detail !== null));
  }

  for (const row of rows) {
    row.button = wrap(row.node.cells[0], "open");
    row.button.setAttribute("aria-expanded", "false");
  }
  body.addEventListener("click", (event) => {
    const row = byNode.get(event.target.closest("tr.row"));
    if (!row) return;
    const onButton = event.target.closest(".open");
    if (!onButton && String(window.getSelection())) return; // text was marked, to be copied
    toggle(row);
  });

  // Sorting

  let sorted = { column: -1, direction: "none" };
  let order = rows;

  function compare(a, b, column, sign) {
    const [left, right] = [a.about.raw[column], b.about.raw[column]];
    if (left === null || right === null) return (left === null) - (right === null); // what is unknown always comes last
    return left < right ? -sign : left > right ? sign : 0;
  }

  function sortBy(column, direction) {
    sorted = { column, direction };
    headers.forEach((header, index) => header.setAttribute("aria-sort", index === column ? direction : "none"));
    const sign = direction === "ascending" ? 1 : -1;
    order = column < 0 ? rows : [...rows].sort((a, b) => compare(a, b, column, sign) || a.index - b.index);
    show();
  }

  headers.forEach((header, column) => {
    header.setAttribute("aria-sort", "none");
    wrap(header).addEventListener("click", () => {
      const first = header.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      sortBy(column, sorted.column === column && sorted.direction === first ? other : first);
    });
  });

  // Filtering

  const find = document.getElementById("find");
  const choices = ["section", "group", "sparsity"].map((name) => [name, document.getElementById(name)]);
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const slide = document.getElementById("slide");
  const slid = document.getElementById("slid");
  const sections = Array.from(document.querySelectorAll("section[data-section]"));

  let limit = most;

  function show() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = choices.filter(([, choice]) => choice.value !== "");
    const matching = order.filter((row) => asked.every(([name, choice]) => row.about[name] === choice.value)
      && words.every((word) => row.text.includes(word)));
    const found = matching.length;
    const drawn = plot.show(matching); // its page comes first, unless a column was sorted by
    const first = (row) => sorted.column < 0 && row.about.section === drawn;
    const shown = [...matching.filter(first), ...matching.filter((row) => !first(row))].slice(0, limit);
    body.replaceChildren(...shown.flatMap((row) => (row.detail ? [row.node, row.detail] : [row.node])));
    const [section, , sparsity] = choices.map(([, choice]) => choice.value);
    table.classList.toggle("one-page", section !== "");
    slide.value = choices[2][1].selectedIndex;
    slid.textContent = sparsity || "all";
    slide.setAttribute("aria-valuetext", slid.textContent);
    for (const node of sections) node.hidden = section !== "" && node.dataset.section !== section;
    count.textContent = found === rows.length ? `${found} rows` : `${found} of ${rows.length} rows`;
    more.hidden = found <= limit;
    more.textContent = `show all ${found} rows (the first ${limit} are shown)`;
    remember();
  }

  function filter() {
    limit = most;
    show();
  }

  more.addEventListener("click", () => {
    limit = Infinity;
    show();
  });
  find.addEventListener("input", filter);
  for (const [, choice] of choices) choice.addEventListener("change", filter);
  slide.addEventListener("input", () => {
    choices[2][1].selectedIndex = slide.value;
    filter();
  });
  document.getElementById("reset").addEventListener("click", () => restore(new URLSearchParams()));

  // The address: what is not as usual, by the names on the page, so that a link outlives new rows and pages

  const called = (name) => (name === "section" ? "page" : name);
  let waiting = 0;

  function write() {
    waiting = 0;
    const params = new URLSearchParams();
    if (find.value) params.set("find", find.value);
    for (const [name, choice] of choices) if (choice.value) params.set(called(name), choice.selectedOptions[0].text);
    if (sorted.column >= 0) params.set("sort", `${data.columns[sorted.column]} ${sorted.direction}`);
    plot.write(params);
    const [place, hash] = [location.pathname + location.search, params.toString()];
    history.replaceState(null, "", hash ? `#${hash}` : place);
  }

  function remember() { // a browser refuses more than some changes a second
    if (!waiting) waiting = setTimeout(write, 150);
  }

  function restore(params) {
    find.value = params.get("find") ?? "";
    for (const [name, choice] of choices) {
      const option = Array.from(choice.options).find(({ text }) => text === params.get(called(name)));
      choice.value = option ? option.value : "";
    }
    const [, heading, direction] = /^(.*) (ascending|descending)$/.exec(params.get("sort")) || [];
    limit = most;
    plot.read(params);
    sortBy(data.columns.indexOf(heading), direction ?? "none");
  }

  // The picture

  body.replaceChildren(...rows.slice(0, most).map((row) => row.node)); // before anything is measured
  table.classList.add("ready");
  document.getElementById("controls").hidden = false;
  document.getElementById("plot").hidden = false;
  const plot = makePlot(data, rows, (row) => {
    if (!row.node.isConnected) {
      limit = Infinity;
      show();
    }
    if (!row.detail) toggle(row);
    row.button.focus();
    row.node.scrollIntoView({ block: "start" });
  }, remember);

  // The pictures below: one after the other, once the table can be used; a busy machine may never be idle

  const pictures = Array.from(document.querySelectorAll("figure noscript"));
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 20));
  const whenIdle = (work) => idle(work, { timeout: 200 });

  function loadPicture() {
    const place = pictures.shift();
    if (!place) return;
    const image = make("img");
    [image.alt, image.decoding] = [place.dataset.alt, "async"];
    [, image.src] = /src="([^"]*)"/.exec(place.textContent);
    place.replaceWith(image);
    whenIdle(loadPicture);
  }

  whenIdle(loadPicture);

  const hash = () => new URLSearchParams(location.hash.slice(1));
  window.addEventListener("hashchange", () => restore(hash()));
  if (location.hash.length > 1) restore(hash());
  else filter(); // a browser may have kept what was typed before the page was loaded again
})();
