/* Conversations as files: written piece by piece, read in portions that are files by themselves. */
"use strict";
(() => {
  const { el, call, toast, showProblem } = snug;
  const AT_ONCE = 50, WHOLE_CHARACTERS = 2000000, MAX_CHARACTERS = 450000000, MAX_SENT_BYTES = 10 * 1024 * 1024 - 4096;

  /* Exports these conversations, or all. */
  snug.exportConversations = async (server, format, ids = null, name = "conversations") => {
    const progress = busy("Exporting");
    try {
      if (!ids) ids = (await asked(server, "export", {})).ids;
      if (!ids.length) return toast("There is no conversation to export.");
      const pieces = [];
      for (let at = 0; at < ids.length; at += AT_ONCE) {
        progress.show(at, ids.length);
        pieces.push(...(await asked(server, "export", { ids: ids.slice(at, at + AT_ONCE), format })).pieces);
      }
      const json = format === "json", between = json ? ",\n" : "\n---\n\n";
      const parts = pieces.flatMap((piece, index) => index ? [between, piece] : [piece]);
      if (json) { parts.unshift('{"snug": 1, "conversations": [\n'); parts.push("\n]}\n"); }
      save(new Blob(parts, { type: json ? "application/json" : "text/markdown" }), `${fileName(name)}.${json ? "json" : "md"}`);
    } catch (error) { tell(error); } finally { progress.end(); }
  };

  function fileName(title) { return title.replace(/[\p{C}\s\\\/:*?"<>|]+/gu, " ").trim().slice(0, 80) || "conversation"; }

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
      const report = { imported: [], messages: 0, skipped: [], notes: [] };
      for (const file of input.files) await take(server, file, report, input.files.length > 1);
      input.remove();
      showReport(report);
      done();
    });
    document.body.append(input);
    input.click();
  };

  async function take(server, file, report, several) {
    const progress = busy(`Reading ${file.name}`), prefix = several ? `${file.name}, ` : "";
    try {
      const pieces = portions(await text(file));
      for (const [index, piece] of pieces.entries()) {
        progress.show(index, pieces.length);
        if (new Blob([JSON.stringify(piece.text)]).size > MAX_SENT_BYTES) {
          report.skipped.push({ where: `${prefix}conversation ${piece.from + 1}`, why: "It is larger than 10 MB, which is the most that Snug takes at once." });
          continue;
        }
        const answer = await asked(server, "take_in", { text: piece.text });
        const where = (name) => prefix + name.replace(/^(conversation|line) (\d+)/, (_, kind, number) => `${kind} ${Number(number) + piece.from}`).replace(/^the file/, pieces.length > 1 ? `from conversation ${piece.from + 1} on` : "$&");
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
    if (file.size > MAX_CHARACTERS) throw new Error(`It is larger than ${MAX_CHARACTERS / 1000000} MB, which browsers cannot read at once. Split it.`);
    try { return await file.text(); }
    catch { throw new Error("The browser could not read it. Is it still there?"); }
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
    try { first = JSON.parse(all[0]); } catch { throw new Error(`It is not JSON: ${error.message}`); }
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
    if (!answer) throw { problem: { code: "offline", message: "Snug does not answer.", remedy: "Is the server still running? If it is, reload the page." } };
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
      show: (done, total) => { bar.style.width = `${100 * done / total}%`; count.textContent = total > 1 ? `${done} of ${total}` : ""; },
      end: () => { clearTimeout(wait); card.remove(); },
    };
  }

  function showReport({ imported, messages, skipped, notes }) {
    const many = (count, what) => `${count.toLocaleString()} ${what}${count === 1 ? "" : "s"}`;
    const title = imported.length ? `${many(imported.length, "conversation")} imported, with ${many(messages, "message")}` : "Nothing was imported";
    if (!skipped.length && !notes.length) return toast(`${title}.`, { seconds: 5 });
    const part = (head, texts) => texts.length ? [el("h3", {}, head), el("ul.report", {}, ...texts.slice(0, 200).map((line) => el("li", {}, line)), texts.length > 200 ? el("li", {}, `… and ${texts.length - 200} more`) : null)] : [];
    const dialog = el("dialog.dialog.wide", { "aria-label": "Import" },
      el("h2", {}, title),
      ...part(`${many(skipped.length, "conversation")} skipped, nothing of them kept`.replace("1 conversation skipped, nothing of them", "1 conversation skipped, nothing of it"), skipped.map(({ where, why }) => `${where}: ${why}`)),
      ...part("Left out", notes),
      el("div.dialog-buttons", {}, el("button.primary-button", { onclick: () => { dialog.close(); } }, "Done")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
})();
