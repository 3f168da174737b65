/* The frame of the page: conversations at the side, the model in the header, the pulse that keeps both true. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, ask, setTheme, applyTheme, selectTab } = snug;
  const PULSE_MS = 2000, LOADING_PULSE_MS = 400;
  const state = { server: null, items: [], query: "", revision: null, menu: null, model: { status: "empty", name: "" }, lost: false };
  let list, pill, timer = null;

  snug.mountShell = (element, server) => {
    state.server = server;
    element.replaceChildren(buildSidebar(), buildHeader());
    applyTheme();
    setOpen(window.innerWidth > 800 && remember.get("sidebar", true));
    refresh();
    pulse();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) pulse(); });
    document.addEventListener("click", (event) => { if (!event.target.closest(".menu, .more")) closeMenu(); });
    window.addEventListener("keydown", onKey);
  };

  function buildSidebar() {
    list = el("nav.conversations", { "aria-label": "Conversations" });
    const search = el("input.search", { type: "search", placeholder: "Search", "aria-label": "Search in conversations", id: "snug-search" });
    let wait = null;
    search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => { state.query = search.value; refresh(); }, 180);
    });
    const themes = { system: ["screen", "As the system"], light: ["sun", "Light"], dark: ["moon", "Dark"] };
    return el("aside.sidebar", { id: "snug-sidebar" },
      el("div.brand", {}, logo(), el("span.wordmark", {}, "Snug"), iconButton("panel", "Hide the sidebar", () => turn(false))),
      el("button.new-chat", { id: "snug-new", onclick: () => { selectTab("Chat"); snug.openConversation(null); narrow(); } }, icon("plus"), "New chat"),
      el("label.search-box", {}, icon("search"), search),
      list,
      el("div.sidebar-foot", {},
        el("div.segmented", { role: "group", "aria-label": "Colours" },
          ...Object.entries(themes).map(([name, [glyph, label]]) =>
            el("button", { title: label, "aria-label": label, "data-theme-choice": name, onclick: () => setTheme(name) }, icon(glyph))))));
  }

  function logo() {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 32 32"); svg.setAttribute("class", "logo"); svg.setAttribute("aria-hidden", "true");
    svg.innerHTML = '<rect width="32" height="32" rx="9" fill="var(--accent)"/><path d="M9 13.5a7 5.5 0 0 1 14 0c0 6-14 3-14 7.5a7 4 0 0 0 14 0" fill="none" stroke="var(--on-accent)" stroke-width="2.6" stroke-linecap="round"/>';
    return svg;
  }

  function buildHeader() {
    pill = el("button.model-pill", { id: "snug-model", title: "Open the Model tab", onclick: () => selectTab("Model") });
    drawModel();
    return el("header.topbar", {},
      iconButton("panel", "Show the sidebar", () => turn(true), ".open-sidebar"),
      el("span.topbar-space", {}), snug.buildStrip(), pill,
      el("div.scrim", { onclick: () => setOpen(false) }));
  }

  const isNarrow = () => window.innerWidth <= 800;
  function setOpen(open) {
    document.body.classList.toggle("sidebar-open", open);
    if (!isNarrow()) remember.set("sidebar", open);
  }
  /* By hand: on a phone the sidebar lies over the page, so the keys go there too, and back. */
  function turn(open) {
    setOpen(open);
    const next = document.querySelector(open ? ".sidebar .icon-button" : ".open-sidebar");
    requestAnimationFrame(() => next.focus({ preventScroll: true, focusVisible: false }));
  }
  function narrow() { if (isNarrow()) setOpen(false); }

  function onKey(event) {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault(); document.getElementById("snug-new").click();
    } else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault(); setOpen(true); document.getElementById("snug-search").focus();
    } else if (event.key === "Escape") {
      if (document.querySelector("dialog[open]") || closeMenu(true) || snug.closeStrip() || snug.closeSetup?.() || event.target.id === "snug-search") return;
      if (isNarrow() && document.body.classList.contains("sidebar-open")) return turn(false);
      ({ Chat: snug.stopReply, Notebook: snug.stopNotebook })[snug.currentTab()]?.();
    } else if (!typing && event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey && snug.currentTab() === "Chat" && !document.querySelector("dialog[open]")) {
      document.getElementById("snug-input")?.focus();
    }
  }

  /* Conversations */

  async function refresh() {
    const query = state.query;
    const answer = await call(state.server, "conversations", { query });
    if (answer.items && query === state.query) show(answer.items);
  }
  snug.refreshConversations = refresh;

  function show(items) {
    if (list.querySelector(".rename")) return;  // its end asks again
    state.items = items;
    const held = list.contains(document.activeElement) ? document.activeElement : null;
    const nodes = [];
    let group = "";
    for (const item of items) {
      const name = ageGroup(item.updated_at);
      if (name !== group) nodes.push(el("h3", {}, group = name));
      nodes.push(row(item));
    }
    if (!nodes.length) nodes.push(el("p.empty-list", {}, state.query ? "Nothing found." : "Your conversations will be listed here."));
    list.replaceChildren(...nodes);
    if (held) focusRow(held.parentElement.dataset.id, held.tagName);
    snug.markConversation(snug.conversationId?.() ?? null);
  }

  function row(item) {
    const more = el("button.more", {
      title: "Rename or delete", "aria-label": `Options of ${item.title}`, "aria-haspopup": "menu",
      onclick: (event) => { event.stopPropagation(); openMenu(node, item); },
    }, "⋯");
    const node = el("div.conversation", { "data-id": item.id },
      el("a", { href: `?c=${item.id}`, title: item.title, onclick: (event) => {
        if (event.ctrlKey || event.metaKey) return;
        event.preventDefault(); selectTab("Chat"); snug.openConversation(item.id); narrow();
      } }, item.title), more);
    return node;
  }

  snug.markConversation = (id) => list?.querySelectorAll(".conversation").forEach((node) => {
    node.classList.toggle("current", node.dataset.id === id);
    if (node.dataset.id === id) node.firstChild.setAttribute("aria-current", "page"); else node.firstChild.removeAttribute("aria-current");
  });

  function closeMenu(back = false) {
    const menu = state.menu, more = menu?.parentElement?.querySelector(".more");
    menu?.remove();
    state.menu = null;
    more?.setAttribute("aria-expanded", "false");
    if (back) more?.focus();
    return Boolean(menu);
  }

  function openMenu(node, item) {
    closeMenu();
    state.menu = el("div.menu", { role: "menu" },
      el("button", { role: "menuitem", onclick: () => { closeMenu(); rename(node, item); } }, icon("edit"), "Rename"),
      el("button.danger", { role: "menuitem", onclick: () => { closeMenu(); remove(item); } }, icon("trash"), "Delete"));
    state.menu.addEventListener("keydown", (event) => {
      const items = [...state.menu.children], step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    });
    node.append(state.menu);
    node.querySelector(".more").setAttribute("aria-expanded", "true");
    state.menu.querySelector("button").focus();
  }
  function focusRow(id, tag = "a") { list.querySelector(`[data-id="${CSS.escape(id ?? "")}"] > ${tag}`)?.focus({ preventScroll: true }); }

  function rename(node, item) {
    const input = el("input.rename", { value: item.title, "aria-label": "Title", maxLength: 200 });
    let done = false;
    const finish = async (save, byKey = false) => {
      if (done) return;
      done = true;
      const title = input.value.trim();
      const renamed = save && title && title !== item.title && await call(state.server, "rename", { id: item.id, title });
      if (renamed && renamed.items) snug.retitle?.(item.id, title);
      input.remove();
      show(state.items);
      if (byKey) focusRow(item.id);
      refresh();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true, true);
      if (event.key === "Escape") { event.stopPropagation(); finish(false, true); }
    });
    input.addEventListener("blur", () => finish(true));
    node.replaceChildren(input);
    input.focus(); input.select();
  }

  async function remove(item) {
    if (!await ask("Delete this conversation?", `“${item.title}” and all its messages will be gone for good.`, "Delete")) return;
    const answer = await call(state.server, "remove", { id: item.id });
    if (!answer.items) return refresh();
    if (snug.conversationId?.() === item.id) snug.openConversation(null);
    refresh();
  }

  function ageGroup(seconds) {
    const day = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate());
    const then = new Date(seconds * 1000), now = new Date();
    const days = Math.round((day(now) - day(then)) / 86400000);
    if (days <= 0) return "Today";
    if (days === 1) return "Yesterday";
    if (days <= 7) return "Previous 7 days";
    if (days <= 30) return "Previous 30 days";
    return then.toLocaleDateString(undefined, { month: "long", year: "numeric" });
  }

  /* The pulse */

  async function pulse() {
    clearTimeout(timer);
    if (document.hidden) return;
    let answer = null;
    try { answer = await state.server.pulse({ id: snug.conversationId?.() ?? null }); } catch { /* shown as lost */ }
    setLost(!answer?.model && !answer?.problem);
    if (answer?.model) {
      const before = state.model;
      state.model = answer.model;
      drawModel();
      snug.drawStrip(answer.machine);
      if (stateKey(before) !== stateKey(answer.model)) snug.modelChanged?.(answer.model, before);
      snug.drawLoading(answer.model);
      snug.memoryMoved?.();
      snug.followDryRuns?.(answer.dry_runs);
      snug.noticeElsewhere?.(answer);
      if (answer.conversations !== state.revision && !state.menu) { state.revision = answer.conversations; refresh(); }
    } else if (answer?.problem?.code === "not_found") snug.noticeElsewhere?.({ missing: true });
    clearTimeout(timer);  // another pulse may have ended meanwhile
    const lively = state.model.status === "loading" || answer?.dry_runs?.busy && snug.currentTab() === "Model";
    timer = setTimeout(pulse, lively ? LOADING_PULSE_MS : PULSE_MS);
  }

  /* While a model loads every step is a new version; before and after, every version tells something new. */
  function stateKey(model) { return model.status === "loading" ? `loading ${model.name}` : model.version; }
  snug.pulse = pulse;
  snug.model = () => state.model;

  function setLost(lost) {
    if (lost === state.lost) return;
    state.lost = lost;
    document.documentElement.classList.toggle("offline", lost);
    drawModel();
  }

  function drawModel() {
    const { status, name, stage, fraction } = state.model;
    const text = state.lost ? "Snug does not answer" : {
      empty: "No model loaded", loading: stage || "Loading", ready: name, failed: name ? `${name} failed` : "Loading failed", died: `${name} stopped`,
    }[status] ?? status;
    pill.className = `model-pill ${state.lost ? "lost" : status}`;
    pill.replaceChildren(el("span.dot"), el("span.model-name", {}, text));
    if (status === "loading" && !state.lost) {
      pill.append(el("span.pill-percent", {}, `${Math.round(fraction * 100)} %`), el("span.pill-bar", { style: `width:${fraction * 100}%` }));
    }
  }
})();
