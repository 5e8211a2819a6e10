"use strict";
(function () {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("page-data").textContent);
  const body = document.querySelector("#scans tbody");
  const rows = () => [...body.rows];
  let chosen = null;

  // Where the browser keeps nothing (private windows, strict settings), decisions last as long as the page.
  let kept = true;
  const decisions = new Map();
  try {
    for (const [id, key] of Object.entries(data.keys)) {
      const made = JSON.parse(localStorage.getItem(key) || "null");
      if (made) decisions.set(id, made);
    }
  } catch (error) {
    kept = false;
  }
  function keep(id) {
    try {
      if (decisions.has(id)) localStorage.setItem(data.keys[id], JSON.stringify(decisions.get(id)));
      else localStorage.removeItem(data.keys[id]);
    } catch (error) {
      kept = false;
    }
    warn();
  }
  function warn() {
    if (!kept) $("message").textContent = "this browser does not keep decisions: export them before you leave";
  }

  function showDecision(row) {
    const cell = row.querySelector(".decision");
    const made = decisions.get(row.dataset.id);
    cell.textContent = "";
    cell.dataset.sort = made ? made.decision : "";
    if (made) {
      const badge = document.createElement("span");
      badge.className = "badge " + made.decision;
      badge.textContent = made.decision;
      cell.append(badge);
    }
  }
  function showProgress() {
    const made = rows().map((row) => decisions.get(row.dataset.id)).filter(Boolean);
    const accepted = made.filter((one) => one.decision === "accept").length;
    $("progress").textContent = `decided: ${made.length} of ${rows().length} (${accepted} accepted, ${made.length - accepted} rejected)`;
  }
  function choose(row) {
    if (!row) return;
    if (chosen) chosen.setAttribute("aria-selected", "false");
    chosen = row;
    row.setAttribute("aria-selected", "true");
    row.scrollIntoView({ block: "nearest" });
    const id = row.dataset.id;
    $("chosen").textContent = id;
    const picture = Object.hasOwn(data.pictures, id) ? data.pictures[id] : ""; // an id may be "constructor"
    $("picture").hidden = !picture;
    if (picture) $("picture").src = "data:image/jpeg;base64," + picture;
    $("picture").alt = "sagittal, coronal and axial slices of " + id;
    $("why").textContent = row.cells[6].innerText || "nothing stands out";
    document.querySelectorAll(".histograms figure").forEach((figure, index) => {
      figure.querySelector("line")?.remove();
      const volume = (Object.hasOwn(data.volumes, id) ? data.volumes[id] : [])[index];
      if (volume === null || volume === undefined) return;
      const low = Number(figure.dataset.low), high = Number(figure.dataset.high);
      const x = high > low ? 240 * (volume - low) / (high - low) : 5;
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [name, value] of Object.entries({ x1: x, x2: x, y1: 0, y2: 60 })) line.setAttribute(name, value);
      figure.querySelector("svg").append(line);
    });
  }
  function step(by) {
    const all = rows();
    const at = chosen ? all.indexOf(chosen) + by : 0;
    choose(all[Math.min(Math.max(at, 0), all.length - 1)]);
  }
  function nextOpen() {
    const all = rows();
    const from = chosen ? all.indexOf(chosen) + 1 : 0;
    choose([...all.slice(from), ...all.slice(0, from)].find((row) => !decisions.has(row.dataset.id)));
  }
  function decide(decision) {
    if (!chosen) return;
    if (decision) decisions.set(chosen.dataset.id, { decision, at: new Date().toISOString() });
    else decisions.delete(chosen.dataset.id);
    keep(chosen.dataset.id);
    showDecision(chosen);
    showProgress();
    if (decision) step(1);
  }
  // As spreadsheets read cells that begin so as formulas, a quote goes in front.
  const cell = (text) => String(text).replace(/[\t\r\n]+/g, " ").replace(/^([=+\-@])/, "'$1");
  function table() {
    const lines = [["id", "decision", "decided_at", "verdict", "reasons"]];
    const inOrder = rows().sort((one, other) => one.dataset.order - other.dataset.order);
    for (const row of inOrder) {
      const made = decisions.get(row.dataset.id) || { decision: "n/a", at: "n/a" };
      const reasons = [...row.cells[6].children].map((part) => part.textContent).join("; ");
      lines.push([row.dataset.id, made.decision, made.at, row.cells[2].textContent, reasons || "n/a"]);
    }
    return lines.map((line) => line.map(cell).join("\t")).join("\n") + "\n";
  }
  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/tab-separated-values" }));
    link.download = "decisions.tsv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    $("message").textContent = "written to decisions.tsv in the browser's downloads";
  }

  function sortBy(heading) {
    const column = [...heading.parentNode.cells].indexOf(heading);
    const numbers = heading.querySelector("button").dataset.kind === "number";
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const sorted = rows().sort((one, other) => {
      const [a, b] = [one, other].map((row) => row.cells[column].dataset.sort);
      if (a === "" || b === "") return (a === "") - (b === "") || one.dataset.order - other.dataset.order;
      const compared = numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      return direction * compared || one.dataset.order - other.dataset.order;
    });
    for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    body.append(...sorted);
  }

  for (const heading of document.querySelectorAll("#scans th")) {
    heading.querySelector("button").addEventListener("click", () => sortBy(heading));
  }
  body.addEventListener("click", (event) => choose(event.target.closest("tr")));
  $("accept").addEventListener("click", () => decide("accept"));
  $("reject").addEventListener("click", () => decide("reject"));
  $("undo").addEventListener("click", () => decide(null));
  $("next").addEventListener("click", () => step(1));
  $("previous").addEventListener("click", () => step(-1));
  $("export").addEventListener("click", download);
  const keys = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1), n: nextOpen,
    a: () => decide("accept"), r: () => decide("reject"), u: () => decide(null),
    Enter: () => chosen?.querySelector("a")?.click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    if (event.key === "Enter" && /^(A|BUTTON)$/.test(event.target.tagName)) return;
    event.preventDefault();
    keys[event.key]();
  });
  rows().forEach(showDecision);
  showProgress();
  choose(rows()[0]);
  warn();
})();
