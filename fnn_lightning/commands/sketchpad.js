// Runs in Gradio's `HTML` component, which provides `element`, `props`, `trigger` and `watch`.
// A stroke is an SVG path and a tool; the history holds lists of strokes, as they are never changed.
const SIZE = 280; // units of a stroke's coordinates, whatever size the page gives the canvas
const WIDTH = { pen: 24, eraser: 40 }; // the pen's as wide as MNIST's on a digit of usual size
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const history = [[]];
let now = 0; // position in the history
let tool;
let path = null; // of the stroke that is being drawn

function paint(strokes) {
  const scale = canvas.width / SIZE;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, SIZE, SIZE);
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    const erases = stroke.tool === "eraser";
    context.globalCompositeOperation = erases ? "destination-out" : "source-over";
    context.lineWidth = WIDTH[stroke.tool];
    context.stroke(new Path2D(stroke.path));
  }
}

function select(name) {
  tool = name;
  canvas.dataset.tool = name;
  for (const button of element.querySelectorAll("button[data-tool]"))
    button.setAttribute("aria-pressed", button.dataset.tool === name);
}

function show(position) {
  now = position;
  paint(history[now]);
  for (const button of element.querySelectorAll("[data-step]"))
    button.disabled = !history[now + Number(button.dataset.step)];
}

function add(strokes) {
  history.splice(now + 1, Infinity, strokes);
  show(now + 1);
}

function send() {
  props.value = history[now].length ? canvas.toDataURL("image/png") : "";
  trigger("input");
}

function step(by) {
  if (path || !history[now + by]) return;
  show(now + by);
  send();
}

function position(event) {
  const box = canvas.getBoundingClientRect();
  const x = ((event.clientX - box.left) * SIZE) / box.width;
  const y = ((event.clientY - box.top) * SIZE) / box.height;
  return `${x.toFixed(1)} ${y.toFixed(1)}`;
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  const start = position(event);
  path = `M${start}L${start}l0 .01`; // a line without length would not be drawn
  paint([...history[now], { path, tool }]);
});
canvas.addEventListener("pointermove", (event) => {
  if (!path || !event.isPrimary) return;
  path += `L${position(event)}`;
  paint([...history[now], { path, tool }]);
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, (event) => {
    if (!path || !event.isPrimary) return;
    const stroke = { path, tool };
    path = null;
    add([...history[now], stroke]);
    send();
  });

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { tool: name, step: by, example, clear } = button.dataset;
  if (name) select(name);
  if (by) step(Number(by));
  if (clear === undefined && example === undefined) return;
  const drawn = button.querySelector("path");
  add(drawn ? [{ path: drawn.getAttribute("d"), tool: "pen" }] : []);
  select("pen");
  send();
});
document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if (!(event.ctrlKey || event.metaKey) || !["y", "z"].includes(key)) return;
  event.preventDefault();
  step(key === "y" || event.shiftKey ? 1 : -1);
});
// an upload takes the drawing's place
watch("value", () => {
  if (!props.value && history[now].length) add([]);
});

select("pen");
show(0);
