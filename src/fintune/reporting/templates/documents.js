// The documents of the report: filters, sorting, pages, and the answers of two systems side by side.
// Texts go into the page as text nodes only; nothing is fetched, stored or evaluated.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("documents-data").textContent);
  const root = document.getElementById("documents-browser");
  const at = (name) => root.querySelector(`[data-part="${name}"]`);
  const count = data.task.length;
  const PAGE = 50, MOST_LABELS = 60, MISSING = -1, NOT_ASKED = -2;
  const OUTCOMES = ["same answer", "now right", "now wrong", "other answer"];
  const parts = Object.fromEntries(
    ["search", "task", "label", "outcome", "change", "left", "right", "reset", "status", "head", "body",
     "first", "back", "place", "next", "last"].map((name) => [name, at(name)]));
  const state = { sort: null, down: false, page: 0, found: [] };
  let left, right;

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const options = (select, entries) => {
    select.replaceChildren(...entries.map(([value, text]) => {
      const option = make("option", text);
      option.value = value;
      return option;
    }));
  };
  const answerText = (system, row) => {
    const word = system.answer[row];
    return word === NOT_ASKED ? "not asked" : word === MISSING ? "(missing)" : data.words[word];
  };
  const isRight = (system, row) => system.right.charCodeAt(row) === 49;
  // 0 same, 1 now right, 2 now wrong, 3 another answer of the same worth.
  const changeOf = (row) => {
    const before = isRight(left, row), after = isRight(right, row);
    if (before !== after) return after ? 1 : 2;
    return left.answer[row] === right.answer[row] ? 0 : 3;
  };
  const percent = (perMille) => perMille < 0 ? "–" : (perMille / 10).toFixed(1) + "%";

  // Lower-case text for the search, made once.
  const haystack = data.text.map((text, row) =>
    [text, data.id[row], data.words[data.target[row]],
     ...data.systems.map((s) => s.answer[row] >= 0 ? data.words[s.answer[row]] : ""),
     ...data.systems.map((s) => s.written[row] || "")].join("\n").toLowerCase());

  const columns = [
    { key: "task", name: () => "Task", of: (row) => data.tasks[data.task[row]], hidden: data.tasks.length < 2 },
    { key: "text", name: () => "Document", of: (row) => data.text[row] },
    { key: "target", name: () => "Target", of: (row) => data.words[data.target[row]] },
    { key: "left", name: () => left.name, of: (row) => answerText(left, row) },
    { key: "left-sure", name: () => "Probability", said: () => `Probability, ${left.name}`, number: true,
      of: (row) => left.sure[row] },
    { key: "right", name: () => right.name, of: (row) => answerText(right, row) },
    { key: "right-sure", name: () => "Probability", said: () => `Probability, ${right.name}`, number: true,
      of: (row) => right.sure[row] },
    { key: "change", name: () => "Change", of: (row) => OUTCOMES[changeOf(row)] },
  ].filter((column) => !column.hidden);

  const fillLabels = () => {
    const task = parts.task.value, kept = parts.label.value, seen = new Set();
    for (let row = 0; row < count; row++)
      if (task === "" || data.task[row] === Number(task)) seen.add(data.target[row]);
    const few = seen.size <= MOST_LABELS;
    const entries = few ? [...seen].map((word) => [String(word), data.words[word]]) : [];
    entries.sort((a, b) => a[1] < b[1] ? -1 : 1);
    options(parts.label, [["", few ? "any" : "any (too many to list)"], ...entries]);
    parts.label.disabled = !few;
    if (entries.some(([value]) => value === kept)) parts.label.value = kept;
  };
  const fillOutcomes = () => {
    const kept = parts.outcome.value;
    options(parts.outcome, [["", "any"], ["11", "both right"], ["00", "both wrong"],
      ["?0", `${right.name} wrong`], ["?1", `${right.name} right`],
      ["0?", `${left.name} wrong`], ["1?", `${left.name} right`]]);
    parts.outcome.value = kept || "";
  };

  const matches = (row, wanted) => {
    if (wanted.task !== "" && data.task[row] !== wanted.task) return false;
    if (wanted.label !== "" && data.target[row] !== wanted.label) return false;
    if (wanted.outcome) {
      const [before, after] = wanted.outcome;
      if (before !== "?" && (before === "1") !== isRight(left, row)) return false;
      if (after !== "?" && (after === "1") !== isRight(right, row)) return false;
    }
    if (wanted.change) {
      const change = changeOf(row), differs = left.answer[row] !== right.answer[row];
      if (wanted.change === "any" ? !differs : change !== Number(wanted.change)) return false;
    }
    return wanted.words.every((word) => haystack[row].includes(word));
  };
  const number = (value) => value === "" ? "" : Number(value);

  const find = () => {
    const wanted = {
      task: number(parts.task.value), label: number(parts.label.value), outcome: parts.outcome.value,
      change: parts.change.value, words: parts.search.value.toLowerCase().split(/\s+/).filter(Boolean),
    };
    const found = [];
    for (let row = 0; row < count; row++) if (matches(row, wanted)) found.push(row);
    const column = columns.find((one) => one.key === state.sort);
    if (column) {
      const keys = new Map(found.map((row) => {
        const key = column.of(row);
        return [row, column.number ? key : key.toLowerCase()];
      }));
      const sign = state.down ? -1 : 1;
      // Rows without a probability stay last either way; equal ones keep their order.
      found.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        if (column.number && (x < 0) !== (y < 0)) return x < 0 ? 1 : -1;
        return x < y ? -sign : x > y ? sign : a - b;
      });
    }
    state.found = found;
    state.page = 0;
    show();
  };

  const mark = (system, row) => {
    const cell = make("td", undefined, "answer");
    if (system.answer[row] !== NOT_ASKED) {
      const right = isRight(system, row);
      const sign = make("span", right ? "✓" : "✗", right ? "is-right" : "is-wrong");
      sign.setAttribute("aria-hidden", "true");
      cell.append(sign, " ", make("span", right ? "right: " : "wrong: ", "unseen"));
    }
    cell.append(answerText(system, row));
    return cell;
  };
  const side = (system, row) => {
    const box = make("div", undefined, "side");
    const right = isRight(system, row);
    box.append(make("h4", system.name));
    if (system.answer[row] === NOT_ASKED) {
      box.append(make("p", "This system was not asked this document."));
      return box;
    }
    box.append(make("p", `${right ? "✓ right" : "✗ wrong"}: ${answerText(system, row)}`));
    if (system.written[row] !== undefined) {
      box.append(make("p", "As written:", "small"), make("pre", system.written[row]));
    }
    if (system.shares[row]) {
      const list = make("dl", undefined, "shares");
      data.choices[data.task[row]].forEach((choice, place) => {
        const meter = make("meter");
        meter.max = 1000;
        meter.value = system.shares[row][place];
        meter.setAttribute("aria-label", `probability of ${choice}`);
        const value = make("dd");
        value.append(meter, " " + percent(system.shares[row][place]));
        list.append(make("dt", choice), value);
      });
      box.append(list);
    }
    return box;
  };
  const detail = (row, id) => {
    const line = make("tr", undefined, "detail");
    line.id = id;
    const cell = make("td");
    cell.colSpan = columns.length;
    const sides = make("div", undefined, "sides");
    sides.append(side(left, row), side(right, row));
    cell.append(make("p", data.id[row], "small"), make("p", data.text[row], "whole"),
      make("p", `Target: ${data.words[data.target[row]]}`), sides);
    line.append(cell);
    return line;
  };
  const opener = (row, line) => {
    const button = make("button", undefined, "open");
    const id = `document-${row}`;
    button.type = "button";
    button.append(make("span", data.text[row] || data.id[row], "clamped"));
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-controls", id);
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) document.getElementById(id).remove();
      else line.after(detail(row, id));
    });
    return button;
  };
  const rowOf = (row) => {
    const line = make("tr");
    for (const column of columns) {
      if (column.key === "left") line.append(mark(left, row));
      else if (column.key === "right") line.append(mark(right, row));
      else if (column.key === "text") {
        const cell = make("td", undefined, "document");
        cell.append(opener(row, line));
        line.append(cell);
      } else line.append(make("td", column.number ? percent(column.of(row)) : column.of(row),
        column.number ? "number" : ""));
    }
    return line;
  };

  const showHead = () => {
    parts.head.replaceChildren(...columns.map((column) => {
      const cell = make("th", undefined, column.number ? "number" : "");
      const sorted = state.sort === column.key;
      cell.scope = "col";
      cell.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
      const button = make("button", column.name() + (sorted ? (state.down ? " ↓" : " ↑") : ""), "sort");
      button.type = "button";
      button.dataset.column = column.key;
      if (column.said) button.setAttribute("aria-label", column.said());
      button.addEventListener("click", () => {
        // First click up, second down, third back to the order of the evaluation; probabilities begin with the highest.
        const begins = Boolean(column.number);
        if (state.sort !== column.key) [state.sort, state.down] = [column.key, begins];
        else if (state.down === begins) state.down = !begins;
        else [state.sort, state.down] = [null, false];
        find();
        parts.head.querySelector(`[data-column="${column.key}"]`).focus();
      });
      cell.append(button);
      return cell;
    }));
  };
  const show = () => {
    const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    showHead();
    const start = state.page * PAGE;
    parts.body.replaceChildren(...state.found.slice(start, start + PAGE).map(rowOf));
    const shown = state.found.length.toLocaleString("en"), all = count.toLocaleString("en");
    const rightOf = (system) => state.found.reduce((sum, row) => sum + isRight(system, row), 0);
    parts.status.textContent = `${shown} of ${all} documents` + (state.found.length
      ? `; ${left.name} right on ${rightOf(left).toLocaleString("en")}, ${right.name} on ` +
        `${rightOf(right).toLocaleString("en")}` : "");
    parts.place.textContent = `Page ${state.page + 1} of ${pages}`;
    parts.first.disabled = parts.back.disabled = state.page === 0;
    parts.next.disabled = parts.last.disabled = state.page === pages - 1;
  };

  const chooseSystems = () => {
    left = data.systems[Number(parts.left.value)];
    right = data.systems[Number(parts.right.value)];
    fillOutcomes();
  };
  const turn = (button, page) => button.addEventListener("click", () => {
    state.page = page();
    show();
    // The button that was used may be disabled now; the table then keeps the focus.
    if (button.disabled) at("scroll").focus();
  });

  const index = (key) => data.systems.findIndex((system) => system.key === key);
  const names = data.systems.map((system, place) => [String(place), system.name]);
  options(parts.task, [["", "all"], ...data.tasks.map((task, place) => [String(place), task])]);
  options(parts.change, [["", "any"], ["any", "answer changed"], ["1", "now right"], ["2", "now wrong"],
    ["3", "another wrong or right answer"], ["0", "same answer"]]);
  options(parts.left, names);
  options(parts.right, names);
  const last = data.systems.length - 1;
  const reset = () => {
    for (const name of ["search", "task", "change", "outcome"]) parts[name].value = "";
    const base = index("base"), tuned = index("tuned");
    parts.right.value = String(tuned >= 0 ? tuned : base >= 0 ? base : last);
    parts.left.value = String(base >= 0 ? base : Math.max(0, last - 1));
    if (data.tasks.length < 2) parts.task.disabled = true;
    chooseSystems();
    parts.outcome.value = "";
    fillLabels();
    parts.label.value = "";
    [state.sort, state.down] = [null, false];
    find();
  };
  for (const name of ["label", "outcome", "change"]) parts[name].addEventListener("change", find);
  parts.search.addEventListener("input", find);
  parts.task.addEventListener("change", () => { fillLabels(); find(); });
  for (const name of ["left", "right"]) parts[name].addEventListener("change", () => { chooseSystems(); find(); });
  parts.reset.addEventListener("click", reset);
  turn(parts.first, () => 0);
  turn(parts.back, () => state.page - 1);
  turn(parts.next, () => state.page + 1);
  turn(parts.last, () => Infinity);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    parts.search.focus();
  });
  reset();
  root.hidden = false;
})();
