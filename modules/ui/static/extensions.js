/* Extensions: the list on their tab, and the style sheets and scripts that they bring to the page. */
"use strict";
(() => {
  const { el, icon, call, toast, t, tn } = snug;
  const CODE = { "{flag}": "python server.py --extensions NAME", "{setting}": "extensions: [NAME]" };
  const faults = new Map();  // by extension, what its script on the page has done
  let server = null, list = null;

  /* Scripts run once the page stands; one that fails is named, and the others run. */
  snug.loadExtensions = async (from) => {
    const { css = {}, js = {} } = await call(from, "assets");
    for (const [name, text] of Object.entries(css)) document.head.append(el("style", { "data-extension": name }, text));
    await whenThere("#snug-input");
    for (const [name, text] of Object.entries(js)) {
      try { new Function("extension", text)(name); }
      catch (error) { blame(name, error); }
    }
  };

  function blame(name, error) {
    faults.set(name, String(error?.message ?? error));
    console.warn(`Extension ${name}:`, error);
    toast(t("Extension {name}: its script on this page failed.", { name }), { remedy: faults.get(name), kind: "bad" });
  }

  function whenThere(selector) {
    return new Promise((resolve) => {
      const look = () => document.querySelector(selector) ? resolve() : requestAnimationFrame(look);
      look();
    });
  }

  /* For scripts: something is done for every message that is drawn, now and later. */
  snug.eachMessage = (handle) => {
    const safely = (detail) => { try { handle(detail); } catch (error) { console.error(error); } };
    document.addEventListener("snug:message", (event) => safely(event.detail));
    snug.redrawMessages();
  };

  /* … and for the page of an empty chat. */
  snug.eachEmptyChat = (handle) => {
    document.addEventListener("snug:empty", (event) => { try { handle(event.detail); } catch (error) { console.error(error); } });
    snug.redrawChat();
  };

  snug.mountExtensions = async (element, doors) => {
    server = doors;
    list = el("div.extension-list");
    element.replaceChildren(el("div.sheet.extensions", {},
      el("div", {}, el("h1", {}, t("Extensions")), el("p", {}, ...t("They start with Snug and change what is said on its way to the model and back. Add one: {flag}, or {setting} in user_data/settings.yaml.").split(/(\{\w+\})/).map((part) => CODE[part] ? el("code", {}, CODE[part]) : part))),
      list));
    document.getElementById("snug-tabs").addEventListener("click", (event) => {
      if (snug.tabAt(event.target) === "Extensions") refresh();
    });
    snug.me.then(({ admin }) => {
      if (admin) return;
      element.querySelector("h1").after(el("p.only-admins", {}, t("Changing extensions is for administrators.")));
      document.querySelectorAll(".extension-part").forEach((part) => { part.inert = true; });
    });
    refresh();
  };

  async function refresh() { draw(await call(server, "cards")); }

  function draw({ cards }) {
    if (!cards) return;
    const running = cards.filter((card) => card.running !== null), others = cards.filter((card) => card.running === null);
    for (const card of running) document.getElementById(`snug-extension-${card.name}`)?.toggleAttribute("hidden", !card.running);
    list.replaceChildren(
      ...running.map(drawCard),
      others.length ? el("details.extension-others", { open: !running.length }, el("summary", {}, running.length ? tn("{count} more in the extensions folder", "{count} more in the extensions folder", others.length) : tn("{count} in the extensions folder", "{count} in the extensions folder", others.length)),
        ...others.map((card) => el("div.extension-other", {}, el("strong", {}, card.name), el("span", {}, ...said(card.about))))) : "");
  }

  function drawCard(card) {
    const fault = faults.get(card.name), broken = !card.started, faulty = card.problems.length || fault;
    const state = broken ? t("did not start") : !card.running ? t("off") : faulty ? t("on, with problems") : t("on");
    const button = el("button.switch", {
      role: "switch", "aria-checked": String(card.running), "aria-label": card.title, disabled: broken || document.body.classList.contains("guest"),
      onclick: async () => {
        const answer = await call(server, "switch", { id: card.name, on: !card.running });
        draw(answer);
        if (card.hooks.some((hook) => hook.name === "custom_css" || hook.name === "custom_js")) toast(t("Reload the page to see it as it is now."), { action: { label: t("Reload"), run: () => location.reload() } });
        list.querySelector(`[data-extension="${CSS.escape(card.name)}"] .switch`)?.focus();
      },
    }, el("i"));
    return el(`article.extension-card${broken || faulty ? ".faulty" : ""}`, { "data-extension": card.name },
      el("div.extension-head", {}, el("div", {}, el("h3", {}, card.title), card.about ? el("p", {}, ...said(card.about)) : null), el("span.extension-state", {}, state), button),
      ...card.remarks.map((remark) => el("p.extension-remark", {}, icon("alert"), el("span", {}, capital(remark)))),
      ...card.problems.map(drawProblem),
      fault ? drawProblem({ hook: "custom_js", reason: fault, trace: "" }) : "",
      card.hooks.length ? el("details.extension-hooks", {}, el("summary", {}, tn("{count} hook, and where it runs", "{count} hooks, and where they run", card.hooks.length)),
        el("dl", {}, ...card.hooks.flatMap((hook) => [el("dt", {}, el("code", {}, hook.name)), el("dd", {}, hook.where)]))) : "");
  }

  function drawProblem({ hook, reason, trace }) {
    const line = el("span", {}, hook ? el("code", {}, hook) : "", hook ? " " : "", hook ? `${reason}.` : capital(`${reason}.`));
    if (!trace) return el("p.extension-problem", {}, icon("alert"), line);
    return el("details.extension-problem", {}, el("summary", {}, icon("alert"), line), el("pre", {}, trace));
  }

  /* A sentence of a script's, with what stands between backticks as code. */
  function said(text) { return text.split("`").map((part, at) => at % 2 ? el("code", {}, part) : part); }
  function capital(text) { return text.charAt(0).toUpperCase() + text.slice(1); }
})();
