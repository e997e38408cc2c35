// The live page: it draws what /events sends each second, and keeps its history while it is open.

import { Play } from "./play.js";
import { Watch } from "./watch.js";

const HISTORY = 600; // seconds that the charts show
const STUCK_S = 10; // a step that takes longer is marked
const at = (id) => document.getElementById(id);
const sum = (items, value) => items.reduce((total, item) => total + (value(item) ?? 0), 0);
const most = (items, value) => items.reduce((high, item) => Math.max(high, value(item) ?? 0), 0);

const number = (value, digits = 0) =>
  value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
const milliseconds = (seconds) => (seconds == null ? "–" : number(seconds * 1000, seconds < 0.1 ? 2 : 0));
function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text; // never as HTML: peers choose the names
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function table(place, columns, rows, classOf = () => "") {
  const head = element("tr");
  for (const [title, , kind = ""] of columns) head.append(element("th", title, { class: kind }));
  const body = rows.map((row) => {
    const line = element("tr", "", { class: classOf(row) });
    for (const [, value, kind = ""] of columns) {
      const cell = element("td", "", { class: kind });
      cell.append(value(row));
      line.append(cell);
    }
    return line;
  });
  place.replaceChildren(head, ...body);
}

class Chart {
  // Lines over time: `names` of the lines, and for each observation one value per line.
  constructor(place, names) {
    this.place = place;
    this.data = [[], ...names.map(() => [])];
    const colors = ["--accent", "--second"];
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
    const axis = { stroke: () => color("--quiet"), grid: { stroke: () => color("--line"), width: 1 } };
    this.plot = new uPlot(
      {
        width: 400,
        height: 180,
        legend: { live: false, show: names.length > 1 },
        series: [
          {},
          ...names.map((label, i) => ({ label, stroke: () => color(colors[i]), width: 2, points: { show: false } })),
        ],
        axes: [axis, { ...axis, size: 60 }],
        scales: { y: { range: (_, low, high) => [0, Math.max(high, low) * 1.1 || 1] } },
      },
      this.data,
      place,
    );
    new ResizeObserver(() => this.fit()).observe(place);
  }

  fit() {
    if (this.place.clientWidth) this.plot.setSize({ width: this.place.clientWidth, height: 180 });
  }

  add(now, values) {
    // uPlot shows years around a single point.
    if (!this.data[0].length) this.data.forEach((line, i) => line.push(i ? null : now - 60));
    this.data[0].push(now);
    values.forEach((value, i) => this.data[i + 1].push(value));
    if (this.data[0].length > HISTORY) this.data.forEach((line) => line.shift());
    this.plot.setData(this.data);
  }

  clear() {
    this.data.forEach((line) => line.splice(0));
    this.plot.setData(this.data);
  }
}

const play = new Play();
const watch = new Watch();
let charts; // made at the first observation, since the script of the charts may load later
let previous; // the observation before the latest
let shownSession = "";

function makeCharts() {
  charts = {
    rate: new Chart(at("rate-chart"), ["steps/s"]),
    time: new Chart(at("time-chart"), ["p50", "p99"]),
    sessionRate: new Chart(at("session-rate-chart"), ["steps/s"]),
    sessionTime: new Chart(at("session-time-chart"), ["p50", "p99"]),
  };
}

function show(found) {
  at("problem").hidden = !found.error;
  if (found.error) {
    at("problem").textContent = found.error;
    return;
  }
  if (!charts) makeCharts();
  const { broker, offers, sessions } = found;
  const now = Date.now() / 1000;
  at("broker").textContent = `${broker.software}, up for ${duration(broker.uptime_s)}`;
  const rate = sum(sessions, (one) => one.steps_per_s);
  const past = previous && now > previous.now ? previous : null;
  const perSecond = (name) => (past ? (broker[name] - past.broker[name]) / (now - past.now) : null);
  totals([
    [broker.sessions === 1 ? "session" : "sessions", number(broker.sessions)],
    ["steps/s", number(rate)],
    ["slots in use", `${number(sum(offers, (one) => one.used))} of ${number(sum(offers, (one) => one.slots))}`],
    ["relayed frames/s", number(perSecond("frames"))],
    ["relayed kB/s", number(past && perSecond("bytes") / 1000)],
    ["peers", number(broker.peers)],
  ]);
  charts.rate.add(now, [rate]);
  charts.time.add(now, [
    most(sessions, (one) => one.p50_s) * 1000,
    most(sessions, (one) => one.p99_s) * 1000,
  ]);
  showOffers(offers);
  showSessions(sessions);
  showSession(sessions, now);
  if (past && past.broker.epoch === broker.epoch) showFaults(past.broker, broker);
  previous = { broker, now };
}

function totals(values) {
  at("totals").replaceChildren(
    ...values.map(([name, value]) => {
      const tile = element("div");
      tile.append(element("b", value), name);
      return tile;
    }),
  );
}

