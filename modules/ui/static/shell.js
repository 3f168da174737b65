/* The frame of the page: sidebar, the model in the header, the pulse that keeps both true. The list is side.js's. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, setTheme, applyTheme, selectTab } = snug;
  const PULSE_MS = 2000, LOADING_PULSE_MS = 400;
  const state = { server: null, revision: null, model: { status: "empty", name: "" }, lost: false };
  let pill, timer = null;

  snug.mountShell = (element, server) => {
    state.server = server;
    element.replaceChildren(buildSidebar(), buildHeader());
    applyTheme();
    setOpen(window.innerWidth > 800 && remember.get("sidebar", true));
    snug.refreshConversations();
    pulse();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) pulse(); });
    window.addEventListener("keydown", onKey);
  };

  function buildSidebar() {
    const themes = { system: ["screen", "As the system"], light: ["sun", "Light"], dark: ["moon", "Dark"] };
    return el("aside.sidebar", { id: "snug-sidebar" },
      el("div.brand", {}, logo(), el("span.wordmark", {}, "Snug"), iconButton("panel", "Hide the sidebar", () => turn(false))),
      ...snug.buildSide(state.server, narrow),
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
      if (document.querySelector("dialog[open]") || snug.closeMenu(true) || snug.closeStrip() || snug.closeSetup?.() || event.target.id === "snug-search") return;
      if (isNarrow() && document.body.classList.contains("sidebar-open")) return turn(false);
      if (({ Chat: snug.stopReply, Notebook: snug.stopNotebook })[snug.currentTab()]?.()) return;
      if (typing?.id === "snug-input") typing.blur();  // the arrows turn versions then
    } else if (!typing && (event.key === "ArrowLeft" || event.key === "ArrowRight") && !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey && snug.currentTab() === "Chat" && !document.querySelector("dialog[open]") && !event.target.closest?.('[role="tab"], [role="radiogroup"], [role="menu"]')) {
      if (snug.turnVersion?.(event.key === "ArrowRight" ? 1 : -1)) event.preventDefault();
    } else if (!typing && event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey && snug.currentTab() === "Chat" && !document.querySelector("dialog[open]")) {
      document.getElementById("snug-input")?.focus();
    }
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
      if (answer.conversations !== state.revision && !snug.sideMenuOpen()) { state.revision = answer.conversations; snug.refreshConversations(); }
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
