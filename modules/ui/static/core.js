/* What every part of the page uses: elements, icons, toasts, dialogs, the colour theme, remembered values. */
"use strict";
window.snug = (() => {
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

  /* The browser may refuse storage (private windows): then values last as long as the page. */
  const memory = new Map();
  const remember = {
    get(key, fallback = null) {
      try { const text = localStorage.getItem(`snug.${key}`); return text === null ? fallback : JSON.parse(text); }
      catch { return memory.has(key) ? memory.get(key) : fallback; }
    },
    set(key, value) {
      memory.set(key, value);
      try {
        if (value === null) localStorage.removeItem(`snug.${key}`);
        else localStorage.setItem(`snug.${key}`, JSON.stringify(value));
      } catch { /* kept in memory */ }
    },
  };

  let toasts = null;
  function toast(message, { remedy = "", kind = "info", seconds = 6, action = null } = {}) {
    if (!toasts) document.body.append(toasts = el("div.toasts", { role: "status", "aria-live": "polite" }));
    const close = () => { card.classList.add("leaving"); setTimeout(() => card.remove(), 200); };
    const card = el(`div.toast.${kind}`, {},
      el("div.toast-text", {}, el("strong", {}, message), remedy ? el("p", {}, remedy) : null),
      action ? el("button.text-button", { onclick: () => { close(); action.run(); } }, action.label) : null,
      iconButton("close", "Dismiss", close));
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
      action: needsModel ? { label: "Open Model", run: () => selectTab("Model") } : null,
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
          el("button.plain-button", { onclick: () => finish(false) }, "Cancel"),
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
      answer = { problem: { code: "offline", message: "Snug does not answer.", remedy: "Is the server still running? If it is, reload the page." } };
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
  document.addEventListener("DOMContentLoaded", applyTheme);
  applyTheme();
  function setTheme(choice) { remember.set("theme", THEMES.includes(choice) ? choice : "system"); applyTheme(); }

  function tabButtons() { return [...document.querySelectorAll('#snug-tabs [role="tab"]')]; }
  function selectTab(title) { tabButtons().find((button) => button.textContent.trim() === title)?.click(); }
  function currentTab() { return tabButtons().find((button) => button.getAttribute("aria-selected") === "true")?.textContent.trim() ?? ""; }

  async function copy(text, button) {
    try { await navigator.clipboard.writeText(text); }
    catch {
      const area = el("textarea", { value: text, style: "position:fixed;opacity:0" });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    const old = [...button.childNodes];
    button.replaceChildren(button.classList.contains("icon-button") ? icon("check") : "Copied");
    setTimeout(() => button.replaceChildren(...old), 1200);
  }

  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  return { el, icon, iconButton, remember, toast, showProblem, showNote, ask, call, applyTheme, setTheme, selectTab, currentTab, copy, newId, keepFolds, THEMES };
})();
