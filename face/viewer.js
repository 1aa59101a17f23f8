// ---------------------------------------------------------------- one clock for sound and face

const audio = new Audio();
const FRONT = {yaw: -.2, pitch: .04, zoom: 1};                       // radians; the head looks a little past the viewer
const view = {...FRONT};
let answer, index = -1, time = 0, playing = false;
let onSound = false, from = 0, since = 0;                            // the clock of `time` while playing, see now()
let head, draw, posedAt = -1, scheduled = false;
let untouched = true;                                                // neither played nor sought: the face is at rest
const REST = .2;                                                     // seconds from the last frame's end to rest
const current = new Float32Array(data.names.length);

/** Seconds into the answer. While there is sound, its own position is the clock, so the face cannot drift from it; some
 *  browsers report it in steps, which performance.now() fills, by one frame at most. Otherwise a timer is the clock. */
function now() {
  if (!playing) return time;
  const tick = performance.now();
  if (!onSound) return Math.min(from + (tick - since) / 1000, answer.seconds);
  if (audio.currentTime !== from) [from, since] = [audio.currentTime, tick];
  return clamp(from + Math.min((tick - since) / 1000, 1 / 30), time, Math.max(time, answer.heard));
}

/** Start sound or timer at `time`. */
function run() {
  onSound = Boolean(answer.sound) && time < answer.heard - .001;
  [from, since] = [time, performance.now()];
  if (!onSound) return audio.pause();
  if (Math.abs(audio.currentTime - time) > .001) audio.currentTime = time;
  audio.play().catch(error => { if (error.name !== "AbortError") pause(); });      // aborted: by our own pause()
}

function play() {
  untouched = false;
  if (time >= answer.seconds - .001) seek(0);
  playing = true;
  run();
  invalidate();
}

function pause() {
  time = onSound && playing ? audio.currentTime : now();               // where the sound will go on
  playing = false;
  audio.pause();
  invalidate();
}

function seek(to) {
  [untouched, posedAt] = [false, -1];
  time = clamp(to, 0, answer.seconds);
  if (playing) run();
  else if (answer.sound) audio.currentTime = Math.min(time, answer.heard);
  invalidate();
}

audio.onended = () => { if (playing && onSound) { time = answer.heard; run(); } };  // the face may last longer
audio.onpause = () => { if (playing && onSound && audio.paused && !audio.ended) pause(); };       // a headset's button
audio.onplay = () => { if (!playing && !audio.paused) play(); };
audio.onerror = () => {
  if (!answer.sound) return;
  [answer.sound, answer.unplayable] = [null, true];
  sayOfSound();
  if (playing) run();
  invalidate();
};

/** The 52 weights at a time in seconds: linear between two frames; after the last one they fade to rest. */
function weightsAt(seconds, into) {
  const place = clamp(seconds * answer.fps, 0, answer.frames - 1), frame = Math.floor(place), part = place - frame;
  const next = Math.min(frame + 1, answer.frames - 1), columns = into.length;
  const gone = clamp((seconds - answer.frames / answer.fps) / REST, 0, 1), left = 1 - gone * gone * (3 - 2 * gone);
  for (let k = 0; k < columns; k++) {
    const a = answer.track[frame * columns + k], b = answer.track[next * columns + k];
    into[k] = (a + (b - a) * part) / 65535 * left;
  }
  return into;
}

// ---------------------------------------------------------------- what is rendered, and only after a change

function invalidate() {
  if (!scheduled) requestAnimationFrame(show);
  scheduled = true;
}

function show() {
  scheduled = false;
  time = now();
  if (playing && !onSound && time >= answer.seconds) pause();
  if (untouched) current.fill(0);
  else if (posedAt !== time) weightsAt(time, current);
  drawFace();
  showProgress();
  if (playing) invalidate();
}

function drawFace() {
  if (!draw) return;
  const canvas = $("face"), scale = window.devicePixelRatio || 1;
  const [columns, rows] = [canvas.clientWidth, canvas.clientHeight].map(size => Math.max(1, Math.round(size * scale)));
  if (canvas.width !== columns) canvas.width = columns;
  if (canvas.height !== rows) canvas.height = rows;
  if (posedAt !== time) pose(head, current);
  posedAt = time;
  draw(columns, rows);
}

