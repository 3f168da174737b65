/* The page's words in the reader's language. English sentences are the keys; what has no translation stays English.
   `snugLanguage` and, for other languages than English, `snugTexts` come with the page (page_texts.py). */
"use strict";
window.snugWords = (() => {
  const { code = "en", direction = "ltr", chosen = "", offered = [] } = window.snugLanguage ?? {};
  const { messages = {}, forms = null } = window.snugTexts ?? {};
  const known = (text) => Object.hasOwn(messages, text) ? messages[text] : null;
  const plain = (text) => { const found = known(text); return (Array.isArray(found) ? found[0] : found) ?? text; };
  const rules = new Intl.PluralRules("en");

  /* Figures as the language writes them; two languages are made up, and write English ones. */
  const figures = ["en-XA", "ar-XB"].includes(code) ? "en" : code;
  const number = (value, options) => value.toLocaleString(figures, options);
  const date = (value, options) => value.toLocaleDateString(figures, options);
  function filled(text, values) {
    return values ? text.replace(/\{(\w+)\}/g, (whole, name) => name in values ? (typeof values[name] === "number" ? number(values[name]) : values[name] ?? "") : whole) : text;
  }

  /* t("Delete {name}", { name }); numbers among the values are written as the language does. */
  const t = (text, values = null) => filled(plain(text), values);
  /* tn("{count} token", "{count} tokens", 3): the form that the language has for that count. */
  function tn(one, many, count, values = {}) {
    const found = known(one);
    const form = Array.isArray(found) ? found[forms[count > 200 ? 100 + count % 100 : count] ?? 1] : rules.select(count) === "one" ? one : many;
    return filled(form ?? many, { count, ...values });
  }

  /* A choice takes effect with the page that is loaded then; "" is what the browser likes. */
  function choose(language) {
    document.cookie = `snug_language=${language}; path=/; SameSite=Lax; max-age=${language ? 315360000 : 0}`;
    const url = new URL(location.href);
    url.searchParams.delete("language");
    if (url.href === location.href) location.reload(); else location.replace(url);
  }

  /* Gradio's controls come in English, alike for everybody: their words are exchanged before they are drawn. */
  const WORDS = ["label", "info", "placeholder"], SHOWN = ["html", "markdown", "button"];
  function translate(config) {
    for (const { type, props } of config?.components ?? []) {
      for (const name of WORDS) if (typeof props[name] === "string") props[name] = plain(props[name]);
      if (Array.isArray(props.choices)) props.choices = props.choices.map((one) => Array.isArray(one) && typeof one[0] === "string" ? [plain(one[0]), ...one.slice(1)] : one);
      if (SHOWN.includes(type) && typeof props.value === "string") props.value = type === "button" ? plain(props.value) : inHtml(props.value);
    }
  }
  function inHtml(html) {
    const box = document.createElement("template");
    box.innerHTML = html;
    const walker = document.createTreeWalker(box.content, NodeFilter.SHOW_TEXT);
    let changed = false;
    while (walker.nextNode()) {
      const text = walker.currentNode.data.trim(), other = plain(text);
      if (other !== text) { walker.currentNode.data = walker.currentNode.data.replace(text, () => other); changed = true; }
    }
    return changed ? box.innerHTML : html;
  }
  if (window.snugTexts) translate(window.gradio_config);
  /* Gradio names the language of its own few words there. */
  const root = document.documentElement, name = () => { if (root.lang !== code) root.lang = code; };
  new MutationObserver(name).observe(root, { attributes: true, attributeFilter: ["lang"] });
  name();

  /* What style sheets say. */
  const SAYS = { "fits-by": t("fits by"), rate: t("tokens/s"), costs: t("costs"), "left-out": t("The model no longer reads what stands above: its context is full.") };
  for (const [key, text] of Object.entries(SAYS)) root.style.setProperty(`--says-${key}`, JSON.stringify(text));

  return { t, tn, number, date, language: { code, direction, chosen, offered, choose } };
})();
