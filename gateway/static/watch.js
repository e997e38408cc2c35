// The live picture of a session: one WebSocket, which asks for the next frame once it has shown one.

const at = (id) => document.getElementById(id);
const PAUSE_MS = 50; // between a frame and the request for the next one
const RETRY_MS = 2000; // after a refusal, or a lost connection

export class Watch {
  constructor() {
    document.addEventListener("visibilitychange", () => this.ask());
    at("watch-env").addEventListener("change", () => this.choose(Number(at("watch-env").value)));
  }

  show(session) {
    // Watch this session; null: none.
    if (session === this.session) return;
    this.session = session;
    this.socket?.close();
    clearTimeout(this.timer);
    for (const id of ["watch-frame", "watch-text", "watch-choice"]) at(id).hidden = true;
    this.say("Waiting for the first frame …");
    this.after = 0;
    this.env = 0;
    this.envs = 0;
    if (session !== null) this.open();
  }

  open() {
    const url = new URL(`watch?session=${encodeURIComponent(this.session)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.socket = socket;
    this.asked = false;
    socket.onopen = () => this.ask();
    socket.onmessage = (event) => socket === this.socket && this.take(JSON.parse(event.data));
    socket.onclose = () => {
      if (socket !== this.socket || this.session === null) return;
      this.say("The gateway does not answer. This page keeps trying.");
      this.timer = setTimeout(() => this.open(), RETRY_MS);
    };
  }

  choose(env) {
    // Show another environment of the vector.
    this.env = env;
    this.after = 0;
    this.socket?.close(); // an answer on its way is of the previous one
    clearTimeout(this.timer);
    this.say("Waiting for the first frame …");
    this.open();
  }

  offer(envs) {
    // Let the visitor choose one of so many environments.
    if (envs === this.envs) return;
    this.envs = envs;
    at("watch-env").replaceChildren(...Array.from({ length: envs }, (_, i) => new Option(i, i)));
    at("watch-env").value = this.env;
    at("watch-choice").hidden = envs < 2;
  }

  ask() {
    // A page that nobody sees costs the session nothing.
    if (document.hidden || this.asked || this.socket?.readyState !== WebSocket.OPEN) return;
    clearTimeout(this.timer);
    this.asked = true;
    this.socket.send(JSON.stringify({ after: this.after, env: this.env }));
  }

  take(answer) {
    this.asked = false;
    this.timer = setTimeout(() => this.ask(), answer.error ? RETRY_MS : PAUSE_MS);
    if (answer.envs) this.offer(answer.envs);
    if (answer.error) {
      for (const id of ["watch-frame", "watch-text"]) at(id).hidden = true;
      this.after = 0;
      this.say(answer.error);
    } else if (answer.request) {
      this.after = answer.request;
      at("watch-frame").hidden = !answer.frame;
      if (answer.frame) at("watch-frame").src = answer.frame;
      at("watch-text").hidden = answer.text == null;
      at("watch-text").textContent = answer.text ?? "";
      this.say("");
    } else if (answer.waiting) {
      this.say("The environment is busy. The next frame follows after this step.");
    } else if (!this.after) {
      this.say("There is nothing to see before the first episode.");
    } else {
      this.say("");
    }
  }

  say(text) {
    at("watch-state").textContent = text;
  }
}
