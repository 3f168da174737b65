/* The Chat tab: messages, the running reply, the composer. The server owns the history; this shows it. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, toast, showProblem, copy, newId, selectTab, t } = snug;
  const SUGGESTIONS = [
    [t("Explain something"), t("Explain how a rainbow comes about, in three short paragraphs.")],
    [t("Write with me"), t("Write a short, friendly note to a neighbour who watered my plants.")],
    [t("Think it through"), t("What should I consider before I adopt a dog? List the five most important points.")],
    [t("Some code"), t("Write a Python function that counts the words in a text, with an example.")],
  ];
  const LOST_AFTER_MS = 2500, LONG_TEXT = 20000;
  const state = { server: null, trigger: null, id: null, head: null, messages: [], running: null, sending: false, opId: null, top: null, earlier: 0, later: 0, editing: null, systemPrompt: "", lastBeat: 0, opening: 0, wanted: null, eager: false, revision: null, atEnd: true, incognito: false, setup: snug.usualSetup?.() ?? {} };
  const unsaved = new Map();  // by message, edits that were begun
  let scroller, column, secretLine, above, below, list, input, sendButton, stopButton, jump, prompt, empty, live, notice;

  snug.mountChat = (element, server, trigger) => {
    Object.assign(state, { server, trigger });
    element.replaceChildren(build());
    new ResizeObserver(() => requestAnimationFrame(onResize)).observe(scroller);
    const wanted = new URLSearchParams(location.search).get("c");
    if (wanted) open(wanted, { replace: true }); else openNew({ replace: true });
    window.addEventListener("popstate", () => {
      const id = new URLSearchParams(location.search).get("c");
      if (id) open(id, { keepUrl: true }); else openNew({ keepUrl: true });
    });
  };
  snug.conversationId = () => state.id;
  snug.openConversation = (id, options = {}) => {
    if (!list) return setUrl(id, true);  // the tab has not been opened yet; it reads the address when it is
    if (id) open(id, options); else openNew(options);
  };
  snug.retitle = (id, title) => { if (id === state.id) document.title = `${title} · Snug`; };
  snug.stopReply = () => {
    const busy = Boolean(state.running || snug.writing?.());
    if (busy) stop();
    return busy;
  };

  function build() {
    list = el("div.messages");
    above = el("div.earlier", { hidden: true }, el("button.text-button", { id: "snug-earlier", onclick: showEarlier }));
    below = el("div.earlier", { hidden: true }, el("button.text-button", { id: "snug-later", onclick: showLater }));
    prompt = el("div.system-prompt");
    empty = el("div.empty-chat");
    notice = el("div.thread-notice", { role: "status" });
    secretLine = el("div.incognito-slot");
    column = el("div.column", {}, secretLine, prompt, empty, above, list, below, notice);
    scroller = el("div.scroller", { id: "snug-scroller", onscroll: onScroll }, column);
    jump = iconButton("down", t("Jump to the latest message"), jumpToEnd, ".jump");
    live = el("div.visually-hidden", { "aria-live": "polite" });
    input = el("textarea", {
      id: "snug-input", rows: 1, placeholder: t("Write a message"), "aria-label": t("Message"),
      oninput: onInput, onkeydown: onKey,
    });
    sendButton = el("button.send", { id: "snug-send", title: t("Send (Enter)"), "aria-label": t("Send"), onclick: send }, icon("send"));
    stopButton = el("button.send.stop", { id: "snug-stop", title: t("Stop (Esc)"), "aria-label": t("Stop"), onclick: stop }, icon("stop"));
    list.addEventListener("click", onListClick);
    const { strip, zone, controls } = snug.tray.mount(state.server, onTray, () => { state.held = null; });
    return el("section.chat", {},
      scroller,
      el("div.dock", {}, jump, snug.unkept(),
        el("div.gauge", { id: "snug-gauge", role: "meter", "aria-label": t("Context in use"), "aria-valuemin": "0", "aria-valuemax": "100", hidden: true }, el("i")),
        el("div.composer", { onclick: (event) => { if (event.target.classList.contains("composer")) input.focus(); } }, strip, ...controls, input, sendButton, stopButton),
        el("p.hint", {}, el("span.keys", {}, t("Enter sends · Shift+Enter new line · Esc stops · ? all keys")), el("span.gauge-text", { id: "snug-gauge-text" }))),
      zone, live);
  }

  /* Opening */

  function setUrl(id, replace) {
    const url = new URL(location.href);
    if (id) url.searchParams.set("c", id); else url.searchParams.delete("c");
    if (url.href !== location.href) history[replace ? "replaceState" : "pushState"](null, "", url);
  }

  function leave() {
    snug.flushSetup?.();  // what was typed belongs to the conversation that is left
    window.CSS?.highlights?.delete("snug-found");
    if (state.first) state.first.files = snug.tray.locals();  // they belong to the chat whose first message is on its way
    Object.assign(state, { first: null, editing: null, opening: state.opening + 1, running: null, sending: false, opId: null, top: null, earlier: 0, later: 0, wanted: null, eager: false, held: null });
  }

  function openNew({ replace = false, keepUrl = false, incognito = false } = {}) {
    leave();
    Object.assign(state, { id: null, head: null, messages: [], incognito, systemPrompt: incognito ? "" : remember.get("newSystemPrompt", ""), setup: snug.usualSetup() });
    if (!keepUrl) setUrl(null, replace);
    list.replaceChildren();
    drawAll();
    restoreDraft();
    snug.setupShown?.();
    snug.measure?.(0);
    snug.markConversation?.(null);
    if (window.innerWidth > 800) input.focus({ preventScroll: true });
  }

  async function open(id, { replace = false, keepUrl = false, message = null, words = "" } = {}) {
    leave();
    state.wanted = id;  // what is written from now on belongs there
    restoreDraft();
    const turn = state.opening;
    const answer = await call(state.server, "open", { id, message });
    if (turn !== state.opening) return;
    state.wanted = null;
    if (!answer.conversation) return openNew({ replace: true });
    list.replaceChildren();
    state.id = null;
    showThread(answer);
    if (!keepUrl) setUrl(id, replace);
    if (message) showFound(message, words); else toEnd(false);
    if (window.innerWidth > 800) input.focus({ preventScroll: true });
    if (state.eager && !state.running) send();
    state.eager = false;
  }

  /* A message that a search found, in the middle of the page; the heights above it are estimates until they are seen. */
  function showFound(id, words) {
    const node = list.querySelector(`[data-id="${CSS.escape(id)}"]`);
    if (!node) return toEnd(false);
    const message = state.messages.find((item) => item.id === id);
    if (message?.role === "user") putText(node.querySelector(".body"), message.text, true);
    const there = (again) => {
      state.atEnd = false;
      node.scrollIntoView({ block: node.offsetHeight > scroller.clientHeight ? "start" : "center", behavior: "instant" });
      marked(node, words)?.startContainer.parentElement.scrollIntoView({ block: "center", behavior: "instant" });
      if (again) requestAnimationFrame(() => there(again - 1));
    };
    there(3);
    node.classList.add("found");
    setTimeout(() => node.classList.remove("found"), 2500);
  }

  /* Underlines the words where the browser can; the place of the first. */
  function marked(node, words) {
    if (!words || !window.Highlight) return null;
    const ranges = [], walker = document.createTreeWalker(node.querySelector(".body") ?? node, NodeFilter.SHOW_TEXT), wanted = words.toLowerCase();
    while (walker.nextNode()) {
      const text = walker.currentNode.data, lower = text.toLowerCase();
      if (lower.length !== text.length) continue;
      for (let at = lower.indexOf(wanted); at >= 0 && ranges.length < 200; at = lower.indexOf(wanted, at + wanted.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + wanted.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("snug-found", new Highlight(...ranges));
    return ranges[0];
  }

  /* Takes a thread as the server tells it; nodes of unchanged messages stay. */
  function showThread(thread) {
    state.id = thread.conversation.id;
    state.head = thread.head;
    state.revision = thread.revision;
    state.messages = thread.messages;
    state.earlier = thread.earlier;
    state.later = thread.later;
    state.top = thread.messages[0]?.id ?? null;
    state.systemPrompt = thread.conversation.system_prompt;
    state.setup = thread.conversation.setup;
    state.incognito = thread.conversation.incognito;
    if (state.incognito) snug.rememberIncognito(state.id);
    document.title = `${thread.conversation.title} · Snug`;
    drawAll();
    snug.markConversation?.(state.id);
    if (thread.running) follow(thread.running); else state.running = null;
    drawComposer();
    snug.setupShown?.();
    snug.measure?.(0);
  }

  /* For setup.js */
  snug.chatView = () => ({ id: state.id, head: state.head, setup: state.setup, systemPrompt: state.systemPrompt, draft: input?.value ?? "", running: Boolean(state.running), wanted: state.wanted });
  snug.setSetup = (id, setup, revision = null) => {
    if (id !== state.id) return;
    state.setup = setup;
    if (revision) state.revision = revision;
    drawAll();
  };
  snug.chatEndShown = () => !state.later;
  snug.redrawChat = () => { if (list) drawAll(); };
  snug.redrawComposer = () => drawComposer();
  snug.setDraft = (text) => { input.value = text; onInput(); };

  function follow(messageId) {
    state.running = messageId;
    state.lastBeat = Date.now();
    state.trigger("follow", { id: state.id });
    drawComposer();
  }

  /* Drawing */

  function drawAll() {
    if (!state.id) document.title = "Snug";
    drawIncognito();
    if (!prompt.querySelector("textarea") || prompt.of !== state.id) drawPrompt();
    input.placeholder = cast().character ? t("Write to {name}", { name: cast().character.name }) : t("Write a message");
    drawEmpty();
    drawEarlier();
    drawMessages();
    drawComposer();
  }

  function drawIncognito() {
    scroller.parentElement.classList.toggle("incognito", state.incognito);
    const of = state.incognito && (state.id ?? "new");
    if (secretLine.of === of) return;
    secretLine.of = of;
    secretLine.replaceChildren(...(state.incognito ? [el("div.incognito-line", { role: "status" }, icon("mask"),
      el("span", {}, t("Incognito: kept in memory only, gone when it ends")),
      state.id ? el("button.text-button", { onclick: () => snug.endIncognito(state.id) }, t("End")) : null)] : []));
  }

  function drawMessages() {
    const known = new Map([...list.children].map((node) => [node.dataset.id, node]));
    const last = state.messages.length - 1;
    if (!state.messages.some((message) => message.id === state.editing)) state.editing = null;
    state.messages.forEach((message, index) => {
      const editing = state.editing === message.id;
      const isLast = index === last && !state.later;
      const key = editing ? "editing" : JSON.stringify([message, isLast, needsModel(message), index === 0 && !state.earlier, message.role === "assistant" && cast().character]);
      let node = known.get(message.id);
      known.delete(message.id);
      if (!node || node.key !== key) {
        const fresh = drawMessage(message, isLast, index === 0 && !state.earlier);
        fresh.key = key;
        if (node?.querySelector(":scope > .thought")?.open) fresh.querySelector(":scope > .thought")?.setAttribute("open", "");
        if (node) node.replaceWith(fresh);
        node = fresh;
      }
      if (list.children[index] !== node) list.insertBefore(node, list.children[index] ?? null);
    });
    known.forEach((node) => node.remove());
    snug.markLeftOut?.();
  }

  /* Of a long conversation the page gets the end, or what is near a message that was searched for; the rest by portions,
     when someone goes there. */
  const PORTION = 100;
  function drawEarlier() {
    above.hidden = !state.earlier;
    above.firstChild.textContent = t("Show {count} of {all} earlier messages", { count: Math.min(PORTION, state.earlier), all: state.earlier });
    below.hidden = !state.later;
    below.firstChild.textContent = t("Show {count} of {all} later messages", { count: Math.min(PORTION, state.later), all: state.later });
  }
  async function showEarlier() {
    const first = list.firstElementChild, before = first?.getBoundingClientRect().top;
    if (await showMore({ above: PORTION })) scroller.scrollBy({ top: first.getBoundingClientRect().top - before, behavior: "instant" });
  }
  function showLater() { return showMore({ below: PORTION }); }
  async function showMore(more) {
    if (state.fetching || !(more.above ? state.earlier : state.later)) return false;
    state.fetching = true;
    const turn = state.opening, answer = await ask("open", { id: state.id, ...more });
    state.fetching = false;
    if (turn !== state.opening || !answer.conversation) return false;
    showThread(answer);
    return true;
  }
  async function jumpToEnd() {
    if (!state.later) return toEnd(true);
    const turn = state.opening, answer = await call(state.server, "open", { id: state.id });
    if (turn !== state.opening || !answer.conversation) return;
    showThread(answer);
    toEnd(false);
  }

  /* A request about the conversation on show: the answer holds it from the first message that the page has to the last;
     what happens at its end shows its end. */
  function ask(name, body) {
    const shown = ["send", "delete_last"].includes(name) ? { top: state.later ? null : state.top } : { top: state.top, bottom: state.later ? state.messages.at(-1).id : null };
    return call(state.server, name, { ...body, ...shown });
  }

  function cast() { return snug.castOf?.(state.setup) ?? { character: null, persona: null }; }

  function drawMessage(message, isLast, isFirst) {
    const who = message.role === "assistant" ? cast().character : null;
    const node = el(`article.message.${message.role}`, { "data-id": message.id, "aria-label": message.role === "user" ? cast().persona?.name ?? t("You") : who?.name ?? t("Reply") });
    if (who) node.append(el("header.speaker", {}, snug.avatar(who), el("strong", {}, who.name)));
    if (message.status === "streaming") node.classList.add("streaming");
    if (state.editing === message.id) { node.append(editor(message)); return node; }
    const body = el("div.body");
    if (message.role === "user") putText(body, message.text);
    else { body.classList.add("markdown"); body.innerHTML = message.html; }
    node.append(snug.fileChips(message.files) ?? "");
    body.hidden = message.role === "user" && !message.text && message.files.length > 0;
    if (message.thought) node.append(thoughtFold(message.thought));
    node.append(body, told(message.told));
    if (message.status === "streaming") node.append(el("div.waiting", {}, el("span.dots", {}, el("i"), el("i"), el("i")), el("span.waiting-text")));
    else node.append(modifiedFold(message.modified), problemCard(message, isLast), footer(message, isLast, isFirst));
    if (message.status !== "streaming") document.dispatchEvent(new CustomEvent("snug:message", { detail: { node, role: message.role, text: message.answer ?? message.text } }));
    return node;
  }

  /* The other text of a message that extensions have changed. */
  function modifiedFold(modified) {
    return modified ? el("details.modified", {}, el("summary", {}, modified.line), el("div", {}, modified.text)) : "";
  }
  snug.redrawMessages = () => { if (list) { list.replaceChildren(); drawMessages(); } };
  /* The beginning of a text of many pages, with a button for the rest; a search finds its words in all of it. */
  function putText(body, text, whole = text.length <= LONG_TEXT) {
    body.textContent = whole ? text : text.slice(0, LONG_TEXT / 4);
    if (!whole) body.append("… ", el("button.text-button", { onclick: () => putText(body, text, true) }, t("Show all {count} characters", { count: text.length })));
  }

  /* What was thought before the answer: closed, and left as the reader has it while it grows. */
  function thoughtFold(thought) {
    return el(`details.thought${thought.thinking ? ".thinking" : ""}`, {}, el("summary", {}, el("span.thought-line", {}, thought.line)), el("div.thought-text", {}, thought.text));
  }
  function drawThought(node, thought) {
    const fold = node.querySelector(":scope > .thought");
    if (!thought) return fold?.remove();
    if (!fold) return node.querySelector(":scope > .body").before(thoughtFold(thought));
    fold.classList.toggle("thinking", thought.thinking);
    fold.querySelector(".thought-line").textContent = thought.line;
    fold.querySelector(".thought-text").textContent = thought.text;
  }

  /* What the engine had to give up for this reply. */
  function told(sentences) {
    return el("div.told", { role: "status" }, ...(sentences ?? []).map((sentence) => el("p", {}, icon("alert"), el("span", {}, sentence))));
  }

  function broken(message) { return message.status === "error" || message.status === "interrupted"; }
  function needsModel(message) { return broken(message) && !snug.model().answering; }

  function problemCard(message, isLast) {
    const slot = el("div.problem-slot");
    if (!broken(message)) return slot;
    const text = message.error || t("This reply was cut off when Snug stopped. What had been written is kept.");
    slot.append(el("div.problem", { role: "alert" }, icon("alert"), el("p", {}, text),
      isLast ? el("div.problem-buttons", {},
        message.text ? el("button.text-button", { "data-act": "continue" }, t("Continue")) : null,
        needsModel(message) ? el("button.text-button", { onclick: () => selectTab("Model") }, t("Open Model")) : null,
        el("button.text-button", { "data-act": "regenerate" }, t("Retry"))) : null));
    return slot;
  }

  function footer(message, isLast, isFirst) {
    const act = (glyph, label, name) => { const button = iconButton(glyph, label, null); button.dataset.act = name; return button; };
    const buttons = [act("copy", t("Copy"), "copy"), act("edit", t("Edit"), "edit")];
    if (message.role === "assistant" && !isFirst) buttons.push(act("retry", t("Regenerate"), "regenerate"));
    if (message.role === "assistant" && isLast && !isFirst) buttons.push(act("forward", t("Continue"), "continue"));
    if (message.role === "assistant" && isLast) buttons.push(act("person", t("Write my next message"), "impersonate"));
    if (message.role === "user" && isLast) buttons.push(act("retry", t("Get a reply"), "regenerate"));
    buttons.push(act("branch", t("Branch off into a new conversation"), "branch"));
    buttons.push(isLast ? act("trash", t("Delete last exchange"), "delete") : act("trash", t("Delete this and what follows"), "cut"));
    const stats = [message.status === "stopped" ? t("stopped") : "", message.stats].filter(Boolean).join(" · ");
    return el("footer.message-foot", {}, message.role === "assistant" && stats ? el("span.stats", {}, stats) : null, versions(message), el("div.actions", {}, ...buttons));
  }

  function versions(message) {
    const all = message.versions, at = all.indexOf(message.id);
    if (all.length < 2 || at < 0) return null;
    const turn = (step, label, name) => {
      const button = iconButton("chevron", label, () => showVersion(all[at + step]), name);
      button.disabled = !all[at + step];
      return button;
    };
    return el("span.versions", {}, turn(-1, t("Earlier version"), ".back"), `${at + 1}/${all.length}`, turn(1, t("Later version"), ""));
  }

  async function showVersion(message) {
    if (state.running) return;
    const answer = await ask("show_version", { id: state.id, message });
    if (answer.conversation) showThread(answer);
  }

  /* The arrow keys: other versions of the last reply, while it is in sight. */
  snug.turnVersion = (step) => {
    const message = state.messages.at(-1), node = list?.lastElementChild;
    if (!message || state.later || message.role !== "assistant" || state.running || state.editing || message.versions.length < 2) return false;
    const place = node.getBoundingClientRect(), seen = scroller.getBoundingClientRect();
    if (place.bottom < seen.top || place.top > seen.bottom) return false;
    const next = message.versions[message.versions.indexOf(message.id) + step];
    if (next) showVersion(next);
    return true;
  };

  function editor(message) {
    const area = el("textarea.edit-area", { value: unsaved.get(message.id) ?? message.text, "aria-label": t("Edit the message") });
    const size = () => { area.style.height = "auto"; area.style.height = `${Math.min(area.scrollHeight + 2, window.innerHeight * 0.6)}px`; };
    const close = () => { unsaved.delete(message.id); if (state.editing === message.id) state.editing = null; };
    const cancel = () => { close(); drawMessages(); };
    const save = async () => {
      if (area.value === message.text) return cancel();
      const turn = state.opening;
      area.readOnly = true;
      const answer = await ask("edit", { id: state.id, message: message.id, text: area.value });
      area.readOnly = false;
      if (!answer.conversation) return;
      close();
      if (turn === state.opening) showThread(answer);
    };
    area.addEventListener("input", () => { unsaved.set(message.id, area.value); size(); });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
      if (snug.isKey("save", event)) save();
    });
    setTimeout(() => { size(); area.focus({ preventScroll: true }); });
    return el("div.editor", {}, area, el("div.editor-buttons", {},
      el("button.plain-button", { onclick: cancel }, t("Cancel")), el("button.primary-button", { onclick: save }, t("Save"))));
  }

  function drawPrompt(editing = false) {
    const visible = state.id || state.systemPrompt || editing;
    prompt.classList.toggle("bare", !visible);
    const { character } = cast();
    const settings = el("button.prompt-chip", { id: "snug-setup", "aria-haspopup": "dialog", onclick: snug.toggleSetup, title: t("Mode, character, template, exact prompt") },
      character ? snug.avatar(character) : icon("tune"), el("span", {}, character ? character.name : t("Setup")));
    settings.classList.toggle("set", Boolean(character));
    if (!editing) {
      const text = state.systemPrompt.trim();
      prompt.replaceChildren(el("div.prompt-chips", {}, settings, el("button.prompt-chip", { id: "snug-system", onclick: () => drawPrompt(true), title: text || t("Tell the model how to behave in this conversation") },
        icon("prompt"), el("span", {}, text ? text.split("\n")[0] : t("Add a system prompt")))));
      prompt.querySelector("#snug-system").classList.toggle("set", Boolean(text));
      return;
    }
    const area = el("textarea.edit-area", { value: state.systemPrompt, rows: 4, "aria-label": t("System prompt"), placeholder: t("You are a patient teacher who answers briefly.") });
    const save = async () => {
      const of = state.id;
      if (of) {
        const answer = await call(state.server, "set_system_prompt", { id: of, text: area.value });
        if (answer.problem || of !== state.id) return;
      } else if (!state.incognito) remember.set("newSystemPrompt", area.value || null);
      state.systemPrompt = area.value;
      drawPrompt();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); drawPrompt(); }
      if (snug.isKey("save", event)) save();
    });
    prompt.of = state.id;
    prompt.replaceChildren(el("div.editor", {}, el("label.editor-label", {}, t("System prompt of this conversation")), area, el("div.editor-buttons", {},
      el("button.plain-button", { onclick: () => drawPrompt() }, t("Cancel")), el("button.primary-button", { onclick: save }, t("Save")))));
    area.focus();
  }

  function drawEmpty() {
    const model = snug.model?.() ?? { status: "empty" };
    empty.hidden = state.messages.length > 0;
    if (empty.hidden) return;
    if (model.answering && model.writes === false) {
      empty.replaceChildren(el("h1", {}, t("{name} embeds texts", { name: model.answering })),
        el("p.lead", {}, t("It answers /v1/embeddings and writes no replies. To talk here, load a model that chats.")),
        el("button.primary-button", { onclick: () => selectTab("Model") }, t("Open the Model tab")));
    } else if (model.answering) {
      empty.replaceChildren(el("h1", {}, t("What shall we talk about?")),
        el("div.suggestions", {}, ...SUGGESTIONS.map(([title, text]) =>
          el("button.suggestion", { onclick: () => submit(text) }, el("strong", {}, title), el("span", {}, text)))));
    } else if (model.status === "loading") {
      empty.replaceChildren(el("h1", {}, t("Loading {name}", { name: model.name })),
        el("div.load-line", {}, el("div.bar", {}, el("span", { "data-load-bar": "" })), el("p", { "data-load-stage": "" }, model.stage)));
    } else {
      empty.replaceChildren(el("h1", {}, model.status === "failed" ? t("The model could not be loaded") : t("First, choose a model")),
        model.problem ? el("p.lead", {}, `${model.problem.message} ${model.problem.remedy}`) : el("p.lead", {}, t("Snug shows what fits this machine before it loads anything.")),
        el("button.primary-button", { onclick: () => selectTab("Model") }, t("Open the Model tab")));
    }
    document.dispatchEvent(new CustomEvent("snug:empty", { detail: { node: empty, ready: Boolean(model.answering) } }));
  }
  snug.modelChanged = (model, before) => {
    if (empty) { drawEmpty(); drawMessages(); snug.measure?.(0); snug.setupShown?.(); }
    if (before.version !== undefined && model.status !== "loading" && model.problem) showProblem(model.problem);
    snug.refreshModelTab?.();
  };

  function drawComposer() {
    const running = Boolean(state.running || snug.writing?.());
    input.readOnly = Boolean(snug.writing?.());
    sendButton.hidden = running;
    stopButton.hidden = !running;
    sendButton.disabled = state.sending || !input.value.trim() && !snug.tray.any();
    sendButton.classList.toggle("busy", state.sending || state.held === draftKey());
    if (!input.clientWidth) return;  // another tab is on show
    input.style.height = "auto";
    input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
  }

  /* Scrolling */

  function onScroll() {
    if (!scroller.clientHeight) return;  // another tab is on show
    const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    state.atEnd = !state.later && left < 60;
    jump.classList.toggle("shown", !state.atEnd);
    if (state.earlier && !state.atEnd && scroller.scrollTop < scroller.clientHeight) showEarlier();
    else if (state.later && left < scroller.clientHeight) showLater();
  }
  function onResize() {
    drawComposer();
    if (state.atEnd) toEnd(false);
  }
  /* Messages out of sight have estimated heights: where many come into sight on the way, the end moves. */
  function toEnd(smooth) {
    const near = scroller.scrollHeight - scroller.scrollTop < 4 * scroller.clientHeight;
    scroller.scrollTo({ top: scroller.scrollHeight, behavior: smooth && near ? "smooth" : "instant" });
    if (smooth && !near && scroller.clientHeight) requestAnimationFrame(() => requestAnimationFrame(() => toEnd(true)));
  }

  /* Composer */

  const draftKeyOf = (id) => `draft.${id ?? (state.incognito ? "incognito-new" : "new")}`;
  const draftKey = () => draftKeyOf(state.wanted ?? state.id);
  const unwritten = new Map();  // drafts of incognito chats: browsers keep the others on the disk
  const drafts = {
    get: (key) => key.startsWith("draft.incognito-") ? unwritten.get(key) ?? "" : remember.get(key, ""),
    set: (key, text) => { if (key.startsWith("draft.incognito-")) unwritten.set(key, text ?? ""); else remember.set(key, text); },
  };
  function restoreDraft() { input.value = drafts.get(draftKey()); snug.tray.show(draftKey()); drawComposer(); }
  function onInput() {
    state.opId = null;
    state.held = null;  // what waited for its files is being changed: it is sent by hand
    drafts.set(draftKey(), input.value || null);
    drawComposer();
    snug.measure?.();
  }
  function onKey(event) {
    if (!snug.isKey("send", event)) return;
    event.preventDefault();
    if (!state.running) send();
  }

  function send() { submit(input.value); }

  /* Files came or went. A message that waited for them goes now, unless one could not be read. */
  function onTray() {
    state.opId = null;
    drawComposer();
    snug.measure?.(0);
    if (!state.held || snug.tray.busy()) return;
    const here = state.held === draftKey();
    state.held = null;
    drawComposer();
    if (!here) return;
    if (snug.tray.failed()) toast(t("A file could not be read, so nothing was sent."), { remedy: t("Send again to go on without it."), kind: "bad" });
    else send();
  }

  async function submit(text) {
    const typed = text === input.value;
    if (!text.trim() && !(typed && snug.tray.any()) || state.sending || state.running || snug.writing?.()) return;
    if (state.wanted) {
      state.eager = true;  // it is sent as soon as the conversation is open
      return;
    }
    if (typed && snug.tray.busy()) {
      state.held = draftKey();
      return drawComposer();
    }
    const files = typed ? snug.tray.ids() : [];
    if (!text.trim() && !files.length) return;
    state.sending = true;
    const opId = typed && state.opId || newId();
    if (typed) state.opId = opId;
    const from = state.id, draft = draftKey(), turn = state.opening;
    const first = state.first = from ? null : { files: null };
    drawComposer();
    const answer = await ask("send", {
      id: from, parent: state.head, text, attachments: files, op_id: opId, params: snug.params(),
      system_prompt: from ? "" : state.systemPrompt, ...(from ? {} : { setup: state.setup }),
      incognito: !from && state.incognito, folder: from ? null : snug.folderOnShow(),
    });
    if (answer.accepted) {
      drafts.set(draft, without(text, drafts.get(draft)) || null);
      if (typed) snug.tray.sent(draft, files);
      if (!from && !state.incognito) remember.set("newSystemPrompt", null);
    }
    else if (files.length && answer.problem?.code === "not_found") snug.tray.check();
    if (turn !== state.opening) {
      if (first?.files && answer.conversation) snug.tray.move(draft, draftKeyOf(answer.conversation.id), first.files);
      if (answer.accepted && draft === draftKey()) { input.value = without(text, input.value); drawComposer(); }
      snug.refreshConversations();
      return;
    }
    Object.assign(state, { sending: false, first: null });
    if (answer.accepted) input.value = without(text, input.value);
    if (answer.conversation) {
      const fresh = !from;
      if (fresh) { drafts.set(draft, null); snug.tray.move(draft, draftKeyOf(answer.conversation.id)); snug.tray.show(draftKeyOf(answer.conversation.id)); prompt.of = answer.conversation.id; }
      showThread(answer);
      onInput();
      if (fresh) setUrl(state.id, false);
      toEnd(false);
      snug.refreshConversations();
    }
    drawComposer();
  }

  /* What was written while `sent` was on its way. */
  function without(sent, text) { return text.startsWith(sent) ? text.slice(sent.length).trimStart() : text; }

  async function stop() {
    if (snug.writing?.()) return snug.stopWriting();
    if (state.running) await call(state.server, "stop", { id: state.running });
  }

  /* Actions under messages */

  async function onListClick(event) {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    const name = button.dataset.act;
    if (name === "copy-code") return copy(button.closest(".code").querySelector("code").textContent, button);
    const id = button.closest(".message")?.dataset.id;
    const message = state.messages.find((item) => item.id === id);
    if (!message) return;
    if (name === "copy") return copy(message.answer ?? message.text, button);
    if (state.running) return toast(t("A reply is being written."), { remedy: t("Stop it first, or wait until it is complete.") });
    if (name === "impersonate") return snug.impersonate();
    if (name === "edit") { state.editing = id; return drawMessages(); }
    const of = { id: state.id, message: id };
    const request = {
      regenerate: ["regenerate", { ...of, params: snug.params() }], continue: ["go_on", { ...of, params: snug.params() }],
      delete: ["delete_last", { id: state.id }], cut: ["delete", of], branch: ["branch", of],
    }[name];
    if (!request || state.sending) return;
    const turn = state.opening;
    state.sending = true;
    const answer = await ask(...request);
    if (turn !== state.opening) return;
    state.sending = false;
    if (name === "branch" && answer.conversation) {
      if (answer.conversation.incognito) snug.rememberIncognito(answer.conversation.id);
      await open(answer.conversation.id);
      toast(t("A new conversation that begins like the other one."), { seconds: 5 });
      snug.refreshConversations();
    } else if (answer.conversation) {
      showThread(answer);
      if (answer.deleted) offerUndo(answer);
      if (answer.question) { input.value = [answer.question, input.value].filter(Boolean).join("\n\n"); onInput(); }
      if (answer.files?.length) snug.tray.put(answer.files);
      if (!answer.deleted) toEnd(false);
      snug.refreshConversations();
    }
    else if (answer.problem) reload();
  }

  function offerUndo({ deleted, question, files }) {
    const of = state.id, undone = async () => {
      const answer = await ask("undelete", { id: of, message: deleted });
      if (of !== state.id || !answer.conversation) return;
      snug.tray.take((files ?? []).map((file) => file.id));
      if (question && input.value.startsWith(question)) { input.value = input.value.slice(question.length).trimStart(); onInput(); }
      showThread(answer);
      snug.refreshConversations();
    };
    toast(question || files?.length ? t("The last exchange was deleted.") : t("Deleted, with what followed."), { seconds: 10, action: { label: t("Undo"), run: undone } });
  }

  async function reload() {
    if (!state.id) return;
    const turn = state.opening, answer = await ask("open", { id: state.id });
    if (turn === state.opening && answer.conversation) showThread(answer);
  }

  /* The running reply */

  snug.onLive = (view) => {
    if (!view || view.conversation !== state.id) return;
    if (view.gone) { if (state.running) { state.running = null; reload(); } return; }
    if (view.id !== state.running) return;
    state.lastBeat = Date.now();
    if (state.later && !view.done) return;  // it is written far below what is on show
    const node = list.querySelector(`[data-id="${CSS.escape(view.id)}"]`);
    const message = state.messages.find((item) => item.id === view.id);
    if (!node || !message) return reload();
    const stick = state.atEnd;
    if (view.done) finish(message, view); else drawLive(node, view);
    notice.textContent = view.notice || "";
    if (stick) toEnd(false);
  };

  function drawLive(node, view) {
    const body = node.querySelector(".body");
    if (!body) return;
    drawThought(node, view.thought);
    if (!body.tail || body.count > view.blocks.length) {
      body.count = 0;
      body.replaceChildren(body.tail = el("div.block.tail"));
    }
    for (; body.count < view.blocks.length; body.count += 1) {
      const block = el("div.block");
      block.innerHTML = view.blocks[body.count];
      body.insertBefore(block, body.tail);
    }
    if (body.shown !== view.tail) { body.tail.innerHTML = view.tail; body.shown = view.tail; }
    const line = node.querySelector(".told");
    if (line.childElementCount !== view.told.length) line.replaceWith(told(view.told));
    const started = view.tail || view.blocks.length || view.thought;
    node.classList.toggle("started", Boolean(started));
    node.classList.toggle("paused", Boolean(started && view.waiting));
    node.querySelector(".waiting-text").textContent = view.waiting;
  }

  function finish(message, view) {
    state.running = null;
    state.revision = view.revision;
    Object.assign(message, { status: view.status, stats: view.stats, text: view.text, answer: view.answer, html: view.html, modified: view.modified, thought: view.thought, told: view.told, error: view.problem ? `${view.problem.message} ${view.problem.remedy}`.trim() : "" });
    live.textContent = view.status === "complete" ? t("Reply complete.") : t("Reply ended.");
    drawMessages();
    drawComposer();
    snug.measure?.(0);
    snug.refreshConversations();
    document.dispatchEvent(new CustomEvent("snug:reply", { detail: { node: list.querySelector(`[data-id="${CSS.escape(message.id)}"]`), status: view.status } }));
    if (view.reread) reload();
    snug.pulse();
  }

  snug.noticeElsewhere = (answer) => {
    if (!state.id || state.sending) return;
    if (answer.missing) { toast(t("This conversation was deleted elsewhere.")); return openNew({ replace: true }); }
    if (state.running && Date.now() - state.lastBeat > LOST_AFTER_MS) {
      state.lastBeat = Date.now();
      if (answer.running === state.running) state.trigger("follow", { id: state.id }); else { state.running = null; reload(); }
    } else if (!state.running && !state.editing) {
      if (answer.head !== state.head || answer.revision !== state.revision || answer.running) reload();
    }
  };
})();
