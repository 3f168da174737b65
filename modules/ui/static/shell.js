/* The frame of the page: sidebar, the model in the header, the pulse that keeps both true. The list is side.js's. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, setTheme, applyTheme, selectTab, t } = snug;
  const PULSE_MS = 2000, LOADING_PULSE_MS = 400, FETCHING_PULSE_MS = 1000;
  const state = { server: null, revision: null, model: { status: "empty", name: "" }, lost: false };
  let pill, timer = null;

  snug.mountShell = (element, server) => {
    state.server = server;
    element.replaceChildren(buildSidebar(), buildHeader());
    applyTheme();
    setOpen(window.innerWidth > 800 && remember.get("sidebar", true));
    snug.refreshConversations();
    pulse();
    snug.keepTab();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) pulse(); });
  };

  /* Shown while Snug works on a copy of the user data. */
  snug.unkept = () => el("p.unkept", { role: "status", hidden: true }, t("Read-only: what you do here works, and nothing of it is kept."));

  function buildSidebar() {
    const themes = { system: ["screen", t("As the system")], light: ["sun", t("Light")], dark: ["moon", t("Dark")] };
    return el("aside.sidebar", { id: "snug-sidebar" },
      el("div.brand", {}, logo(), el("span.wordmark", {}, "Snug"), iconButton("panel", t("Hide the sidebar"), () => turn(false))),
      ...snug.buildSide(state.server, narrow),
      snug.unkept(), el("div.sidebar-foot", {},
        el("div.segmented", { role: "group", "aria-label": t("Colours") },
          ...Object.entries(themes).map(([name, [glyph, label]]) =>
            el("button", { title: label, "aria-label": label, "data-theme-choice": name, onclick: () => setTheme(name) }, icon(glyph)))),
        snug.buildPerson(), el("span.foot-buttons", {}, languages(), iconButton("keyboard", t("Keyboard (?)"), snug.showKeys))));
  }

  /* The browser's language, or one that was chosen; not shown where there is but one. */
  function languages() {
    const { chosen, offered, choose } = snug.language;
    if (offered.length < 2) return "";
    const button = iconButton("globe", t("Language"), (event) => {
      event.stopPropagation();
      snug.openMenu(button, [[chosen ? "screen" : "check", t("As the browser"), () => choose("")],
        ...offered.map(({ code, name }) => [code === chosen ? "check" : "globe", name, () => choose(code)])]);
    });
    button.id = "snug-language";
    button.setAttribute("aria-haspopup", "menu");
    return button;
  }

  function logo() {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 32 32"); svg.setAttribute("class", "logo"); svg.setAttribute("aria-hidden", "true");
    svg.innerHTML = '<rect width="32" height="32" rx="9" fill="var(--accent)"/><path d="M9 13.5a7 5.5 0 0 1 14 0c0 6-14 3-14 7.5a7 4 0 0 0 14 0" fill="none" stroke="var(--on-accent)" stroke-width="2.6" stroke-linecap="round"/>';
    return svg;
  }

  function buildHeader() {
    pill = el("button.model-pill", { id: "snug-model", title: t("Open the Model tab"), onclick: () => selectTab("Model") });
    drawModel();
    return el("header.topbar", {},
      iconButton("panel", t("Show the sidebar"), () => turn(true), ".open-sidebar"),
      el("span.topbar-space", {}), snug.buildDownloadChip(), snug.buildStrip(), pill,
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

  /* For keys.js */
  snug.isSidebarOpen = () => document.body.classList.contains("sidebar-open");
  snug.turnSidebar = turn;
  snug.leaveSidebar = () => { const over = isNarrow() && snug.isSidebarOpen(); if (over) turn(false); return over; };
  snug.search = () => { setOpen(true); document.getElementById("snug-search").focus(); };

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
      if (stateKey(before) !== stateKey(answer.model)) { snug.modelChanged?.(answer.model, before); snug.refreshPresets?.(); }
      snug.drawLoading(answer.model);
      snug.memoryMoved?.();
      snug.followDryRuns?.(answer.dry_runs);
      snug.drawDownloads(answer.downloads);
      document.querySelectorAll(".unkept").forEach((line) => { line.hidden = answer.kept; });
      snug.noticeElsewhere?.(answer);
      if (answer.conversations !== state.revision && !snug.sideMenuOpen()) { state.revision = answer.conversations; snug.refreshConversations(); }
    } else if (answer?.problem?.code === "not_found") snug.noticeElsewhere?.({ missing: true });
    clearTimeout(timer);  // another pulse may have ended meanwhile
    const lively = state.model.status === "loading" || answer?.dry_runs?.busy && snug.currentTab() === "Model";
    const fetching = answer?.downloads?.some((item) => item.state === "running");
    timer = setTimeout(pulse, lively ? LOADING_PULSE_MS : fetching ? FETCHING_PULSE_MS : PULSE_MS);
  }

  /* While a model loads every step is a new version; before and after, every version tells something new. */
  function stateKey(model) { return model.status === "loading" ? `loading ${model.name}` : model.version; }
  snug.pulse = pulse;
  snug.model = () => state.model;

  function setLost(lost) {
    if (lost === state.lost) return;
    state.lost = lost;
    document.documentElement.classList.toggle("offline", lost);
    if (lost) snug.checkSession();
    drawModel();
  }

  function drawModel() {
    const { status, name, stage, fraction } = state.model;
    const text = state.lost ? t("Snug does not answer") : {
      empty: t("No model loaded"), loading: stage || t("Loading"), ready: name, failed: name ? t("{name} failed", { name }) : t("Loading failed"), died: t("{name} stopped", { name }),
    }[status] ?? status;
    pill.className = `model-pill ${state.lost ? "lost" : status}`;
    pill.replaceChildren(el("span.dot"), el("span.model-name", {}, text));
    if (status === "loading" && !state.lost) {
      pill.append(el("span.pill-percent", {}, fraction ? `${Math.round(fraction * 100)} %` : ""), el("span.pill-bar", { style: `width:${fraction * 100}%` }));
    }
  }
})();
