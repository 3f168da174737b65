/* A character's lorebook: its entries with why each is in the next prompt or not, an editor in its place, files, undo. */
"use strict";
(() => {
  const { el, icon, iconButton, call, toast, t, tn } = snug;
  const PAGE = 100, SEARCHED_FROM = 12;
  const BLANK = { comment: "", keys: [], secondary_keys: [], content: "", enabled: true, constant: false, case_sensitive: false, insertion_order: 100, position: "after_char" };

  /* Opens the lorebook of `person`; `done` is called when it is closed. */
  snug.openLorebook = async (server, person, done) => {
    const state = { view: null, query: "", limit: PAGE, editing: null, begun: "", dirty: false };  // `begun`: the revision that the open entry is of
    const chat = snug.chatView();
    const look = () => ({ id: person.id, query: state.query, limit: state.limit, conversation: chat.id, draft: chat.draft.slice(0, 100000) });
    const list = el("div.lore-list"), about = el("p.panel-help", { role: "status" }), read = el("details.panel-fold.lore-read");
    const picker = el("input", { type: "file", accept: ".json,application/json", id: "snug-lore-file", hidden: true, onchange: () => { take(picker.files[0]); picker.value = ""; } });
    const search = el("input.edit-line", { type: "search", placeholder: t("Search in the entries"), "aria-label": t("Search in the entries"), hidden: true });
    let wait = null;
    search.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => { state.query = search.value; state.limit = PAGE; refresh(); }, 180); });
    const box = el("dialog.dialog.person-dialog.lore-dialog", { "aria-label": t("Lorebook of {name}", { name: person.name }), onclose: () => { box.remove(); done(); } },
      el("div.lore-head", {}, el("h2", {}, t("Lorebook of {name}", { name: person.name })), picker,
        el("button.plain-button", { onclick: () => picker.click(), title: t("Entries of a lorebook, or of a world file of SillyTavern") }, icon("upload"), t("Import")),
        el("button.primary-button", { id: "snug-lore-new", onclick: () => edit(-1) }, icon("plus"), t("New entry"))),
      about, search, list, read,
      el("div.dialog-buttons", {}, el("button.plain-button", { id: "snug-lore-close", onclick: () => leave() && box.close() }, t("Close"))));
    box.addEventListener("cancel", (event) => { if (!leave()) event.preventDefault(); });
    box.addEventListener("click", (event) => { if (event.target === box && leave()) box.close(); });
    document.body.append(box);
    box.showModal();
    await refresh();
    drawReading();

    /* Whether nothing that was typed would be lost. */
    function leave() {
      if (state.dirty) toast(t("There are changes in an entry."), { remedy: t("Save them, or press Cancel.") });
      return !state.dirty;
    }

    async function ask(name, body = {}) {
      const answer = await call(server, name, { ...look(), ...body });
      if (answer.entries) {
        if (body.revision && body.revision === state.begun) state.begun = answer.revision;  // this page's own change, and nobody else's
        state.view = answer;
        draw();
      }
      return answer;
    }
    function refresh() { return ask("lorebook"); }

    function draw() {
      const { view } = state;
      read.hidden = !view.all;
      search.hidden = view.all < SEARCHED_FROM && !state.query;
      const amount = tn("{count} entry", "{count} entries", view.all);
      about.textContent = !view.all ? t("Facts that the model is told when they are spoken of: places, people, what happened. None yet.")
        : view.firing === null ? t("{amount}. In a chat with {name} each says here whether it is in the next prompt, and why.", { amount, name: person.name })
        : t("{amount}, {firing} in the next prompt of the open chat.", { amount, firing: view.firing });
      const held = list.contains(document.activeElement) ? document.activeElement.closest("[data-at]")?.dataset.at : null;
      const kept = list.querySelector(".lore-edit");  // what is being typed stays
      const rows = view.entries.map((entry) => entry.at === state.editing && kept ? kept : row(entry));
      if (state.editing === -1 && kept) rows.unshift(kept);
      if (!view.entries.length && state.query) rows.push(el("p.nothing", {}, t("Nothing found.")));
      if (view.found > view.entries.length) rows.push(el("button.text-button", { onclick: () => { state.limit += 2 * PAGE; refresh(); } }, t("Show more of {count}", { count: view.found })));
      list.replaceChildren(...rows);
      if (held !== null && !list.contains(document.activeElement)) list.querySelector(`[data-at="${held}"] button`)?.focus();
    }

    function row(entry) {
      const keys = entry.keys.join(", ") + (entry.more_keys ? t(" and {count} more", { count: entry.more_keys }) : "");
      const name = entry.title || keys || (entry.constant ? t("Always") : t("No key"));
      const told = entry.fires === null ? "" : entry.reason;
      return el(`div.lore-row${entry.enabled ? "" : ".off"}`, { "data-at": entry.at },
        el("button.lore-open", { onclick: () => edit(entry.at), "aria-label": t("Edit {name}", { name }) },
          el("strong", {}, name), entry.title && keys ? el("span.lore-keys", {}, keys) : null,
          el("span.lore-about", {}, entry.about || t("No text yet.")),
          told ? el(`span.lore-why${entry.fires ? ".fires" : ""}`, {}, entry.fires ? t("In the prompt: {reason}", { reason: lower(told) }) : t("Not in the prompt: {reason}", { reason: lower(told) })) : null),
        el("button.switch", { role: "switch", "aria-checked": String(entry.enabled), "aria-label": t("{name} is on", { name }), onclick: () => ask("switch_lore", { revision: state.view.revision, at: entry.at, enabled: !entry.enabled }) }, el("i")),
        iconButton("trash", t("Delete {name}", { name }), () => drop(entry, name)));
    }
    function lower(text) { return text.charAt(0).toLowerCase() + text.slice(1); }

    async function drop(entry, name) {
      if (!leave()) return;
      shut();
      const answer = await ask("delete_lore", { revision: state.view.revision, at: entry.at });
      if (!answer.deleted) return refresh();
      document.getElementById("snug-lore-new").focus();
      toast(t("“{name}” is deleted.", { name: name.slice(0, 40) }), { seconds: 12, action: { label: t("Undo"), run: () => restore(entry.at, answer.deleted) } });
    }

    /* An entry that is being written moves on with its place; that it is of an older revision saving it will tell. */
    function restore(at, entry) {
      if (!state.dirty) shut();
      if (state.editing !== null && state.editing >= at) state.editing = list.querySelector(".lore-edit").dataset.at = state.editing + 1;
      return ask("restore_lore", { at, entry });
    }
    function shut() {
      Object.assign(state, { editing: null, dirty: false });
      list.querySelector(".lore-edit")?.remove();
    }

    async function edit(at) {
      if (!leave()) return;
      let fields = BLANK;
      if (at >= 0) {
        const answer = await call(server, "lore_entry", { ...look(), revision: state.view.revision, at });
        if (!answer.entry) return refresh();
        fields = answer.entry;
      }
      shut();
      Object.assign(state, { editing: at, begun: state.view.revision });
      draw();
      const form = editor(at, fields), old = list.querySelector(`[data-at="${at}"]`);
      if (old) old.replaceWith(form); else list.prepend(form);
      form.querySelector("textarea").focus();
      form.scrollIntoView({ block: "nearest" });
    }

    function editor(at, fields) {
      const input = (name, label, node, help = "") => { node.id = `lore-${name}`; return el("div.panel-field", {}, el("label", { htmlFor: node.id }, label), node, help ? el("p.panel-help", {}, help) : null); };
      const check = (name, label, on) => el("label.lore-check", {}, el("input", { type: "checkbox", id: `lore-${name}`, checked: on }), label);
      const area = (value, rows, placeholder = "") => el("textarea.edit-area", { rows, value, placeholder });
      const expressions = fields.expressions ? tn("{count} key is a regular expression, which Snug does not run.", "{count} keys are regular expressions, which Snug does not run.", fields.expressions) : "";
      const slot = el("div.problem-slot");
      const save = async () => {
        const value = (name) => form.querySelector(`#lore-${name}`);
        const order = Number(value("order").value);
        const given = {
          comment: value("comment").value, keys: words(value("keys").value), secondary_keys: words(value("secondary").value), content: value("content").value,
          enabled: fields.enabled, constant: value("constant").checked, case_sensitive: value("case").checked,
          insertion_order: Number.isFinite(order) ? order : 100, position: value("position").value,
        };
        let answer = null;
        try { answer = await server.save_lore({ ...look(), revision: state.begun, at: state.editing, fields: given }); } catch { /* told below */ }
        const problem = answer ? answer.problem : { message: t("Snug does not answer."), remedy: t("Nothing is lost: try again.") };
        if (problem) {
          if (problem.code === "stale_view") { state.editing = form.dataset.at = -1; problem.remedy = t("Save again to keep this as a new entry, or cancel and look at the other one."); }
          return slot.replaceChildren(el("div.problem", { role: "alert" }, icon("alert"), el("p", {}, `${problem.message} ${problem.remedy}`)));
        }
        const place = state.editing;
        shut();
        state.view = answer;
        draw();
        (list.querySelector(`[data-at="${place < 0 ? answer.all - 1 : place}"] .lore-open`) ?? document.getElementById("snug-lore-new")).focus();
      };
      const form = el("div.lore-edit", { "data-at": at },
        input("keys", t("Keys"), area(listed(fields.keys), 1, t("hive, honey, bees")), expressions || t("The entry is told when one of them stands in the last messages.")),
        input("content", t("What the model is told"), area(fields.content, 4, t("The hive is in the old oak behind the mill."))),
        check("constant", t("Tell it always"), fields.constant),
        el("details.panel-fold", {}, el("summary", {}, t("More")),
          input("comment", t("Name, for you alone"), el("input.edit-line", { type: "text", maxLength: 200, value: fields.comment })),
          input("secondary", t("Secondary keys"), area(listed(fields.secondary_keys), 1), t("If there are any, one of them has to stand there too.")),
          el("div.lore-pair", {},
            input("position", t("Place"), el("select", {}, ...[["after_char", t("After the character")], ["before_char", t("Before the character")]].map(([value, label]) => el("option", { value, selected: value === fields.position }, label)))),
            input("order", t("Order"), el("input.edit-line", { type: "number", step: 1, value: fields.insertion_order }), t("Lower ones stand first."))),
          check("case", t("Capital letters matter"), fields.case_sensitive)),
        slot,
        el("div.dialog-buttons", {}, el("button.plain-button", { onclick: () => { shut(); refresh(); } }, t("Cancel")), el("button.primary-button", { id: "snug-lore-save", onclick: save }, t("Save"))));
      form.addEventListener("input", () => { state.dirty = true; });
      form.addEventListener("keydown", (event) => {
        if (snug.isKey("save", event)) save();
        if (event.key === "Escape" && !state.dirty) { event.preventDefault(); event.stopPropagation(); shut(); draw(); }
      });
      return form;
    }

    function drawReading() {
      const { view } = state;
      if (!view) return;
      const number = (name, label, value, placeholder, help) => el("div.panel-field", {}, el("label", { htmlFor: `lore-${name}` }, label),
        el("input.edit-line", { id: `lore-${name}`, type: "number", min: 0, step: 1, value: value ?? "", placeholder, onchange: configure }), el("p.panel-help", {}, help));
      read.replaceChildren(el("summary", {}, t("How it is read")),
        el("div.lore-pair", {},
          number("depth", t("Messages that are searched"), view.scan_depth, String(view.usual_depth), t("The last ones.")),
          number("budget", t("Tokens for lore"), view.token_budget, t("a quarter of the context"), t("What does not fit is left out."))),
        el("label.lore-check", {}, el("input", { type: "checkbox", id: "lore-recursive", checked: view.recursive_scanning, onchange: configure }), t("Entries call for other entries")));
    }

    async function configure() {
      const whole = (name) => { const text = read.querySelector(`#lore-${name}`).value; return text === "" ? null : Math.round(Number(text)); };
      const answer = await ask("configure_lore", { revision: state.view.revision, fields: { scan_depth: whole("depth"), token_budget: whole("budget"), recursive_scanning: read.querySelector("#lore-recursive").checked } });
      if (answer.problem) { await refresh(); drawReading(); }
    }

    async function take(file) {
      if (!file || !leave()) return;
      const data = await snug.readFile(file);
      if (!data) return;
      const answer = await ask("import_lore", { name: file.name, data });
      if (answer.added === undefined) return;
      drawReading();
      toast(answer.added ? tn("{count} entry added.", "{count} entries added.", answer.added) : t("Nothing was added."), { remedy: answer.known ? tn("{count} entry was here already, word for word.", "{count} entries were here already, word for word.", answer.known) : "" });
    }
  };

  /* Keys as one writes them: between commas, or a line each where one of them has a comma in it. */
  function listed(keys) { return keys.some((key) => key.includes(",")) ? `${keys.join("\n")}\n` : keys.join(", "); }
  function words(text) { return text.split(text.includes("\n") ? "\n" : ",").map((word) => word.trim()).filter(Boolean); }
})();
