/* The picture of a plan: what a part of a bar says when it is pointed at, the context slider, taking a way to run. */
"use strict";
(() => {
  const { el, t, tn } = snug;
  const SHOWS = "[data-tip]", LEAST = 256, PATIENCE_MS = 5000;
  let tip = null, about = null, aboutPlace = -1, context = null, take = null, useContext = null;

  /* One note for all parts: shown by mouse, keyboard and finger alike. */
  function showTip(part) {
    if (part === about) return;
    hideTip();
    about = part;
    light(part, true);
    aboutPlace = [...document.querySelectorAll(SHOWS)].indexOf(part);
    const { tip: title, size, method, formula } = part.dataset;
    tip = el("div.plan-tip", { role: "tooltip" },
      el("strong", {}, title), el("p", {}, size),
      formula ? el("code", {}, formula) : null, method ? el("p", {}, method) : null);
    document.body.append(tip);
    const box = part.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(12, box.left + Math.min(box.width, 120) / 2 - 60), window.innerWidth - own.width - 12);
    const below = box.bottom + 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${below + own.height < window.innerHeight - 8 ? below : box.top - own.height - 10}px`;
  }
  function hideTip() { if (about) light(about, false); tip?.remove(); tip = about = null; }
  /* A stretch and its entry in the legend stand out together. */
  function light(part, on) {
    const plan = part.closest(".plan"), kind = part.dataset.kind;
    plan?.classList.toggle("lit", on);
    plan?.querySelectorAll(`[data-kind="${CSS.escape(kind)}"], .plan-bar.small .${CSS.escape(kind)}`).forEach((node) => node.classList.toggle("on", on));
  }
  /* The picture was drawn anew: what was pointed at goes on speaking, with the new numbers, if it is still there. */
  function keepTip() {
    const name = about?.dataset.tip, again = document.querySelectorAll(SHOWS)[aboutPlace];
    hideTip();
    if (name && again?.dataset.tip === name) showTip(again);
  }

  /* Lets the parts of a picture in `element` say what they are. */
  snug.tellParts = (element) => {
    const part = (event) => event.target.closest?.(SHOWS);
    element.addEventListener("pointerover", (event) => { const at = part(event); if (at) showTip(at); else hideTip(); });
    element.addEventListener("pointerleave", hideTip);
    element.addEventListener("focusin", (event) => { const at = part(event); if (at) showTip(at); });
    element.addEventListener("focusout", hideTip);
    element.addEventListener("click", (event) => { const at = part(event); if (at) showTip(at); });
  };

  snug.mountPlan = (element, watch) => {
    snug.keepFolds(element, watch);
    snug.tellParts(element);
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-take]");
      if (button) take?.(button);
    });
    window.addEventListener("scroll", hideTip, { capture: true, passive: true });
    window.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
    watch("value", () => { keepTip(); context?.(element.querySelector("[data-context]")?.dataset.context); });
  };

  /* Lengths lie on a logarithmic scale: every doubling takes the same room. */
  const place = (tokens, most) => tokens <= LEAST ? 0 : Math.log2(Math.min(tokens, most) / LEAST) / Math.log2(most / LEAST);
  function tokensAt(share, most) {
    const raw = LEAST * 2 ** (share * Math.log2(most / LEAST));
    const step = raw < 2048 ? 64 : raw < 16384 ? 256 : 1024;
    return Math.min(most, Math.max(LEAST, Math.round(raw / step) * step));
  }
  const said = (tokens) => tn("{count} token", "{count} tokens", tokens);

  snug.mountContext = (element, trigger) => {
    let known = null, held = false, asked = null, askedAt = 0;
    useContext = (tokens) => { asked = null; trigger("set", { tokens }); };
    const range = el("input", { type: "range", min: 0, max: 1000, step: 1, id: "snug-context-range", "aria-label": t("Context length") });
    const length = el("output", { htmlFor: "snug-context-range" });
    const free = el("button.text-button", { onclick: () => { asked = null; trigger("set", { tokens: null }); } }, t("Let Snug choose"));
    const fits = el("div.context-fits"), limit = el("span.context-limit"), marks = el("div.context-marks", {}, limit);
    const box = el("div.context", { hidden: true },
      el("div.context-head", {}, el("label", { htmlFor: "snug-context-range" }, t("Context")), length, free),
      el("div.context-rail", {}, el("div.context-track", {}, fits), range), marks);
    element.replaceChildren(box);
    const name = (tokens, chosen) => {
      length.textContent = chosen ? t("{length}, chosen by Snug", { length: said(tokens) }) : said(tokens);
      range.setAttribute("aria-valuetext", said(tokens));
    };
    range.addEventListener("input", () => {
      held = true;
      const tokens = tokensAt(range.value / 1000, known.most);
      name(tokens, false);
      asked = tokens;
      askedAt = Date.now();
      trigger("set", { tokens });
    });
    document.addEventListener("input", (event) => { if (event.target !== range) asked = null; }, true);
    document.addEventListener("click", (event) => { if (event.target.closest?.("[data-model], [data-take]")) asked = null; }, true);
    for (const kind of ["change", "blur"]) range.addEventListener(kind, () => { held = false; });
    context = (text) => {
      if (!text && held) return;  // an impossible length on the way; the slider stays in the hand
      const told = text ? JSON.parse(text) : null;
      if (asked !== null && told && told.tokens !== asked && Date.now() - askedAt < PATIENCE_MS) return;  // of before
      asked = null;
      known = told;
      box.hidden = !known || known.most <= LEAST;
      if (box.hidden) return;
      free.hidden = known.chosen;
      if (!held) { range.value = Math.round(1000 * place(known.tokens, known.most)); name(known.tokens, known.chosen); }
      const share = place(known.fits, known.most);
      fits.style.width = `${100 * share}%`;
      const whole = known.fits >= known.most;
      limit.textContent = whole ? t("fits to its full {length}", { length: said(known.most) }) : known.fits ? t("fits to {length}", { length: said(known.fits) }) : t("fits at no length");
      putLimit(whole ? 1 : share);
    };
    /* The text stays inside the slider; its tick stands where it stops fitting. */
    function putLimit(share) {
      const room = marks.clientWidth, width = limit.offsetWidth, at = share * room;
      const left = Math.min(Math.max(0, at - width / 2), Math.max(0, room - width));
      limit.style.left = `${left}px`;
      limit.style.setProperty("--at", `${at - left}px`);
    }
    new ResizeObserver(() => { if (known) putLimit(known.fits >= known.most ? 1 : place(known.fits, known.most)); }).observe(marks);
  };

  /* What is wrong with an option stands under it, with a button for what would do. */
  snug.markOptions = (wrong) => document.querySelectorAll(".option").forEach((node) => {
    const why = wrong[node.id.replace("option-", "")];
    node.classList.toggle("invalid", Boolean(why));
    node.querySelector(":scope > .param-problem")?.remove();
    if (!why) return;
    const use = why.use ? el("button.text-button", { type: "button", onclick: () => useContext?.(Number(why.use)) }, t("Use {count}", { count: Number(why.use) })) : null;
    node.append(el("p.param-problem", { role: "alert" }, why.told, use ? " " : null, use));
  });

  snug.mountWays = (element, trigger, watch) => {
    snug.keepFolds(element, watch);
    take = (button) => trigger("take", { flags: JSON.parse(button.dataset.take) });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-take]");
      if (button) take(button);
    });
  };
})();
