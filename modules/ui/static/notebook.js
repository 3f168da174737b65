/* The Notebook tab: one text, continued by the model. */
"use strict";
(() => {
  const { el, icon, remember, call } = snug;
  const SAVE_MS = 600, RETRY_MS = 2000, MAX_UNDO = 50;
  const ELSEWHERE = "The model is writing in another tab; your text is saved when it is done.";
  const state = { server: null, trigger: null, running: null, undo: [], before: "", timer: null, saved: "", saving: Promise.resolve(), theirs: null };
  let area, go, stopButton, undoButton, note, choice;

  snug.mountNotebook = async (element, server, trigger) => {
    Object.assign(state, { server, trigger });
    area = el("textarea.page-text", { id: "snug-notebook", "aria-label": "Text", placeholder: "Write the beginning; the model goes on.", spellcheck: false, oninput: onInput, onkeydown: onKey });
    go = el("button.primary-button", { id: "snug-generate", title: "Generate (Ctrl+Enter)", onclick: generate }, "Generate");
    stopButton = el("button.plain-button", { id: "snug-notebook-stop", hidden: true, onclick: stop }, icon("stop"), "Stop");
    undoButton = el("button.plain-button", { id: "snug-undo", disabled: true, onclick: undo }, icon("undo"), "Undo");
    note = el("span.note-stats", { role: "status" });
    choice = el("div.problem.notebook-choice", { role: "alert", hidden: true }, icon("alert"),
      el("p", {}, "The text was changed in another tab."),
      el("div.problem-buttons", {},
        el("button.text-button", { id: "snug-use-theirs", onclick: useTheirs }, "Use that text"),
        el("button.text-button", { id: "snug-keep-mine", onclick: keepMine }, "Keep mine")));
    window.addEventListener("pagehide", save);
    document.addEventListener("visibilitychange", () => { if (document.hidden) save(); else lookAgain(); });
    element.replaceChildren(el("section.notebook", {}, area, choice, el("div.notebook-bar", {}, go, stopButton, undoButton, note)));
    area.readOnly = true;
    const answer = await call(server, "load_text", {});
    area.readOnly = false;
    if (typeof answer.text !== "string") return;
    area.value = state.saved = answer.text;
    state.before = answer.before ?? answer.text;
    if (answer.running) return follow(answer.running);
    const draft = remember.get("notebook");
    if (!draft || draft.text === answer.text) return;
    area.value = draft.text;
    state.saved = draft.known;
    save();
  };
  snug.stopNotebook = () => { if (state.running) stop(); return Boolean(state.running); };

  /* The browser holds what the server does not have yet, with the text that it is to replace. */
  function onInput() {
    remember.set("notebook", { text: area.value, known: state.saved });
    saveIn(SAVE_MS);
  }
  function saveIn(ms) { clearTimeout(state.timer); state.timer = setTimeout(save, ms); }
  function onKey(event) { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); } }

  /* One after the other, or they would take each other for another tab's. */
  function save() { clearTimeout(state.timer); return state.saving = state.saving.then(saveNow); }
  async function saveNow() {
    if (state.running || state.theirs !== null || area.value === state.saved) return;
    const text = area.value, answer = await call(state.server, "save_text", { text, known: state.saved });
    if (answer.busy) { note.textContent = ELSEWHERE; return saveIn(RETRY_MS); }
    if (typeof answer.stale === "string") return disagree(answer.stale);
    if (answer.problem) return;
    if (note.textContent === ELSEWHERE) note.textContent = "";
    state.saved = text;
    if (area.value !== text) onInput(); else forget(text);
  }
  function forget(text) { if (remember.get("notebook")?.text === text) remember.set("notebook", null); }

  function disagree(theirs) {
    state.theirs = theirs;
    draw();
  }
  function settle() {
    state.saved = state.theirs;
    state.theirs = null;
    draw();
  }
  function useTheirs() {
    keepForUndo(area.value);
    forget(area.value);
    area.value = state.theirs;
    settle();
  }
  function keepMine() {
    settle();
    save();
  }
  function keepForUndo(text) { state.undo.push(text); if (state.undo.length > MAX_UNDO) state.undo.shift(); }

  /* The tab comes back into view: what another one wrote meanwhile is shown, where nothing here waits to be saved. */
  async function lookAgain() {
    if (state.running || area.value !== state.saved) return;
    const before = state.saved, answer = await call(state.server, "load_text", {});
    if (typeof answer.text !== "string" || state.running || area.value !== before || state.saved !== before) return;
    if (answer.text !== before) keepForUndo(before);
    area.value = state.saved = answer.text;
    state.before = answer.before ?? answer.text;
    if (answer.running) follow(answer.running); else draw();
  }

  async function generate() {
    if (state.running || state.theirs !== null || !area.value.trim()) return;
    clearTimeout(state.timer);
    state.before = area.value;
    state.running = "starting";
    draw();
    note.textContent = "";
    await state.saving;
    const answer = await call(state.server, "complete", { text: area.value, known: state.saved, params: snug.params() });
    if (answer.running) {
      state.saved = state.before;
      forget(state.before);
      return follow(answer.running);
    }
    state.running = null;
    if (typeof answer.stale === "string") return disagree(answer.stale);
    draw();
    save();
  }

  function follow(id) {
    state.running = id;
    draw();
    state.trigger("follow", {});
  }

  async function stop() { if (state.running && state.running !== "starting") await call(state.server, "stop_text", { id: state.running }); }

  function undo() {
    if (!state.undo.length || state.running || state.theirs !== null) return;
    area.value = state.undo.pop();
    draw();
    onInput();
  }

  function draw() {
    const running = Boolean(state.running);
    go.hidden = running; stopButton.hidden = !running; area.readOnly = running;
    const torn = state.theirs !== null;
    choice.hidden = !torn; go.disabled = torn;
    undoButton.disabled = running || torn || !state.undo.length;
  }

  snug.onNotebookLive = (view) => {
    if (!view || !state.running || (view.id && view.id !== state.running)) return;
    const stick = area.scrollHeight - area.scrollTop - area.clientHeight < 80;
    if (typeof view.text === "string") area.value = view.text;
    note.textContent = [...(view.told ?? []), view.done ? view.stats : view.waiting].filter(Boolean).join(" · ");
    if (view.gone) view.done = true;
    if (view.done) {
      state.running = null;
      if (area.value !== state.before) keepForUndo(state.before);
      if (view.problem) snug.showProblem(view.problem);
      state.saved = area.value;
      draw();
      area.focus({ preventScroll: true });
    }
    if (stick) area.scrollTop = area.scrollHeight;
  };
})();
