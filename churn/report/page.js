"use strict";
// All data is inserted as text, never as markup.

const PAGE_ROWS = 50;
const NAMED = 12;
const SVG = "http://www.w3.org/2000/svg";

const make = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};
const h = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

const whole = new Intl.NumberFormat("en-US");
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const shortDay = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const known = (value) => value !== null && value !== undefined;
const count = (n) => (known(n) ? whole.format(n) : "–");
const fixed = (value, digits = 3) => (known(value) ? value.toFixed(digits) : "–");
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const onDay = (text) => (text ? day.format(new Date(text)) : "–");
const atTime = (text) => (text ? `${onDay(text)}, ${text.slice(11, 16)} UTC` : "–");
const plural = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;
const interval = (low, high) => (known(low) ? `${fixed(low)} to ${fixed(high)}` : "");

let fleet;
let variants;
let fleetView;
let shown = [];
const parts = new Map();
const read = new Promise((done) => document.addEventListener("DOMContentLoaded", done));

async function unpack(id) {
  const text = atob(document.getElementById(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function detailsOf(key) {
  const place = fleet.variants.findIndex((variant) => variant.key === key);
  const part = Math.floor(place / fleet.variants_per_part);
  await read; // parts come after this script
  if (!parts.has(part)) parts.set(part, await unpack(`part-${part}`));
  return parts.get(part)[place % fleet.variants_per_part];
}

// ---- pieces

const badge = (kind, sign, text, title) => h("span", { class: `badge ${kind}`, title }, `${sign} ${text}`);
const variantLink = (key) =>
  variants.has(key) ? h("a", { href: `#/variant/${encodeURIComponent(key)}` }, key) : h("span", {}, key);
const section = (title, ...children) => {
  const id = `s-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return h("section", { "aria-labelledby": id }, h("h2", { id }, title), ...children);
};

/** Lists variants: the first few at once, the rest on demand. */
function names(keys) {
  const first = h("div", { class: "names" }, keys.slice(0, NAMED).map(variantLink));
  if (keys.length <= NAMED) return first;
  const rest = h("div", { class: "names" });
  const more = h("details", { toggle: () => rest.childElementCount || rest.append(...keys.slice(NAMED).map(variantLink)) },
    h("summary", {}, `${whole.format(keys.length - NAMED)} more`), rest);
  return h("div", {}, first, more);
}

function statusBadges(v) {
  const found = [];
  if (v.status === "failed") found.push(badge("bad", "✕", "failed"));
  if (v.status === "missing") found.push(badge("bad", "–", "not scored"));
  if (v.status === "scored") found.push(badge("good", "✓", "scored"));
  if (v.status === "scored" && v.error) found.push(badge("bad", "✕", "failed since", v.error));
  if (v.challenger_error) found.push(badge("warn", "✕", "challenger failed", v.challenger_error));
  if (v.auc && v.auc.is_below) found.push(badge("bad", "▼", "AUC below limit"));
  if (v.confirmed.length) found.push(badge("warn", "▲", "drift confirmed", v.confirmed.join(", ")));
  else if (v.new.length) found.push(badge("", "△", "drift unconfirmed", v.new.join(", ")));
  if (v.is_foreign_data) found.push(badge("", "◇", "base variant’s data"));
  else if (v.is_fallback) found.push(badge("", "◇", "local copy"));
  if (v.is_sample) found.push(badge("", "◇", "encoded sample"));
  return h("div", { class: "badges" }, found);
}

const urgency = (v) =>
  v.status === "failed" ? 6 : v.status === "missing" ? 5 : v.error ? 4.5 : v.auc && v.auc.is_below ? 4
    : v.confirmed.length ? 3 : v.challenger_error ? 2 : v.new.length ? 1 : 0;

// ---- charts

/** A box that is redrawn whenever its width changes, so that the size of letters stays the same. */
function chart(label, draw) {
  const box = h("div", { class: "chart" });
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || width === last) return;
    last = width;
    const { height, content } = draw(width);
    box.replaceChildren(s("svg", { role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` }, content));
  }).observe(box);
  return box;
}

function niceTicks(low, high, most = 5) {
  const raw = (high - low || Math.abs(high) || 1) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999);
  const from = Math.floor(low / step + 1e-9), to = Math.ceil(high / step - 1e-9);
  return Array.from({ length: to - from + 1 }, (_, i) => Number(((from + i) * step).toPrecision(10)));
}

