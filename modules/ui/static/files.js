/* Conversations as files: written piece by piece, read in portions that are files by themselves. */
"use strict";
(() => {
  const { el, call, toast, showProblem, t, tn } = snug;
  const AT_ONCE = 50, WHOLE_CHARACTERS = 2000000, MAX_CHARACTERS = 450000000, MAX_SENT_BYTES = 10 * 1024 * 1024 - 4096, FILE_CHARACTERS = MAX_CHARACTERS - 1000;

  /* Exports these conversations, or all. */
  snug.exportConversations = async (server, format, ids = null, name = "conversations") => {
    const progress = busy(t("Exporting"));
    try {
      if (!ids) ids = (await asked(server, "export", {})).ids;
      if (!ids.length) return toast(t("There is no conversation to export."));
      const pieces = [], tooLarge = [];
      for (let at = 0; at < ids.length;) {
        progress.show(at, ids.length);
        const answer = await asked(server, "export", { ids: ids.slice(at, at + AT_ONCE), format });
        pieces.push(...answer.pieces);
        tooLarge.push(...answer.too_large);
        at += Math.max(1, answer.done);
      }
      const json = format === "json", between = json ? ",\n" : "\n---\n\n";
      const files = pieces.length ? inFiles(pieces) : [];
      for (const [number, some] of files.entries()) {
        const parts = some.flatMap((piece, index) => index ? [between, piece] : [piece]);
        if (json) { parts.unshift('{"snug": 1, "conversations": [\n'); parts.push("\n]}\n"); }
        save(new Blob(parts, { type: json ? "application/json" : "text/markdown" }), `${fileName(name)}${files.length > 1 ? ` ${number + 1}` : ""}.${json ? "json" : "md"}`);
      }
      if (tooLarge.length) toast(t("Too large for a file that can be imported again: {names}", { names: tooLarge.join(", ") }), { kind: "bad", seconds: 20, remedy: t("More than {size} MB, nearly all of it pictures. Branch off further up and export the branch, or export Markdown.", { size: MAX_CHARACTERS / 1000000 }) });
    } catch (error) { tell(error); } finally { progress.end(); }
  };

  /* As few files as browsers can read again. */
  function inFiles(pieces) {
    const files = [[]];
    let length = 0;
    for (const piece of pieces) {
      if (length && length + piece.length > FILE_CHARACTERS) { files.push([]); length = 0; }
      files.at(-1).push(piece);
      length += piece.length + 2;
    }
    return files;
  }

  function fileName(title) { return title.replace(/[\p{C}\s\\\/:*?"<>|]+/gu, " ").trim().slice(0, 80) || "conversation"; }

  snug.saveFile = (text, name) => save(new Blob([text]), fileName(name));
  function save(blob, name) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  snug.importFiles = (server, done) => {
    const input = el("input", { type: "file", multiple: true, accept: ".json,.jsonl,application/json", id: "snug-import-chats", hidden: true });
    document.getElementById("snug-import-chats")?.remove();
    input.addEventListener("change", async () => {
      const report = { imported: [], messages: 0, skipped: [], notes: [], known: [] };
      for (const file of input.files) await take(server, file, report, input.files.length > 1);
      input.remove();
      showReport(report, () => again(server, report.known, done));
      done();
    });
    document.body.append(input);
    input.click();
  };

  /* What was here already, taken once more because a person wants it. */
  async function again(server, known, done) {
    const progress = busy(t("Importing")), report = { imported: [], messages: 0, skipped: [], notes: [], known: [] };
    try {
      for (const [index, { piece, items }] of known.entries()) {
        progress.show(index, known.length);
        const answer = await sent(server, piece, items.map((item) => item.digest), progress);
        report.imported.push(...answer.imported);
        report.messages += answer.messages;
      }
      showReport(report);
    } catch (error) { tell(error); } finally { progress.end(); done(); }
  }

  /* A portion that is too large for the page's own door takes the one for single conversations, with its progress. */
  async function sent(server, piece, only, progress) {
    const body = new Blob([piece.text]);
    if (new Blob([JSON.stringify(piece.text)]).size <= MAX_SENT_BYTES) return asked(server, "take_in", { text: piece.text, only });
    progress.name(t("Importing a large conversation"));
    return new Promise((done, failed) => {
      const request = new XMLHttpRequest(), query = new URLSearchParams((only ?? []).map((digest) => ["only", digest]));
      request.upload.onprogress = (event) => progress.show(event.loaded, event.total, `${Math.round(100 * event.loaded / Math.max(1, event.total))} %`);
      request.onload = () => {
        let answer = null;
        try { answer = JSON.parse(request.responseText); } catch { /* told below */ }
        if (answer?.imported) done(answer);
        else failed(answer?.problem ? answer : new Error(answer?.error?.message ?? t("Snug could not take it.")));
      };
      request.onerror = () => failed(new Error(t("It did not arrive. Is Snug still running?")));
      request.open("POST", `/conversations?${query}`);
      request.setRequestHeader("Content-Type", "application/json");
      request.send(body);
    });
  }

  async function take(server, file, report, several) {
    const progress = busy(t("Reading {name}", { name: file.name })), prefix = several ? `${file.name}, ` : "";
    try {
      const pieces = portions(await text(file));
      for (const [index, piece] of pieces.entries()) {
        progress.show(index, pieces.length);
        let answer;
        try { answer = await sent(server, piece, null, progress); }
        catch (error) {
          if (!(error instanceof Error) || pieces.length === 1) throw error;
          report.skipped.push({ where: prefix + t("conversation {number}", { number: piece.from + 1 }), why: error.message });
          continue;
        }
        if (answer.known.length) report.known.push({ piece, items: answer.known });
        const where = (name) => prefix + name.replace(/^(conversation|line) (\d+)/, (_, kind, number) => kind === "line" ? t("line {number}", { number: Number(number) + piece.from }) : t("conversation {number}", { number: Number(number) + piece.from })).replace(/^the file/, pieces.length > 1 ? t("from conversation {number} on", { number: piece.from + 1 }) : t("the file"));
        report.imported.push(...answer.imported);
        report.messages += answer.messages;
        report.skipped.push(...answer.skipped.map((item) => ({ where: where(item.where), why: item.why })));
        report.notes.push(...answer.notes.map(where));
      }
    } catch (error) {
      if (error.problem) report.skipped.push({ where: file.name, why: `${error.problem.message} ${error.problem.remedy}`.trim() });
      else report.skipped.push({ where: file.name, why: String(error.message ?? error) });
    } finally { progress.end(); }
  }

  async function text(file) {
    if (file.size > MAX_CHARACTERS) throw new Error(t("It is larger than {size} MB, which browsers cannot read at once. Split it.", { size: MAX_CHARACTERS / 1000000 }));
    try { return await file.text(); }
    catch { throw new Error(t("The browser could not read it. Is it still there?")); }
  }

  /* The text, or where it is long, portions of its conversations: `from` of them stand before a portion. */
  function portions(text) {
    if (text.length <= WHOLE_CHARACTERS) return [{ text, from: 0 }];
    let whole;
    try { whole = JSON.parse(text); } catch (error) { return lines(text, error); }
    const ours = !Array.isArray(whole) && Array.isArray(whole?.conversations) && "snug" in whole;
    const items = ours ? whole.conversations : whole;
    if (!Array.isArray(items) || !ours && items.some((item) => item?.role || item?.from)) return [{ text, from: 0 }];
    const wrap = (texts) => ours ? `{"snug": ${JSON.stringify(whole.snug)}, "conversations": [${texts.join(",")}]}` : `[${texts.join(",")}]`;
    return gather(items.map((item) => JSON.stringify(item)), wrap);
  }

  function lines(text, error) {
    const all = text.split("\n");
    let first;
    try { first = JSON.parse(all[0]); } catch { throw new Error(t("It is not JSON: {problem}", { problem: error.message })); }
    if (typeof first !== "object" || "chat_metadata" in first || "character_name" in first) return [{ text, from: 0 }];
    return gather(all, (texts) => texts.join("\n"));
  }

  function gather(texts, wrap) {
    const found = [];
    let now = [], length = 0, from = 0;
    const end = () => { if (now.length) found.push({ text: wrap(now), from }); from += now.length; now = []; length = 0; };
    for (const one of texts) {
      if (length + one.length > WHOLE_CHARACTERS) end();
      now.push(one);
      length += one.length;
    }
    end();
    return found;
  }

  async function asked(server, name, body) {
    let answer = null;
    try { answer = await server[name](body); } catch { /* told below */ }
    if (!answer) throw { problem: { code: "offline", message: t("Snug does not answer."), remedy: t("Is the server still running? If it is, reload the page.") } };
    if (answer.problem) throw answer;
    return answer;
  }

  function tell(error) { if (error.problem) showProblem(error.problem); else toast(String(error.message ?? error), { kind: "bad" }); }

  /* A line at the foot of the page while something takes its time. */
  function busy(what) {
    const bar = el("span", { style: "width:0" }), count = el("span.busy-count");
    const card = el("div.busy", { role: "status" }, el("span.busy-name", {}, what), count, el("div.bar", {}, bar));
    const wait = setTimeout(() => document.body.append(card), 400);
    return {
      name: (text) => { card.querySelector(".busy-name").textContent = text; },
      show: (done, total, text = total > 1 ? t("{done} of {total}", { done, total }) : "") => { bar.style.width = `${100 * done / total}%`; count.textContent = text; },
      end: () => { clearTimeout(wait); card.remove(); },
    };
  }

  function showReport({ imported, messages, skipped, notes, known }, anyway = null) {
    const title = imported.length ? tn("{count} conversation imported, with {messages}", "{count} conversations imported, with {messages}", imported.length, { messages: tn("{count} message", "{count} messages", messages) }) : t("Nothing was imported");
    const items = known.flatMap((one) => one.items);
    const here = tn("{count} was here already, word for word, and was skipped", "{count} were here already, word for word, and were skipped", items.length);
    const twice = { label: t("Import anyway"), run: () => anyway() };
    if (!skipped.length && !notes.length) return toast(`${title}.`, { seconds: items.length ? 15 : 5, remedy: items.length ? `${here}.` : "", action: items.length ? twice : null });
    const part = (head, texts) => texts.length ? [el("h3", {}, head), el("ul.report", {}, ...texts.slice(0, 200).map((line) => el("li", {}, line)), texts.length > 200 ? el("li", {}, t("… and {count} more", { count: texts.length - 200 })) : null)] : [];
    const dialog = el("dialog.dialog.wide", { "aria-label": t("Import") },
      el("h2", {}, title),
      ...part(here, items.map((item) => item.title || t("New chat"))),
      ...part(tn("{count} conversation skipped, nothing of it kept", "{count} conversations skipped, nothing of them kept", skipped.length), skipped.map(({ where, why }) => `${where}: ${why}`)),
      ...part(t("Left out"), notes),
      el("div.dialog-buttons", {},
        items.length ? el("button.plain-button", { onclick: () => { dialog.close(); twice.run(); } }, twice.label) : null,
        el("button.primary-button", { onclick: () => { dialog.close(); } }, t("Done"))));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
})();