const said = {};                                                       // what it is about -> the message
const say = (about, text) => { said[about] = text; $("message").textContent = Object.values(said).join(" "); };
const sayOfSound = () => {
  say("sound", answer.unplayable ? "The sound cannot be played here." : "");
  $("mute").hidden = !answer.sound;
};
const stamp = seconds => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
const ICONS = {
  play: "M8 5.5v13l10.5-6.5z", pause: "M7.5 5.5h3v13h-3zM13.5 5.5h3v13h-3z",
  again: "M4.5 12a7.5 7.5 0 1 0 2.4-5.5M4.5 4v4h4",
  heard: "M4 9.5v5h3.5l4.5 4v-13l-4.5 4zM15.5 9a4 4 0 0 1 0 6M18 6.5a8 8 0 0 1 0 11",
  muted: "M4 9.5v5h3.5l4.5 4v-13l-4.5 4zM16 9.5l5 5M21 9.5l-5 5",
  reset: "M12 5.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M12 2.5v5M12 16.5v5M2.5 12h5M16.5 12h5",
  dark: "M19.5 14.5a8 8 0 0 1-10-10 8 8 0 1 0 10 10z",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4" +
    "M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
};

/** Set a button's icon and its label for screen readers; the same icon again changes nothing. */
function face(button, icon, label, key) {
  if (button.dataset.icon === icon) return;
  button.dataset.icon = icon;
  button.querySelector("path").setAttribute("d", ICONS[icon]);
  button.setAttribute("aria-label", label);
  button.title = key ? `${label} (${key})` : label;
}

function showProgress() {
  const ended = time >= answer.seconds - .001;
  const [icon, label] = playing ? ["pause", "Pause"] : ended ? ["again", "Play again"] : ["play", "Play"];
  face($("play"), icon, label, "Space");
  $("clock").firstChild.textContent = stamp(time);
  $("seek").value = time;
  // Set only while paused: a screen reader would read a focused slider aloud over the answer.
  if (!playing) $("seek").setAttribute("aria-valuetext", `${time.toFixed(2)} of ${answer.seconds.toFixed(2)} seconds`);
  $("played").style.clipPath = `inset(0 ${100 - 100 * time / answer.seconds}% 0 0)`;
  answer.lanes.forEach((column, i) => { $("labels").children[i].lastChild.textContent = current[column].toFixed(2); });
  const spoken = answer.sentences.filter(([start]) => start <= time).length - 1;
  if (spoken === answer.spoken) return;
  answer.spoken = spoken;
  const panel = $("words");
  [...panel.children].forEach((span, i) => span.setAttribute("aria-current", i === spoken));
  const span = panel.children[spoken];
  if (!span) return;
  const below = span.offsetTop - panel.scrollTop;                                        // the panel's upper edge
  if (below < 0 || below + span.offsetHeight > panel.clientHeight) panel.scrollTop = span.offsetTop - 24;
}

/** Waveform and curves, twice: the rest in grey; the played part in the accent colour, clipped at the cursor. */
function drawLanes() {
  const style = getComputedStyle(document.documentElement), size = name => parseFloat(style.getPropertyValue(name));
  const wave = size("--wave"), lane = size("--lane"), caption = size("--caption"), scale = window.devicePixelRatio || 1;
  for (const [id, color] of [["ahead", "--faint"], ["played", "--accent"]]) {
    const canvas = $(id), width = canvas.clientWidth, height = canvas.clientHeight, ink = canvas.getContext("2d");
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    ink.scale(scale, scale);
    ink.strokeStyle = ink.fillStyle = style.getPropertyValue(color);
    drawWave(ink, width, wave - 12);
    const top = wave + caption + 5, tall = lane - caption - 8;
    answer.lanes.forEach((column, i) => drawCurve(ink, column, width, top + lane * i, tall));
  }
}

function drawWave(ink, width, height) {
  const bars = Math.floor(width / 3), perBar = answer.seconds * 100 / bars;
  for (let bar = 0; bar < bars; bar++) {
    let level = 0;
    for (let i = Math.floor(bar * perBar); i < (bar + 1) * perBar; i++) level = Math.max(level, answer.levels[i] || 0);
    const tall = Math.max(2, height * level / 255);
    ink.fillRect(3 * bar, (height - tall) / 2, 2, tall);
  }
}

