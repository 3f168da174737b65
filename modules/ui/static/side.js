/* The list of conversations: search, folders, pins, undo. The server owns it; this shows it and asks for more. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, ask, toast, selectTab, t, date } = snug;
  const PAGE = 100;
  const state = { server: null, items: [], more: false, folders: [], query: "", folder: null, deleted: false, limit: PAGE, menu: null, anchor: null, late: false, asked: 0 };
  const INDEX_LOOK_MS = 1500;
  let list, search, view, narrow, indexLine, indexTimer;

  /* Incognito conversations are known to this tab of the browser alone, as long as it is open. */
  const secret = {
    all() { try { return JSON.parse(sessionStorage.getItem("snug.incognito") ?? "[]"); } catch { return []; } },
    set(ids) { try { sessionStorage.setItem("snug.incognito", JSON.stringify(ids.slice(-50))); } catch { /* gone with the page */ } },
    add(id) { if (!this.all().includes(id)) this.set([...this.all(), id]); },
    remove(id) { this.set(this.all().filter((other) => other !== id)); },
  };

  snug.buildSide = (server, onOpened) => {
    state.server = server;
    narrow = onOpened;
    state.folder = remember.get("folder", null);
    list = el("nav.conversations", { "aria-label": t("Conversations") });
    search = el("input.search", { type: "search", placeholder: t("Search"), "aria-label": t("Search in conversations"), id: "snug-search" });
    let wait = null;
    search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(() => { state.query = search.value; look(); }, 180);
    });
    view = el("button.view-button", { id: "snug-view", "aria-haspopup": "menu", onclick: () => openView() });
    drawView();
    document.addEventListener("click", (event) => { if (!event.target.closest(".menu, .more, .view-button")) closeMenu(); });
    list.addEventListener("scroll", () => closeMenu());
    return [
      el("div.new-row", {},
        el("button.new-chat", { id: "snug-new", onclick: () => begin(false) }, icon("plus"), t("New chat")),
        iconButton("mask", t("New incognito chat"), () => begin(true), ".new-incognito")),
      el("label.search-box", {}, icon("search"), search),
      indexLine = el("p.index-line", { role: "status", hidden: true }),
      view, list,
    ];
  };
  snug.folderOnShow = () => state.deleted ? null : state.folder;
  snug.rememberIncognito = (id) => secret.add(id);
  snug.sideMenuOpen = () => Boolean(state.menu);
  snug.closeMenu = closeMenu;
  snug.openMenu = openMenu;
  snug.askText = askText;

  function begin(incognito) { selectTab("Chat"); snug.openConversation(null, { incognito }); narrow(); }

  /* From the top again. */
  function look(changes = {}) {
    Object.assign(state, changes, { limit: PAGE });
    list.scrollTop = 0;
    drawView();
    return refresh();
  }

  async function refresh() {
    const asked = state.asked += 1;
    const answer = await call(state.server, "conversations", {
      query: state.query, folder: state.folder, limit: state.limit, deleted: state.deleted, incognito: secret.all(),
    });
    if (!answer.items || asked !== state.asked) return;
    Object.assign(state, { items: answer.items, more: answer.more, folders: answer.folders });
    drawIndexing(answer.indexing);
    if (!state.deleted && state.folder && !answer.folder) { state.folder = null; remember.set("folder", null); }
    drawView();
    show();
  }
  snug.refreshConversations = refresh;

  /* A store that is older than the search: what is not in its index yet is said, and asked for again. */
  function drawIndexing(indexing) {
    clearTimeout(indexTimer);
    indexLine.hidden = !indexing;
    if (!indexing) return;
    const missing = state.query ? t("Messages from before {day} are not found yet.", { day: date(new Date(indexing.before * 1000), { dateStyle: "medium" }) }) : "";
    indexLine.textContent = `${t("The search index is being built: {percent} %.", { percent: Math.floor(100 * indexing.share) })} ${missing}`.trim();
    indexTimer = setTimeout(refresh, INDEX_LOOK_MS);
  }

  /* Lines that did not change stay, so that ten thousand of them cost little. */
  function show() {
    if (list.querySelector(".rename")) return;  // its end asks again
    state.late = Boolean(state.menu);
    if (state.late) return;  // the open menu belongs to a line; its end draws
    const known = new Map([...list.querySelectorAll(".conversation")].map((node) => [node.dataset.id, node]));
    const held = list.contains(document.activeElement) ? document.activeElement : null, heldId = held?.closest(".conversation")?.dataset.id;
    const nodes = [];
    let group = "";
    for (const item of state.items) {
      const name = groupOf(item);
      if (name !== group) nodes.push(el("h3", {}, group = name));
      const key = JSON.stringify([item, state.query, state.deleted, group === t("Incognito")]), old = known.get(item.id);
      const node = old?.key === key ? old : row(item);
      node.key = key;
      nodes.push(node);
    }
    if (!nodes.length) nodes.push(el("p.empty-list", {}, emptyText()));
    if (state.more) nodes.push(more());
    list.replaceChildren(...nodes);
    if (heldId && !list.contains(document.activeElement)) focusRow(heldId, held.tagName);
    snug.markConversation(snug.conversationId?.() ?? null);
  }

  function emptyText() {
    if (state.deleted) return t("Nothing was deleted in the last day.");
    if (state.query) return t("Nothing found.");
    return state.folder ? t("Nothing in this folder yet.") : t("Your conversations will be listed here.");
  }

  /* What follows comes as its place comes into sight; the button is for keys. */
  function more() {
    const next = () => { state.limit = Math.max(state.limit, state.items.length) + 2 * PAGE; seen.disconnect(); return refresh(); };
    const button = el("button.text-button.show-more", { onclick: next }, t("Show more"));
    const seen = new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) next(); }, { root: list, rootMargin: "400px" });
    seen.observe(button);
    return button;
  }

  function row(item) {
    const options = el("button.more", {
      title: t("Options"), "aria-label": t("Options of {name}", { name: item.title }), "aria-haspopup": "menu",
      onclick: (event) => { event.stopPropagation(); openMenu(options, menuOf(node, item)); },
    }, "⋯");
    const title = el("span.conversation-title", {}, item.incognito ? icon("mask") : item.pinned ? icon("pin") : null, item.title);
    const link = el("a", { href: state.deleted ? null : `?c=${item.id}`, title: item.title, onclick: (event) => {
      if (event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      if (state.deleted) return openMenu(options, menuOf(node, item));
      selectTab("Chat"); snug.openConversation(item.id, { message: item.message, words: item.snippet?.[1] }); narrow();
    } }, title);
    if (item.snippet) {
      const [before, hit, after] = item.snippet;
      link.append(el("span.snippet", {}, before, el("mark", {}, hit), after));
    }
    const node = el("div.conversation", { "data-id": item.id }, link, options);
    return node;
  }

  snug.markConversation = (id) => list?.querySelectorAll(".conversation").forEach((node) => {
    node.classList.toggle("current", node.dataset.id === id);
    if (node.dataset.id === id) node.firstChild.setAttribute("aria-current", "page"); else node.firstChild.removeAttribute("aria-current");
  });
  function focusRow(id, tag = "a") { list.querySelector(`[data-id="${CSS.escape(id ?? "")}"] > ${tag}`)?.focus({ preventScroll: true }); }

  function groupOf(item) {
    if (state.deleted) return t("Deleted in the last day");
    if (item.incognito) return t("Incognito");
    if (item.pinned && !state.query) return t("Pinned");
    const day = (of) => new Date(of.getFullYear(), of.getMonth(), of.getDate());
    const then = new Date(item.updated_at * 1000), now = new Date();
    const days = Math.round((day(now) - day(then)) / 86400000);
    if (days <= 0) return t("Today");
    if (days === 1) return t("Yesterday");
    if (days <= 7) return t("Previous 7 days");
    if (days <= 30) return t("Previous 30 days");
    return date(then, { month: "long", year: "numeric" });
  }

  /* Menus */

  function closeMenu(back = false) {
    const { menu, anchor } = state;
    menu?.remove();
    Object.assign(state, { menu: null, anchor: null });
    anchor?.setAttribute("aria-expanded", "false");
    if (back) anchor?.focus();
    if (state.late) setTimeout(show);
    return Boolean(menu);
  }

  /* `entries`: [icon, label, action, class], or null for a line between. */
  function openMenu(anchor, entries) {
    const again = state.anchor === anchor;
    closeMenu();
    if (again) return;
    const items = entries.map((entry) => entry
      ? el(`button${entry[3] ? `.${entry[3]}` : ""}`, { role: "menuitem", onclick: () => { closeMenu(); entry[2](); } }, icon(entry[0]), el("span", {}, entry[1]), entry[4] ? el("small", {}, entry[4]) : null)
      : el("hr"));
    const menu = el("div.menu", { role: "menu" }, ...items);
    menu.addEventListener("keydown", (event) => {
      const buttons = [...menu.querySelectorAll("button")], step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Tab") return closeMenu(true);
      if (!step) return;
      event.preventDefault();
      buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
    });
    document.body.append(menu);
    const at = anchor.getBoundingClientRect(), height = menu.offsetHeight;
    menu.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - menu.offsetWidth - 8))}px`;
    menu.style.top = `${at.bottom + 4 + height > window.innerHeight ? Math.max(8, at.top - height - 4) : at.bottom + 4}px`;
    Object.assign(state, { menu, anchor });
    anchor.setAttribute("aria-expanded", "true");
    menu.querySelector("button").focus();
  }

  function menuOf(node, item) {
    if (state.deleted) {
      return [["undo", t("Bring back"), () => restore(item.id)], ["trash", t("Delete for good"), () => erase(item), "danger"]];
    }
    const files = ["markdown", "json"].map((format) =>
      ["download", format === "json" ? t("Export as JSON") : t("Export as Markdown"), () => snug.exportConversations(state.server, format, [item.id], item.title)]);
    if (item.incognito) return [...files, null, ["trash", t("End"), () => snug.endIncognito(item.id), "danger"]];
    return [
      ["edit", t("Rename"), () => rename(node, item)],
      ["pin", item.pinned ? t("Unpin") : t("Pin"), () => act("pin", { id: item.id, pinned: !item.pinned })],
      ["folder", t("Move to folder"), () => chooseFolder(item)],
      ...files, null,
      ["trash", t("Delete"), () => remove(item), "danger"],
    ];
  }

  function openView() {
    const mark = (chosen, name) => chosen ? "check" : name;
    const here = state.folders.find((folder) => folder.id === state.folder);
    openMenu(view, [
      [mark(!state.folder && !state.deleted, "chat"), t("All chats"), () => goTo(null)],
      ...state.folders.map((folder) => [mark(folder.id === state.folder && !state.deleted, "folder"), folder.name, () => goTo(folder.id), "", folder.conversations]),
      null,
      ["plus", t("New folder"), async () => goTo(await nameFolder())],
      ...(here && !state.deleted ? [["edit", t("Rename folder"), () => nameFolder(here)], ["close", t("Remove folder"), () => removeFolder(here)]] : []),
      null,
      ["upload", t("Import"), () => snug.importFiles(state.server, refresh)],
      ["download", t("Export all as JSON"), () => snug.exportConversations(state.server, "json")],
      ["download", t("Export all as Markdown"), () => snug.exportConversations(state.server, "markdown")],
      null,
      [mark(state.deleted, "trash"), t("Recently deleted"), () => { search.value = ""; look({ deleted: true, query: "" }); }],
    ]);
  }

  function goTo(folder) {
    if (folder === undefined) return;
    remember.set("folder", folder);
    look({ folder, deleted: false });
  }

  function drawView() {
    const folder = state.folders.find((item) => item.id === state.folder);
    const name = state.deleted ? t("Recently deleted") : folder ? folder.name : t("All chats");
    view.replaceChildren(icon(state.deleted ? "trash" : folder ? "folder" : "chat"), el("span", {}, name), icon("chevron"));
    view.title = t("Folders, files, what was deleted");
    search.placeholder = folder && !state.deleted ? t("Search in {name}", { name: folder.name }) : t("Search");
  }

  /* Actions */

  async function act(name, body) {
    const answer = await call(state.server, name, body);
    await refresh();
    return answer;
  }

  function rename(node, item) {
    const input = el("input.rename", { value: item.title, "aria-label": t("Title"), maxLength: 200 });
    let done = false;
    const finish = async (save, byKey = false) => {
      if (done) return;
      done = true;
      const title = input.value.trim();
      const renamed = save && title && title !== item.title && await call(state.server, "rename", { id: item.id, title });
      if (renamed && renamed.done) snug.retitle?.(item.id, title);
      input.remove();
      node.key = null;
      show();
      if (byKey) focusRow(item.id);
      await refresh();
      if (byKey) focusRow(item.id);
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
    const answer = await call(state.server, "remove", { id: item.id });
    const shown = answer.done && snug.conversationId?.() === item.id;
    if (shown) snug.openConversation(null);
    await refresh();
    if (!answer.done) return;
    toast(t("“{name}” was deleted.", { name: short(item.title) }), { seconds: 10, action: { label: t("Undo"), run: async () => {
      if (await restore(item.id) && shown) snug.openConversation(item.id);
    } } });
  }

  async function restore(id) { return (await act("restore", { id })).restored; }

  async function erase(item) {
    if (await ask(t("Delete for good?"), t("“{name}” and all its messages cannot be brought back then.", { name: item.title }), t("Delete"))) act("erase", { id: item.id });
  }

  snug.endIncognito = async (id) => {
    if (!await ask(t("End this incognito chat?"), t("It was never written to the disk: all its messages will be gone for good."), t("End"))) return;
    const answer = await call(state.server, "remove", { id });
    if (answer.problem && answer.problem.code !== "not_found") return;
    secret.remove(id);
    snug.tray.end(`draft.${id}`);
    if (snug.conversationId?.() === id) snug.openConversation(null);
    refresh();
  };

  function short(title) { return title.length > 40 ? `${title.slice(0, 39)}…` : title; }

  /* A dialog with one line of text; resolves to it, or to nothing. */
  function askText(title, value, label, confirm) {
    return new Promise((resolve) => {
      const input = el("input.dialog-input", { value, maxLength: 80, "aria-label": label, placeholder: label });
      const finish = (answer) => { dialog.close(); dialog.remove(); resolve(answer); };
      const dialog = el("dialog.dialog", { oncancel: () => finish(undefined) }, el("h2", {}, title), input,
        el("div.dialog-buttons", {}, el("button.plain-button", { onclick: () => finish(undefined) }, t("Cancel")),
          el("button.primary-button", { onclick: () => finish(input.value) }, confirm)));
      input.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); finish(input.value); } });
      document.body.append(dialog);
      dialog.showModal();
      input.focus(); input.select();
    });
  }

  async function nameFolder(folder = null) {
    const name = await askText(folder ? t("Rename folder") : t("New folder"), folder?.name ?? "", t("Name of the folder"), folder ? t("Rename") : t("Create"));
    if (name === undefined) return undefined;
    return (await act("name_folder", { id: folder?.id ?? null, name })).folder;
  }

  async function removeFolder(folder) {
    if (!await ask(t("Remove “{name}”?", { name: folder.name }), t("The conversations in it stay, outside of any folder."), t("Remove"))) return;
    const answer = await call(state.server, "remove_folder", { id: folder.id });
    if (answer.done) goTo(null); else refresh();
  }

  function chooseFolder(item) {
    const anchor = list.querySelector(`[data-id="${CSS.escape(item.id)}"] .more`) ?? view;
    const move = (folder) => { if (folder !== undefined) act("move", { id: item.id, folder }); };
    openMenu(anchor, [
      ...state.folders.map((folder) => [folder.id === item.folder ? "check" : "folder", folder.name, () => move(folder.id)]),
      ["plus", t("New folder"), async () => move(await nameFolder())],
      ...(item.folder ? [null, ["close", t("Out of the folder"), () => move(null)]] : []),
    ]);
  }
})();
