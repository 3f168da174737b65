/* The Compare tab: one prompt, two or three columns, what each answers and how far they agree. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, copy, t, tn } = snug;
  const FORESEE_MS = 350, LOOK_MS = 3000, SILENT_MS = 4000, MOST = 3;
  const MAX_PROMPT = 400000, MAX_KEPT = 300000;
  const LENGTHS = [64, 128, 256, 512, 1024];
  const state = {
    server: null, trigger: null, models: [], presets: [], loaded: "", ways: new Map(), columns: [], tokens: 128, inTurn: false,
    live: null, starting: false, heard: 0, refused: {}, foreseeing: 0, timer: null,
  };
  let prompt, grid, plan, go, stopButton, more, lengths, turns, tools, phase;

  snug.mountCompare = async (element, server, trigger) => {
    Object.assign(state, { server, trigger });
    const kept = remember.get("compare", {});
    state.columns = Array.isArray(kept.columns) ? kept.columns.slice(0, MOST).map(tidy) : [];
    state.tokens = LENGTHS.includes(kept.tokens) ? kept.tokens : 128;
    state.inTurn = kept.inTurn === true;
    build(element, typeof kept.prompt === "string" ? kept.prompt : "");
    document.getElementById("snug-tabs").addEventListener("click", (event) => {
      if (snug.tabAt(event.target) === "Compare") refresh();
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden && snug.currentTab() === "Compare") refresh(); });
    setInterval(() => { if (running() && !document.hidden && Date.now() - state.heard > SILENT_MS) refresh(true); }, LOOK_MS);
    draw();
    if (snug.currentTab() === "Compare") refresh(); else await lookOnce();
  };
  /* Whoever reloads the page in the midst of a comparison is back at it: nobody looking on would end it. */
  window.addEventListener("pagehide", () => { try { sessionStorage.setItem("snug.comparing", running() ? "1" : ""); } catch { /* then one goes there by hand */ } });
  function comeBack() {
    try { if (!sessionStorage.getItem("snug.comparing")) return; } catch { return; }
    let tries = 100;
    const back = setInterval(() => {
      if (snug.currentTab() === "Compare" || !tries--) clearInterval(back); else if (snug.currentTab()) snug.selectTab("Compare");
    }, 100);
  }
  comeBack();
  snug.stopCompare = () => { if (running()) halt(); return running(); };

  function tidy(column) {
    const flags = Array.isArray(column?.flags) ? column.flags.map(String) : null;
    return { model: String(column?.model ?? ""), flags, sampling: String(column?.sampling ?? "greedy") };
  }
  function running() { return state.starting || Boolean(state.live && !state.live.finished); }

  function build(element, text) {
    prompt = el("textarea.compare-prompt", { id: "snug-compare-prompt", "aria-label": t("Prompt"), rows: 3, value: text,
      placeholder: t("One prompt for every column. A question with one right answer shows most."), oninput: () => { keep(); foreseeSoon(); }, onkeydown: onKey });
    grid = el("div.compare-columns", {});
    plan = el("p.compare-plan", { id: "snug-compare-plan", role: "status" });
    phase = el("p.compare-phase", { role: "status" });
    go = el("button.primary-button", { id: "snug-compare-go", title: t("Compare (Ctrl+Enter)"), onclick: begin }, t("Compare"));
    stopButton = el("button.plain-button", { id: "snug-compare-stop", hidden: true, onclick: halt }, icon("stop"), t("Stop"));
    more = el("button.plain-button", { id: "snug-compare-more", onclick: add }, icon("plus"), t("Third column"));
    lengths = el("select.compare-select", { id: "snug-compare-length", onchange: () => { state.tokens = Number(lengths.value); changed(); } },
      ...LENGTHS.map((count) => el("option", { value: String(count) }, tn("{count} token", "{count} tokens", count))));
    turns = el("input", { type: "checkbox", id: "snug-compare-turns", checked: state.inTurn, onchange: () => { state.inTurn = turns.checked; changed(); } });
    tools = el("span.compare-tools", {},
      el("button.plain-button", { id: "snug-compare-copy", title: t("Copy the comparison as Markdown"), onclick: copyMarkdown }, icon("copy"), t("Copy")),
      el("button.plain-button", { id: "snug-compare-save", title: t("Save the comparison as a Markdown file"), onclick: save }, icon("download"), t("Save")));
    element.replaceChildren(el("div.sheet.compare-sheet", {},
      el("div", {}, el("h1", {}, t("Compare")), el("p", {}, t("One prompt, answered in several ways: what a lower precision, another model or another preset changes."))),
      prompt,
      el("div.compare-bar", {}, go, stopButton, more,
        el("label.compare-length", { htmlFor: "snug-compare-length" }, t("Up to"), lengths),
        el("label.compare-turns", { title: t("Speeds are then those of each alone") }, turns, t("One after the other")),
        tools),
      plan, phase, grid));
    snug.onlyAdmins(t("Comparing, which loads models,"), prompt.parentElement, go, stopButton);
  }

  function onKey(event) { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); begin(); } }
  function keep() { remember.set("compare", { prompt: prompt.value, columns: state.columns, tokens: state.tokens, inTurn: state.inTurn }); }
  function changed() { keep(); draw(); foreseeSoon(); }

  /* What there is to choose from, and what runs already, maybe begun by another page. */
  async function lookOnce(quiet = false) {
    const answer = quiet ? await state.server.choices({}).catch(() => null) : await call(state.server, "choices", {});
    if (!Array.isArray(answer?.models)) return false;
    Object.assign(state, { models: answer.models, presets: answer.presets, loaded: answer.loaded });
    state.ways.clear();
    if (answer.comparison && !state.starting) take(answer.comparison);
    else if (!answer.comparison && !state.starting) withoutServer();
    if (answer.comparison && !prompt.value.trim()) prompt.value = answer.comparison.prompt;
    if (running() && !state.starting) { state.heard = Date.now(); state.trigger("follow", {}); }
    return true;
  }
  /* A server that was started anew knows nothing of it: what this page has seen, or kept, stays on show. */
  function withoutServer() {
    const last = state.live ?? remember.get("compare-last");
    if (!Array.isArray(last?.columns) || last === state.live && last.finished) return;
    const columns = last.columns.map((column) => ["done", "failed", "stopped"].includes(column.stage) ? column : { ...column, stage: "stopped", words: t("Stopped: Snug ended"), fraction: 0 });
    state.live = { ...last, columns, phase: "", finished: true, kept: true };
    draw();
  }
  async function refresh(quiet = false) {
    if (!await lookOnce(quiet)) return;
    await fill();
    draw();
    foreseeSoon();
  }

  /* Two columns of the loaded model, the second in the fewest bits that it can have; what was chosen before stays. */
  async function fill() {
    const usual = state.loaded || state.models[0] || "";
    for (const column of state.columns) if (!state.models.includes(column.model)) Object.assign(column, { model: usual, flags: null });
    await Promise.all([...new Set([usual, ...state.columns.map((column) => column.model)])].map(waysOf));
    if (state.columns.length >= 2 || !usual) return;
    const fewer = (state.ways.get(usual) ?? []).filter((way) => way.flags && way.possible);
    const second = fewer.find((way) => way.title.startsWith("4-bit")) ?? fewer.at(-1);
    state.columns = [{ model: usual, flags: null, sampling: "greedy" }, { model: usual, flags: second?.flags ?? null, sampling: second ? "greedy" : "mine" }];
    keep();
  }
  async function waysOf(model) {
    if (!model || state.ways.has(model)) return;
    const answer = await call(state.server, "ways", { model });
    if (answer.ways) state.ways.set(model, answer.ways);
  }

  function asked() {
    return {
      prompt: prompt.value.slice(0, MAX_PROMPT), max_new_tokens: state.tokens, in_turn: state.inTurn, params: snug.params(),
      columns: state.columns.map(({ model, flags, sampling }) => sampling.startsWith("preset:")
        ? { model, flags, kind: "preset", preset: sampling.slice(7) } : { model, flags, kind: sampling === "mine" ? "mine" : "greedy" }),
    };
  }

  /* How it would run, told before anything is loaded. */
  function foreseeSoon() { clearTimeout(state.timer); state.timer = setTimeout(foresee, FORESEE_MS); }
  async function foresee() {
    if (running() || state.columns.length < 2 || snug.currentTab() !== "Compare") return;
    const turn = ++state.foreseeing, answer = await state.server.foresee(asked()).catch(() => null);
    if (turn !== state.foreseeing || running() || !answer) return;
    state.refused = answer.refused ?? {};
    plan.textContent = (answer.words ?? []).join(" ");
    if (answer.problem) plan.textContent = `${answer.problem.message} ${answer.problem.remedy}`;
    grid.querySelectorAll(".compare-refused").forEach((node, at) => drawRefused(node, at));
  }

  async function begin() {
    if (running()) return;
    if (!prompt.value.trim()) return prompt.focus();
    if (prompt.value.length > MAX_PROMPT) return snug.showProblem({ code: "", message: t("The prompt has {count} characters.", { count: prompt.value.length }), remedy: t("Shorten it to {count}.", { count: MAX_PROMPT }) });
    state.starting = true;
    state.foreseeing++;
    draw();
    const answer = await call(state.server, "begin", asked());
    state.starting = false;
    if (!answer.comparison) { draw(); return refresh(); }
    take(answer.comparison);
    state.heard = Date.now();
    state.trigger("follow", {});
  }
  function mayNot() { return document.body.classList.contains("guest"); }
  async function halt() { if (mayNot()) return; stopButton.disabled = true; await call(state.server, "halt", {}); stopButton.disabled = false; }

  function add() {
    const last = state.columns.at(-1);
    if (!last || state.columns.length >= MOST) return;
    state.columns.push({ ...last, sampling: "greedy" });
    changed();
    grid.lastElementChild.querySelector("select").focus();
  }

  async function copyMarkdown(event) {
    const button = event.currentTarget, answer = await call(state.server, "markdown", {});
    if (answer.text) copy(answer.text, button);
  }
  async function save() {
    const answer = await call(state.server, "markdown", {});
    if (!answer.text) return;
    const link = el("a", { href: URL.createObjectURL(new Blob([answer.text], { type: "text/markdown" })), download: answer.name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /* What is seen */

  function draw() {
    const busy = running();
    go.hidden = busy; stopButton.hidden = !busy;
    go.disabled = state.columns.length < 2 || mayNot(); stopButton.disabled = mayNot();
    more.hidden = busy || state.columns.length >= MOST || state.columns.length < 2;
    lengths.value = String(state.tokens); lengths.disabled = turns.disabled = busy;
    tools.hidden = !state.live || Boolean(state.live.kept);
    plan.hidden = !state.models.length && !busy;
    const shown = Math.max(state.columns.length, state.live?.columns.length ?? 0);
    grid.dataset.count = String(shown);
    if (!shown) return grid.replaceChildren(el("p.nothing", {}, state.models.length ? "" : t("There is no model to compare yet.")));
    grid.replaceChildren(...Array.from({ length: shown }, (_, at) => columnCard(at, busy)));
    drawLive();
  }

  function columnCard(at, busy) {
    const column = state.columns[at];
    const refused = el("div.compare-refused", { role: "alert" });
    const card = el("section.compare-column", { "aria-label": t("Column {number}", { number: at + 1 }) },
      column ? el("div.compare-choice", {},
        el("span.compare-number", { "aria-hidden": "true" }, String(at + 1)),
        choice(at, t("Model"), column.model, state.models.map((name) => [name, name]), (value) => pickModel(at, value), busy),
        state.columns.length > 2 && !busy ? iconButton("close", t("Remove column {number}", { number: at + 1 }), () => { state.columns.splice(at, 1); changed(); }) : null,
        choice(at, t("Precision"), JSON.stringify(column.flags), wayOptions(column), (value) => { column.flags = JSON.parse(value); changed(); }, busy),
        choice(at, t("Sampling"), column.sampling, samplingOptions(), (value) => { column.sampling = value; changed(); }, busy)) : null,
      refused, el("div.compare-result", {}));
    drawRefused(refused, at);
    return card;
  }

  function choice(at, label, value, options, onPick, disabled) {
    const known = options.some(([key]) => key === value) ? options : [...options, [value, label === t("Precision") ? t("not possible here now") : value]];
    const select = el("select.compare-select", { "aria-label": t("{label} of column {number}", { label, number: at + 1 }), title: label, disabled, onchange: () => onPick(select.value) },
      ...known.map(([key, title, closed]) => el("option", { value: key, disabled: Boolean(closed) }, title)));
    select.value = value;
    return select;
  }
  async function pickModel(at, model) {
    Object.assign(state.columns[at], { model, flags: null });
    await waysOf(model);
    changed();
  }
  function wayOptions(column) {
    return (state.ways.get(column.model) ?? []).map((way) => [JSON.stringify(way.flags), !way.why ? way.title : way.possible ? t("{way}, costs {cost}", { way: way.title, cost: way.why }) : `${way.title}, ${way.why}`, !way.possible]);
  }
  function samplingOptions() {
    return [["greedy", t("Greedy: always the likeliest token")], ["mine", t("As set on the Parameters tab")], ...state.presets.map((name) => [`preset:${name}`, t("Preset {name}", { name })])];
  }

  function drawRefused(node, at) {
    const problem = running() ? null : state.refused[String(at)];
    node.replaceChildren(...(problem ? [problemCard(problem)] : []));
  }
  function problemCard(problem) {
    return el("div.problem.stacked", {}, el("p", {}, el("strong", {}, problem.message)), problem.remedy ? el("p", {}, problem.remedy) : null);
  }

  snug.onCompareLive = (view) => {
    if (!view || view.gone) return;
    state.heard = Date.now();
    take(view);
  };

  function take(view) {
    const before = state.live, wasRunning = running();
    if (before && before.id === view.id && before.finished) return;
    state.live = view;
    if (!before || before.id !== view.id || wasRunning !== running()) draw(); else drawLive();
    if (view.finished) keepLast(view);
    if (wasRunning && view.finished) { plan.textContent = view.words.join(" "); if (view.problem) snug.showProblem(view.problem); snug.pulse(); }
  }

  function keepLast(view) { if (JSON.stringify(view).length < MAX_KEPT) remember.set("compare-last", view); }

  function drawLive() {
    const view = state.live;
    phase.textContent = view && !view.finished ? view.phase : "";
    if (!view) return;
    if (!view.finished) plan.textContent = view.words.join(" ");
    view.columns.forEach((column, at) => {
      const node = grid.children[at]?.querySelector(".compare-result"), drawn = JSON.stringify(column);
      if (!node || node.drawn === drawn) return;
      node.drawn = drawn;
      node.replaceChildren(...result(column, at));
    });
  }

  /* What is above a text need not be said again. */
  function isChosen(column, at) {
    const chosen = state.columns[at], names = { greedy: "greedy", mine: "your parameters" };
    return chosen?.model === column.title && JSON.stringify(chosen.flags) === JSON.stringify(column.flags) && (names[chosen.sampling] ?? chosen.sampling.slice(7)) === column.sampling;
  }

  function result(column, at) {
    return [
      isChosen(column, at) ? null : el("div.compare-about", {}, el("strong", {}, column.title), column.about ? el("span", {}, column.about) : null),
      column.problem ? problemCard(column.problem) : null,
      column.stage === "failed" ? null : el("p.compare-stage", { role: "status" }, el(`span.stage-dot.at-${column.stage}`), column.words),
      column.fraction ? el("div.bar", { role: "progressbar", "aria-valuenow": Math.round(column.fraction * 100), "aria-label": column.words }, el("span", { style: `width:${column.fraction * 100}%` })) : null,
      column.note ? el("p.compare-note", {}, column.note) : null,
      column.facts.length ? el("dl.facts", {}, ...column.facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])) : null,
      column.pieces.length ? el("div.compare-text", { tabIndex: 0, role: "group", "aria-label": t("Text of column {number}", { number: at + 1 }) }, ...column.pieces.flatMap(piece)) : null,
    ].filter(Boolean);
  }

  /* Where texts part stands a sign with the other column's number, and the first word that differs is marked. */
  function piece({ text, others }) {
    if (!others.length) return [text];
    const [word] = text.match(/^\S*/), which = others.join(t(" and "));
    return [
      el("span.parting", { title: t("From here on it differs from column {which}", { which }) }, el("span", { "aria-hidden": "true" }, `≠${others.join(",")}`), el("span.visually-hidden", {}, ` (${t("from here on it differs from column {which}", { which })}) `)),
      el("mark.parted", {}, word), text.slice(word.length),
    ];
  }
})();
