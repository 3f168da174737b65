/* Models from the hub: a name is looked at, its plan is shown, its download is steered. Its progress is in the header too. */
"use strict";
(() => {
  const { el, icon, iconButton, call, ask, selectTab, t } = snug;
  let server = null, list = null, offerBox = null, field = null, chip = null;
  let seen = [], asked = 0, text = "", drawn = "";

  snug.mountDownloads = (root, doors) => {
    server = doors;
    field = el("input.hub-field", { id: "snug-hub-name", type: "text", placeholder: t("organisation/model, or its address"), autocomplete: "off", spellcheck: false, maxLength: 2000, "aria-label": t("A model on the Hugging Face hub") });
    field.setAttribute("enterkeyhint", "search");
    list = el("div.download-list", { role: "list", "aria-label": t("Downloads") });
    offerBox = el("div.offer-box", { "aria-live": "polite" });
    const form = el("form.hub-form", { onsubmit: (event) => { event.preventDefault(); look(field.value); } },
      field, el("button.plain-button", { id: "snug-hub-look" }, t("Look")));
    form.querySelector("button").type = "submit";
    root.replaceChildren(list,
      el("div.hub", {}, el("h2", {}, t("Get a model")),
        el("p.hub-help", {}, t("From the Hugging Face hub. You see how it fits before anything is fetched.")), form, offerBox));
    snug.onlyAdmins(t("Getting models"), form, field, form.querySelector("button"));
    draw();
  };

  /* Only the last question counts, however slow the answer to an earlier one. */
  async function look(wanted, choice = "") {
    text = wanted.trim();
    const mine = ++asked;
    if (!text) { offerBox.replaceChildren(); field.focus(); return; }
    busy(choice);
    const answer = await quietly("look", { text, choice });
    if (mine !== asked) return;
    if (answer.offer) drawOffer(answer.offer);
    else offerBox.replaceChildren(problem(answer.problem));
  }

  function busy(choice) {
    const card = offerBox.querySelector(".offer");
    if (choice && card) {
      card.classList.add("looking");
      card.querySelectorAll(".offer-choice").forEach((button) => button.setAttribute("aria-checked", String(button.dataset.choice === choice)));
      card.querySelectorAll(".offer-buttons button").forEach((button) => { button.disabled = true; });
    } else offerBox.replaceChildren(el("p.hub-wait", {}, el("span.hub-spinner"), t("Asking the hub…")));
  }

  /* What went wrong stands where one looks, not in a toast. */
  async function quietly(name, body) {
    try { const answer = await server[name](body); if (answer && typeof answer === "object") return answer; } catch { /* told below */ }
    return { problem: { code: "offline", message: t("Snug does not answer."), remedy: t("Is the server still running? If it is, reload the page.") } };
  }

  function problem({ message, remedy }) {
    return el("div.problem.stacked", { role: "alert" }, el("p", {}, el("strong", {}, message)), remedy ? el("p", {}, remedy) : null);
  }

  function drawOffer(offer) {
    const facts = [offer.revision === "main" ? null : t("branch {name}", { name: offer.revision }), offer.license ? t("licence {name}", { name: offer.license }) : t("no licence stated"),
      offer.gated ? t("gated: its publisher grants access") : null, offer.private ? t("private") : null].filter(Boolean);
    const plan = el("div.offer-plan", {});
    plan.innerHTML = offer.plan;
    snug.tellParts(plan);
    const card = el("section.offer", { "aria-label": offer.name },
      el("header.offer-head", {}, el("h3", {}, offer.name),
        el("a.offer-link", { href: offer.page, target: "_blank", rel: "noreferrer noopener" }, t("on the hub")),
        iconButton("close", t("Close"), () => { asked++; offerBox.replaceChildren(); field.focus(); })),
      el("p.offer-facts", {}, facts.join(" · ")),
      offer.choices.length > 1 ? choices(offer) : null,
      offer.refused ? problem(offer.refused) : plan,
      el("p.offer-size", { className: offer.lacks ? "offer-size lacks" : "offer-size" }, offer.size),
      el("div.offer-buttons", {}, button(offer)));
    offerBox.replaceChildren(card);
  }

  function choices(offer) {
    const pick = (id) => look(text, id);
    const buttons = offer.choices.map((choice) => el("button.offer-choice", { "data-choice": choice.id, role: "radio", "aria-checked": String(choice.chosen), tabIndex: choice.chosen ? 0 : -1, onclick: () => pick(choice.id) }, choice.title, " ", el("span.offer-choice-size", {}, choice.size)));
    const group = el("div.offer-choices", { role: "radiogroup", "aria-label": t("What to fetch") }, ...buttons);
    group.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = buttons.at((buttons.indexOf(event.target) + step) % buttons.length);
      look(text, next.dataset.choice).then(() => offerBox.querySelector('.offer-choice[aria-checked="true"]')?.focus());
    });
    return group;
  }

  function button(offer) {
    if (offer.here) return el("button.primary-button", { onclick: () => choose(offer.goal) }, t("Choose it"));
    if (offer.under_way) return el("p.offer-note", {}, t("It is among the downloads above."));
    const chosen = offer.choices.find((choice) => choice.chosen);
    return el("button.primary-button", { id: "snug-hub-download", disabled: offer.blocked || offer.lacks, onclick: (event) => begin(event.currentTarget, chosen.id) }, icon("download"), t("Download"));
  }

  async function begin(pressed, choice) {
    pressed.disabled = true;
    const answer = await call(server, "begin", { text, choice });
    if (!answer.begun) { pressed.disabled = false; return; }
    offerBox.replaceChildren();
    field.value = "";
    take(answer.downloads);
    snug.pulse();
  }

  /* The downloads: drawn anew when one changes its state, moved in place while they run. */

  snug.drawDownloads = take;
  function take(downloads) {
    if (!downloads) return;
    const before = new Map(seen.map((item) => [item.id, item.state]));
    seen = downloads;
    draw();
    drawChip();
    const news = downloads.filter((item) => item.state === "done" && before.has(item.id) && before.get(item.id) !== "done");
    if (news.length) document.getElementById("snug-refresh")?.click();
  }

  function draw() {
    if (!list) return;
    const key = JSON.stringify(seen.map((item) => [item.id, item.state, item.pausing, item.problem?.message]));
    if (key !== drawn) {
      drawn = key;
      const focused = document.activeElement?.closest?.("[data-download]")?.dataset.download;
      list.replaceChildren(...seen.map(card));
      if (focused) list.querySelector(`[data-download="${CSS.escape(focused)}"] button`)?.focus();
    }
    seen.forEach((item, place) => {
      const node = list.children[place];
      node.querySelector(".bar span").style.width = `${100 * item.share}%`;
      node.querySelector(".bar").setAttribute("aria-valuenow", Math.round(100 * item.share));
      node.querySelector(".download-line").textContent = says(item);
    });
  }

  function says(item) {
    return { done: t("It is in the list of models."), paused: t("Paused · {line}", { line: item.line }), interrupted: t("Interrupted · {line}", { line: item.line }) }[item.state] ?? item.line;
  }

  function card(item) {
    const act = (name) => async (event) => { event.currentTarget.disabled = true; take((await call(server, name, { id: item.id })).downloads); snug.pulse(); };
    const buttons = [];
    if (item.state === "running" || item.state === "waiting") buttons.push(el("button.plain-button", { disabled: item.pausing, onclick: act("pause") }, item.pausing ? t("Pausing") : t("Pause")));
    else if (item.state === "done") buttons.push(el("button.plain-button", { onclick: () => choose(item.id) }, t("Choose it")));
    else if (item.known) buttons.push(el("button.plain-button", { onclick: act("resume") }, t("Resume")));
    const away = item.state === "done" ? act("cancel") : async (event) => {
      const pressed = event.currentTarget;
      if (await ask(t("Cancel {name}?", { name: item.id }), t("What was fetched of it is thrown away."), t("Throw away"))) act("cancel")({ currentTarget: pressed });
    };
    buttons.push(iconButton("close", item.state === "done" ? t("Take off the list") : t("Cancel the download"), away));
    return el(`div.download.${item.state}`, { role: "listitem", "data-download": item.id },
      el("div.download-head", {}, el("span.download-name", {}, item.id), el("span.download-from", {}, item.title && item.title !== t("The whole model") ? `${item.name} · ${item.title}` : item.name)),
      el("div.download-buttons", {}, ...buttons),
      el("div.bar", { role: "progressbar", "aria-label": t("Download of {name}", { name: item.id }), "aria-valuemin": 0, "aria-valuemax": 100 }, el("span", {})),
      el("p.download-line", {}), item.problem ? problem(item.problem) : null);
  }

  /* The list of models may not have been drawn anew yet. */
  function choose(name, tries = 40) {
    const entry = document.querySelector(`#snug-models [data-model="${CSS.escape(name)}"]`);
    if (entry) { entry.click(); entry.scrollIntoView({ block: "nearest" }); entry.focus({ preventScroll: true }); return; }
    if (tries === 40) document.getElementById("snug-refresh")?.click();
    if (tries) setTimeout(() => choose(name, tries - 1), 100);
  }

  /* In the header, on every tab */

  snug.buildDownloadChip = () => {
    chip = el("button.download-chip", { id: "snug-download-chip", hidden: true, onclick: () => { selectTab("Model"); list?.scrollIntoView({ block: "center" }); } });
    return chip;
  };

  function drawChip() {
    if (!chip) return;
    const running = seen.filter((item) => item.state === "running" || item.state === "waiting");
    const failed = seen.filter((item) => item.state === "failed");
    chip.hidden = !running.length && !failed.length;
    chip.classList.toggle("bad", !running.length);
    if (chip.hidden) return;
    const share = Math.floor(100 * (running[0]?.share ?? 0));
    chip.replaceChildren(icon(running.length ? "download" : "alert"), el("span", {}, running.length ? `${share} %` : t("Download")));
    const told = running.length ? running.map((item) => `${item.id}: ${item.line}`).join("; ") : failed.map((item) => `${item.id}: ${item.problem?.message ?? ""}`).join("; ");
    chip.title = told;
    chip.setAttribute("aria-label", running.length ? t("Download: {told}", { told }) : t("A download stopped: {told}", { told }));
  }
})();
