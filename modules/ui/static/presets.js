/* The bar of presets: which one is in force, what differs from it; save, rename, delete, files, comparing. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, toast, ask, t } = snug;
  const MAX_BYTES = 64 * 1024;
  const state = { server: null, presets: [], defaults: {}, labels: {}, equal: null };
  let parts = {};

  snug.mountPresets = (element, server) => {
    state.server = server;
    parts = {
      choice: el("select.preset-choice", { id: "snug-preset", "aria-label": t("Preset"), onchange: () => choose(parts.choice.value) }),
      save: el("button.primary-button", { id: "snug-preset-save", onclick: save }),
      menu: el("button.plain-button.preset-menu", { id: "snug-preset-menu", title: t("More about presets"), "aria-label": t("More about presets"), "aria-haspopup": "menu", onclick: menu }, "⋯"),
      back: el("button.text-button", { id: "snug-preset-back", onclick: () => choose(base().name) }),
      compare: el("button.plain-button", { id: "snug-preset-compare", onclick: compare }, t("Compare")),
      reset: el("button.text-button", { id: "snug-reset", onclick: () => { remember.set("preset", null); snug.setParams({}); } }, t("Reset all")),
      line: el("p.preset-line", { role: "status" }),
      notes: el("ul.preset-notes"),
    };
    element.replaceChildren(el("div.preset-bar", {}, parts.choice, parts.save, parts.menu, parts.compare, el("span.preset-gap"), parts.back, parts.reset), parts.line, parts.notes);
    snug.onParams(draw);
    remember.watch("preset", draw);
    for (const [node, kind] of [[document, "visibilitychange"], [document.getElementById("snug-tabs"), "click"]]) {
      node.addEventListener(kind, (event) => {
        if (kind === "click" ? snug.tabAt(event.target) === "Parameters" : !document.hidden && snug.currentTab() === "Parameters") refresh();
      });
    }
    refresh();
  };
  const refresh = async () => take(await call(state.server, "look"));
  snug.refreshPresets = () => { if (state.server && snug.currentTab() === "Parameters") refresh(); };

  /* What the server knows of presets, if that is what it answered. */
  function take(answer) {
    if (!answer.presets) return false;
    Object.assign(state, { presets: answer.presets, defaults: answer.defaults, labels: answer.labels });
    if (answer.name) remember.set("preset", answer.name);
    snug.takeEngine(answer.defaults, answer.lacks);
    return true;
  }

  const inForce = () => ({ ...state.defaults, ...snug.params() });
  const named = (name) => state.presets.find((preset) => preset.name === name);
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const differing = (one, other) => Object.keys(state.defaults).filter((key) => !same(one[key], other[key]));
  const usable = (preset) => preset && !preset.problem;

  /* The preset that was chosen last, as long as there is one of that name; else the one that equals what is in force,
     or did before the last changes. */
  function base() {
    const chosen = named(remember.get("preset", null));
    if (usable(chosen)) return chosen;
    const equal = state.presets.find((preset) => usable(preset) && !differing(preset.params, inForce()).length);
    state.equal = equal?.name ?? state.equal;
    return named(state.equal) ?? null;
  }

  function choose(name) {
    const preset = named(name);
    if (!preset) return draw();
    if (preset.problem) { snug.showProblem(preset.problem); return draw(); }
    remember.set("preset", name);
    snug.setParams(preset.params);
    call(state.server, "chosen", { name });
    draw();
  }

  /* Drawing */

  function draw() {
    if (!state.presets.length) return;  // the first look is underway
    const chosen = base(), changes = chosen ? differing(chosen.params, inForce()) : [];
    drawChoice(chosen);
    parts.save.textContent = chosen?.own ? t("Save") : t("Save as");
    parts.save.hidden = Boolean(chosen) && !changes.length;
    parts.back.hidden = !changes.length;
    parts.back.textContent = t("Back to {name}", { name: chosen?.name });
    parts.reset.hidden = !Object.keys(snug.params()).length;
    const changed = changes.length ? t("Changed since: {names}.", { names: changes.map((key) => state.labels[key] ?? key).join(", ") }) : "";
    const line = chosen ? [chosen.about, changed].filter(Boolean).join(" ") : t("Values of your own. Save them as a preset to find them again.");
    if (parts.line.textContent !== line) parts.line.textContent = line;
    const notes = chosen?.notes ?? [];
    if (notes.join() !== parts.notes.of) {
      parts.notes.of = notes.join();
      parts.notes.replaceChildren(...notes.map((note) => el("li", {}, icon("alert"), el("span", {}, note))));
    }
    parts.notes.hidden = !notes.length;
  }

  function drawChoice(chosen) {
    const key = JSON.stringify([chosen?.name, state.presets.map((preset) => [preset.name, preset.own, Boolean(preset.problem)])]);
    parts.choice.value = chosen?.name ?? "";
    if (parts.choice.key === key) return;
    parts.choice.key = key;
    parts.choice.replaceChildren(...(chosen ? [] : [el("option", { value: "", selected: true }, t("No preset"))]), ...options(chosen?.name));
  }

  function options(name) {
    const group = (label, own) => {
      const found = state.presets.filter((preset) => preset.own === own);
      return found.length ? el("optgroup", { label }, ...found.map((preset) =>
        el("option", { value: preset.name, selected: preset.name === name }, preset.problem ? t("{name} (cannot be used)", { name: preset.name }) : preset.name))) : null;
    };
    return [group(t("With Snug"), false), group(t("Yours"), true)].filter(Boolean);
  }

  function menu(event) {
    event.stopPropagation();
    const chosen = base(), unusable = state.presets.filter((preset) => preset.problem && preset.own);
    snug.openMenu(parts.menu, [
      ["save", t("Save as"), saveAs],
      ...(chosen?.own ? [["edit", t("Rename {name}", { name: chosen.name }), () => rename(chosen)], ["trash", t("Delete {name}", { name: chosen.name }), () => remove(chosen), "danger"]] : []),
      ...unusable.map((preset) => ["trash", t("Delete {name}", { name: preset.name }), () => remove(preset), "danger"]),
      null,
      ["upload", t("Import a file"), pick],
      ...(chosen ? [["download", t("Export {name}", { name: chosen.name }), () => exported(chosen)]] : []),
    ]);
  }

  /* Actions */

  async function save() {
    const chosen = base();
    if (chosen?.own) await kept(chosen.name, true); else await saveAs();
  }

  async function saveAs() {
    const name = (await snug.askText(t("Save as a preset"), "", t("Name of the preset"), t("Save")))?.trim();
    if (name) await kept(name, false);
  }

  async function kept(name, replace) {
    if (document.querySelector(".param.invalid")) return toast(t("One of the values cannot be used."), { remedy: t("Correct what is marked, then save."), kind: "bad" });
    const answer = await call(state.server, "save", { name, params: snug.params(), replace });
    if (answer.exists && await ask(t("Replace “{name}”?", { name }), t("What stands in it now is lost then."), t("Replace"))) return kept(name, true);
    if (take(answer)) toast(t("Saved as {name}.", { name }), { seconds: 3 });
  }

  async function rename(preset) {
    const name = (await snug.askText(t("Rename the preset"), preset.name, t("Name of the preset"), t("Rename")))?.trim();
    if (name && name !== preset.name) take(await call(state.server, "rename", { name: preset.name, new: name }));
  }

  async function remove(preset) {
    const answer = await call(state.server, "remove", { name: preset.name });
    if (!take(answer)) return;
    const undo = async () => take(await call(state.server, "restore", { name: preset.name }));
    toast(t("“{name}” was deleted.", { name: preset.name }), { seconds: 10, action: { label: t("Undo"), run: undo } });
  }

  async function exported(preset) {
    const answer = await call(state.server, "text", { name: preset.name });
    if (answer.text !== undefined) snug.saveFile(answer.text, `${preset.name}.yaml`);
  }

  function pick() {
    document.getElementById("snug-preset-file")?.remove();
    const input = el("input", { type: "file", multiple: true, accept: ".yaml,.yml,.json", id: "snug-preset-file", hidden: true, "aria-label": t("Preset file") });
    input.addEventListener("change", async () => {
      for (const file of input.files) await takeIn(file);
      input.remove();
    });
    document.body.append(input);
    input.click();
  }

  async function takeIn(file) {
    if (file.size > MAX_BYTES) return toast(t("{name} is larger than {size}.", { name: file.name, size: "64 KiB" }), { remedy: t("Is it a preset?"), kind: "bad" });
    let text = "";
    try { text = await file.text(); } catch { return toast(t("The browser could not read {name}.", { name: file.name }), { remedy: t("Is it still there?"), kind: "bad" }); }
    const answer = await call(state.server, "take_in", { name: file.name, text });
    if (take(answer)) choose(answer.name);
  }

  /* Two presets beside each other, or one beside the values in force. */
  function compare() {
    const NOW = t("As set now"), sides = [NOW, base()?.name ?? state.presets.find(usable)?.name ?? NOW];
    if (!differing(inForce(), valuesOf(sides[1])).length) sides[1] = state.presets.find((preset) => usable(preset) && preset.name !== sides[1])?.name ?? sides[1];
    const body = el("div.compare-body", { tabIndex: 0, role: "group", "aria-label": t("What differs") }), close = () => { dialog.close(); dialog.remove(); };
    const pickers = sides.map((side, at) => el("select.preset-choice", { "aria-label": at ? t("Second preset") : t("First preset"), onchange: (event) => { sides[at] = event.target.value; fill(); } },
      el("option", { value: NOW, selected: side === NOW }, NOW), ...state.presets.filter(usable).map((preset) => el("option", { value: preset.name, selected: side === preset.name }, preset.name))));
    function valuesOf(side) { return side === NOW ? inForce() : named(side)?.params ?? inForce(); }
    function fill() {
      const [one, other] = sides.map(valuesOf);
      const rows = Object.keys(state.labels).filter((key) => [one, other].some((values) => !same(values[key], state.defaults[key])));
      const cell = (values, key) => el(same(values[key], state.defaults[key]) ? "td.usual" : "td", {}, snug.wordedParam(values[key]));
      body.replaceChildren(rows.length ? el("table.compare", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("Parameter")), ...sides.map((side) => el("th", { scope: "col" }, side)), el("th", { scope: "col" }, t("Default")))),
        el("tbody", {}, ...rows.map((key) => el(same(one[key], other[key]) ? "tr" : "tr.differs", {},
          el("th", { scope: "row" }, state.labels[key]), cell(one, key), cell(other, key), el("td.usual", {}, snug.wordedParam(state.defaults[key])))))) : el("p", {}, t("Both are the defaults.")));
    }
    const dialog = el("dialog.dialog.wide", { id: "snug-compare", "aria-label": t("Compare presets"), oncancel: close },
      el("header.panel-head", {}, el("h2", {}, t("Compare presets")), iconButton("close", t("Close"), close)),
      el("div.compare-pick", {}, ...pickers), body);
    dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
    fill();
    document.body.append(dialog);
    dialog.showModal();
    pickers[1].focus();
  }
})();
