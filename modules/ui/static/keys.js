/* The keyboard: one table, from which the bindings and the list behind "?" are made. docs/keyboard.md says the same. */
"use strict";
(() => {
  const { el, iconButton, selectTab, currentTab, t } = snug;
  const MAC = /mac|iphone|ipad/i.test(navigator.platform);
  const composer = () => document.getElementById("snug-input");
  const isEmpty = (event) => event.target !== composer() || !composer().value.trim();
  const inChat = () => currentTab() === "Chat";
  const canChat = (event) => inChat() && (event.target === composer() || !isText(event.target));

  /* `id`: asked for with snug.isKey where it is pressed. `alone`: a key without Ctrl or Alt, not for those who type.
     `run` returns false where there was nothing to do; the browser has the key then. */
  const KEYS = [
    { group: "Everywhere", keys: ["?"], does: "Show this list", alone: true, run: () => showKeys() },
    { group: "Everywhere", keys: ["Ctrl+Shift+O"], does: "New chat", run: () => document.getElementById("snug-new").click() },
    { group: "Everywhere", keys: ["Ctrl+K"], does: "Search in conversations", run: () => snug.search() },
    { group: "Everywhere", keys: ["Ctrl+B"], does: "Show or hide the sidebar", run: () => snug.turnSidebar(!snug.isSidebarOpen()) },
    { group: "Everywhere", keys: ["Alt+Shift+1", "Alt+Shift+9"], to: true, does: "Go to the tab of that number", run: goToTab },
    { group: "Everywhere", keys: ["Ctrl+,"], does: "Go to Parameters and presets", run: () => selectTab("Parameters") },
    { group: "Everywhere", keys: ["Esc"], does: "Close what is open, else stop the reply", run: escape },
    { group: "Characters", keys: ["/"], does: "Search in the characters", alone: true, run: (event) => currentTab() === "Characters" ? snug.searchCharacters() : write(event) },
    { group: "Chat", keys: ["Enter"], id: "send", does: "Send" },
    { group: "Chat", keys: ["Shift+Enter"], id: "line", does: "New line" },
    { group: "Chat", keys: ["Any letter"], does: "Write, wherever the focus is", alone: true, run: write },
    { group: "Chat", keys: ["↑"], does: "In an empty box: edit your last message", run: (event) => event.target === composer() && isEmpty(event) && press(".message.user", "edit") },
    { group: "Chat", keys: ["←", "→"], does: "Another version of the last reply", alone: true, run: turnVersion },
    { group: "Chat", keys: ["Ctrl+Enter"], does: "A new version of the last reply; what is written is sent first", run: again },
    { group: "Chat", keys: ["Alt+Enter"], does: "Continue the last reply", run: (event) => canChat(event) && press(".message:last-child", "continue") },
    { group: "Chat", keys: ["Ctrl+Shift+K"], does: "Copy the last reply", run: (event) => canChat(event) && press(".message.assistant", "copy") },
    { group: "Chat", keys: ["Ctrl+Shift+M"], does: "Let the model write your next message", run: (event) => canChat(event) && press(".message:last-child", "impersonate") },
    { group: "Chat", keys: ["Ctrl+Shift+Backspace"], does: "Delete the last exchange, with undo", run: (event) => canChat(event) && isEmpty(event) && press(".message:last-child", "delete") },
    { group: "Notebook", keys: ["Ctrl+Enter"], id: "generate", does: "Generate" },
    { group: "Notebook", keys: ["Ctrl+Z", "Ctrl+Shift+Z"], id: "travel", does: "Undo, redo: edits and completions" },
    { group: "Notebook", keys: ["←", "→"], id: "token", does: "In the token view: another token; Enter shows its alternatives" },
    { group: "While you edit", keys: ["Ctrl+Enter"], id: "save", does: "Save" },
    { group: "While you edit", keys: ["Esc"], id: "cancel", does: "Leave it as it was" },
  ];
  const NAMES = { Esc: "Escape", "↑": "ArrowUp", "←": "ArrowLeft", "→": "ArrowRight" };

  function isText(node) {
    return Boolean(node.closest?.('textarea, select, [contenteditable]:not([contenteditable="false"]), input:not([type="range"], [type="checkbox"], [type="radio"], [type="button"], [type="file"])'));
  }
  const isField = (node) => Boolean(node.closest?.("input, textarea, select, [contenteditable]"));

  function matches(chord, event) {
    const parts = chord.split("+"), key = parts.pop() || "+";
    const has = (name) => parts.includes(name);
    const loose = key === "?" || chord === "Any letter";  // where Shift makes the sign
    if (has("Ctrl") !== (event.ctrlKey || event.metaKey) || has("Alt") !== event.altKey) return false;
    if (!loose && has("Shift") !== event.shiftKey) return false;
    if (chord === "Any letter") return event.key.length === 1 && event.key !== " " && event.key !== "?";
    if (has("Alt") && /^\d$/.test(key)) return /^Digit[1-9]$/.test(event.code);  // with Shift the digits are other signs
    return event.key === (NAMES[key] ?? key) || event.key.toLowerCase() === key.toLowerCase();
  }
  /* Whether an event is the key of that name in the table. */
  snug.isKey = (id, event) => !event.isComposing && KEYS.some((entry) => entry.id === id && entry.keys.some((chord) => matches(chord, event)));

  window.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    const modal = document.querySelector("dialog[open]");
    if (modal && !(modal.id === "snug-keys" && event.key === "?")) return;  // dialogs have keys of their own
    for (const entry of KEYS) {
      if (!entry.run || (entry.alone && isText(event.target)) || !entry.keys.some((chord) => matches(chord, event))) continue;
      if (entry.run(event) !== false) event.preventDefault();
      return;
    }
  });

  /* What the keys do */

  function goToTab(event) {
    const tab = document.querySelectorAll('#snug-tabs > .tab-wrapper [role="tab"]')[Number(event.code.at(-1)) - 1];
    if (!tab) return false;
    tab.click();
    tab.focus();
  }

  function escape(event) {
    if (snug.closeMenu(true) || snug.closeStrip() || snug.closeSetup?.() || event.target.id === "snug-search") return false;
    if (snug.leaveSidebar()) return;
    if (({ Chat: snug.stopReply, Notebook: snug.stopNotebook, Compare: snug.stopCompare })[currentTab()]?.()) return;
    if (event.target === composer()) composer().blur();  // the arrows turn versions then
  }

  /* The letter itself goes where the focus now is. */
  function write(event) {
    if (inChat() && !isField(event.target) && !event.target.closest?.('[role="menu"]')) composer()?.focus();
    return false;
  }

  function turnVersion(event) {
    if (!inChat() || isField(event.target) || event.target.closest?.('[role="tab"], [role="radiogroup"], [role="menu"]')) return false;
    return Boolean(snug.turnVersion?.(event.key === "ArrowRight" ? 1 : -1));
  }

  function again(event) {
    if (!canChat(event)) return false;
    if (composer().value.trim()) document.getElementById("snug-send").click(); else return press(".message:last-child", "regenerate");
  }

  /* The button under the last message of a kind, as if it were clicked; nothing where the last one is not on show. */
  function press(which, act) {
    if (!snug.chatEndShown?.()) return false;
    const button = [...document.querySelectorAll(`.messages > ${which}`)].at(-1)?.querySelector(`.actions [data-act="${act}"]`);
    button?.click();
    return Boolean(button);
  }

  /* The list */

  function showKeys() {
    const open = document.getElementById("snug-keys");
    if (open) return open.close();
    const dialog = el("dialog.dialog.wide", { id: "snug-keys", "aria-labelledby": "snug-keys-title", onclose: () => dialog.remove() },
      el("header.keys-head", {}, el("h2", { id: "snug-keys-title" }, t("Keyboard")), iconButton("close", t("Close"), () => dialog.close())),
      el("div.keys-body", { tabIndex: 0, role: "group", "aria-labelledby": "snug-keys-title" }, ...[...new Set(KEYS.map((entry) => entry.group))].map((group) =>
        el("section", {}, el("h3", {}, t(group)), el("dl", {}, ...KEYS.filter((entry) => entry.group === group).flatMap((entry) =>
          [el("dt", {}, ...drawn(entry)), el("dd", {}, t(entry.does))]))))));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
    dialog.showModal();
  }
  snug.showKeys = () => showKeys();

  function drawn({ keys, to }) {
    return keys.flatMap((chord, at) => [at ? (to ? " … " : " ") : null, el("span.chord", {}, ...chord.split("+").map((key) => el("kbd", {}, named(key))))]);
  }
  const WORDS = { Ctrl: t("Ctrl"), Shift: t("Shift"), Enter: t("Enter"), Backspace: t("Backspace"), "Any letter": t("Any letter") };
  function named(key) { return MAC ? { Ctrl: "⌘", Alt: "⌥", Shift: "⇧" }[key] ?? WORDS[key] ?? key : WORDS[key] ?? key; }
})();
