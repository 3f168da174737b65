/* The panel of one conversation (mode, character, template, exact prompt), the gauge of the context, and the model
   writing the user's next message. */
"use strict";
(() => {
  const { el, icon, iconButton, call, showProblem, t, tn } = snug;
  const MODES = [
    ["instruct", t("Instruct"), t("The model's own chat format. For tasks and questions.")],
    ["chat", t("Chat"), t("The model plays the character, turn by turn.")],
    ["chat-instruct", t("Chat-instruct"), t("The whole chat in one instruction. Often better with models made for tasks.")],
  ];
  const USUAL = { manner: "instruct", character: "", persona: "", command: "", template: "", reply_start: "", thinking: "" };
  const THINKING = { off: t("Off"), on: t("On"), low: t("Little"), medium: t("Medium"), high: t("Much") };
  const GAUGE_WAIT_MS = 350, SAVE_WAIT_MS = 600;
  let server = null, trigger = null, people = { characters: [], personas: [] };
  let panel = null, parts = {}, saving = null, measuring = null, measured = 0, leftOut = new Set(), writing = null;

  snug.mountSetup = (element, doors, start) => {
    [server, trigger] = [doors, start];
    element.classList.add("mounted");
    snug.loadPeople();
    snug.measure(0);
  };
  snug.usualSetup = () => ({ ...USUAL });
  snug.loadPeople = async () => {
    if (!server) return;
    const answer = await call(server, "people");
    if (answer.characters) snug.takePeople(answer);
  };
  snug.takePeople = (answer) => {
    people = { characters: answer.characters, personas: answer.personas };
    snug.redrawChat?.();
    if (panel) fill();
  };
  /* For extensions: who is there, and a conversation with one of them. */
  snug.characters = () => people.characters.filter((person) => !person.problem);
  snug.talkTo = async (id) => {
    const mine = snug.remember.get("persona", ""), persona = people.personas.some((one) => one.id === mine) ? mine : "";
    const answer = await call(server, "talk", { id, persona });
    if (!answer.conversation) return;
    snug.openConversation(answer.conversation);
    snug.refreshConversations();
  };
  const named = (list, id) => people[list].find((person) => person.id === id) ?? null;
  snug.castOf = (setup) => ({
    character: setup.manner !== "instruct" && setup.character ? named("characters", setup.character) ?? { id: setup.character, name: setup.character, picture: "" } : null,
    persona: setup.persona ? named("personas", setup.persona) : null,
  });

  /* A person's picture, or the first letter of the name. */
  snug.avatar = (person) => {
    const letter = [...person.name].find((sign) => /\p{L}|\p{N}/u.test(sign)) ?? "?";
    return el("span.avatar", { "aria-hidden": "true" }, person.picture ? el("img", { src: person.picture, alt: "", loading: "lazy" }) : letter.toUpperCase());
  };

  /* The panel */

  snug.toggleSetup = () => { if (panel) snug.closeSetup(); else openPanel(); };
  snug.closeSetup = () => {
    if (!panel) return false;
    flush();
    panel.parentElement.classList.remove("with-setup");
    panel.remove();
    panel = null;
    document.getElementById("snug-setup")?.focus({ preventScroll: true });
    return true;
  };
  snug.setupShown = () => { if (panel) fill(); };

  function openPanel() {
    panel = el("aside.setup-panel", { "aria-label": t("This conversation") },
      el("header.panel-head", {}, el("h2", {}, t("This conversation")), iconButton("close", t("Close"), snug.closeSetup)),
      parts.body = el("div.panel-body"));
    document.querySelector(".chat").append(panel);
    panel.parentElement.classList.add("with-setup");
    fill();
    panel.querySelector(".panel-head button").focus({ preventScroll: true });
  }

  function look(draft) {
    const view = snug.chatView();
    return { id: view.id, setup: view.setup, system_prompt: view.id ? "" : view.systemPrompt, draft, attachments: snug.tray.ids(), params: snug.params() };
  }

  function fill() {
    const view = snug.chatView(), setup = setupOf(view), playing = setup.manner !== "instruct";
    const held = panel.contains(document.activeElement) ? document.activeElement.id : "";
    const select = (id, label, list, value, none, onchange) => field(id, label, el("select", { id, onchange: (event) => onchange(event.target.value) },
      el("option", { value: "", selected: !value }, none),
      ...list.map((person) => el("option", { value: person.id, selected: person.id === value }, person.name)),
      value && !list.some((person) => person.id === value) ? el("option", { value, selected: true }, t("{name} (not there any more)", { name: value })) : null));
    const text = (id, label, name, placeholder, rows) => field(id, label, el(rows > 1 ? "textarea" : "input", {
      id, value: setup[name], placeholder, ...(rows > 1 ? { rows } : { type: "text" }), oninput: (event) => later({ [name]: event.target.value }), onblur: flush,
    }));
    const modes = el("div.modes", { role: "radiogroup", "aria-label": t("Mode") }, ...MODES.map(([name, label]) => el("button", {
      role: "radio", "aria-checked": String(setup.manner === name), "data-manner": name,
      onclick: () => keep({ manner: name, character: name === "instruct" ? setup.character : setup.character || people.characters[0]?.id || "" }),
    }, label)));
    modes.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const at = MODES.findIndex(([name]) => name === setup.manner);
      panel.querySelector(`[data-manner="${MODES[(at + step + MODES.length) % MODES.length][0]}"]`).click();
      requestAnimationFrame(() => panel?.querySelector('[role="radio"][aria-checked="true"]')?.focus());
    });
    parts.problem = el("div.problem-slot");
    parts.thinking = el("div");
    parts.prompt = el("div.exact");
    const unfolded = Boolean(parts.fold?.open), shown = Boolean(parts.exact?.open);
    parts.fold = el("details.panel-fold", { open: unfolded, ontoggle: () => fillTemplate() }, el("summary", {}, t("Chat template")), parts.template = el("div"));
    parts.exact = el("details.panel-fold", { open: shown, id: "snug-exact", ontoggle: () => drawPreview() }, el("summary", {}, t("The exact prompt")), parts.prompt);
    parts.body.replaceChildren(
      el("div.panel-field", {}, modes, el("p.panel-help", {}, MODES.find(([name]) => name === setup.manner)[2])),
      playing ? select("setup-character", t("Character"), people.characters.filter((person) => !person.problem), setup.character, t("Nobody"), (value) => keep({ character: value })) : "",
      select("setup-persona", t("You are"), people.personas.filter((person) => !person.problem), setup.persona, t("Yourself"), (value) => keep({ persona: value })),
      parts.thinking,
      text("setup-start", t("Every reply begins with"), "reply_start", t("Nothing"), 1),
      setup.manner === "chat-instruct" ? text("setup-command", t("Instruction"), "command", 'Continue the chat dialogue below. Write a single reply for the character "<|character|>".\n\n<|prompt|>', 4) : "",
      parts.problem, parts.fold, parts.exact);
    if (held) document.getElementById(held)?.focus({ preventScroll: true });
    fillTemplate();
    drawPreview();
  }
  function field(id, label, control) { return el("div.panel-field", {}, el("label", { htmlFor: id }, label), control); }

  async function fillTemplate() {
    const of = panel, slot = parts.template, thinking = parts.thinking, view = snug.chatView();
    const answer = await call(server, "template", look(""));
    if (!panel || of !== panel || slot !== parts.template || answer.own === undefined) return;
    const chosen = view.setup.thinking;
    thinking.replaceChildren(...(answer.efforts.length ? [field("setup-thinking", t("Thinking"), el("select", { id: "setup-thinking", onchange: (event) => keep({ thinking: event.target.value }) },
      el("option", { value: "", selected: !chosen }, t("As the model likes")), ...answer.efforts.map((name) => el("option", { value: name, selected: name === chosen }, THINKING[name]))))] : []));
    if (!parts.fold.open || slot.contains(document.activeElement)) return;
    const area = el("textarea.mono", { id: "setup-template", rows: 10, spellcheck: false, value: view.setup.template || answer.own, "aria-label": t("Chat template"), placeholder: t("This model has no chat template.") });
    const use = async () => {
      const given = area.value.trim() && area.value !== answer.own ? area.value : "";
      if (await keep({ template: given }, slot)) fill();
    };
    slot.replaceChildren(
      el("p.panel-help", {}, view.setup.template ? t("This conversation has a template of its own.") : t("Chosen by the model. A change counts for this conversation alone and runs in a sandbox.")),
      area, el("div.editor-buttons", {},
        view.setup.template ? el("button.plain-button", { onclick: async () => { if (await keep({ template: "" }, slot)) fill(); } }, t("The model's own")) : null,
        el("button.primary-button", { id: "setup-template-use", onclick: use }, t("Use"))));
  }

  async function drawPreview() {
    if (!parts.exact.open) return;
    const of = parts.prompt, answer = await call(server, "preview", look(snug.chatView().draft));
    if (of !== parts.prompt) return;
    if (answer.problem) return;
    if (answer.refused) return of.replaceChildren(problemCard(answer.refused));
    const told = [answer.context ? t("{count} of {context} tokens", { count: answer.tokens, context: answer.context }) : tn("{count} token", "{count} tokens", answer.tokens),
      answer.dropped ? tn("{count} oldest left out", "{count} oldest left out", answer.dropped) : "", answer.notice];
    of.replaceChildren(el("p.panel-help", {}, told.filter(Boolean).join(" · ")),
      el("pre.exact-text", { tabIndex: 0, "aria-label": t("The exact prompt") }, answer.text));
  }
  function problemCard(problem) { return el("div.problem", { role: "alert" }, icon("alert"), el("p", {}, `${problem.message} ${problem.remedy}`)); }

  /* Texts are kept when typing pauses, choices at once. */
  let pending = {};
  function later(change) {
    Object.assign(pending, change);
    clearTimeout(saving);
    saving = setTimeout(flush, SAVE_WAIT_MS);
  }
  function flush() {
    clearTimeout(saving);
    if (!Object.keys(pending).length) return;
    const change = pending;
    pending = {};
    keep(change, null, false);
  }
  snug.flushSetup = flush;
  /* Changes are sent one after the other, each on what the one before it left: a slow link loses none. */
  let line = Promise.resolve(), kept = null;
  const underway = [];
  const setupOf = (view) => Object.assign({ ...view.setup }, ...underway.filter(({ id }) => id === view.id).map(({ change }) => change), pending);
  function keep(change, slot = null, redraw = true) {
    const view = snug.chatView(), whole = { ...pending, ...change };
    pending = {};
    if (!view.id) {
      snug.setSetup(null, { ...view.setup, ...whole });
      return Promise.resolve(settled(redraw));
    }
    const entry = { id: view.id, change: whole, before: view.setup };
    underway.push(entry);
    line = line.then(() => send(entry, slot)).then((done) => done && settled(redraw));
    return line;
  }
  async function send(entry, slot) {
    const { id, change, before } = entry, view = snug.chatView();
    const setup = { ...(view.id === id ? view.setup : kept?.id === id ? kept.setup : before), ...change };
    let answer = null;
    try { answer = await server.set_setup({ id, setup }); } catch { /* told below */ }
    underway.splice(underway.indexOf(entry), 1);
    if (!answer || answer.problem) {
      const problem = answer?.problem ?? { code: "offline", message: t("Snug does not answer."), remedy: t("Is the server still running?") };
      if (slot) { slot.querySelector(".problem")?.remove(); slot.prepend(problemCard(problem)); } else showProblem(problem);
      return false;
    }
    kept = { id, setup };
    snug.setSetup(id, setup, answer.revision);
    return true;
  }
  function settled(redraw) {
    if (panel && redraw) fill(); else if (panel) drawPreview();
    snug.measure(0);
    return true;
  }

  /* The gauge: asked for when typing pauses, never while a reply is written. */

  snug.measure = (wait = GAUGE_WAIT_MS) => {
    clearTimeout(measuring);
    measuring = setTimeout(gauge, wait);
  };
  async function gauge() {
    const view = snug.chatView?.();
    if (!server || !view || view.running || document.hidden || snug.currentTab() !== "Chat" || !snug.model?.().answering) return;
    const turn = ++measured;
    let answer = null;
    try { answer = await server.gauge(look(view.draft)); } catch { return; }
    if (turn !== measured || snug.chatView().id !== view.id || !answer || answer.problem) return;
    leftOut = new Set(answer.left_out ?? []);
    snug.markLeftOut();
    drawGauge(answer.gauge);
    snug.tray.measured(answer.files);
    if (panel) drawPreview();
  }
  function drawGauge(seen) {
    const bar = document.getElementById("snug-gauge"), text = document.getElementById("snug-gauge-text");
    if (!bar) return;
    bar.hidden = !seen;
    text.textContent = "";
    if (!seen) return;
    const room = seen.context - seen.reply, share = Math.min(1, seen.tokens / room);
    bar.firstChild.style.width = `${100 * share}%`;
    bar.classList.toggle("full", seen.tokens > room);
    const told = t("{count} of {context} tokens", { count: seen.tokens, context: seen.context });
    bar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    bar.setAttribute("aria-valuetext", told);
    bar.title = t("{told}; {count} stay free for the reply", { told, count: seen.reply });
    text.textContent = seen.dropped ? tn("{told} · the oldest message will be left out", "{told} · the {count} oldest messages will be left out", seen.dropped, { told }) : told;
    text.classList.toggle("full", seen.dropped > 0);
  }
  snug.markLeftOut = () => document.querySelectorAll(".messages > .message").forEach((node) => node.classList.toggle("left-out", leftOut.has(node.dataset.id)));

  /* The model writes the user's next message */

  snug.writing = () => writing;
  snug.impersonate = async () => {
    const view = snug.chatView();
    if (!view.id || view.running || writing) return;
    const answer = await call(server, "impersonate", { id: view.id, parent: view.head, text: view.draft, params: snug.params() });
    if (!answer.writing) return;
    writing = { conversation: view.id, id: answer.writing };
    trigger("follow", { id: view.id });
    snug.redrawComposer();
  };
  snug.stopWriting = () => { if (writing) call(server, "stop_impersonation", { id: writing.conversation }); };
  snug.onImpersonation = (view) => {
    if (!view || !writing || view.conversation !== writing.conversation) return;
    if (!view.gone && snug.chatView().id === view.conversation && !snug.chatView().wanted) snug.setDraft(view.text);
    if (view.problem) showProblem(view.problem);
    if (view.done || view.gone) { writing = null; snug.redrawComposer(); }
  };
})();