const path = (points) => {
  let pen = "M", text = "";
  for (const [x, y] of points) {
    if (!known(y)) pen = "M";
    else { text += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`; pen = "L"; }
  }
  return text;
};

/**
 * Draws values by week. A series has a value or null for each week; an item of `band` is [low, high], an item of `dots` a
 * value with its interval; `turns` are the indices of weeks in which the model changed.
 */
function timeChart(label, { line, dashed, band, dots, hollow, limit, turns = [], base = 0 }) {
  const all = [...(line || []), ...(dashed || []), ...(limit || []), ...(band || []).flatMap((b) => b || []),
    ...(dots || []).flatMap((d) => (d ? [d.value, d.low, d.high] : [])), ...(hollow || [])].filter(known);
  return chart(label, (width) => {
    const height = 210, left = 44, right = 12, top = 14, bottom = 24, n = fleet.weeks.length;
    const ticks = niceTicks(Math.min(base, ...all), Math.max(...all), 4);
    const lowest = ticks[0], highest = ticks[ticks.length - 1] || 1;
    const x = (i) => (n > 1 ? left + ((width - left - right) * i) / (n - 1) : (left + width - right) / 2);
    const y = (v) => (known(v) ? top + (height - top - bottom) * (1 - (v - lowest) / (highest - lowest || 1)) : null);
    const digits = ticks.length > 1 && ticks[1] - ticks[0] < 0.0999 ? (ticks[1] - ticks[0] < 0.00999 ? 3 : 2) : 1;
    const by = (values) => path(values.map((v, i) => [x(i), y(v)]));
    const content = ticks.map((t) => [
      s("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
      s("text", { x: left - 8, y: y(t) + 4, "text-anchor": "end" }, t.toFixed(digits)),
    ]);
    const gap = Math.max(1, Math.ceil(n / Math.max(2, Math.floor((width - left) / 90))));
    for (let i = n - 1; i >= 0; i -= gap) {
      const anchor = n === 1 ? "middle" : i === n - 1 ? "end" : x(i) < left + 20 ? "start" : "middle";
      content.push(s("text", { x: x(i), y: height - 4, "text-anchor": anchor }, shortDay.format(new Date(fleet.weeks[i]))));
    }
    for (const { at, text } of turns) {
      content.push(s("line", { class: "turn", x1: x(at), x2: x(at), y1: top, y2: height - bottom }));
      const isLate = x(at) > width - 60;
      content.push(s("text", { x: x(at) + (isLate ? -4 : 4), y: top + 2, "text-anchor": isLate ? "end" : "start" }, text));
    }
    if (band) {
      const there = band.map((b, i) => (b ? [x(i), y(b[0]), y(b[1])] : null)).filter(Boolean);
      const outline = [...there.map(([a, , hi]) => [a, hi]), ...there.reverse().map(([a, lo]) => [a, lo])];
      if (there.length > 1) content.push(s("path", { class: "band", d: `${path(outline)}Z` }));
    }
    if (limit) content.push(s("path", { class: "limit", d: by(limit) }));
    if (dashed) content.push(s("path", { class: "dashed", d: by(dashed) }), alone(dashed).map((i) => s("circle", { class: "faint", cx: x(i), cy: y(dashed[i]), r: 3 }, tip(i, `estimated ${fixed(dashed[i])}`))));
    if (line) content.push(s("path", { class: "line", d: by(line) }));
    (line || []).forEach((v, i) => {
      if (known(v)) content.push(s("circle", { class: "dot", cx: x(i), cy: y(v), r: 3.5 }, tip(i, fixed(v))));
    });
    (hollow || []).forEach((v, i) => {
      if (known(v)) content.push(s("circle", { class: "hollow", cx: x(i), cy: y(v), r: 3.5 }, tip(i, `challenger ${fixed(v)}`)));
    });
    (dots || []).forEach((d, i) => {
      if (!d) return;
      content.push(s("line", { class: "whisker", x1: x(i), x2: x(i), y1: y(d.low), y2: y(d.high) }));
      const isBelow = known(d.limit) && d.high < d.limit;
      const words = tip(i, `${fixed(d.value)} (${interval(d.low, d.high)})${isBelow ? ", below its limit" : ""}`);
      content.push(isBelow
        ? s("rect", { class: "dot low", x: x(i) - 4, y: y(d.value) - 4, width: 8, height: 8 }, words)
        : s("circle", { class: "dot", cx: x(i), cy: y(d.value), r: 4 }, words));
    });
    return { height, content };
  });
}

/** Indices of values without a neighbour, which no line connects. */
const alone = (values) => values.flatMap((v, i) => (known(v) && !known(values[i - 1]) && !known(values[i + 1]) ? [i] : []));
const tip = (i, text) => s("title", {}, `week of ${onDay(fleet.weeks[i])}: ${text}`);

const KEYS = {
  line: [s("line", { class: "line", x1: 1, x2: 23, y1: 6, y2: 6 })],
  dashed: [s("line", { class: "dashed", x1: 0, x2: 24, y1: 6, y2: 6 })],
  limit: [s("line", { class: "limit", x1: 0, x2: 24, y1: 6, y2: 6 })],
  band: [s("rect", { class: "band", x: 0, y: 0, width: 24, height: 12 })],
  dot: [s("line", { class: "whisker", x1: 12, x2: 12, y1: -1, y2: 13 }), s("circle", { class: "dot", cx: 12, cy: 6, r: 4 })],
  hollow: [s("circle", { class: "hollow", cx: 12, cy: 6, r: 3.5 })],
  bar: [s("rect", { class: "bar", x: 0, y: 1, width: 24, height: 10 })],
  was: [s("line", { class: "was", x1: 12, x2: 12, y1: 0, y2: 12 })],
};
const legend = (...entries) =>
  h("ul", { class: "legend" }, entries.filter(Boolean).map(([kind, text]) =>
    h("li", {}, s("svg", { width: 24, height: 12, "aria-hidden": "true" }, KEYS[kind].map((n) => n.cloneNode())), text)));

function spark(values, width = 96, height = 22) {
  const there = values.filter(known);
  if (!there.length) return null;
  const low = Math.min(...there), range = Math.max(...there) - low || 1;
  const at = values.map((v, i) => [(i * (width - 6)) / Math.max(values.length - 1, 1) + 3, known(v) ? height - 4 - ((v - low) / range) * (height - 8) : null]);
  const last = at.filter(([, y]) => known(y)).pop();
  return s("svg", { width, height, "aria-hidden": "true" },
    s("path", { class: "line", d: path(at) }), s("circle", { class: "dot", cx: last[0], cy: last[1], r: 3 }));
}

/** Draws a row per bin: a bar for the batch, a mark for the reference. */
function distribution(f) {
  const total = (counts) => counts.reduce((a, b) => a + b, 0) || 1;
  const n = total(f.batch), m = total(f.reference);
  let bins = f.labels.map((text, i) => ({ text, short: f.is_ordered ? readable(text) : text, now: f.batch[i] / n, was: f.reference[i] / m }));
  const [last] = bins.slice(-1);
  if (!f.is_ordered) bins = bins.slice(0, -1).sort((a, b) => Math.max(b.now, b.was) - Math.max(a.now, a.was)).concat(last);
  if (bins.length > 13) {
    const few = bins.slice(11, -1);
    const sum = (name) => few.reduce((a, b) => a + b[name], 0);
    bins = [...bins.slice(0, 11), { text: `${few.length} further levels`, short: `${few.length} further levels`, now: sum("now"), was: sum("was") }, last];
  }
  if (last.now === 0 && last.was === 0) bins.pop();
  const longest = Math.max(...bins.map((b) => Math.max(b.now, b.was)), 1e-9);
  const label = `${f.feature}: ${bins.map((b) => `${b.text} ${percent(b.now)}, was ${percent(b.was)}`).join("; ")}`;
  return chart(label, (width) => {
    const row = 19, left = Math.min(165, width * 0.47), right = 46;
    const x = (share) => left + ((width - left - right) * share) / longest;
    const content = bins.map((b, i) => {
      const y = i * row;
      return [
        s("text", { x: left - 8, y: y + 13, "text-anchor": "end" }, clipped(b.short, left)),
        s("rect", { class: "bar", x: left, y: y + 3, width: Math.max(x(b.now) - left, b.now ? 1 : 0), height: row - 7 },
          s("title", {}, `${b.text}: ${percent(b.now)} now, ${percent(b.was)} in the reference`)),
        s("line", { class: "was", x1: x(b.was), x2: x(b.was), y1: y + 1, y2: y + row - 2 }),
        s("text", { class: "value", x: width, y: y + 13, "text-anchor": "end" }, percent(b.now)),
      ];
    });
    return { height: bins.length * row, content };
  });
}
/** Shortens the numbers of a bin's label to three digits. */
const readable = (label) => label.replace(/-?\d[\d.]*(e[+-]?\d+)?/g, (number) => String(Number(Number(number).toPrecision(3))));
const clipped = (text, width) => (text.length * 6.4 > width ? `${text.slice(0, Math.floor(width / 6.4) - 1)}…` : text);

function bars(entries, label) {
  const longest = Math.max(...entries.map(([, size]) => size), 1e-9);
  return chart(label, (width) => {
    const row = 25, left = Math.min(160, width * 0.42), right = 50;
    const content = entries.map(([name, size], i) => [
      s("text", { x: left - 8, y: i * row + 16, "text-anchor": "end" }, clipped(name, left)),
      s("rect", { class: "bar", x: left, y: i * row + 4, width: Math.max(((width - left - right) * size) / longest, 1), height: row - 9 }),
      s("text", { class: "value", x: width, y: i * row + 16, "text-anchor": "end" }, fixed(size)),
    ]);
    return { height: entries.length * row, content };
  });
}

function reliability(r) {
  const points = r.n.map((n, i) => ({ n, score: r.mean_score[i], share: r.churned_share[i] }));
  const label = `Reliability: ${points.map((p) => `scored ${percent(p.score)}, churned ${percent(p.share)}`).join("; ")}`;
  return chart(label, (width) => {
    const size = Math.min(width, 380), left = 44, top = 10, side = size - left - 10, height = side + top + 42;
    const x = (v) => left + side * v, y = (v) => top + side * (1 - v);
    const content = [0, 0.25, 0.5, 0.75, 1].map((t) => [
      s("line", { class: "grid", x1: x(0), x2: x(1), y1: y(t), y2: y(t) }),
      s("text", { x: left - 8, y: y(t) + 4, "text-anchor": "end" }, `${t * 100} %`),
      s("text", { x: x(t), y: top + side + 18, "text-anchor": "middle" }, t * 100),
    ]);
    content.push(s("text", { x: x(0.5), y: top + side + 36, "text-anchor": "middle" }, "mean score, %"));
    content.push(s("line", { class: "dashed", x1: x(0), x2: x(1), y1: y(0), y2: y(1) }));
    content.push(s("path", { class: "line", d: path(points.map((p) => [x(p.score), y(p.share)])) }));
    for (const p of points) {
      content.push(s("circle", { class: "dot", cx: x(p.score), cy: y(p.share), r: 4.5 },
        s("title", {}, `${count(p.n)} accounts scored ${percent(p.score)} on average; ${percent(p.share)} churned`)));
    }
    return { height, content };
  });
}

function whisker(segment, limit) {
  const width = 150, height = 18, x = (v) => 4 + (width - 8) * Math.min(Math.max((v - 0.4) / 0.6, 0), 1);
  return s("svg", { width, height, "aria-hidden": "true" },
    s("line", { class: "grid", x1: 4, x2: width - 4, y1: 9, y2: 9 }),
    known(limit) && s("line", { class: "limit", x1: x(limit), x2: x(limit), y1: 1, y2: 17 }),
    s("line", { class: "whisker", x1: x(segment.roc_auc_low), x2: x(segment.roc_auc_high), y1: 9, y2: 9 }),
    s("circle", { class: "dot", cx: x(segment.roc_auc), cy: 9, r: 4 }));
}

/** A table with the figures of a chart, for readers who cannot see it, too. */
const figures = (headings, rows) =>
  h("details", {}, h("summary", {}, "Figures"), h("div", { class: "frame" }, h("table", {},
    h("thead", {}, h("tr", {}, headings.map((text, i) => h("th", { scope: "col", class: i ? "n" : "" }, text)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((text, i) => (i ? h("td", { class: "n" }, text) : h("th", { scope: "row" }, text)))))))));

// ---- the fleet

const FILTERS = {
  all: ["All", () => true],
  attention: ["Needs attention", (v) => urgency(v) > 1],
  failed: ["Failed", (v) => v.status === "failed" || Boolean(v.error)],
  missing: ["Not scored", (v) => v.status === "missing"],
  drift: ["Confirmed drift", (v) => v.confirmed.length > 0],
  moved: ["Unconfirmed drift", (v) => v.new.length > 0],
  low: ["AUC below its limit", (v) => Boolean(v.auc && v.auc.is_below)],
  challenger: ["Has a challenger", (v) => known(v.challenger)],
  stand_in: ["Scored from stand-in data", (v) => v.is_fallback || v.is_foreign_data || v.is_sample],
};
const COLUMNS = [
  ["Variant", (v) => v.key, ""],
  ["Status", urgency, ""],
  ["At risk", (v) => v.at_risk, "n"],
  ["Mean score", (v) => v.mean, "n"],
  ["ROC AUC", (v) => v.auc && v.auc.value, "n"],
  ["AUC by week", null, ""],
  ["Drift", (v) => v.confirmed.length * 100 + v.new.length, ""],
  ["Champion", (v) => v.since, ""],
];
const state = { query: "", filter: "all", sort: 1, descending: true, page: 0 };
let drawTable = () => {};

function matching() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const [, wanted] = FILTERS[state.filter];
  const value = COLUMNS[state.sort][1];
  const found = fleet.variants.filter((v) => wanted(v) && words.every((word) => v.key.includes(word)));
  return found.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (known(x) !== known(y)) return known(x) ? -1 : 1; // unknown values come last in both directions
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (state.descending ? -order : order) || (a.key < b.key ? -1 : 1);
  });
}

function tableRow(v) {
  const cell = (label, kind, ...content) =>
    h("td", { class: content.every((c) => c === null) ? `${kind} none` : kind, "data-label": label, role: "cell" }, ...content);
  const drift = [...v.confirmed, ...v.new.map((name) => `${name} (unconfirmed)`)];
  return h("tr", { role: "row" },
    h("th", { scope: "row", role: "rowheader" }, variantLink(v.key)),
    cell("Status", "", statusBadges(v)),
    cell("At risk", "n", known(v.accounts) ? h("div", {}, known(v.at_risk) ? count(v.at_risk) : "unknown", h("div", { class: "quiet" }, `of ${count(v.accounts)}`)) : null),
    cell("Mean score", "n", known(v.mean) ? fixed(v.mean) : null),
    cell("ROC AUC", "n", v.auc ? h("div", {}, fixed(v.auc.value), h("div", { class: "quiet" }, interval(v.auc.low, v.auc.high))) : h("span", { class: "quiet" }, "not yet")),
    cell("AUC by week", "", spark(v.aucs)),
    cell("Drift", "", drift.length ? drift.slice(0, 2).join(", ") + (drift.length > 2 ? ` and ${drift.length - 2} more` : "") : null),
    cell("Champion", "", known(v.champion) ? h("div", {}, `v${v.champion} `, h("span", { class: "quiet" }, `since ${onDay(v.since)}`),
      known(v.challenger) ? h("div", { class: "quiet" }, `challenger v${v.challenger}${v.ab_share ? `, serves ${v.ab_share / 100} %` : ""}`) : null) : null));
}

function variantsTable() {
  const body = h("tbody", { role: "rowgroup" });
  const range = h("span", { role: "status" });
  const turn = (step) => h("button", { class: "button", type: "button", click: () => { state.page += step; drawTable(); } }, step < 0 ? "Previous" : "Next");
  const [back, on] = [turn(-1), turn(1)];
  const heads = COLUMNS.map(([name, value, kind], i) =>
    h("th", { scope: "col", role: "columnheader", class: kind }, value ? h("button", { type: "button", click: () => sortBy(i) }, name) : name));
  const sortBy = (i) => {
    state.descending = state.sort === i ? !state.descending : i !== 0;
    state.sort = i;
    state.page = 0;
    drawTable();
  };
  drawTable = () => {
    shown = matching();
    const last = Math.max(Math.ceil(shown.length / PAGE_ROWS) - 1, 0);
    state.page = Math.min(Math.max(state.page, 0), last);
    const from = state.page * PAGE_ROWS, rows = shown.slice(from, from + PAGE_ROWS);
    body.replaceChildren(...rows.map(tableRow));
    if (!rows.length) body.append(h("tr", { role: "row" }, h("td", { role: "cell", colspan: COLUMNS.length, class: "quiet" }, "No variant matches.")));
    range.textContent = rows.length ? `${whole.format(from + 1)} to ${whole.format(from + rows.length)} of ${plural(shown.length, "variant")}` : "0 variants";
    [back.disabled, on.disabled] = [state.page === 0, state.page === last];
    heads.forEach((head, i) => {
      const button = head.querySelector("button");
      if (!button) return;
      const isSorted = i === state.sort;
      button.textContent = COLUMNS[i][0] + (isSorted ? (state.descending ? " ↓" : " ↑") : "");
      if (isSorted) head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    search.value = state.query;
    filter.value = state.filter;
    order.value = state.sort;
  };
  const change = (name) => (event) => { state[name] = event.target.value; state.page = 0; drawTable(); };
  const search = h("input", { type: "search", id: "search", autocomplete: "off", spellcheck: "false", placeholder: "geography-us", input: change("query") });
  const filter = h("select", { id: "filter", change: change("filter") }, Object.entries(FILTERS).map(([value, [text]]) => h("option", { value }, text)));
  const order = h("select", { id: "order", change: (event) => sortBy(Number(event.target.value)) },
    COLUMNS.flatMap(([name, value], i) => (value ? [h("option", { value: i }, name)] : [])));
  drawTable();
  return section("Variants",
    h("div", { class: "tools" },
      h("div", { class: "grow" }, h("label", { for: "search" }, "Search by name"), search),
      h("div", {}, h("label", { for: "filter" }, "Show"), filter),
      h("div", { class: "narrow" }, h("label", { for: "order" }, "Sort by"), order)),
    h("div", { class: "frame" }, h("table", { class: "stacks", role: "table", "aria-label": "Variants" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)), body)),
    h("nav", { class: "pager", "aria-label": "Pages of the table" }, back, on, range));
}

function tile(number, text, kind, filter) {
  const content = [h("b", { class: number && kind ? kind : "" }, count(number)), h("span", {}, text)];
  if (!filter) return h("li", {}, h("div", { class: "tile" }, content));
  const show = () => {
    Object.assign(state, { filter, query: "", page: 0 });
    drawTable();
    document.getElementById("s-variants").scrollIntoView();
    document.getElementById("filter").focus({ preventScroll: true });
  };
  return h("li", {}, h("button", { type: "button", class: "tile", click: show }, content));
}

/** The incident's kind, and where it is explained. */
const runbook = (incident) => ["kind ", h("code", {}, incident.kind), ", explained in ", h("code", {}, `${fleet.runbook}#${incident.kind}`)];

function incidentItem(incident) {
  const members = Object.entries(incident.members);
  const isOpen = !incident.resolved_at;
  const list = h("ul", { class: "members" });
  const fill = () => {
    if (list.childElementCount) return;
    list.append(...members.slice(0, 200).map(([key, what]) => h("li", {}, variantLink(key), what ? `: ${what}` : "")));
    if (members.length > 200) list.append(h("li", { class: "quiet" }, `and ${whole.format(members.length - 200)} more`));
  };
  const isFew = members.length <= 3;
  if (isFew || isOpen) fill();
  const mark = !isOpen ? badge("good", "✓", "resolved") : incident.severity === "error" ? badge("bad", "●", "error") : badge("warn", "▲", "warning");
  const when = isOpen ? `open since ${atTime(incident.opened_at)}` : `${atTime(incident.opened_at)} to ${atTime(incident.resolved_at)}`;
  return h("li", {}, h("h3", {}, mark, " ", incident.title), h("p", { class: "quiet small" }, when, "; ", ...runbook(incident)),
    members.length ? (isFew ? list : h("details", { toggle: fill, ...(isOpen ? { open: "" } : {}) }, h("summary", {}, `show all ${whole.format(members.length)}`), list)) : null);
}

function grouped(pairs) {
  const groups = new Map();
  for (const [name, key] of pairs) groups.set(name, [...(groups.get(name) || []), key]);
  return [...groups].sort((a, b) => b[1].length - a[1].length);
}

function failures() {
  const failed = fleet.variants.filter((v) => v.error);
  const challengers = fleet.variants.filter((v) => v.challenger_error);
  const missing = fleet.variants.filter((v) => v.status === "missing");
  if (!failed.length && !challengers.length && !missing.length) return null;
  const item = (note) => ([error, keys]) => h("li", {}, h("p", { class: "error" }, error),
    (note || keys.length > 3) && h("p", { class: "quiet small" }, `${plural(keys.length, "variant")}${note}`), names(keys));
  return section("Failures", h("div", { class: "card" }, h("ul", { class: "list" },
    grouped(failed.map((v) => [v.error, v.key])).map(item("")),
    grouped(challengers.map((v) => [v.challenger_error, v.key])).map(item("; only the challenger failed")),
    missing.length ? h("li", {}, h("h3", {}, "Not scored this week; there was no attempt"), names(missing.map((v) => v.key))) : null)));
}

function drifting() {
  const of = (name) => new Map(grouped(fleet.variants.flatMap((v) => v[name].map((feature) => [feature, v.key]))));
  const [confirmed, fresh] = [of("confirmed"), of("new")];
  const features = [...new Set([...confirmed.keys(), ...fresh.keys()])];
  if (!features.length) return null;
  return section("Drift",
    h("p", { class: "quiet" }, "Features that differ significantly and strongly from the model’s reference; the false discovery rate is controlled over the fleet. Confirmed: found in two different inputs, and alerted. Unconfirmed: found in the newest input only. A new variant often has some: a model logged from files is compared with its sample rows, which may be of another season, and a trained one with the same week of the year."),
    h("div", { class: "frame" }, h("table", { class: "stacks", role: "table", "aria-label": "Drift by feature" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Feature", "▲ Confirmed", "△ Unconfirmed"].map((text) => h("th", { scope: "col", role: "columnheader" }, text)))),
      h("tbody", { role: "rowgroup" }, features.map((feature) => h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader" }, feature),
        [["▲ Confirmed", confirmed], ["△ Unconfirmed", fresh]].map(([label, map]) =>
          h("td", { "data-label": label, role: "cell" }, map.has(feature) ? h("div", {}, map.get(feature).length > 3 && h("div", { class: "quiet" }, plural(map.get(feature).length, "variant")), names(map.get(feature))) : "–"))))))));
}

function trends() {
  const pick = (name, i) => fleet.trend.map((t) => (t[name] ? t[name][i] : null));
  const band = (name) => fleet.trend.map((t) => (t[name] ? [t[name][0], t[name][2]] : null));
  const rows = fleet.trend.map((t, i) => [onDay(fleet.weeks[i]), count(t.n), count(t.accounts), fixed(t.mean && t.mean[1]), fixed(t.auc && t.auc[1]), fixed(t.estimated && t.estimated[1])]);
  const has = (name) => fleet.trend.some((t) => t[name]);
  return section("Scores and AUC over time", h("div", { class: "two" },
    has("mean") && h("div", { class: "card" }, h("h3", {}, "Mean churn probability of accounts at risk"), legend(["line", "median variant, of all accounts where it is unknown who is at risk"], ["band", "middle 80 % of variants"]),
      timeChart("Mean churn probability of the variants by week", { line: pick("mean", 1), band: band("mean") })),
    (has("auc") || has("estimated")) && h("div", { class: "card" }, h("h3", {}, "ROC AUC"),
      legend(has("auc") && ["line", "median variant, labels matured"], has("auc") && ["band", "middle 80 %"], has("estimated") && ["dashed", "estimated before labels of calibrated models: assumes no concept drift"]),
      timeChart("ROC AUC of the variants by week, from 0.5, which is chance", { base: 0.5, line: pick("auc", 1), band: band("auc"), dashed: pick("estimated", 1) }))),
    figures(["week", "variants", "accounts", "mean score", "ROC AUC", "estimated AUC"], rows.reverse()));
}

function changes() {
  if (!fleet.changes.length) return null;
  return section("New champions", h("div", { class: "card" }, h("ul", { class: "list" }, fleet.changes.map((c) => h("li", {},
    h("p", {}, variantLink(c.variant), ` ${c.action === "promoted" ? "promoted to" : "rolled back to"} v${c.champion_version}`, known(c.previous_version) ? ` from v${c.previous_version}` : ""),
    h("p", { class: "quiet small" }, `${atTime(c.occurred_at)}, ${c.actor}: ${c.reason}`))))));
}

function campaigns() {
  if (!fleet.campaigns.length) return null;
  const columns = [["n_offered", "offered"], ["n_control", "control"], ["n_held_out", "held out"], ["n_removed", "left the list"],
    ["n_exposed", "contacted"], ["n_control_exposed", "contacted of the others"], ["n_removed_exposed", "contacted after they left"]];
  return section("Campaigns", h("p", { class: "quiet" }, "Accounts by the arm that they were drawn into. churn campaign status shows the effect."),
    h("div", { class: "frame" }, h("table", { class: "stacks", role: "table", "aria-label": "Campaigns" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["campaign", "from", ...columns.map(([, text]) => text)].map((text, i) =>
        h("th", { role: "columnheader", scope: "col", class: i > 1 ? "n" : "" }, text)))),
      h("tbody", { role: "rowgroup" }, fleet.campaigns.map((c) => h("tr", { role: "row" },
        h("th", { role: "rowheader", scope: "row" }, `${c.name}${c.closed_at ? " (closed)" : ""}: ${plural(c.n_variants, "variant")}, by ${c.policy}, ${c.channel}`),
        h("td", { role: "cell", "data-label": "from" }, onDay(c.starts_on)),
        columns.map(([name, text]) => h("td", { role: "cell", class: "n", "data-label": text }, whole.format(c[name])))))))));
}

function fleetPage() {
  const tally = (name) => fleet.variants.filter(FILTERS[name][1]).length;
  const total = fleet.variants.length, scored = fleet.variants.filter((v) => v.status === "scored").length;
  const failed = fleet.variants.filter((v) => v.status === "failed").length, missing = tally("missing"), drift = tally("drift"), low = tally("low"), standIn = tally("stand_in");
  const open = fleet.incidents.filter((i) => !i.resolved_at), resolved = fleet.incidents.filter((i) => i.resolved_at);
  const accounts = fleet.variants.reduce((sum, v) => sum + (v.accounts || 0), 0);
  const troubles = [failed && `${plural(failed, "variant")} failed`, missing && `${plural(missing, "variant")} not scored`, drift && `${plural(drift, "variant")} with confirmed drift`,
    low && `${plural(low, "variant")} below the AUC limit`, standIn && `${plural(standIn, "variant")} scored from stand-in data`].filter(Boolean);
  return h("div", {},
    h("h1", {}, `Week of ${onDay(fleet.week)}`),
    h("p", { class: "lead" }, `${whole.format(scored)} of ${plural(total, "variant")} scored, ${plural(accounts, "account")}. `,
      troubles.length ? `${troubles.join(", ")}.` : "No failures, no confirmed drift, no stand-in data.", " Counted are variants with a batch in the weeks shown or an attempt in this one."),
    h("ul", { class: "tiles", "aria-label": "At a glance" }, tile(scored, "scored", "", "all"), tile(failed, "failed", "bad", "failed"),
      tile(missing, "not scored", "bad", "missing"), tile(drift, "confirmed drift", "warn", "drift"), tile(low, "AUC below limit", "bad", "low"),
      tile(standIn, "stand-in data", "warn", "stand_in"), tile(open.length, "open incidents", "bad")),
    open.length ? section("Open incidents", h("div", { class: "card" }, h("ul", { class: "list" }, open.map(incidentItem)))) : null,
    failures(), drifting(), trends(), variantsTable(), campaigns(), changes(),
    resolved.length ? section("Resolved in the last two weeks", h("div", { class: "card" }, h("ul", { class: "list" }, resolved.map(incidentItem)))) : null);
}

function emptyPage() {
  const open = fleet.incidents.filter((i) => !i.resolved_at);
  return h("div", {},
    h("h1", {}, "Nothing was scored yet"),
    h("p", { class: "lead" }, "The predictions database has no batch yet. To score one:"),
    section("On this machine, with simulated players", h("pre", {}, h("code", {}, "uv run churn demo\nuv run churn report"))),
    section("With your own variants", h("pre", {}, h("code", {}, "uv run python experiment_tracking/log_model.py --geography US\nuv run churn score geography-us\nuv run churn report")),
      h("p", { class: "quiet" }, "Or use Dagster: every Monday the weekly schedule scores all registered variants.")),
    open.length ? section("Open incidents", h("div", { class: "card" }, h("ul", { class: "list" }, open.map(incidentItem)))) : null);
}

// ---- one variant

const populationOf = (batch) => (known(batch.n_at_risk) ? "accounts at risk" : "all accounts, since it is unknown who is at risk");

const H = { week: 0, version: 1, accounts: 2, mean: 3, estimated: 4, status: 5, matured: 6, churned: 7, auc: 8, low: 9, high: 10, limit: 11, brier: 12, calibration: 13, lift: 14 };

function byWeek(rows, name) {
  const values = fleet.weeks.map(() => null);
  for (const row of rows) values[row[H.week]] = row[H[name]];
  return values;
}

function overTime(d) {
  const { champion, challenger } = d.history;
  if (!champion.length) return null;
  const turns = champion.filter((row, i) => i && row[H.version] !== champion[i - 1][H.version]).map((row) => ({ at: row[H.week], text: `v${row[H.version]}` }));
  const dots = fleet.weeks.map(() => null);
  for (const row of champion) if (known(row[H.auc])) dots[row[H.week]] = { value: row[H.auc], low: row[H.low], high: row[H.high], limit: row[H.limit] };
  const limit = byWeek(champion, "limit"), estimated = byWeek(champion, "estimated"), hollow = byWeek(challenger, "auc");
  const insufficient = champion.filter((row) => row[H.status] === "insufficient").length;
  const has = (values) => values.some(known);
  const rows = champion.map((row) => [onDay(fleet.weeks[row[H.week]]), `v${row[H.version]}`, count(row[H.accounts]), fixed(row[H.mean]), fixed(row[H.estimated]),
    row[H.status] === "insufficient" ? "too few labels" : known(row[H.auc]) ? fixed(row[H.auc]) : "not yet", interval(row[H.low], row[H.high]), fixed(row[H.calibration]), fixed(row[H.lift], 2)]);
  return section("Over time", h("div", { class: "two" },
    h("div", { class: "card" }, h("h3", {}, "ROC AUC of accounts at risk"), h("p", { class: "quiet small" }, "The axis begins at 0.5, which is chance, or below."),
      legend(has(dots) && ["dot", "with matured labels and 95 % interval"], has(limit) && ["limit", "limit"], has(hollow) && ["hollow", "challenger"],
        has(estimated) && ["dashed", "estimated before labels of calibrated models: assumes no concept drift"]),
      (has(dots) || has(estimated)) && timeChart("ROC AUC by week, with interval and limit, from 0.5, which is chance", { base: 0.5, dots, limit, hollow, dashed: estimated, turns }),
      !has(dots) && h("p", { class: "quiet small" }, "No week has matured labels yet."),
      !known(champion.at(-1)[H.estimated]) && h("p", { class: "quiet small" }, "The newest week has no estimate: it is unknown whether the model’s scores are calibrated."),
      insufficient > 0 && h("p", { class: "quiet small" }, `${plural(insufficient, "week")} with too few labels to measure performance.`)),
    has(byWeek(champion, "mean")) && h("div", { class: "card" }, h("h3", {}, `Mean churn probability of ${populationOf(d.lineage || {})}`), legend(["line", "champion"], has(byWeek(challenger, "mean")) && ["dashed", "challenger"]),
      timeChart("Mean churn probability by week", { line: byWeek(champion, "mean"), dashed: byWeek(challenger, "mean"), turns }))),
    figures(["week", "model", "accounts", "mean score", "estimated AUC", "ROC AUC", "95 % interval", "calibration error", "lift at 10 %"], rows.reverse()));
}

function distributions(v, d) {
  if (!d.lineage) return null;
  const title = "Scores and inputs against the reference";
  if (!d.features.length) return section(title, h("p", { class: "quiet" }, "The model has no reference to compare with; log or train it again to create one."));
  const isStale = d.lineage.scored_week !== fleet.week;
  const [inputs, scores] = [d.features.slice(0, -1), d.features.slice(-1)];
  const weeks = (feature) => d.flags.filter(([, name]) => name === feature).length;
  const mark = (f) => (isStale ? null : v.confirmed.includes(f.feature) ? badge("warn", "▲", "drift confirmed") : v.new.includes(f.feature) ? badge("", "△", "drift unconfirmed") : null);
  return section(title,
    h("p", { class: "quiet" }, `Shares of ${populationOf(d.lineage)} in the batch of ${onDay(d.lineage.scored_week)}, and of accounts at risk in the reference of model v${d.lineage.model_version}.`),
    legend(["bar", "this batch"], ["was", "reference"]),
    h("div", { class: "many" }, [...scores, ...inputs].map((f) => h("div", { class: "card" }, h("h3", {}, f.feature, " ", mark(f)),
      h("p", { class: "quiet small" }, known(f.psi) ? `PSI ${fixed(f.psi)}; ${fixed(Math.max(f.excess_psi, 0))} above sampling error` : "not compared",
        weeks(f.feature) ? `; flagged in ${weeks(f.feature)} of ${plural(fleet.weeks.length, "week")}` : ""),
      distribution(f)))));
}

function realized(d, limit) {
  if (!d.reliability && !d.segments.length) return null;
  const r = d.reliability;
  return section(`Performance of the scores of ${onDay(d.evaluated_week)}`, h("div", { class: "two tops" },
    r && h("div", { class: "card" }, h("h3", {}, "Reliability"), h("p", { class: "quiet small" }, "Share of accounts at risk that churned, by mean score. Scores on the diagonal are calibrated."),
      legend(["line", "this batch"], ["dashed", "perfectly calibrated"]), reliability(r),
      figures(["accounts", "mean score", "churned"], r.n.map((n, i) => [count(n), fixed(r.mean_score[i]), fixed(r.churned_share[i])]))),
    d.importance && reasons(d)), d.segments.length ? segments(d, limit) : null);
}

function reasons(d) {
  const entries = Object.entries(d.importance).filter(([, size]) => size >= 0.0005).sort((a, b) => b[1] - a[1]).slice(0, 20);
  return h("div", { class: "card" }, h("h3", {}, "Reasons"), h("p", { class: "quiet small" }, `Mean absolute contribution to the scores of ${onDay(d.lineage.scored_week)}, in log-odds, of ${populationOf(d.lineage)}.`),
    bars(entries, `Reasons: ${entries.map(([name, size]) => `${name} ${fixed(size)}`).join("; ")}`));
}

function segments(d, limit) {
  const cell = (label, ...content) => h("td", { class: "n", "data-label": label, role: "cell" }, ...content);
  const few = { n: 0, levels: 0 };
  const rows = d.segments.map(([segment, level, n, churned, roc_auc, roc_auc_low, roc_auc_high, calibration_error, mean_score]) =>
    ({ segment, level, n, churned, roc_auc, roc_auc_low, roc_auc_high, calibration_error, mean_score })).filter((one) => known(one.roc_auc) || (few.n += one.n, few.levels += 1, false));
  const heads = [["Segment", ""], ["ROC AUC", "n"], ["", ""], ["Accounts", "n"], ["Churned", "n"], ["Mean score", "n"], ["Calibration error", "n"]];
  return h("div", {}, h("h3", { class: "later" }, "By segment"),
    rows.length ? h("div", { class: "frame" }, h("table", { class: "stacks", role: "table", "aria-label": "Performance by segment" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map(([text, kind]) => h("th", { scope: "col", role: "columnheader", class: kind }, text)))),
      h("tbody", { role: "rowgroup" }, rows.map((one) => {
        const isBelow = known(limit) && one.roc_auc_high < limit;
        return h("tr", { role: "row" },
          h("th", { scope: "row", role: "rowheader" }, h("span", { class: "quiet" }, `${one.segment} `), one.level, isBelow ? [" ", badge("bad", "▼", "below limit")] : null),
          cell("ROC AUC", h("div", {}, fixed(one.roc_auc), h("div", { class: "quiet" }, interval(one.roc_auc_low, one.roc_auc_high)))),
          h("td", { role: "cell", "data-label": "" }, whisker(one, limit)),
          cell("Accounts", count(one.n)), cell("Churned", percent(one.churned / one.n)), cell("Mean score", percent(one.mean_score)), cell("Calibration error", fixed(one.calibration_error)));
      })))) : null,
    few.levels ? h("p", { class: "quiet small" }, `${plural(few.levels, "further segment")} with ${plural(few.n, "account")} in total had too few labels to measure performance.`) : null);
}

function lineage(d) {
  const l = d.lineage;
  if (!l) return null;
  const base = /^https?:\/\//.test(fleet.mlflow_ui) ? fleet.mlflow_ui : null;
  const link = (rest, text) => (base ? h("a", { href: `${base}/#/${rest}?workflowType=machine_learning` }, text) : text);
  const code = (text) => (text ? h("code", {}, text) : "–");
  const model = encodeURIComponent(l.registered_model);
  const entries = [
    ["Batch", `${l.batch_id}, published ${atTime(l.published_at)}`],
    ["As of the end of", onDay(l.as_of)],
    ["Model", link(`models/${model}/versions/${l.model_version}`, `${l.registered_model} v${l.model_version}`)],
    ["MLflow run", link(`runs/${encodeURIComponent(l.mlflow_run_id)}`, l.mlflow_run_id)],
    ["Model’s sha256", code(l.model_sha256)],
    ["Data", code(l.source_uri)],
    ["Data’s version", `${l.source_version}, modified ${atTime(l.source_modified_at)}`],
    ["Data’s sha256", code(l.source_sha256)],
    ["Scored from", `${l.scored_from}${l.history_status ? `; in the activity history: ${l.history_status}` : ""}`],
    l.source_variant !== d.key && ["Data of variant", `${l.source_variant}, because this variant has no data`],
    l.fallback_reason && ["Reason for the local copy", l.fallback_reason],
    ["Rows", `${count(l.n_rows_read)} read, ${count(l.n_rows_quarantined)} quarantined, ${count(l.n_accounts_withheld)} accounts withheld, ${count(l.n_rows_scored)} scored, ${known(l.n_at_risk) ? count(l.n_at_risk) : "unknown how many"} at risk`],
    ["Months", known(l.newest_month) ? `${l.first_month.slice(0, 7)} to ${l.newest_month.slice(0, 7)}` : "none: the rows were already encoded"],
    ["Dagster run", l.dagster_run_id ? code(l.dagster_run_id) : "none: scored without Dagster"],
    ["Code version", code(l.code_version)],
  ].filter(Boolean);
  return section("Lineage", h("div", { class: "card" }, h("dl", { class: "lineage" }, entries.map(([name, what]) => [h("dt", {}, name), h("dd", {}, what)]))));
}

function variantPage(v, d) {
  const place = shown.indexOf(v);
  const neighbour = (step, text) => (shown[place + step] && place >= 0 ? h("a", { href: `#/variant/${encodeURIComponent(shown[place + step].key)}` }, text) : null);
  const fact = (name, value, more) => [h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("div", { class: "quiet" }, more) : null))];
  const errors = [v.error, v.challenger_error && `Challenger: ${v.challenger_error}`].filter(Boolean);
  const concerned = fleet.incidents.filter((i) => !i.resolved_at && Object.hasOwn(i.members, v.key));
  const evaluated = realized(d, v.auc && v.auc.limit);
  return h("div", {},
    h("nav", { class: "pager", "aria-label": "Variants" }, h("a", { href: "#/" }, "← All variants"), neighbour(-1, "Previous"), neighbour(1, "Next")),
    h("h1", {}, v.key), statusBadges(v),
    h("dl", { class: "facts" },
      fact("At risk", known(v.at_risk) ? count(v.at_risk) : "unknown", `of ${count(v.accounts)} accounts`),
      fact("Mean score", fixed(v.mean), known(v.at_risk) ? "of accounts at risk" : "of all accounts"),
      fact("ROC AUC", v.auc ? fixed(v.auc.value) : "not yet", v.auc ? `${interval(v.auc.low, v.auc.high)}, week of ${onDay(v.auc.week)}` : "no matured labels"),
      fact("Champion", known(v.champion) ? `v${v.champion}` : "–", known(v.champion) ? `since ${onDay(v.since)}` : null),
      fact("Challenger", known(v.challenger) ? `v${v.challenger}` : "none", v.ab_share ? `serves ${v.ab_share / 100} % of accounts` : null)),
    errors.length ? section("Failures", h("div", { class: "card" }, errors.map((text) => h("p", { class: "error" }, text)))) : null,
    concerned.length ? section("Open incidents", h("div", { class: "card" }, h("ul", { class: "list" }, concerned.map((i) =>
      h("li", {}, h("h3", {}, i.title), h("p", {}, i.members[v.key]), h("p", { class: "quiet small" }, `open since ${atTime(i.opened_at)}; `, ...runbook(i))))))) : null,
    overTime(d), evaluated, !evaluated && d.importance ? section("Explanation", reasons(d)) : null, distributions(v, d), lineage(d));
}

