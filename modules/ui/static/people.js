/* Who somebody is: the button at the foot of the sidebar, the dialog behind it, and what is only for administrators. */
"use strict";
(() => {
  const { el, icon, iconButton, call, ask, toast, copy, remember, t, date } = snug;
  let server = null, me = { name: "", admin: true }, button = null, dialog = null;
  let known = null;
  snug.me = new Promise((resolve) => { known = resolve; });

  snug.mountPeople = async (doors) => {
    server = doors;
    try { const answer = await server.who({}); if (answer && !answer.problem) me = answer; } catch { /* the pulse tells of it */ }
    document.body.classList.toggle("guest", !me.admin);
    if (button) drawButton();
    known(me);
  };

  /* For shell.js */
  snug.buildPerson = () => { button = el("button.person-button", { id: "snug-person", hidden: true, onclick: open }); drawButton(); return button; };
  function drawButton() {
    button.hidden = !me.name;
    button.title = `${me.name}: account`;
    button.setAttribute("aria-label", t("Account of {name}", { name: me.name }));
    button.replaceChildren(el("span.person-initial", { "aria-hidden": "true" }, [...me.name][0]?.toUpperCase() ?? ""), el("span.person-name", {}, me.name));
  }

  /* A session that ended elsewhere: the next page is the one to log in. */
  snug.checkSession = async () => {
    try { if ((await fetch("/account", { headers: { accept: "application/json" } })).status === 401) location.reload(); } catch { /* the server is away */ }
  };

  /* What is not for somebody stands there, cannot be used, and says why. */
  snug.onlyAdmins = (deed, place, ...controls) => snug.me.then(() => {
    if (me.admin) return;
    controls.forEach((control) => { control.disabled = true; });
    place?.prepend(el("p.only-admins", {}, t("{deed} is for administrators.", { deed })));
  });

  async function open() {
    const name = el("h2", { id: "snug-account-title" }, me.name);
    const body = el("div.account-body", {});
    dialog = el("dialog.dialog.wide.account", { id: "snug-account", "aria-labelledby": "snug-account-title", onclose: () => dialog.remove() },
      el("header.keys-head", {}, el("div", {}, name, el("p", {}, me.admin ? t("Administrator") : "")), iconButton("close", t("Close"), () => dialog.close())), body);
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
    dialog.showModal();
    const answer = await call(server, "account");
    if (!answer.problem) draw(answer);
  }

  function draw({ keys, people, secret }) {
    const own = keys.filter((key) => key.own), others = keys.filter((key) => !key.own);
    dialog.querySelector(".account-body").replaceChildren(...[
      section(t("Keys for programs"), t("A key lets a program use Snug's API in your name."),
        secret ? shown(secret) : null, ...own.map(keyRow), keyForm()),
      me.admin ? section(t("People"), t("Everybody has conversations of their own that nobody else sees."), ...people.map(personRow), personForm()) : null,
      me.admin && others.length ? section(t("Other people's keys"), "", ...others.map(keyRow)) : null,
      section(t("Password"), t("Other browsers have to log in again."), passwordForm()),
      el("div.account-out", {}, el("button.plain-button", { onclick: logOut }, t("Log out"))),
    ].filter(Boolean));
    dialog.querySelector(".account-secret button")?.focus();
  }
  /* By fetch: a form of this page, which names itself to nobody, would look like another site's. */
  async function logOut() {
    if (remember.unsent() && !await ask(t("Log out?"), t("What you have written and not sent is deleted from this browser."), t("Log out"))) return;
    try { await fetch("/logout", { method: "POST", redirect: "manual" }); remember.leave(); } finally { location.reload(); }
  }
  function section(title, about, ...children) { return el("section", {}, el("h3", {}, title), about ? el("p", {}, about) : null, ...children); }
  function submit(label, kind = "primary-button") { const made = el(`button.${kind}`, {}, label); made.type = "submit"; return made; }
  function field(label, attributes) { return el("label.account-field", {}, el("span", {}, label), el("input", attributes)); }
  function tick(label, name) { return el("label.account-tick", {}, el("input", { type: "checkbox", name }), label); }
  function form(does, ...children) {
    const made = el("form.account-form", {}, ...children);
    made.addEventListener("submit", async (event) => {
      event.preventDefault();
      const sender = made.querySelector('[type="submit"]');
      sender.disabled = true;
      try { await does(new FormData(made), made); } finally { sender.disabled = false; }
    });
    return made;
  }
  async function change(name, body, told = "") {
    const answer = await call(server, name, body);
    if (answer.problem) return false;
    if (answer.keys) draw(answer);
    if (told) toast(told, { seconds: 3 });
    return true;
  }

  function shown(secret) {
    const copier = el("button.primary-button", { onclick: () => copy(secret, copier) }, icon("copy"), t("Copy"));
    return el("div.account-secret", { role: "status" }, el("p", {}, t("Your new key. Copy it now: it is shown this once.")), el("div", {}, el("code", {}, secret), copier));
  }
  function keyRow(key) {
    const day = (seconds) => date(new Date(seconds * 1000));
    const facts = [key.own ? null : key.person, `…${key.hint}`, key.admin ? t("administrator") : null, key.expires_at ? t("until {day}", { day: day(key.expires_at) }) : null, key.used_at ? t("used {day}", { day: day(key.used_at) }) : t("never used")];
    return el("div.account-row", {}, icon("keyboard"), el("div", {}, el("strong", {}, key.name), el("span", {}, facts.filter(Boolean).join(" · "))),
      el("button.text-button", { "aria-label": t("Revoke the key {name}", { name: key.name }), onclick: async () => {
        if (await ask(t("Revoke this key?"), t("The program that uses “{name}” gets no answers any more.", { name: key.name }), t("Revoke"))) change("revoke_key", { id: key.id });
      } }, t("Revoke")));
  }
  function keyForm() {
    return form((data) => change("make_key", { name: data.get("name"), admin: data.get("admin") === "on", days: Number(data.get("days")) || null }),
      field(t("New key for"), { name: "name", required: true, maxLength: 80, placeholder: t("a program's name"), autocomplete: "off" }),
      field(t("Days"), { name: "days", type: "number", min: 1, max: 3650, placeholder: t("no end") }),
      me.admin ? tick(t("May load models"), "admin") : null, submit(t("Make key")));
  }
  function personRow(person) {
    const menu = person.you ? [] : person.removed
      ? [el("button.text-button", { onclick: () => change("restore_person", { id: person.id }) }, t("Let in again"))]
      : [el("button.text-button", { onclick: () => change("set_right", { id: person.id, admin: !person.admin }) }, person.admin ? t("Make ordinary") : t("Make administrator")),
        el("button.text-button", { onclick: () => newPassword(person) }, t("New password")),
        el("button.text-button.danger", { "aria-label": t("Remove {name}", { name: person.name }), onclick: async () => {
          if (await ask(t("Remove {name}?", { name: person.name }), t("They cannot log in any more, and their keys end. Their conversations are kept."), t("Remove"))) change("remove_person", { id: person.id });
        } }, t("Remove"))];
    return el(`div.account-row${person.removed ? ".removed" : ""}`, {}, icon("person"),
      el("div", {}, el("strong", {}, person.name), el("span", {}, [person.you ? t("you") : null, person.admin ? t("administrator") : null, person.removed ? t("removed") : null].filter(Boolean).join(" · "))), ...menu);
  }
  function newPassword(person) {
    const inner = el("dialog.dialog", { "aria-label": t("A new password for {name}", { name: person.name }), onclose: () => inner.remove() },
      el("h2", {}, t("A new password for {name}", { name: person.name })),
      form(async (data) => { if (await change("give_password", { id: person.id, password: data.get("password") }, t("The password has changed."))) inner.close(); },
        field(t("Password"), { name: "password", type: "password", required: true, minLength: 8, autocomplete: "new-password" }), submit(t("Change"))));
    document.body.append(inner);
    inner.showModal();
  }
  function personForm() {
    return form((data) => change("add_person", { name: data.get("name"), password: data.get("password"), admin: data.get("admin") === "on" }),
      field(t("New person"), { name: "name", required: true, maxLength: 60, placeholder: t("name"), autocomplete: "off" }),
      field(t("Password"), { name: "password", type: "password", required: true, minLength: 8, autocomplete: "new-password" }),
      tick(t("Administrator"), "admin"), submit(t("Add")));
  }
  function passwordForm() {
    return form(async (data, made) => { if (await change("change_password", { old: data.get("old"), new: data.get("new") }, t("The password has changed."))) made.reset(); },
      field(t("Old one"), { name: "old", type: "password", required: true, autocomplete: "current-password" }),
      field(t("New one"), { name: "new", type: "password", required: true, minLength: 8, autocomplete: "new-password" }), submit(t("Change"), "plain-button"));
  }
})();
