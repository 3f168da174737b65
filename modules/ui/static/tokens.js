/* The token view: a text in which each token that the model wrote has the colour of its probability, and alternatives. */
"use strict";
(() => {
  const { el, icon, t, number } = snug;
  const LEVELS = [[0.9, t("90 % and more")], [0.5, t("50 to 90 %")], [0.2, t("20 to 50 %")], [0.05, t("5 to 20 %")], [0, t("less than 5 %")]];
  const STICK_PX = 80;

  /* `choose(run, first token's number, which alternative)` goes on from one; `look(run, number)` asks for them. */
  snug.tokenView = ({ look, choose }) => {
    const left = el("span.token-part"), live = el("span.token-part"), right = el("span.token-part");
    const page = el("div.page-text.token-page", { id: "snug-tokens", role: "group", "aria-label": t("The text by token"), hidden: true, tabIndex: 0, onclick: onClick, onkeydown: onKey }, left, live, right);
    const unknown = el("span.token-unknown", { hidden: true }, t("None of this text is known by token. What the model writes while this is on will be."));
    const legend = el("div.token-legend", { hidden: true },
      el("span", {}, t("How likely each token was:")),
      ...LEVELS.map(([, says], level) => el("span.token-key", {}, el(`i.tok.l${level}`, { "aria-hidden": "true" }, "ab"), says)), unknown);
    let segments = [], writing = null, panel = null, opened = null;

    /* Showing: all at once, or piece by piece where the model writes. */

    function show(all) {
      close();
      segments = all;
      writing = null;
      left.replaceChildren(drawn(all)); live.replaceChildren(); right.replaceChildren();
      setEntry();
      unknown.hidden = !all.length || all.some((segment) => segment.pieces);
    }
    function begin(before, after) {
      const [head] = cut(segments, before.length), [, tail] = cut(segments, textOf(segments).length - after.length);
      close();
      unknown.hidden = true;
      segments = head;
      writing = { run: null, first: 0, pieces: [] };
      left.replaceChildren(drawn(head)); live.replaceChildren(); right.replaceChildren(drawn(tail));
      writing.tail = tail;
      page.scrollTop = page.scrollHeight;
    }
    /* `at` is how many pieces are there already; fewer than are on show replace those. */
    function write(pieces, at) {
      if (!writing) return;
      const stick = page.scrollHeight - page.scrollTop - page.clientHeight < STICK_PX;
      if (at < writing.pieces.length) { writing.pieces.length = 0; live.replaceChildren(); }
      const first = writing.pieces.length;
      writing.pieces.push(...pieces);
      live.append(...pieces.map((piece, number) => drawPiece(writing, first + number)));
      if (stick && !right.firstChild) page.scrollTop = page.scrollHeight;
    }
    /* The text is `text` now, and what was written is `run`; false where this is not what is on show. */
    function end(run, text) {
      if (!writing) return false;
      const written = writing;
      writing = null;
      written.run = run;
      segments = [...segments, written, ...written.tail];
      setEntry();
      return textOf(segments) === text && (run !== null || written.pieces.every((piece) => piece[1] === null));
    }

    function drawn(all) {
      const part = document.createDocumentFragment();
      for (const segment of all) {
        if (segment.pieces) segment.pieces.forEach((_, number) => part.append(drawPiece(segment, number)));
        else part.append(segment.text);
      }
      return part;
    }
    function drawPiece(segment, number) {
      const [text, probability, alone] = segment.pieces[number];
      if (probability === null && text) return document.createTextNode(text);
      const node = document.createElement("span");
      const known = probability !== null, says = known ? percent(probability) : t("probability not told");
      node.className = `tok l${known ? LEVELS.findIndex(([least]) => probability >= least) : 0}${text ? "" : " zero"}${/^\n+$/.test(text) ? " line-end" : ""}`;
      node.textContent = text || label(alone);
      node.title = text ? says : `${alone && !alone.includes("\ufffd") ? t("{sign}: not shown in the text", { sign: alone }) : t("Part of a character")}, ${says}`;
      node.tabIndex = -1;
      node.setAttribute("role", "button");
      node.setAttribute("aria-label", `${visible(text || alone)}, ${says}`);
      node.place = [segment, number];
      return node;
    }
    const label = (alone) => alone && !alone.includes("\ufffd") ? alone : "½";
    const textOf = (all) => all.map((segment) => segment.pieces ? segment.pieces.map((piece) => piece[0]).join("") : segment.text).join("");

    function cut(all, length) {
      const head = [], tail = [];
      for (const segment of all) {
        if (length <= 0) { tail.push(segment); continue; }
        if (!segment.pieces) {
          head.push({ text: segment.text.slice(0, length) });
          if (segment.text.length > length) tail.push({ text: segment.text.slice(length) });
          length -= segment.text.length;
          continue;
        }
        let number = 0, rest = length;
        while (number < segment.pieces.length && segment.pieces[number][0].length <= rest && (rest || segment.pieces[number][0])) rest -= segment.pieces[number++][0].length;
        if (!rest) while (number && !segment.pieces[number - 1][0] && number < segment.pieces.length) number--;  // halves of what follows
        head.push({ run: segment.run, first: segment.first, pieces: segment.pieces.slice(0, number) });
        if (number < segment.pieces.length) tail.push({ run: segment.run, first: segment.first + number, pieces: segment.pieces.slice(number) });
        length = rest && number < segment.pieces.length ? 0 : rest;
      }
      return [head, tail];
    }

    /* Keys: one token is reached by Tab, the arrows go on from there. */

    function setEntry() {
      page.querySelector('.tok[tabindex="0"]')?.setAttribute("tabindex", "-1");
      page.querySelector(".tok")?.setAttribute("tabindex", "0");
    }
    function focusOn(token) {
      page.querySelector('.tok[tabindex="0"]')?.setAttribute("tabindex", "-1");
      token.tabIndex = 0;
      token.focus();
    }
    function neighbour(token, by) {
      const all = [...page.querySelectorAll(".tok")];
      return all[Math.max(0, Math.min(all.length - 1, all.indexOf(token) + by))];
    }
    function onKey(event) {
      const token = event.target.closest?.(".tok");
      if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (by) { event.preventDefault(); focusOn(neighbour(token, by)); }
      else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(token); }
    }
    function onClick(event) {
      const token = event.target.closest?.(".tok");
      if (token && String(getSelection()) === "") open(token);
    }

    /* The alternatives of one token. */

    async function open(token) {
      close();
      opened = token;
      const [segment, number] = token.place;
      token.classList.add("open");
      const choice = await look(segment.run, segment.first + number);
      if (opened !== token || choice.problem || !choice.top) { if (opened === token) close(); return; }
      const rest = 1 - choice.top.reduce((sum, one) => sum + one.probability, 0);
      const took = choice.top.some((one) => one.taken);
      panel = el("div.token-panel", { role: "dialog", "aria-label": t("What could stand in the place of {text}", { text: visible(choice.text) }), onkeydown: onPanelKey },
        el("p.token-head", {}, el("code", {}, visible(choice.text)), choice.probability === null ? "" : ` ${percent(choice.probability)}`),
        choice.top.length ? el("p.token-help", {}, t("Choose one to go on from there; what follows is dropped, and Undo brings it back.")) : el("p.token-help", {}, t("No alternatives were told.")),
        el("div.token-list", {}, ...choice.top.map((one, which) => el("button.token-choice", {
          "aria-label": [visible(one.text), percent(one.probability), one.taken ? t("as it stands") : ""].filter(Boolean).join(", "),
          onclick: () => { const from = [segment, segment.first + number, which]; close(); choose(...from); },
        }, el("code", {}, visible(one.text)), el("span.token-bar", {}, el("span", { style: `width:${one.probability * 100}%` })), el("span.token-percent", {}, percent(one.probability)), el("span.token-taken", { title: one.taken ? t("As it stands") : "" }, one.taken ? icon("check") : "")))),
        rest > 0.005 && choice.top.length ? el("p.token-help", {}, took ? t("All others together: {percent}", { percent: percent(rest) }) : t("All others together: {percent}, the one that stands among them", { percent: percent(rest) })) : null,
        choice.by_ids || !choice.top.length ? null : el("p.token-help", {}, t("Another model wrote this, or its token ids are not known: it goes on from the text instead.")));
      page.parentElement.append(panel);
      place(token);
      (panel.querySelector(".token-choice") ?? panel).focus({ preventScroll: true });
      document.addEventListener("pointerdown", onOutside, true);
    }
    function place(token) {
      const box = page.parentElement.getBoundingClientRect(), at = token.getBoundingClientRect();
      const width = panel.offsetWidth, height = panel.offsetHeight;
      const below = at.bottom + 6 + height <= box.bottom;
      panel.style.left = `${Math.max(8, Math.min(at.left - box.left, box.width - width - 8))}px`;
      panel.style.top = `${Math.max(8, below ? at.bottom - box.top + 6 : at.top - box.top - height - 6)}px`;
    }
    function onOutside(event) { if (panel && !panel.contains(event.target)) close(); }
    function onPanelKey(event) {
      const buttons = [...panel.querySelectorAll(".token-choice")], at = buttons.indexOf(document.activeElement);
      if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); const token = opened; close(); focusOn(token); }
      else if (event.key === "Tab") { const token = opened; close(); focusOn(token); }
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        buttons[(at + (event.key === "ArrowDown" ? 1 : buttons.length - 1)) % buttons.length]?.focus();
      }
    }
    function close() {
      document.removeEventListener("pointerdown", onOutside, true);
      panel?.remove();
      opened?.classList.remove("open");
      panel = opened = null;
    }

    return { page, legend, show, begin, write, end, close, writing: () => writing !== null };
  };

  function percent(probability) {
    const value = probability * 100;
    if (value >= 99.95) return `${number(100)} %`;
    return value < 0.05 ? t("less than 0.1 %") : `${number(value, { minimumFractionDigits: value < 10 ? 1 : 0, maximumFractionDigits: value < 10 ? 1 : 0 })} %`;
  }
  /* White space as signs: it is what tokens often differ in. */
  function visible(text) { return (text ?? "").replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || t("(nothing)"); }
})();
