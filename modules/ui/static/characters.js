/* The Characters tab: the gallery, a character's page, the editor, import by drop, export, delete with undo. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, toast, selectTab, t, tn } = snug;
  const MAX_BYTES = 7 * 1024 * 1024;
  const TEXTS = [
    ["description", t("Context"), t("Who the character is, and how it speaks."), 7],
    ["first_mes", t("Greeting"), t("The first message. {{user}} and {{char}} become names."), 4],
    ["mes_example", t("Example dialogue"), t("{{user}}: Hello.\n{{char}}: Good day!"), 4],
  ];
  const MORE = [
    ["personality", t("Personality"), "", 2], ["scenario", t("Scenario"), "", 2],
    ["system_prompt", t("System prompt"), t("In place of the conversation's, which {{original}} stands for."), 2],
    ["post_history_instructions", t("After the last message"), "", 2], ["creator_notes", t("Notes for people"), "", 2],
  ];
  const SEARCHED_FROM = 6;  // fewer are seen at once
  let server = null, element = null, people = { characters: [], personas: [] }, query = "", shown = null, asked = 0;

  snug.mountCharacters = (root, doors) => {
    [element, server] = [root, doors];
    element.classList.add("gallery-root");
    const over = (event) => { if ([...event.dataTransfer.types].includes("Files")) { event.preventDefault(); element.classList.add("dropping"); } };
    element.addEventListener("dragover", over);
    element.addEventListener("dragleave", (event) => { if (!element.contains(event.relatedTarget)) element.classList.remove("dropping"); });
    element.addEventListener("drop", (event) => { event.preventDefault(); element.classList.remove("dropping"); importFiles([...event.dataTransfer.files]); });
    refresh();
  };

  async function refresh() { take(await call(server, "people")); }
  function take(answer) {
    if (!answer.characters) return false;
    people = { characters: answer.characters, personas: answer.personas };
    snug.takePeople(answer);
    draw();
    find();
    return true;
  }

  /* Which characters, and in which order, the server says: it knows all their texts, and the conversations. */
  async function find() {
    const turn = asked += 1, order = remember.get("characterOrder", "name");
    if (!query && order === "name") { shown = null; return drawTiles(); }
    const answer = await call(server, "find_people", { query, order });
    if (turn !== asked || !answer.ids) return;
    shown = answer.ids;
    drawTiles();
  }
  function drawTiles() {
    const known = new Map(people.characters.map((person) => [person.id, person]));
    const all = shown ? shown.map((id) => known.get(id)).filter(Boolean) : [...people.characters].sort((a, b) => a.name.localeCompare(b.name));
    const none = people.characters.length ? t("Nobody like that is here.") : t("Nobody is here yet.");
    element.querySelector(".gallery-slot").replaceChildren(all.length ? el("div.gallery", {}, ...all.map(tile)) : el("p.nothing", {}, none));
    element.querySelector(".gallery-count").textContent = query ? `${all.length} found` : "";
  }
  snug.searchCharacters = () => {
    const field = document.getElementById("snug-find-character");
    if (!field?.offsetParent) return false;
    field.focus();
    field.select();
  };

  /* The controls for many characters; for a few they would only be in the way. */
  function finder() {
    if (people.characters.length < SEARCHED_FROM && !query) return null;
    let wait = null;
    const field = el("input.edit-line", { type: "search", id: "snug-find-character", placeholder: t("Search names, tags, texts"), "aria-label": t("Search in the characters"), value: query });
    field.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => { query = field.value.trim(); find(); }, 180); });
    const order = remember.get("characterOrder", "name");
    const select = el("select", { id: "snug-order", "aria-label": t("Order of the characters"), onchange: () => { remember.set("characterOrder", select.value); find(); } },
      ...[["name", t("By name")], ["used", t("Last used first")]].map(([value, label]) => el("option", { value, selected: value === order }, label)));
    return el("div.gallery-finder", {}, field, select);
  }

  function draw() {
    const mine = remember.get("persona", "");
    element.replaceChildren(el("div.sheet.gallery-sheet", {},
      el("div.gallery-head", {},
        el("div", {}, el("h1", {}, t("Characters")), el("p", {}, t("Choose somebody to talk to. Drop character cards here: PNG, JSON or YAML."))),
        el("div.gallery-buttons", {}, filePicker(t("Import"), ".png,.json,.yaml,.yml", importFiles, "snug-import"), el("button.primary-button", { id: "snug-new-character", onclick: () => edit(null) }, icon("plus"), t("New")))),
      finder(), el("div.visually-hidden.gallery-count", { role: "status" }), el("div.gallery-slot"),
      el("div.gallery-head.personas-head", {},
        el("div", {}, el("h2", {}, t("You")), el("p", {}, t("Who you are, as characters are told. The chosen one counts for new chats with a character."))),
        el("button.plain-button", { id: "snug-new-persona", onclick: () => editPersona(null) }, icon("plus"), t("New persona"))),
      el("div.personas", {}, ...people.personas.map((person) => personaRow(person, mine)))));
    drawTiles();
  }

  function tile(person) {
    const art = el("span.tile-art", {}, person.picture ? el("img", { src: person.picture, alt: "", loading: "lazy" }) : snug.avatar(person));
    return el("button.tile", { "data-character": person.id, onclick: () => (person.problem ? showBroken(person) : show(person)) }, art,
      el("span.tile-name", {}, person.name), el("span.tile-about", {}, person.problem ? person.problem.message : person.about));
  }

  function personaRow(person, mine) {
    const chosen = person.id === mine;
    return el("div.persona", {},
      el("button.persona-pick", { "aria-pressed": String(chosen), "data-persona": person.id, onclick: () => { remember.set("persona", chosen ? null : person.id); draw(); } },
        snug.avatar(person), el("span.persona-text", {}, el("strong", {}, person.name), el("span", {}, person.problem ? person.problem.message : person.description.split("\n")[0])), chosen ? icon("check") : null),
      person.problem ? null : iconButton("edit", t("Edit {name}", { name: person.name }), () => editPersona(person)),
      iconButton("trash", t("Delete {name}", { name: person.name }), () => drop(person, true)));
  }

  /* One character */

  function dialog(label, ...children) {
    const box = el("dialog.dialog.person-dialog", { "aria-label": label, onclose: () => box.remove() }, ...children);
    box.addEventListener("click", (event) => { if (event.target === box && !box.dirty) box.close(); });
    document.body.append(box);
    box.showModal();
    return box;
  }

  function showBroken(person) {
    const box = dialog(person.name, el("h2", {}, person.name), el("p", {}, `${person.problem.message} ${person.problem.remedy}`),
      el("div.dialog-buttons", {}, person.own ? el("button.danger-button", { onclick: () => { box.close(); drop(person, false); } }, t("Delete")) : null, el("button.plain-button", { onclick: () => box.close() }, t("Close"))));
  }

  async function show(person) {
    const answer = await call(server, "character", { id: person.id });
    if (!answer.fields) return;
    const { fields } = answer;
    const greetings = [fields.first_mes, ...fields.alternate_greetings].filter((text) => text.trim());
    const exported = (kind) => async () => { const made = await call(server, "export_card", { id: person.id, kind }); if (made.data) download(made); };
    const box = dialog(person.name,
      el("div.person-top", {}, el("div.person-art", {}, person.picture ? el("img", { src: person.picture, alt: t("Picture of {name}", { name: person.name }) }) : snug.avatar(person)),
        el("div.person-text", {}, el("h2", {}, fields.name),
          person.tags.length ? el("p.tags", {}, ...person.tags.map((tag) => el("span", {}, tag))) : null,
          el("p.about", {}, fields.creator_notes || fields.description || ""),
          ...answer.unused.map((text) => el("p.panel-help", {}, text)),
          greetings.length ? el("blockquote.greeting", {}, greetings[0].replaceAll("{{char}}", fields.name).replaceAll("{{user}}", t("you"))) : null,
          greetings.length > 1 ? el("p.panel-help", {}, tn("and {count} other greeting", "and {count} other greetings", greetings.length - 1)) : null)),
      el("div.dialog-buttons.person-buttons", {},
        el("span.exports", {}, icon("save"), t("Save as"), ...["png", "json", "yaml"].map((kind) => el("button.text-button", { "data-export": kind, onclick: exported(kind) }, kind.toUpperCase()))),
        el("button.plain-button", { id: "snug-lorebook", onclick: () => { box.close(); snug.openLorebook(server, person, refresh); } }, answer.lore ? t("Lorebook ({count})", { count: answer.lore }) : t("Lorebook")),
        el("button.plain-button", { onclick: () => { box.close(); edit(person, answer); } }, t("Edit")),
        person.own ? el("button.plain-button", { "data-delete": "", onclick: () => { box.close(); drop(person, false); } }, t("Delete")) : null,
        el("button.primary-button", { id: "snug-talk", onclick: () => { box.close(); talk(person.id); } }, icon("talk"), t("Talk"))));
    box.querySelector("#snug-talk").focus();
  }

  async function talk(id) {
    const mine = remember.get("persona", ""), persona = people.personas.some((one) => one.id === mine) ? mine : "";
    const answer = await call(server, "talk", { id, persona });
    if (!answer.conversation) return;
    selectTab("Chat");
    snug.openConversation(answer.conversation);
    snug.refreshConversations();
  }

  async function drop(person, persona) {
    const taken = await call(server, "delete_person", { id: person.id, persona });
    if (!take(taken)) return;
    toast(t("{name} is deleted.", { name: person.name }), { seconds: 12, action: { label: t("Undo"), run: async () => { take(await call(server, "restore_person", { id: person.id, persona })); } } });
  }

  /* The editors */

  function control(fields, [name, label, placeholder, rows]) {
    const id = `edit-${name}`;
    const input = rows > 1 ? el("textarea.edit-area", { id, rows, placeholder, value: fields[name] ?? "" }) : el("input.edit-line", { id, type: "text", maxLength: 200, placeholder, value: fields[name] ?? "" });
    return el("div.panel-field", { "data-field": name }, el("label", { htmlFor: id }, label), input);
  }

  function greetingList(texts) {
    const holder = el("div.greetings");
    const add = (text) => holder.append(el("div.greeting-row", {}, el("textarea.edit-area", { rows: 2, value: text, "aria-label": t("Another greeting") }), iconButton("close", t("Remove this greeting"), (event) => event.currentTarget.parentElement.remove())));
    texts.forEach(add);
    return el("div.panel-field", { "data-greetings": "" }, holder, el("button.text-button", { onclick: () => add("") }, t("Add another greeting")));
  }

  function editor(title, person, persona, fields, controls, extra) {
    let picture = "";
    const art = el("div.person-art.small", {}, person?.picture ? el("img", { src: person.picture, alt: "" }) : icon("person"));
    const choose = async ([file]) => {
      const data = file && await read(file);
      if (!data) return;
      picture = data;
      art.replaceChildren(el("img", { src: URL.createObjectURL(file), alt: t("The new picture") }));
    };
    const slot = el("div.problem-slot");
    const save = async () => {
      const given = {};
      box.querySelectorAll("[data-field]").forEach((node) => { given[node.dataset.field] = node.querySelector("input, textarea").value; });
      const more = box.querySelector("[data-greetings]");
      if (more) given.alternate_greetings = [...more.querySelectorAll("textarea")].map((area) => area.value).filter((text) => text.trim());
      let answer = null;
      try { answer = await server.save_person({ id: person?.id ?? null, persona, fields: given, picture }); } catch { /* told below */ }
      const problem = answer ? answer.problem : { message: t("Snug does not answer."), remedy: t("Nothing is lost: try again.") };
      if (problem) return slot.replaceChildren(el("div.problem", { role: "alert" }, icon("alert"), el("p", {}, `${problem.message} ${problem.remedy}`)));
      box.close();
      take(answer);
      if (persona && !person) { remember.set("persona", answer.saved); draw(); }
    };
    const box = dialog(title, el("h2", {}, title),
      el("div.person-top", {}, el("div.person-side", {}, art, filePicker(t("Picture"), "image/png,image/jpeg,image/webp", choose, "snug-picture")),
        el("div.person-text", {}, control(fields, ["name", t("Name"), "", 1]), ...controls)),
      extra, slot,
      el("div.dialog-buttons", {}, el("button.plain-button", { onclick: () => box.close() }, t("Cancel")), el("button.primary-button", { id: "snug-save-person", onclick: save }, t("Save"))));
    box.classList.add("editing");
    box.addEventListener("input", () => { box.dirty = true; });
    box.addEventListener("cancel", (event) => { if (box.dirty) { event.preventDefault(); toast(t("There are changes."), { remedy: t("Save them, or press Cancel.") }); } });
    box.querySelector("#edit-name").focus();
  }
  function edit(person, answer = { fields: { alternate_greetings: [] } }) {
    const { fields } = answer;
    editor(person ? t("Edit {name}", { name: person.name }) : t("New character"), person, false, fields, [control(fields, TEXTS[0])],
      el("div", {}, control(fields, TEXTS[1]), greetingList(fields.alternate_greetings), control(fields, TEXTS[2]),
        el("details.panel-fold", {}, el("summary", {}, t("More")), ...MORE.map((one) => control(fields, one)))));
  }
  function editPersona(person) {
    editor(person ? t("Edit {name}", { name: person.name }) : t("New persona"), person, true, person ?? {}, [control(person ?? {}, ["description", t("Description"), t("A sailor of forty, back from the north sea."), 4])], null);
  }

  /* Files */

  function filePicker(label, accept, run, id) {
    const input = el("input", { type: "file", accept, multiple: id === "snug-import", id, hidden: true, onchange: () => { run([...input.files]); input.value = ""; } });
    return el("span", {}, input, el("button.plain-button", { onclick: () => input.click() }, icon("upload"), label));
  }
  snug.readFile = read;
  function read(file) {
    if (file.size > MAX_BYTES) { toast(t("{name} is larger than {size}.", { name: file.name, size: "7 MiB" }), { kind: "bad", remedy: t("Make the picture smaller.") }); return null; }
    return new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => { toast(t("{name} could not be read.", { name: file.name }), { kind: "bad" }); resolve(null); };
      reader.readAsDataURL(file);
    });
  }
  async function importFiles(files) {
    for (const file of files.slice(0, 50)) {
      const data = await read(file);
      if (data === null) continue;
      const answer = await call(server, "import_card", { name: file.name, data });
      if (!take(answer)) continue;
      const who = people.characters.find((person) => person.id === answer.imported);
      toast(t("{name} is here.", { name: who?.name ?? answer.imported }), { remedy: answer.unused.join(" "), seconds: 6, action: { label: t("Talk"), run: () => talk(answer.imported) } });
    }
  }
  function download(made) {
    const bytes = Uint8Array.from(atob(made.data), (sign) => sign.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes]));
    const link = el("a", { href: url, download: made.name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
})();
