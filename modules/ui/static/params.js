/* The controls of the Parameters tab: the values in force, what is changed, folds, what the engine cannot do. */
"use strict";
(() => {
  const { el, icon, remember, t, tn } = snug;
  const SENT_MS = 5000, SETTLE_MS = 120;
  let params = remember.get("params") ?? {};
  let invalid = {}, lacks = {}, defaults = null, trigger = null, asked = null, askedAt = 0, settling = null;
  const edited = new Map();  // parameters that someone set in their controls: when, and to what
  const listeners = [];
  snug.params = () => params;
  /* Calls `told` after every change of the values in force. */
  snug.onParams = (told) => listeners.push(told);
  snug.takeEngine = (known, cannot) => { defaults = known; lacks = cannot; mark(); };

  const nodes = () => document.querySelectorAll(".param");
  const nameOf = (node) => node.id.replace("param-", "");
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const sameValues = (one, other) => same(Object.entries(one).sort(), Object.entries(other).sort());
  const typing = () => Boolean(document.activeElement?.matches?.(".param :is(textarea, input[type=number])"));

  /* What differs from the defaults is the truth: in the browser, for all its windows. The controls follow it, and it
     takes from them what someone set there, and nothing else. */
  function set(values) {
    params = values;
    if (!sameValues(remember.get("params") ?? {}, params)) remember.set("params", Object.keys(params).length ? params : null);
    mark();
  }
  /* Makes these the values in force, the defaults for what they do not say. */
  snug.setParams = (values) => {
    edited.clear();
    set(Object.fromEntries(Object.entries(values).filter(([key, value]) => !defaults || (key in defaults && !same(value, defaults[key])))));
    show();
  };
  function show() {
    asked = params;
    askedAt = Date.now();
    trigger?.("restore", { params });
  }

  snug.mountParams = (element, props, start, watch) => {
    trigger = start;
    watch("value", () => take(props.value));
    /* On leaving a box Gradio would cut its number to the slider's range; an emptied one gets back what counts. */
    document.addEventListener("blur", (event) => {
      if (!event.target.matches?.(".param input[type=number]")) return;
      event.stopPropagation();
      if (event.target.value === "") show();
    }, true);
    for (const kind of ["input", "change"]) {
      document.addEventListener(kind, (event) => {
        const node = event.target.closest?.(".param"), range = event.target.type === "range";
        if (node) edited.set(nameOf(node), { since: Date.now(), value: range ? Number(event.target.value) : shown(node) });
      }, true);
    }
    document.addEventListener("focusout", (event) => { if (event.target.closest?.(".param")) settle(); });
    document.addEventListener("click", (event) => {
      const group = event.target.closest?.(".fold-button")?.closest(".param-group");
      if (!group) return;
      fold(group, !group.classList.contains("open"));
      remember.set("folds", [...document.querySelectorAll(".param-group.open")].map((open) => open.id));
    });
    if (Object.keys(params).length) show();
    mark();
  };

  /* What the server made of the controls' values, or of those that it was to show. */
  function take(view) {
    invalid = view.invalid;
    if (view.shown) {
      if (asked && sameValues(asked, params)) set(view.params);
      setAgain();
    } else {
      const values = { ...params };
      for (const key of edited.keys()) {
        if (key in view.params) values[key] = view.params[key]; else delete values[key];
      }
      set(values);
    }
    isUnderway();
    if (!sameValues(params, view.params)) settle();
  }

  /* Controls that were set while others' values were on their way have been overwritten by those. */
  function setAgain() {
    const late = [...edited].filter(([key, { since }]) => since >= askedAt && key in (defaults ?? {}) && !(key in invalid));
    if (!late.length) return;
    const values = { ...params };
    for (const [key, { value }] of late) {
      if (same(value, defaults[key])) delete values[key]; else values[key] = value;
      edited.delete(key);
    }
    if (sameValues(values, params)) return;
    set(values);
    show();
  }

  /* Another window changed something. What is being typed here stays until it is left. */
  remember.watch("params", (values) => {
    if (sameValues(values ?? {}, params)) return;
    set(values ?? {});
    settle();
  });
  function settle() {
    clearTimeout(settling);
    settling = setTimeout(() => {
      if (typing()) return;
      if (isUnderway()) return settle();
      if (nodes().length && [...nodes()].some((node) => !(nameOf(node) in invalid) && !same(shown(node), inForce(nameOf(node))))) show();
    }, SETTLE_MS);
  }
  /* Whether something that was set here has not come back from the server yet. */
  function isUnderway() {
    for (const [key, { since }] of edited) {
      if (Date.now() - since > SENT_MS || key in invalid || same(shown(document.getElementById(`param-${key}`)), inForce(key))) edited.delete(key);
    }
    return edited.size > 0;
  }
  const inForce = (key) => params[key] ?? defaults?.[key];
  function shown(node) {
    const input = node.querySelector('textarea, input[type="checkbox"], input[type="number"], input:checked');
    if (input.matches("textarea")) return input.value.split("\n").filter(Boolean);
    return input.type === "checkbox" ? input.checked : Number(input.value);
  }

  /* Labels and help, also for those who hear them. */
  function name(node) {
    if (node.named) return;
    node.named = true;
    const help = node.querySelector(".info-text");
    if (help) help.id = `${node.id}-help`;
    if (node.matches("fieldset")) node.setAttribute("aria-label", node.querySelector('[data-testid="block-info"]').textContent.trim());
    if (help) node.querySelectorAll("input, textarea").forEach((input) => input.setAttribute("aria-describedby", help.id));
    /* Gradio says "number input for" before the label, in English alone. */
    if (snug.language.code !== "en") node.querySelectorAll("input[aria-label]").forEach((input) => input.setAttribute("aria-label", node.querySelector('[data-testid="block-info"]').textContent.trim()));
  }

  /* What differs from the default says so, and goes back with one click. */
  function mark() {
    nodes().forEach((node) => {
      name(node);
      const key = nameOf(node), why = invalid[key], changed = key in params && !why;
      node.classList.toggle("changed", changed);
      node.classList.toggle("invalid", Boolean(why));
      reset(node, key, changed || Boolean(why));
      line(node, "param-lack", lacks[key] ?? "", null);
      line(node, "param-problem", why ?? "", "alert");
    });
    document.querySelectorAll(".fold-button").forEach((button) => {
      const group = button.closest(".param-group"), count = group.querySelectorAll(".param:is(.changed, .invalid)").length;
      button.querySelector(".fold-count").textContent = count ? tn("{count} changed", "{count} changed", count) : "";
      if (!group.drawn) { group.drawn = true; fold(group, remember.get("folds", []).includes(group.id)); }
      if (group.querySelector(".param.invalid")) fold(group, true);
    });
    listeners.forEach((told) => told());
  }
  function line(node, kind, text, role) {
    const old = node.querySelector(`:scope > .${kind}`);
    if (old?.textContent === text) return;
    old?.remove();
    if (text) node.append(el(`p.${kind}`, { role }, text));
  }
  function reset(node, key, needed) {
    const label = node.querySelector('[data-testid="block-info"], .label-text');
    const old = label.querySelector(".param-reset"), value = defaults && worded(defaults[key]);
    if (!needed || value === null) return old?.remove();
    if (old?.dataset.value === value) return;
    old?.remove();
    const title = t("Changed. Back to the default: {value}", { value });
    label.append(el("button.param-reset", { title, "aria-label": title, "data-value": value, onclick: (event) => {
      event.preventDefault();
      const { [key]: _, ...rest } = params;
      snug.setParams(rest);
      node.querySelector("input, textarea").focus({ preventScroll: true });
    } }, icon("undo"), value));
  }
  function worded(value) {
    if (Array.isArray(value)) return value.length ? value.map((text) => JSON.stringify(text)).join(", ") : t("none");
    return typeof value === "boolean" ? (value ? t("on") : t("off")) : String(value);
  }
  snug.wordedParam = worded;

  /* Folds stay as they were left. */
  function fold(group, open) {
    group.classList.toggle("open", open);
    group.querySelector(".fold-button").setAttribute("aria-expanded", String(open));
  }
})();
