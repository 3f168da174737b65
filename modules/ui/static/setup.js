/* The panel of one conversation (mode, character, template, exact prompt), the gauge of the context, and the model
   writing the user's next message. */
"use strict";
(() => {
  const { el, icon, iconButton, call, showProblem } = snug;
  const MODES = [
    ["instruct", "Instruct", "The model's own chat format. For tasks and questions."],
    ["chat", "Chat", "The model plays the character, turn by turn."],
    ["chat-instruct", "Chat-instruct", "The whole chat in one instruction. Often better with models made for tasks."],
  ];
  const USUAL = { manner: "instruct", character: "", persona: "", command: "", template: "", reply_start: "", thinking: "" };
  const THINKING = { off: "Off", on: "On", low: "Little", medium: "Medium", high: "Much" };
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
    panel = el("aside.setup-panel", { "aria-label": "This conversation" },
      el("header.panel-head", {}, el("h2", {}, "This conversation"), iconButton("close", "Close", snug.closeSetup)),
      parts.body = el("div.panel-body"));
    document.querySelector(".chat").append(panel);
    panel.parentElement.classList.add("with-setup");
    fill();
    panel.querySelector(".panel-head button").focus({ preventScroll: true });
  }

  function look(draft) {
    const view = snug.chatView();
    return { id: view.id, setup: view.setup, system_prompt: view.id ? "" : view.systemPrompt, draft, params: snug.params() };
  }

  function fill() {
    const view = snug.chatView(), setup = { ...view.setup, ...pending }, playing = setup.manner !== "instruct";
    const held = panel.contains(document.activeElement) ? document.activeElement.id : "";
    const select = (id, label, list, value, none, onchange) => field(id, label, el("select", { id, onchange: (event) => onchange(event.target.value) },
      el("option", { value: "", selected: !value }, none),
      ...list.map((person) => el("option", { value: person.id, selected: person.id === value }, person.name)),
      value && !list.some((person) => person.id === value) ? el("option", { value, selected: true }, `${value} (not there any more)`) : null));
    const text = (id, label, name, placeholder, rows) => field(id, label, el(rows > 1 ? "textarea" : "input", {
      id, value: setup[name], placeholder, ...(rows > 1 ? { rows } : { type: "text" }), oninput: (event) => later({ [name]: event.target.value }), onblur: flush,
    }));
    const modes = el("div.modes", { role: "radiogroup", "aria-label": "Mode" }, ...MODES.map(([name, label]) => el("button", {
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
    parts.fold = el("details.panel-fold", { open: unfolded, ontoggle: () => fillTemplate() }, el("summary", {}, "Chat template"), parts.template = el("div"));
    parts.exact = el("details.panel-fold", { open: shown, id: "snug-exact", ontoggle: () => drawPreview() }, el("summary", {}, "The exact prompt"), parts.prompt);
    parts.body.replaceChildren(
      el("div.panel-field", {}, modes, el("p.panel-help", {}, MODES.find(([name]) => name === setup.manner)[2])),
      playing ? select("setup-character", "Character", people.characters.filter((person) => !person.problem), setup.character, "Nobody", (value) => keep({ character: value })) : "",
      select("setup-persona", "You are", people.personas.filter((person) => !person.problem), setup.persona, "Yourself", (value) => keep({ persona: value })),
      parts.thinking,
      text("setup-start", "Every reply begins with", "reply_start", "Nothing", 1),
      setup.manner === "chat-instruct" ? text("setup-command", "Instruction", "command", 'Continue the chat dialogue below. Write a single reply for the character "<|character|>".\n\n<|prompt|>', 4) : "",
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
    thinking.replaceChildren(...(answer.efforts.length ? [field("setup-thinking", "Thinking", el("select", { id: "setup-thinking", onchange: (event) => keep({ thinking: event.target.value }) },
      el("option", { value: "", selected: !chosen }, "As the model likes"), ...answer.efforts.map((name) => el("option", { value: name, selected: name === chosen }, THINKING[name]))))] : []));
    if (!parts.fold.open || slot.contains(document.activeElement)) return;
    const area = el("textarea.mono", { id: "setup-template", rows: 10, spellcheck: false, value: view.setup.template || answer.own, "aria-label": "Chat template", placeholder: "This model has no chat template." });
    const use = async () => {
      const given = area.value.trim() && area.value !== answer.own ? area.value : "";
      if (await keep({ template: given }, slot)) fill();
    };
    slot.replaceChildren(
      el("p.panel-help", {}, view.setup.template ? "This conversation has a template of its own." : "Chosen by the model. A change counts for this conversation alone and runs in a sandbox."),
      area, el("div.editor-buttons", {},
        view.setup.template ? el("button.plain-button", { onclick: async () => { if (await keep({ template: "" }, slot)) fill(); } }, "The model's own") : null,
        el("button.primary-button", { id: "setup-template-use", onclick: use }, "Use")));
  }

  async function drawPreview() {
    if (!parts.exact.open) return;
    const of = parts.prompt, answer = await call(server, "preview", look(snug.chatView().draft));
    if (of !== parts.prompt) return;
    if (answer.problem) return;
    if (answer.refused) return of.replaceChildren(problemCard(answer.refused));
    const dropped = answer.dropped ? ` · ${answer.dropped} oldest left out` : "";
    of.replaceChildren(el("p.panel-help", {}, `${answer.tokens.toLocaleString()} tokens${answer.context ? ` of ${answer.context.toLocaleString()}` : ""}${dropped}${answer.notice ? ` · ${answer.notice}` : ""}`),
      el("pre.exact-text", { tabIndex: 0, "aria-label": "The exact prompt" }, answer.text));
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
  async function keep(change, slot = null, redraw = true) {
    const view = snug.chatView(), setup = { ...view.setup, ...pending, ...change };
    pending = {};
    if (view.id) {
      let answer = null;
      try { answer = await server.set_setup({ id: view.id, setup }); } catch { /* told below */ }
      if (!answer || answer.problem) {
        const problem = answer?.problem ?? { code: "offline", message: "Snug does not answer.", remedy: "Is the server still running?" };
        if (slot) { slot.querySelector(".problem")?.remove(); slot.prepend(problemCard(problem)); } else showProblem(problem);
        return false;
      }
      snug.setSetup(view.id, setup, answer.revision);
    } else snug.setSetup(null, setup);
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
    const told = `${seen.tokens.toLocaleString()} of ${seen.context.toLocaleString()} tokens`;
    bar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    bar.setAttribute("aria-valuetext", told);
    bar.title = `${told}; ${seen.reply.toLocaleString()} stay free for the reply`;
    const one = seen.dropped === 1;
    text.textContent = seen.dropped ? `${told} · the ${one ? "oldest message" : `${seen.dropped} oldest messages`} will be left out` : told;
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