// ---- navigation

let fleetScroll = 0;
let here = null;

async function show() {
  const wanted = /^#\/variant\/(.+)$/.exec(location.hash);
  const main = document.getElementById("main");
  const isFirst = here === null;
  if (here === "") fleetScroll = scrollY;
  let key = null;
  try { key = wanted && decodeURIComponent(wanted[1]); } catch { key = wanted[1]; }
  here = key || "";
  if (key === null) {
    fleetView ??= fleet.week ? fleetPage() : emptyPage();
    main.replaceChildren(fleetView);
    document.title = fleet.week ? `Churn fleet, week of ${onDay(fleet.week)}` : "Churn fleet";
    scrollTo({ top: fleetScroll, behavior: "instant" });
  } else {
    const v = variants.get(key);
    const page = v ? variantPage(v, await detailsOf(key))
      : h("div", {}, h("h1", {}, "No such variant"), h("p", {}, `The report has no variant ${key}. `, h("a", { href: "#/" }, "All variants")));
    if (here !== key) return; // the user opened another page
    main.replaceChildren(page);
    document.title = `${key} · churn`;
    scrollTo({ top: 0, behavior: "instant" });
  }
  if (!isFirst) main.focus({ preventScroll: true });
}

async function start() {
  if (!("DecompressionStream" in window)) {
    document.getElementById("waiting").textContent = "This browser is too old for the report; a browser of 2023 or newer is needed.";
    return;
  }
  fleet = await unpack("fleet");
  variants = new Map(fleet.variants.map((v) => [v.key, v]));
  shown = fleet.variants;
  document.getElementById("top").append(h("a", { href: "#/" }, "Churn fleet"), h("span", {}, `created ${atTime(fleet.made_at)}`));
  document.getElementById("foot").append("Created from the predictions database by ", h("code", {}, "churn report"), "; loads nothing from the network.");
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("main").focus(); });
  addEventListener("hashchange", show);
  await show();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  document.getElementById("main").replaceChildren(h("h1", {}, "The report cannot be shown"), h("p", { class: "error" }, String(error)));
  throw error;
});
