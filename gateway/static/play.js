// Playing an environment by hand: a session of its own, opened by the dialog and closed with it.

const at = (id) => document.getElementById(id);
const MAX_BUTTONS = 32;
const MAX_SLIDERS = 8;

export class Play {
  constructor() {
    at("play").addEventListener("close", () => this.socket?.close());
    at("play-reset").addEventListener("click", () => this.reset());
    at("play").addEventListener("keydown", (event) => this.key(event));
  }

  open(address) {
    at("play-title").textContent = `Play ${address}`;
    for (const id of ["play-frame", "play-text", "play-problem"]) at(id).hidden = true;
    at("play-state").textContent = "Opening a session …";
    at("play-observation").textContent = "";
    at("play-actions").replaceChildren();
    this.choices = 0;
    this.over = true;
    this.waiting = true;
    const url = new URL(`play?address=${encodeURIComponent(address)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onmessage = (event) => socket === this.socket && this.show(JSON.parse(event.data));
    socket.onclose = () => {
      if (socket === this.socket && at("play").open) this.problem("The session has ended. Close this and play again.");
    };
    at("play").showModal();
  }

  send(request) {
    if (this.waiting || this.socket.readyState !== WebSocket.OPEN) return;
    this.waiting = true;
    this.socket.send(JSON.stringify(request));
  }

  reset() {
    const seed = at("play-seed").valueAsNumber;
    this.total = 0;
    this.send({ reset: Number.isNaN(seed) ? {} : { seed } });
  }

  act(action) {
    if (!this.over) this.send({ act: action });
  }

  key(event) {
    const digit = "0123456789".indexOf(event.key);
    if (event.target.tagName === "INPUT" || digit < 0 || digit >= this.choices) return;
    at("play-actions").children[digit].click();
  }

  problem(text) {
    at("play-problem").textContent = text;
    at("play-problem").hidden = false;
  }

  show(reply) {
    this.waiting = false;
    at("play-problem").hidden = true;
    if (reply.error) return this.problem(reply.error);
    if (reply.action) {
      this.controls(reply.action, reply.space);
      return this.reset();
    }
    this.over = Boolean(reply.terminated || reply.truncated);
    this.total += Number(reply.reward ?? 0);
    at("play-frame").hidden = !reply.frame;
    if (reply.frame) at("play-frame").src = reply.frame;
    at("play-text").hidden = reply.text == null;
    at("play-text").textContent = reply.text ?? "";
    at("play-observation").textContent = JSON.stringify(reply.observation ?? "the picture", null, 1);
    const how = reply.terminated ? "The episode has terminated." : reply.truncated ? "The episode was truncated." : "";
    at("play-state").textContent =
      reply.reward == null ? "A new episode." : `Reward ${reply.reward}, return ${this.total}. ${how}`;
  }

  controls(schema, space) {
    const place = at("play-actions");
    if (schema.type === "integer" && schema.maximum - schema.minimum < MAX_BUTTONS) {
      this.choices = schema.maximum - schema.minimum + 1;
      for (let action = schema.minimum; action <= schema.maximum; action++) {
        place.append(this.button(`${action}`, () => action));
      }
      return;
    }
    const items = numbers(schema);
    if (!items) {
      place.textContent = `${space} cannot be played here.`;
      return;
    }
    const sliders = items.map((item, i) => slider(item, i));
    place.append(...sliders.map(({ label }) => label));
    place.append(this.button("Step", () => (schema.type === "array" ? sliders.map(({ input }) => input.valueAsNumber) : sliders[0].input.valueAsNumber)));
  }

  button(text, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", () => this.act(action()));
    return made;
  }
}

function numbers(schema) {
  // The schemas of the elements of a short array of bounded numbers; of a single one, that one.
  if (schema.type !== "array") return schema.type === "number" && bounded(schema) ? [schema] : null;
  const items = schema.prefixItems ?? Array(Math.min(schema.maxItems ?? 0, MAX_SLIDERS + 1)).fill(schema.items);
  return items.length > 0 && items.length <= MAX_SLIDERS && items.every(bounded) ? items : null;
}

const bounded = (item) =>
  ["number", "integer"].includes(item.type) && item.minimum != null && item.maximum != null;

function slider(item, index) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const shown = document.createElement("output");
  input.type = "range";
  input.min = item.minimum;
  input.max = item.maximum;
  input.step = item.type === "integer" ? 1 : (item.maximum - item.minimum) / 200;
  input.value = item.type === "integer" ? item.minimum : (item.minimum + item.maximum) / 2;
  const show = () => (shown.textContent = Number(input.value).toPrecision(3));
  input.addEventListener("input", show);
  show();
  label.append(`action ${index}`, input, shown);
  return { label, input };
}
