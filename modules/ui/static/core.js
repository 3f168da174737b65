/* What every part of the page uses: elements, icons, toasts, dialogs, the colour theme, remembered values. */
"use strict";
window.snug = (() => {
  const { t } = window.snugWords;
  const ICONS = {
    plus: "M12 5v14M5 12h14",
    search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14ZM20 20l-4-4",
    panel: "M4 5h16v14H4zM9.5 5v14",
    send: "M12 19V5M6 11l6-6 6 6",
    stop: "M7 7h10v10H7z",
    copy: "M9 9h11v11H9zM5 15H4V4h11v1",
    check: "M5 12.5l4.5 4.5L19 7.5",
    edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
    retry: "M4 12a8 8 0 1 1 2.3 5.6M4 20v-4.5h4.5",
    forward: "M5 12h13M13 7l5 5-5 5",
    trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5.5M13.5 11v5.5",
    sun: "M12 16.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9ZM12 3v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1 1M17.4 17.4l1 1M18.4 5.6l-1 1M6.6 17.4l-1 1",
    moon: "M19.5 14.5A8 8 0 1 1 9.5 4.5a6.5 6.5 0 0 0 10 10Z",
    screen: "M4 5h16v11H4zM9 20h6M12 16v4",
    down: "M12 5v14M6 13l6 6 6-6",
    chevron: "M9 6l6 6-6 6",
    close: "M6 6l12 12M18 6L6 18",
    alert: "M12 4l9 16H3zM12 10v4.5M12 17v.2",
    prompt: "M5 6h14M5 11h14M5 16h8",
    undo: "M8 5L4 9l4 4M4 9h10a5.5 5.5 0 0 1 0 11h-4",
    redo: "M16 5l4 4-4 4M20 9H10a5.5 5.5 0 0 0 0 11h4",
    person: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8ZM4.5 20.5a7.5 7.5 0 0 1 15 0",
    tune: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
    save: "M12 4v11M7 10l5 5 5-5M5 19h14",
    talk: "M5 5h14v11H11l-4 4v-4H5z",
    pin: "M9 4h6l-1 6 3 3v2H7v-2l3-3zM12 15v5",
    folder: "M4 6h6l2 2.5h8V19H4z",
    chat: "M5 5h14v11h-8l-4 3.5V16H5z",
    download: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
    upload: "M12 16V5M7 9.5l5-5 5 5M5 20h14",
    branch: "M7 4v9a4 4 0 0 0 4 4h6M14 14l3 3-3 3M7 8h4a4 4 0 0 0 4-4",
    mask: "M3 11h18M6.5 11l1.5-6h8l1.5 6M7 18.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM17 18.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM9.5 16h5",
    keyboard: "M3 6.5h18v11H3zM6.5 10h.1M10 10h.1M13.5 10h.1M17 10h.1M8 14h8",
    clip: "M20 11.5l-8.2 8.2a5 5 0 0 1-7-7L13 4.5a3.3 3.3 0 0 1 4.7 4.7l-8.3 8.3a1.7 1.7 0 0 1-2.4-2.4l7.6-7.6",
    globe: "M12 20.5a8.5 8.5 0 1 0 0-17 8.5 8.5 0 0 0 0 17ZM3.5 12h17M12 3.5c2.6 2.4 3.6 5.3 3.6 8.5s-1 6.1-3.6 8.5c-2.6-2.4-3.6-5.3-3.6-8.5s1-6.1 3.6-8.5",
    file: "M6 3h8l4.5 4.5V21H6zM14 3v4.5h4.5M9 12h6.5M9 15.5h6.5",
    spark: "M12 4l1.8 6.2L20 12l-6.2 1.8L12 20l-1.8-6.2L4 12l6.2-1.8z",
  };

  function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [key, value] of Object.entries({
      viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "1.7",
      "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true", class: "icon",
    })) svg.setAttribute(key, value);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", ICONS[name]);
    svg.append(path);
    return svg;
  }

  /* An element: el("button.quiet", {title: "Copy", onclick: f}, child, "text"). Text is always text, never HTML. */
  function el(kind, attributes = {}, ...children) {
    const [tag, ...classes] = kind.split(".");
    const node = document.createElement(tag || "div");
    if (classes.length) node.className = classes.join(" ");
    if (tag === "button") node.type = "button";
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key in node && key !== "list") node[key] = value;
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function iconButton(name, label, onclick, extra = "") {
    return el(`button.icon-button${extra}`, { title: label, "aria-label": label, onclick }, icon(name));
  }

  /* The browser may refuse storage (private windows, some 5 MB in all): then values last as long as the page, which asks
     before it is left while there is text among them. */
  const memory = new Map(), unkept = new Set();
  /* One browser may be several people's: each has values of their own there, but for how the page looks. */
  const EVERYBODYS = new Set(["theme", "sidebar"]), OTHERS = "snug.@", owner = window.snugOwner ?? "", mine = owner ? `${OTHERS}${owner}.` : "snug.";
  const WHOSE = `${OTHERS}whose`;
  const placeOf = (key) => `${EVERYBODYS.has(key) ? "snug." : mine}${key}`;
  function own() {
    try { return Object.keys(localStorage).filter((place) => place.startsWith(mine) && (owner || !place.startsWith(OTHERS)) && !EVERYBODYS.has(place.slice(5))); }
    catch { return []; }
  }
  let left = false;
  addEventListener("beforeunload", (event) => { if ([...unkept].some((key) => typeof memory.get(key) === "string")) event.preventDefault(); });
  const remember = {
    get(key, fallback = null) {
      if (unkept.has(key)) return memory.get(key);
      try { const text = localStorage.getItem(placeOf(key)); return text === null ? fallback : JSON.parse(text); }
      catch { return memory.has(key) ? memory.get(key) : fallback; }
    },
    set(key, value) {
      if (left) return;
      memory.set(key, value);
      unkept.delete(key);
      try {
        if (value === null) localStorage.removeItem(placeOf(key));
        else localStorage.setItem(placeOf(key), JSON.stringify(value));
      } catch { unkept.add(key); }
    },
    /* Calls `told` with the new value when another tab of the browser changes it. */
    watch(key, told) {
      window.addEventListener("storage", (event) => {
        if (event.key === placeOf(key) || event.key === null) told(remember.get(key));
      });
    },
    /* Whether text that was never sent waits in this browser. */
    unsent: () => own().some((place) => /^(draft\.|files\.|notebook$)/.test(place.slice(mine.length))),
    /* Takes all that is this person's out of the browser; the page keeps nothing more. */
    leave() {
      try { [...own(), WHOSE].forEach((place) => localStorage.removeItem(place)); } catch { /* nothing is kept */ }
      memory.clear(); unkept.clear(); left = true;
    },
  };

  /* Whose the browser is by now. Another tab of who was there before would show the one and ask as the other: what is
     written in it would be the other's. It is drawn anew, as theirs or as the page to log in. */
  try { localStorage.setItem(WHOSE, owner); } catch { /* no tab is told of the others */ }
  function drawAnew(whose) { if (whose === owner || left) return; left = true; unkept.clear(); location.reload(); }
  window.addEventListener("storage", (event) => { if (event.key === WHOSE) drawAnew(event.newValue); });
  for (const back of ["pageshow", "visibilitychange"]) addEventListener(back, () => {
    try { drawAnew(localStorage.getItem(WHOSE) ?? owner); } catch { /* as above */ }
  });

  let toasts = null;
  function toast(message, { remedy = "", kind = "info", seconds = 6, action = null } = {}) {
    toasts ??= el("div.toasts", { role: "status", "aria-live": "polite" });
    const modal = [...document.querySelectorAll("dialog:modal")].at(-1), place = modal ?? document.body;
    /* What lies under an open dialog can be neither read nor pressed. */
    if (toasts.parentElement !== place) {
      place.append(toasts);
      modal?.addEventListener("close", () => document.body.append(toasts), { once: true });
    }
    const close = () => { card.classList.add("leaving"); setTimeout(() => card.remove(), 200); };
    const card = el(`div.toast.${kind}`, {},
      el("div.toast-text", {}, el("strong", {}, message), remedy ? el("p", {}, remedy) : null),
      action ? el("button.text-button", { onclick: () => { close(); action.run(); } }, action.label) : null,
      iconButton("close", t("Dismiss"), close));
    card.says = `${message}\n${remedy}`;
    [...toasts.children].find((other) => other.says === card.says)?.remove();  // two parts of the page may tell the same
    toasts.append(card);
    while (toasts.children.length > 4) toasts.firstChild.remove();
    setTimeout(close, seconds * 1000);
  }

  function showProblem(problem) {
    const needsModel = problem.code === "no_model_loaded";
    toast(problem.message, {
      remedy: problem.remedy, kind: "bad", seconds: 9,
      action: needsModel ? { label: t("Open Model"), run: () => selectTab("Model") } : null,
    });
  }

  function showNote(note) { if (note.code) showProblem(note); else toast(note.message, { seconds: 3 }); }

  /* Resolves to true when the person confirms. */
  function ask(title, text, confirmLabel) {
    return new Promise((resolve) => {
      const finish = (answer) => { dialog.close(); dialog.remove(); resolve(answer); };
      const dialog = el("dialog.dialog", { oncancel: () => finish(false) },
        el("h2", {}, title), el("p", {}, text),
        el("div.dialog-buttons", {},
          el("button.plain-button", { onclick: () => finish(false) }, t("Cancel")),
          el("button.danger-button", { onclick: () => finish(true) }, confirmLabel)));
      dialog.addEventListener("click", (event) => { if (event.target === dialog) finish(false); });
      document.body.append(dialog);
      dialog.showModal();
      dialog.querySelector(".danger-button").focus();
    });
  }

  /* Calls a server function; shows what went wrong and resolves to null then, unless the answer says more. */
  async function call(server, name, body = {}) {
    let answer = null;
    try { answer = await server[name](body); } catch { /* told below */ }
    if (!answer || typeof answer !== "object") {
      answer = { problem: { code: "offline", message: t("Snug does not answer."), remedy: t("Is the server still running? If it is, reload the page.") } };
    }
    if (answer.problem) showProblem(answer.problem);
    return answer;
  }

  /* Folds of a part that the server draws anew stay as the reader left them. */
  function keepFolds(element, watch) {
    const left = new Map();
    element.addEventListener("click", (event) => {
      const fold = event.target.closest?.("summary")?.parentElement;
      if (fold) left.set(fold.className, !fold.open);
    });
    watch("value", () => element.querySelectorAll("details").forEach((fold) => {
      if (left.has(fold.className)) fold.open = left.get(fold.className);
    }));
  }

  const THEMES = ["system", "light", "dark"];
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  function applyTheme() {
    const choice = remember.get("theme", "system");
    const dark = choice === "dark" || (choice === "system" && systemDark.matches);
    document.documentElement.classList.toggle("dark", dark);
    document.body?.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    document.querySelectorAll("[data-theme-choice]").forEach((node) =>
      node.setAttribute("aria-pressed", String(node.dataset.themeChoice === choice)));
  }
  systemDark.addEventListener("change", applyTheme);
  remember.watch("theme", applyTheme);
  document.addEventListener("DOMContentLoaded", applyTheme);
  applyTheme();
  function setTheme(choice) { remember.set("theme", THEMES.includes(choice) ? choice : "system"); applyTheme(); }

  /* A reload opens the tab that was open; a new window begins where every new one does. Gradio chooses its own first tab
     once its tabs stand, so this one is chosen until it stays. */
  function keepTab() {
    let wanted = null, steady = 0, choosing = false;
    try { wanted = sessionStorage.getItem("snug.tab"); } catch { /* no storage: every reload begins anew */ }
    document.addEventListener("click", (event) => {
      const title = tabAt(event.target);
      if (!title || choosing) return;
      wanted = null;
      try { sessionStorage.setItem("snug.tab", title); } catch { /* as above */ }
    }, true);
    const choose = (left) => {
      if (!wanted || !left || steady > 5) return;
      const there = currentTab() === wanted;
      steady = there ? steady + 1 : 0;
      choosing = true;
      if (!there) selectTab(wanted);
      choosing = false;
      setTimeout(choose, 50, left - 1);
    };
    choose(100);
  }

  /* Tabs go by their English names, whatever they are called on the page; an extension's by what stands on it. Those
     that Gradio has put into its menu for want of room have no id. */
  const TABS = ["Chat", "Characters", "Notebook", "Compare", "Model", "Parameters", "Extensions"];
  function tabButtons() { return [...document.querySelectorAll('#snug-tabs [role="tab"], #snug-tabs > .tab-wrapper .overflow-dropdown button')]; }
  function tabName(button) {
    const [, name] = button.id.match(/^snug-tab-([a-z]+)-button$/) ?? [], text = button.textContent.trim();
    return name ? name[0].toUpperCase() + name.slice(1) : TABS.find((one) => t(one) === text) ?? text;
  }
  function tabAt(node) {
    const button = node.closest?.('#snug-tabs > .tab-wrapper :is([role="tab"], .overflow-dropdown button)');
    return button ? tabName(button) : "";
  }
  function selectTab(name) { tabButtons().find((button) => tabName(button) === name)?.click(); }
  function currentTab() {
    const button = tabButtons().find((one) => one.getAttribute("aria-selected") === "true" || one.matches(".overflow-dropdown .selected"));
    return button ? tabName(button) : "";
  }

  async function copy(text, button) {
    try { await navigator.clipboard.writeText(text); }
    catch {
      const area = el("textarea", { value: text, style: "position:fixed;opacity:0" });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    const old = [...button.childNodes];
    button.replaceChildren(button.classList.contains("icon-button") ? icon("check") : t("Copied"));
    setTimeout(() => button.replaceChildren(...old), 1200);
  }

  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  return { ...window.snugWords, el, icon, iconButton, remember, toast, showProblem, showNote, ask, call, applyTheme, setTheme, selectTab, currentTab, tabAt, keepTab, copy, newId, keepFolds, THEMES };
})();
