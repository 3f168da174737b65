/* The Notebook tab: one text, continued by the model. */
"use strict";
(() => {
  const { el, icon, call } = snug;
  const SAVE_MS = 600, MAX_UNDO = 50;
  const state = { server: null, trigger: null, running: null, undo: [], before: "", saving: null, saved: "" };
  let area, go, stopButton, undoButton, note;

  snug.mountNotebook = async (element, server, trigger) => {
    Object.assign(state, { server, trigger });
    area = el("textarea.page-text", { id: "snug-notebook", "aria-label": "Text", placeholder: "Write the beginning; the model goes on.", spellcheck: false, oninput: onInput, onkeydown: onKey });
    go = el("button.primary-button", { id: "snug-generate", onclick: generate }, "Generate");
    stopButton = el("button.plain-button", { id: "snug-notebook-stop", hidden: true, onclick: stop }, icon("stop"), "Stop");
    undoButton = el("button.plain-button", { id: "snug-undo", disabled: true, onclick: undo }, icon("undo"), "Undo");
    note = el("span.note-stats", { role: "status" });
    element.replaceChildren(el("section.notebook", {}, area, el("div.notebook-bar", {}, go, stopButton, undoButton, note)));
    const answer = await call(server, "load_text", {});
    if (typeof answer.text !== "string" || area.value) return;
    area.value = state.saved = answer.text;
    state.before = answer.before ?? answer.text;
    if (answer.running) follow(answer.running);
  };
  snug.stopNotebook = () => { if (state.running) stop(); };

  function onInput() { clearTimeout(state.saving); state.saving = setTimeout(save, SAVE_MS); }
  function onKey(event) { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); } }

  async function save() {
    clearTimeout(state.saving);
    if (state.running || area.value === state.saved) return true;
    const text = area.value, answer = await call(state.server, "save_text", { text });
    if (!answer.problem) state.saved = text;
    return !answer.problem;
  }

  async function generate() {
    if (state.running || !area.value.trim()) return;
    if (!await save()) return;
    state.before = area.value;
    state.running = "starting";
    draw();
    note.textContent = "";
    const answer = await call(state.server, "complete", { text: area.value, params: snug.params() });
    if (answer.running) return follow(answer.running);
    state.running = null;
    draw();
  }

  function follow(id) {
    state.running = id;
    draw();
    state.trigger("follow", {});
  }

  async function stop() { if (state.running && state.running !== "starting") await call(state.server, "stop_text", { id: state.running }); }

  function undo() {
    if (!state.undo.length || state.running) return;
    area.value = state.undo.pop();
    draw();
    save();
  }

  function draw() {
    const running = Boolean(state.running);
    go.hidden = running; stopButton.hidden = !running; area.readOnly = running;
    undoButton.disabled = running || !state.undo.length;
  }

  snug.onNotebookLive = (view) => {
    if (!view || !state.running || (view.id && view.id !== state.running)) return;
    const stick = area.scrollHeight - area.scrollTop - area.clientHeight < 80;
    if (typeof view.text === "string") area.value = view.text;
    note.textContent = view.done ? view.stats : view.waiting ?? "";
    if (view.gone) view.done = true;
    if (view.done) {
      state.running = null;
      if (area.value !== state.before) { state.undo.push(state.before); if (state.undo.length > MAX_UNDO) state.undo.shift(); }
      if (view.problem) snug.showProblem(view.problem);
      state.saved = area.value;
      draw();
      area.focus({ preventScroll: true });
    }
    if (stick) area.scrollTop = area.scrollHeight;
  };
})();
