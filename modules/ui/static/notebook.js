/* The Notebook tab: one text, continued by the model; its history is the server's, its tokens are drawn by tokens.js. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, t, tn } = snug;
  const SAVE_MS = 600, RETRY_MS = 2000, MEASURE_MS = 250;
  const ELSEWHERE = t("The model is writing in another tab; your text is saved when it is done.");
  const page = { revision: 0, undo: false, redo: false, again: false, version: 1, versions: 1 };
  const state = { server: null, trigger: null, running: null, timer: null, saved: "", queue: Promise.resolve(), theirs: null, measured: null, measuring: null, then: null, loaded: false, loads: 0, share: 1 };
  const written = { before: "", after: "", text: "", pieces: 0 };
  let area, go, stopButton, undoButton, redoButton, againButton, turner, turnerText, insertSwitch, tokensSwitch, note, count, choice, view;

  snug.mountNotebook = async (element, server, trigger) => {
    Object.assign(state, { server, trigger });
    build(element);
    window.addEventListener("pagehide", save);
    document.addEventListener("visibilitychange", () => { if (document.hidden) save(); else lookAgain(); });
    const before = snug.modelChanged;
    snug.modelChanged = (...now) => { before?.(...now); measureSoon(); };
    new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) measureSoon(); }).observe(element.firstChild);
    area.readOnly = true;
    const answer = await call(server, "load_text", {});
    area.readOnly = false;
    if (typeof answer.text !== "string") return;
    const draft = remember.get("notebook");
    state.loaded = true;
    adopt(answer);
    /* What was not saved yet comes first, also while another tab writes: it is saved, or asked about, after that. */
    if (draft && draft.text !== answer.text && Number.isInteger(draft.revision)) {
      area.value = draft.text;
      page.revision = draft.revision;
      state.saved = null;
      return save();
    }
    if (draft) remember.set("notebook", null);
    if (answer.running) follow(answer.running);
  };
  snug.stopNotebook = () => { if (state.running) stop(); return Boolean(state.running); };

  function build(element) {
    area = el("textarea.page-text", { id: "snug-notebook", "aria-label": t("Text"), placeholder: t("Write the beginning; the model goes on."), spellcheck: false, oninput: onInput, onkeydown: onKey, onselect: drawNote, onclick: drawNote, onkeyup: drawNote });
    view = snug.tokenView({ look: (run, number) => call(state.server, "choice", { run, number }), choose: take });
    view.page.addEventListener("keydown", onKey);
    go = el("button.primary-button", { id: "snug-generate", title: t("Generate (Ctrl+Enter)"), onclick: () => generate() }, t("Generate"));
    stopButton = el("button.plain-button", { id: "snug-notebook-stop", hidden: true, onclick: stop }, icon("stop"), t("Stop"));
    undoButton = iconButton("undo", t("Undo (Ctrl+Z)"), () => travel("undo"));
    redoButton = iconButton("redo", t("Redo (Ctrl+Shift+Z)"), () => travel("redo"));
    againButton = iconButton("retry", t("Write the last completion anew"), again);
    undoButton.id = "snug-undo"; redoButton.id = "snug-redo"; againButton.id = "snug-again";
    turnerText = el("span", {});
    turner = el("span.turner", { id: "snug-versions", role: "group", "aria-label": t("Versions of the last change"), hidden: true },
      iconButton("chevron", t("Earlier version"), () => travel("turn", { by: -1 }), ".back"), turnerText, iconButton("chevron", t("Later version"), () => travel("turn", { by: 1 })));
    insertSwitch = toggle("snug-insert", "prompt", t("At the cursor"), t("Write at the cursor, in the place of what is selected; the text after it stays"), "notebook-insert", () => { drawNote(); });
    tokensSwitch = toggle("snug-token-view", "spark", t("Tokens"), t("Show each token by its probability, with its alternatives"), "notebook-tokens", showTokens);
    note = el("span.note-stats", { role: "status" });
    count = el("span.token-count", { id: "snug-token-count" });
    choice = el("div.problem.notebook-choice", { role: "alert", hidden: true }, icon("alert"),
      el("p", {}, t("The text was changed in another tab.")),
      el("div.problem-buttons", {},
        el("button.text-button", { id: "snug-use-theirs", onclick: useTheirs }, t("Use that text")),
        el("button.text-button", { id: "snug-keep-mine", onclick: keepMine }, t("Keep mine"))));
    element.replaceChildren(el("section.notebook", {}, area, view.page, view.legend, choice,
      el("div.notebook-bar", {},
        el("div.notebook-do", {}, go, stopButton, undoButton, redoButton, againButton, turner),
        el("div.notebook-how", {}, insertSwitch, tokensSwitch),
        el("div.notebook-says", {}, note, count))));
    showTokens();
    draw();
  }
  function toggle(id, glyph, says, title, key, changed) {
    const button = el("button.switch-button", { id, title, onclick: () => { set(button.getAttribute("aria-pressed") !== "true"); changed(); } }, icon(glyph), el("span", {}, says));
    const set = (on) => { button.setAttribute("aria-pressed", String(on)); remember.set(key, on); };
    set(Boolean(remember.get(key, false)));
    return button;
  }
  const isOn = (button) => button.getAttribute("aria-pressed") === "true";

  /* Saving: the browser holds what the server does not have yet, with the revision that it is to replace. */

  function onInput() {
    remember.set("notebook", { text: area.value, revision: page.revision });
    clearTimeout(state.timer);
    state.timer = setTimeout(save, SAVE_MS);
    drawNote();
  }
  function onKey(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (event.key === "Enter") { event.preventDefault(); generate(); }
    else if (key === "z" || key === "y") { event.preventDefault(); travel(key === "y" || event.shiftKey ? "redo" : "undo"); }
  }
  /* One request after the other, or they would take each other for another tab's. */
  function next(job) { return state.queue = state.queue.then(job, job); }
  function save() { clearTimeout(state.timer); return next(saveNow); }
  async function saveNow() {
    if (state.running || state.theirs !== null || area.value === state.saved) return;
    const text = area.value, answer = await call(state.server, "save_text", { text, revision: page.revision });
    if (answer.busy) { note.textContent = ELSEWHERE; clearTimeout(state.timer); state.timer = setTimeout(save, RETRY_MS); return; }
    if (answer.stale) return disagree(answer.stale);
    if (answer.problem) return;
    if (note.textContent === ELSEWHERE) note.textContent = "";
    Object.assign(page, answer);
    state.saved = text;
    if (area.value !== text) onInput(); else forget(text);
    draw();
    measureSoon();
  }
  function forget(text) { if (remember.get("notebook")?.text === text) remember.set("notebook", null); }

  /* The server's text takes the place of what is on show. */
  function adopt(answer) {
    const { text, ...rest } = answer;
    Object.assign(page, rest);
    if (area.value !== text) put(text);
    state.saved = area.value;  // which has its own line ends
    draw();
    if (isOn(tokensSwitch) && !answer.running) loadTokens();
    measureSoon();
  }
  /* The caret goes to the end of what changed. */
  function put(text) {
    const old = area.value, most = Math.min(old.length, text.length);
    let same = 0;
    while (same < most && old[old.length - 1 - same] === text[text.length - 1 - same]) same++;
    const top = area.scrollTop;
    area.value = text;
    area.setSelectionRange(text.length - same, text.length - same);
    area.scrollTop = top;
  }
  function disagree(theirs) { state.theirs = theirs; draw(); }
  function useTheirs() {
    const mine = area.value, theirs = state.theirs;
    state.theirs = null;
    /* Mine becomes a step of the history, so that undo finds it; until it is one it stays on show. */
    next(async () => {
      const kept = await call(state.server, "save_text", { text: mine, revision: theirs.revision });
      if (kept.problem || kept.stale || kept.busy) {
        if (kept.busy) snug.toast(t("The text is being written in another tab."), { remedy: t("Choose again when that is done.") });
        return disagree(kept.stale ?? theirs);
      }
      forget(mine);
      const answer = await call(state.server, "save_text", { text: theirs.text, revision: kept.revision });
      adopt({ ...theirs, ...(answer && !answer.problem && !answer.stale && !answer.busy ? answer : {}), text: theirs.text });
    });
  }
  function keepMine() {
    page.revision = state.theirs.revision;
    state.theirs = null;
    draw();
    save();
  }
  /* The tab comes back into view: what another one wrote meanwhile is shown, where nothing here waits to be saved. */
  async function lookAgain() {
    if (state.running || state.theirs !== null || area.value !== state.saved) return;
    const before = page.revision, answer = await call(state.server, "load_text", {});
    if (typeof answer.text !== "string" || state.running || area.value !== state.saved || page.revision !== before) return;
    if (answer.revision !== before || answer.text !== area.value) adopt(answer);
    if (answer.running) follow(answer.running);
  }

  /* History */

  async function travel(way, more = {}) {
    if (state.running || state.theirs !== null) return;
    save();
    await next(async () => {
      if (state.running || state.theirs !== null || area.value !== state.saved) return;
      const answer = await call(state.server, way, { revision: page.revision, ...more });
      if (answer.stale) snug.toast(t("The text was changed in another tab; here it is."));
      if (answer.stale || typeof answer.text === "string") adopt(answer.stale ?? answer);
    });
  }

  /* Writing */

  function cut() {
    const text = area.value;
    if (!isOn(insertSwitch)) return { before: text, selected: "", after: "", insert: false };
    return { before: text.slice(0, area.selectionStart), selected: text.slice(area.selectionStart, area.selectionEnd), after: text.slice(area.selectionEnd), insert: true };
  }
  function generate() {
    if (!area.value.trim()) return;
    return start("complete", cut);
  }
  function again() { if (page.again) return start("again", () => ({}), save()); }
  function take(segment, number, taken) {
    if (state.running) { state.then = () => take(segment, number, taken); return stop(); }
    if (segment.run === null) return;
    return start("take", () => ({ run: segment.run, number, taken }), null, false);
  }
  async function start(name, body, first = null, tokens = true) {
    if (state.running || state.theirs !== null) return;
    clearTimeout(state.timer);
    if (first) await first;
    if (state.running || state.theirs !== null) return;
    state.running = "starting";
    note.textContent = "";
    draw();
    await state.queue;
    const asked = { revision: page.revision, params: snug.params(), ...(tokens ? { tokens: isOn(tokensSwitch) } : {}), ...body() };
    const text = area.value, answer = await call(state.server, name, asked);
    if (answer.running) { forget(text); return follow(answer.running); }
    state.running = null;
    if (answer.stale && text !== state.saved) return disagree(answer.stale);
    if (answer.stale) snug.toast(t("The text was changed in another tab; here it is."));
    if (answer.stale || typeof answer.text === "string") return adopt(answer.stale ?? answer);
    draw();
    save();
  }
  async function follow(started) {
    const { id } = started, [before, after] = [started.before, started.after].map((text) => text.replace(/\r\n?/g, "\n"));
    state.running = id;
    state.share = Math.min(1, (before.length + after.length) / (area.value.length || 1));
    Object.assign(written, { before, after, text: "", pieces: 0 });
    if (area.value !== before + after) put(before + after);
    draw();
    if (isOn(tokensSwitch)) await showWriting();
    if (state.running === id) state.trigger("follow", {});
  }
  async function stop() { if (state.running && state.running !== "starting") await call(state.server, "stop_text", { id: state.running }); }

  snug.onNotebookLive = async (look) => {
    if (!look || !state.running || (look.id && look.id !== state.running)) return;
    if (look.gone) { state.running = null; return adopt(look); }
    if (look.from > written.pieces) {
      const id = look.id, { pieces } = await call(state.server, "pieces", {});
      if (state.running !== id) return;
      if (pieces) { written.text = ""; written.pieces = 0; show(pieces, 0); }
    } else show(look.pieces.slice(written.pieces - look.from), written.pieces);
    note.textContent = [...(look.told ?? []), look.done ? look.stats : look.waiting].filter(Boolean).join(" · ");
    drawCount(look.made);
    if (look.done) finish(look);
  };
  function show(pieces, at) {
    if (!pieces.length) return;
    const more = pieces.map((piece) => piece[0]).join("").replace(/\r\n?/g, "\n"), stick = area.scrollHeight - area.scrollTop - area.clientHeight < 80;
    const from = written.before.length + (at ? written.text.length : 0), upTo = at ? from : area.value.length - written.after.length;
    area.setRangeText(more, from, upTo, "end");
    written.text = at ? written.text + more : more;
    written.pieces = at + pieces.length;
    if (stick && !written.after) area.scrollTop = area.scrollHeight;
    if (isOn(tokensSwitch)) view.write(pieces, at);
  }
  function finish(look) {
    const { text, ...rest } = look.page, wasNothing = text === written.before + written.after && !look.problem && !written.pieces;
    state.running = null;
    Object.assign(page, rest);
    if (area.value !== text) put(text);
    state.saved = area.value;
    if (look.problem) snug.showProblem(look.problem);
    if (wasNothing) note.textContent = t("The model added nothing: it takes the text to be complete.");
    if (look.silent || (isOn(tokensSwitch) && state.measured?.tells === false)) note.textContent = [note.textContent, t("This engine tells no probabilities.")].filter(Boolean).join(" · ");
    draw();
    if (isOn(tokensSwitch)) { if (!view.end(rest.run, text)) loadTokens(); }
    if (!view.page.contains(document.activeElement) && !isOn(tokensSwitch)) area.focus({ preventScroll: true });
    measureSoon();
    const then = state.then;
    state.then = null;
    then?.();
  }

  /* The token view */

  async function showTokens() {
    const on = isOn(tokensSwitch);
    area.hidden = on; view.page.hidden = view.legend.hidden = !on;
    if (!on) { view.close(); if (state.loaded) area.focus({ preventScroll: true }); return; }
    if (!state.loaded) return;
    if (state.running) { await showWriting(); return resync(); }
    await save();
    await loadTokens();
  }
  async function showWriting() {
    await loadTokens();
    view.begin(written.before, written.after);
  }
  async function loadTokens() {
    const turn = ++state.loads, answer = await call(state.server, "tokens", {});
    if (answer.segments && turn === state.loads) view.show(answer.segments);
  }
  async function resync() {
    const { pieces } = await call(state.server, "pieces", {});
    if (pieces && state.running) { written.text = ""; written.pieces = 0; show(pieces, 0); }
  }

  /* How much it is */

  function measureSoon() { clearTimeout(state.measuring); state.measuring = setTimeout(measure, MEASURE_MS); }
  async function measure() {
    if (!area.isConnected || document.hidden || !area.closest("section").checkVisibility()) return;
    let answer = null;
    try { answer = await state.server.measure({}); } catch { /* the header says that Snug is lost */ }
    if (!answer || answer.problem) return;
    state.measured = answer;
    drawCount();
    drawNote();
  }
  function drawCount(made = 0) {
    const { tokens, exact, context } = state.measured ?? { tokens: null };
    if (tokens === null) { count.textContent = ""; return; }
    const sure = exact && (!state.running || state.share === 1);
    const total = Math.round(tokens * (state.running ? state.share : 1)) + made, over = context > 0 && total > context;
    count.textContent = measureText(total, context, sure);
    count.classList.toggle("over", over);
    count.title = over ? t("The beginning of the text lies outside the model's context.") : t("Tokens of the text, and of the model's context");
  }
  function measureText(total, context, sure) {
    if (context) return sure ? t("{count} of {context} tokens", { count: total, context }) : t("about {count} of {context} tokens", { count: total, context });
    return sure ? tn("{count} token", "{count} tokens", total) : t("about {count} tokens", { count: total });
  }
  /* Where it will write, and what the model knows of what follows. */
  function drawNote() {
    if (state.running || !isOn(insertSwitch) || !state.measured) { if (note.dataset.where) { note.dataset.where = ""; note.textContent = ""; } return; }
    const { before, selected, after } = cut(), tail = before.slice(-24).replaceAll("\n", " ");
    const place = selected ? t("Replaces what is selected") : tail ? t("Goes in after “{text}”", { text: `${before.length > 24 ? "…" : ""}${tail}` }) : t("Goes in at the beginning");
    const knows = !after.trim() ? "" : state.measured.fills ? t("the model reads what follows too") : t("this model reads only what stands before it");
    note.textContent = [place, knows].filter(Boolean).join("; ");
    note.dataset.where = "shown";
  }
  function draw() {
    const running = Boolean(state.running), torn = state.theirs !== null;
    go.hidden = running; stopButton.hidden = !running; area.readOnly = running;
    choice.hidden = !torn; go.disabled = torn;
    const still = running || torn;
    undoButton.disabled = still || !(page.undo || (state.saved !== null && area.value !== state.saved));
    redoButton.disabled = still || !page.redo;
    againButton.disabled = still || !page.again;
    againButton.title = page.again || still ? t("Write the last completion anew") : t("Write the last completion anew: undo what came after it first");
    turner.hidden = page.versions < 2;
    turnerText.textContent = `${page.version}/${page.versions}`;
    const [back, , forth] = turner.children;
    back.disabled = still || page.version <= 1; forth.disabled = still || page.version >= page.versions;
  }
})();