function showOffers(offers) {
  const addresses = Map.groupBy(offers, (one) => one.address);
  const state = (all) => [...new Set(all.map((one) => one.state))].join(", ");
  table(
    at("offers"),
    [
      ["Address", ([address]) => address],
      ["Environment", ([, all]) => all[0].env_id, "wide"],
      ["In use", ([, all]) => number(sum(all, (one) => one.used)), "number"],
      ["Slots", ([, all]) => number(sum(all, (one) => one.slots)), "number wide"],
      ["Stuck", ([, all]) => number(sum(all, (one) => one.stuck)), "number wide"],
      ["Processes", ([, all]) => number(all.length), "number wide"],
      ["Hosts", ([, all]) => [...new Set(all.map((one) => one.host))].join(", "), "wide"],
      ["State", ([, all]) => state(all)],
      ["", ([address]) => playButton(address)],
    ],
    [...addresses],
    ([, all]) => (state(all) === "ready" ? "" : "slow"),
  );
}

function playButton(address) {
  const button = element("button", "Play", { type: "button", "data-address": address });
  button.addEventListener("click", () => play.open(address));
  return button;
}

const learnerOf = (one) =>
  one.learner == null ? "away" : [one.learner, `${one.learner_host ?? "?"}:${one.learner_pid ?? "?"}`].filter(Boolean).join(" · ");

function showSessions(sessions) {
  table(
    at("sessions"),
    [
      ["Session", (one) => element("a", one.id, { href: `#${one.id}` })],
      ["Address", (one) => one.address],
      ["Learner", learnerOf, "wide"],
      ["Path", (one) => (one.direct == null ? "–" : one.direct ? "direct" : "relayed"), "wide"],
      ["Age", (one) => duration(one.age_s), "number wide"],
      ["Steps", (one) => number(one.steps), "number wide"],
      ["Steps/s", (one) => number(one.steps_per_s, 1), "number"],
      ["p50, ms", (one) => milliseconds(one.p50_s), "number wide"],
      ["p99, ms", (one) => milliseconds(one.p99_s), "number wide"],
      ["In step", (one) => (one.in_step_s ? duration(one.in_step_s) : ""), "number"],
    ],
    sessions,
    (one) => (one.in_step_s > STUCK_S || one.state === "waiting" ? "slow" : ""),
  );
}

function showSession(sessions, now) {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const one = sessions.find(({ id }) => id === wanted);
  at("overview").hidden = Boolean(wanted);
  at("session").hidden = !wanted;
  watch.show(one?.id ?? null);
  if (!wanted) return;
  if (shownSession !== wanted) {
    shownSession = wanted;
    charts.sessionRate.clear();
    charts.sessionTime.clear();
  }
  at("session-title").textContent = one ? `Session ${one.id} at ${one.address}` : `Session ${wanted} has ended`;
  if (!one) return;
  const facts = {
    Learner: learnerOf(one),
    "Env agent": `${one.host}:${one.pid ?? "?"}`,
    Path: one.direct ? "direct: its frames bypass the broker" : "relayed by the broker",
    State: one.state,
    Age: duration(one.age_s),
    Steps: number(one.steps),
    "Current step": one.in_step_s ? `running for ${duration(one.in_step_s)}` : "none",
  };
  at("session-facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  showShare(one);
  charts.sessionRate.add(now, [one.steps_per_s ?? 0]);
  charts.sessionTime.add(now, [(one.p50_s ?? 0) * 1000, (one.p99_s ?? 0) * 1000]);
}

function showShare(one) {
  // The env agent is busy p50 of each step; the rest of the time between two steps is elsewhere.
  const between = one.steps_per_s ? 1 / one.steps_per_s : null;
  const share = between && one.p50_s != null ? Math.min(1, one.p50_s / between) : null;
  const bar = element("div");
  bar.style.width = `${(share ?? 0) * 100}%`;
  const text =
    share == null
      ? "No steps are being taken."
      : `A step every ${milliseconds(between)} ms: ${milliseconds(one.p50_s)} ms in the env agent ` +
        `(${share < 0.01 ? "under 1" : number(share * 100)} %), the rest in the learner and on the network.`;
  at("share").replaceChildren(bar);
  const next = at("share").nextElementSibling;
  if (next.tagName === "P") next.remove();
  at("share").after(element("p", text));
}

function showFaults(before, after) {
  const kinds = { sessions_lost: "session lost", refusals: "refused", busy: "told to wait", dropped: "frame dropped" };
  const lines = [];
  for (const [name, what] of Object.entries(kinds)) {
    for (const [reason, count] of Object.entries(after[name])) {
      const more = count - (before[name][reason] ?? 0);
      if (more > 0) lines.push(`${new Date().toLocaleTimeString()} ${what}: ${reason}${more > 1 ? ` (${more} ×)` : ""}`);
    }
  }
  if (!lines.length) return;
  const list = at("faults");
  list.querySelector(".none")?.remove();
  list.prepend(...lines.map((line) => element("li", line, { class: "bad" })));
  while (list.children.length > 100) list.lastChild.remove();
}

const events = new EventSource("events");
events.onmessage = (event) => show(JSON.parse(event.data));
events.onerror = () => show({ error: "The gateway does not answer. This page keeps trying." });
addEventListener("hashchange", () => scrollTo(0, 0));