function drawCurve(ink, column, width, top, height) {
  const columns = current.length, x = frame => frame / answer.fps / answer.seconds * width;
  const weight = frame => answer.track[frame * columns + column];
  const y = frame => top + height - height * weight(frame) / 65535;
  const each = Math.max(1, Math.floor(answer.frames / width / 4));     // of so many frames only the widest: a browser
  ink.beginPath();
  ink.moveTo(0, y(0));
  for (let first = 1; first < answer.frames; first += each) {          // takes minutes for a line of 100,000 points
    let widest = first;
    for (let i = first; i < Math.min(first + each, answer.frames); i++) if (weight(i) > weight(widest)) widest = i;
    ink.lineTo(x(widest), y(widest));
  }
  ink.lineTo(x(answer.frames), y(answer.frames - 1));
  ink.lineTo(x(answer.frames + REST * answer.fps), top + height);
  ink.lineTo(width, top + height);
  ink.lineWidth = 1.5;
  ink.stroke();
  ink.lineTo(0, top + height);
  ink.globalAlpha = .16;
  ink.fill();
  ink.globalAlpha = 1;
}

// ---------------------------------------------------------------- answers and controls

function select(chosen) {
  if (playing) pause();
  index = chosen;
  answer = data.answers[index];
  answer.spoken = -2;                                                // no index, nor the -1 before the first sentence
  time = 0;
  [untouched, posedAt] = [true, -1];
  URL.revokeObjectURL(audio.src);
  if (answer.sound) audio.src = URL.createObjectURL(new Blob([bytes(answer.sound)], {type: "audio/wav"}));
  else audio.removeAttribute("src");
  sayOfSound();
  $("seek").max = answer.seconds;
  $("clock").lastChild.textContent = `/ ${stamp(answer.seconds)}`;
  $("words").replaceChildren(...answer.sentences.flatMap(([, piece]) => {
    const said = piece.trimEnd();
    return [write("span", said), piece.slice(said.length)];
  }));
  $("words").hidden = !answer.sentences.length;
  document.querySelector("main").classList.toggle("wordless", !answer.sentences.length);
  $("labels").replaceChildren(...answer.lanes.map(column => {
    const row = document.createElement("li");
    row.append(write("b", data.names[column]), write("span", ""));
    return row;
  }));
  document.querySelectorAll("#gallery button").forEach((button, i) => button.setAttribute("aria-current", i === index));
  drawLanes();
  invalidate();
}

/** An element with this text, which is never parsed as markup. */
function write(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function fillGallery() {
  $("gallery").hidden = data.answers.length < 2;
  $("gallery").firstChild.replaceChildren(...data.answers.map(({title}, i) => {
    const row = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"), write("span", title));
    button.onclick = () => select(i);
    row.append(button);
    return row;
  }));
}

/** Small pictures for the gallery: each answer's face where its jaw is widest, copied from the big canvas. */
function drawThumbnails() {
  if (data.answers.length < 2) return;
  const big = $("face"), columns = data.names.length, jaw = data.names.indexOf("jawOpen");
  document.querySelectorAll("#gallery canvas").forEach((small, i) => {
    const {track} = data.answers[i];
    let widest = jaw;
    for (let at = jaw; at < track.length; at += columns) if (track[at] > track[widest]) widest = at;
    pose(head, Array.from(track.subarray(widest - jaw, widest - jaw + columns), weight => weight / 65535));
    [big.width, big.height, small.width, small.height] = [236, 140, 236, 140];
    draw(236, 140);
    small.getContext("2d").drawImage(big, 0, 0);
  });
  posedAt = -1;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const other = theme === "dark" ? "light" : "dark";
  face($("theme"), other, `Switch to ${other} colours`);
  if (answer) drawLanes();
}

function setMuted(muted) {
  audio.muted = muted;
  face($("mute"), muted ? "muted" : "heard", muted ? "Unmute" : "Mute", "M");
}

function resetView() {
  Object.assign(view, FRONT);
  invalidate();
}

function bindControls() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.onchange = () => setTheme(system.matches ? "dark" : "light");
  system.onchange();
  setMuted(false);
  face($("reset"), "reset", "Reset view", "R");
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("play").onclick = () => playing ? pause() : play();
  $("mute").onclick = () => setMuted(!audio.muted);
  $("reset").onclick = resetView;
  $("seek").oninput = () => seek(Number($("seek").value));
  const keys = {
    " ": () => playing ? pause() : play(),
    ArrowLeft: shift => step(shift ? -1 : -1 / answer.fps), ArrowRight: shift => step(shift ? 1 : 1 / answer.fps),
    Home: () => seek(0), End: () => seek(answer.seconds), r: resetView, m: () => setMuted(!audio.muted),
  };
  const step = seconds => seek(Math.round((time + seconds) * answer.fps) / answer.fps);      // to a frame's own time
  document.onkeydown = event => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!keys[key] || event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === " " && event.target.closest("button")) return;       // the button itself answers
    event.preventDefault();
    if (!(key === " " && event.repeat)) keys[key](event.shiftKey);
  };
  new ResizeObserver(() => { if (answer) { drawLanes(); invalidate(); } }).observe(document.querySelector("main"));
}

