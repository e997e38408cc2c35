/**
 * A game in a browser that is an environment at the address games/catch.
 *
 *     gymwire broker
 *     gymwire web --origin http://127.0.0.1:8000
 *     python -m http.server 8000                        # in the folder of gymwire's clone
 *     # open http://127.0.0.1:8000/examples/web_game/
 *     gymwire train games/catch --steps 5000
 *
 * Another gateway: add ?gateway=ws://HOST:PORT/ws to the address of the page, and with tokens
 * #TOKEN at its end, which the browser does not send to the server of the page.
 */

import { EnvAgent, spaces } from "../../clients/javascript/src/index.js";

const SIZE = 7; // columns, and rows above the paddle
const CELL = 30;
const FALL_MS = 300;

/** The rules. A ball falls one row per move; the paddle below it moves by one column. */
class Catch {
  constructor() {
    this.caught = this.dropped = 0;
    this.start(null);
  }

  /** @param {number | null} seed */
  start(seed) {
    if (seed !== null) this.random = Number(BigInt(seed) % 2147483647n);
    this.random ??= Math.floor(Math.random() * 2147483647);
    this.random = (this.random * 48271 + 11) % 2147483647;
    this.ball = this.random % SIZE;
    this.row = 0;
    this.paddle = (SIZE - 1) / 2;
  }

  /** Where the ball is relative to the paddle, and its row. */
  get observation() {
    return (this.ball - this.paddle + SIZE - 1) * SIZE + this.row;
  }

  /** @param {number} action 0: left, 1: stay, 2: right */
  move(action) {
    if (![0, 1, 2].includes(action)) throw new RangeError(`${action} is none of 0, 1, 2`);
    this.paddle = Math.min(SIZE - 1, Math.max(0, this.paddle + action - 1));
    this.row += 1;
    const terminated = this.row === SIZE - 1;
    const reward = terminated ? (this.ball === this.paddle ? 1 : -1) : 0;
    if (reward > 0) this.caught += 1;
    if (reward < 0) this.dropped += 1;
    return { observation: this.observation, reward, terminated };
  }
}

const game = new Catch();
const canvas = document.querySelector("canvas");
const score = document.querySelector("#score");
const status = document.querySelector("#status");

function draw() {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#d33";
  pen.fillRect(game.ball * CELL + 5, game.row * CELL + 5, CELL - 10, CELL - 10);
  pen.fillStyle = "#37c";
  pen.fillRect(game.paddle * CELL, SIZE * CELL - 8, CELL, 8);
  score.textContent = `caught ${game.caught}, dropped ${game.dropped}`;
  requestAnimationFrame(draw);
}
draw();

// A learner plays as soon as it opens a session; until then, and after it, a person does.
let learners = 0;
const environment = () => {
  learners += 1;
  status.textContent = "a learner plays";
  return {
    reset(seed) {
      game.start(seed);
      return game.observation;
    },
    step: (action) => game.move(action),
    close() {
      learners -= 1;
      status.textContent = "waiting for a learner";
    },
  };
};

const parameters = new URLSearchParams(location.search);
const agent = new EnvAgent(parameters.get("gateway") ?? "ws://127.0.0.1:8080/ws", {
  address: "games/catch",
  id: "Catch-v0",
  observationSpace: spaces.discrete((2 * SIZE - 1) * SIZE),
  actionSpace: spaces.discrete(3),
  make: environment,
}, { token: location.hash.slice(1) || undefined, host: location.host });
agent.ready.then(
  () => (status.textContent = "waiting for a learner"),
  (error) => (status.textContent = error.message),
);

let pressed = 1;
addEventListener("keydown", ({ key }) => {
  if (key === "ArrowLeft") pressed = 0;
  if (key === "ArrowRight") pressed = 2;
});
setInterval(() => {
  if (learners) return;
  if (game.move(pressed).terminated) game.start(null);
  pressed = 1;
}, FALL_MS);