/** Press or drag on waveform and curves seeks; a finger only when it lifts or moves sideways, as it may scroll. */
function bindLanes(lanes) {
  const scrub = event => {
    const {left, width} = lanes.getBoundingClientRect();
    if (lanes.hasPointerCapture(event.pointerId)) seek((event.clientX - left) / width * answer.seconds);
  };
  lanes.onpointerdown = event => {
    if (event.button !== 0) return;
    lanes.setPointerCapture(event.pointerId);
    if (event.pointerType !== "touch") scrub(event);
  };
  lanes.onpointermove = lanes.onpointerup = scrub;
}

/** Drag or one finger turns, wheel or two fingers zoom, double click resets. */
function bindView(canvas) {
  const held = new Map();
  const spread = () => { const [a, b] = [...held.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  const zoom = factor => { view.zoom = clamp(view.zoom * factor, .6, 6); invalidate(); };
  canvas.onpointerdown = event => {
    held.set(event.pointerId, {x: event.clientX, y: event.clientY});
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointerup = canvas.onpointercancel = event => held.delete(event.pointerId);
  canvas.onpointermove = event => {
    const last = held.get(event.pointerId);
    if (!last) return;
    const before = held.size === 2 && spread();
    if (held.size === 1) {
      view.yaw += (event.clientX - last.x) * .008;
      view.pitch = clamp(view.pitch + (event.clientY - last.y) * .008, -1.2, 1.2);
    }
    [last.x, last.y] = [event.clientX, event.clientY];
    zoom(before ? spread() / before : 1);
  };
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * .0015));
  }, {passive: false});
  canvas.ondblclick = resetView;
}

/** A head on the canvas, or a line that says why there is none; sound, text and curves work without it. */
function bringHead(canvas) {
  const gl = canvas.getContext("webgl", {antialias: true, alpha: true});
  if (!gl)
    return say("head", "This browser offers no WebGL, so the head cannot be drawn. Sound, text and curves still work.");
  head = unpackHead(data.head);
  draw = makeRenderer(gl, head);
  canvas.addEventListener("webglcontextlost", event => { event.preventDefault(); draw = null; });
  canvas.addEventListener("webglcontextrestored", () => { draw = makeRenderer(gl, head); invalidate(); });
}

window.viewer = {
  ready: false, names: data.names, view, audio, seek, play, pause, select,
  get index() { return index; }, get time() { return time; }, get duration() { return answer.seconds; },
  get playing() { return playing; },
  weights: () => Array.from(current),                                // the 52 numbers on screen
};

function start() {
  $("title").textContent = data.title;
  for (const each of data.answers) {
    each.track = new Uint16Array(bytes(each.track).buffer);
    each.levels = bytes(each.levels);
    each.seconds = Math.max(each.seconds, each.frames / each.fps + REST);
  }
  bindControls();
  bindView($("face"));
  bindLanes(document.querySelector(".lanes"));
  fillGallery();
  select(0);
  bringHead($("face"));
  drawThumbnails();
  show();
  window.viewer.ready = true;
}
start();
