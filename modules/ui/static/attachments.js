/* Files that are attached to messages: chosen, dropped or pasted, sent to the server at once, shown as chips. Each draft
   has a tray of its own, which outlives a reload; what a chip says of a file is what the server read of it. */
"use strict";
(() => {
  const { el, icon, iconButton, remember, call, toast, newId, t, tn, number } = snug;
  const MAX_FILES = 10, MAX_BYTES = 32 * 1024 * 1024, LONG_PASTE = 20000, STILL_HERE_MS = 60000;
  const trays = new Map();  // by draft
  const queue = [];
  let server = null, changed = () => {}, calledOff = () => {}, strip, picker, zone, spoken, key = "", sending = false;

  snug.tray = {
    /* The button, the chips above the text, and where files are dropped; `told` is called after every change,
       `off` when a file that is on its way is removed. */
    mount(doors, told, off) {
      [server, changed, calledOff] = [doors, told, off];
      picker = el("input", { type: "file", multiple: true, hidden: true, id: "snug-files", tabIndex: -1, "aria-hidden": "true", onchange: () => { add([...picker.files]); picker.value = ""; } });
      strip = el("div.tray", { role: "list", "aria-label": t("Attached files"), hidden: true });
      zone = el("div.drop-zone", { hidden: true }, icon("clip"), el("span", {}, t("Drop files to attach them")));
      window.addEventListener("dragover", onDrag);
      window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.hidden = true; });
      window.addEventListener("drop", onDrop);
      window.addEventListener("paste", onPaste);
      setInterval(stillHere, STILL_HERE_MS);
      document.addEventListener("visibilitychange", () => { if (!document.hidden) stillHere(); });
      window.addEventListener("pagehide", (event) => { if (!event.persisted) forgetSecret(); });
      const button = iconButton("clip", t("Attach files"), () => picker.click(), ".attach");
      button.id = "snug-attach";
      spoken = el("div.visually-hidden", { "aria-live": "polite" });
      return { strip, zone, controls: [button, picker, spoken] };
    },
    show(draft) {
      key = draft;
      if (!trays.has(key)) restore(key);
      draw();
    },
    ids: () => items().filter((item) => item.file).map((item) => item.file.id),
    locals: () => items().map((item) => item.local),
    any: () => items().length > 0,
    busy: () => items().some((item) => !item.file && !item.problem),
    failed: () => items().some((item) => item.problem),
    /* Those files are stored with their message now; what failed is done with as well. */
    sent(draft, ids) {
      trays.set(draft, items(draft).filter((item) => !item.problem && !ids.includes(item.file?.id)));
      keep(draft);
    },
    /* Files of a message that was deleted; those for which there is no room are told, and let go. */
    put(files) {
      const room = Math.max(0, MAX_FILES - items().length), over = files.slice(room);
      items().push(...files.slice(0, room).map((file) => ({ local: newId(), name: file.name, size: file.size_bytes, file })));
      over.forEach((file) => call(server, "discard_file", { id: file.id }));
      if (over.length) toast(tn("{count} file of the deleted message is not here: a message takes up to {most}.", "{count} files of the deleted message are not here: a message takes up to {most}.", over.length, { most: MAX_FILES }), { remedy: t("Undo brings the message back with all of them."), kind: "bad", seconds: 10 });
      keep(key);
    },
    /* A new chat has got its name: what was added while its first message was on its way belongs to it. */
    move(from, to, only = null) {
      const moved = items(from).filter((item) => !only || only.includes(item.local));
      if (!moved.length) return;
      moved.forEach((item) => { item.draft = to; });
      trays.set(from, items(from).filter((item) => !moved.includes(item)));
      keep(from);
      trays.set(to, [...items(to), ...moved]);
      keep(to);
    },
    /* The draft of an incognito chat that has ended. */
    end(draft) { [...items(draft)].forEach(remove); },
    take(ids) { items().filter((item) => ids.includes(item.file?.id)).forEach(remove); },
    check: () => restore(key, items().map((item) => item.file).filter(Boolean)),
    measured(files) {
      const of = new Map((files ?? []).map((file) => [file.id, file]));
      items().forEach((item) => { item.told = item.file ? of.get(item.file.id) ?? null : null; });
      draw();
    },
  };
  snug.fileChips = (files) => files?.length ? el("div.files", { role: "list", "aria-label": t("Attached files") }, ...files.map((file) => isPicture(file) ? shown(file) : chip({ file, name: file.name, size: file.size_bytes }, false))) : null;

  function items(draft = key) {
    if (!trays.has(draft)) trays.set(draft, []);
    return trays.get(draft);
  }
  const secret = (draft) => draft.startsWith("draft.incognito-");

  /* The tray as the last page left it, as far as the server still has the files. */
  async function restore(draft, files = secret(draft) ? [] : remember.get(`files.${draft}`, [])) {
    if (!trays.has(draft)) trays.set(draft, []);
    if (!files.length) return;
    const answer = await call(server, "files_waiting", { ids: files.map((file) => file.id).slice(0, MAX_FILES) });
    if (!answer.files) return;
    const there = new Set(answer.files.map((file) => file.id)), known = new Set(items(draft).map((item) => item.file?.id));
    trays.set(draft, [
      ...answer.files.filter((file) => !known.has(file.id)).map((file) => ({ local: newId(), name: file.name, size: file.size_bytes, file })),
      ...items(draft).filter((item) => !item.file || there.has(item.file.id)),
    ]);
    keep(draft);
  }

  function keep(draft) {
    const files = items(draft).map((item) => item.file).filter(Boolean);
    if (!secret(draft)) remember.set(`files.${draft}`, files.length ? files : null);
    if (draft === key) { draw(); changed(); }
  }

  /* In */

  function add(files) {
    const room = MAX_FILES - items().length;
    if (files.length > room) toast(t("A message takes up to {count} files.", { count: MAX_FILES }), { remedy: room > 0 ? tn("The first one was taken.", "The first {count} were taken.", room) : t("Send these first, or remove some."), kind: "bad" });
    const added = files.slice(0, Math.max(0, room)).map((blob) => {
      const item = { local: newId(), name: blob.name, size: blob.size, blob, draft: key, share: 0 };
      if (blob.size > MAX_BYTES) item.problem = t("It has {size}; Snug takes files up to {most}.", { size: size(blob.size), most: size(MAX_BYTES) });
      else if (!blob.size) item.problem = t("It is empty, or a folder.");
      else queue.push(item);
      return item;
    });
    items().push(...added);
    keep(key);
    pump();
    return added;
  }

  async function pump() {
    if (sending) return;
    sending = true;
    for (let item = queue.shift(); item; item = queue.shift()) {
      if (!items(item.draft).includes(item)) continue;  // removed meanwhile
      await send(item);
      if (item.removed && item.file) call(server, "discard_file", { id: item.file.id });
      if (!item.removed) spoken.textContent = item.problem ? `${item.name}: ${item.problem}` : t("{name} is attached.", { name: item.name });
      keep(item.draft);
    }
    sending = false;
  }

  function send(item) {
    return new Promise((done) => {
      const request = item.request = new XMLHttpRequest(), query = new URLSearchParams({ name: item.name, incognito: String(secret(item.draft)) });
      const fail = (text) => { item.problem = text; done(); };
      request.upload.onprogress = (event) => { item.share = event.loaded / Math.max(1, event.total); draw(); };
      request.onload = () => {
        let answer = null;
        try { answer = JSON.parse(request.responseText); } catch { /* told below */ }
        if (!answer?.id) return fail(answer?.problem ? `${answer.problem.message} ${answer.problem.remedy}`.trim() : answer?.error?.message ?? t("Snug could not take it."));
        Object.assign(item, { file: answer, name: answer.name, blob: secret(item.draft) ? item.blob : null });
        done();
      };
      request.onerror = () => fail(t("It did not arrive. Is Snug still running, and the file still there?"));
      request.onabort = () => fail(t("Removed."));
      request.open("POST", `/attachments?${query}`);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.send(item.blob);
    });
  }

  /* Unsent files of incognito chats are forgotten soon after the page that knows them has gone. One that slept for too
     long sends them anew. */
  const unsent = () => [...trays].filter(([draft]) => secret(draft)).flatMap(([, list]) => list).filter((item) => item.file);
  async function stillHere() {
    const mine = unsent();
    for (let at = 0; at < mine.length; at += MAX_FILES) {
      const asked = mine.slice(at, at + MAX_FILES);
      let answer = null;
      try { answer = await server.files_waiting({ ids: asked.map((item) => item.file.id) }); } catch { /* Snug is away */ }
      if (!answer?.files) return;
      const there = new Set(answer.files.map((file) => file.id));
      asked.filter((item) => !there.has(item.file?.id) && item.blob && items(item.draft).includes(item)).forEach((item) => {
        Object.assign(item, { file: null, share: 0 });
        queue.push(item);
        keep(item.draft);
      });
    }
    pump();
  }
  function forgetSecret() {
    const query = new URLSearchParams(unsent().slice(0, MAX_FILES).map((item) => ["ids", item.file.id]));
    if (query.size) navigator.sendBeacon(`/attachments/discard?${query}`);
  }

  function remove(item) {
    item.removed = true;
    item.request?.abort();
    if (!item.file && !item.problem) calledOff();
    const draft = [...trays.keys()].find((name) => trays.get(name).includes(item));
    if (draft === undefined) return;
    trays.set(draft, trays.get(draft).filter((other) => other !== item));
    if (item.file) call(server, "discard_file", { id: item.file.id });
    keep(draft);
  }

  const hasFiles = (event) => [...event.dataTransfer?.types ?? []].includes("Files");
  const onChat = () => snug.currentTab() === "Chat" && !document.querySelector("dialog[open]");
  function onDrag(event) {
    if (!hasFiles(event) || !onChat()) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    zone.hidden = false;
  }
  function onDrop(event) {
    zone.hidden = true;
    if (!hasFiles(event) || !onChat()) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    const files = [...event.dataTransfer.files].filter((_, index) => !entries[index]?.isDirectory);
    if (files.length < event.dataTransfer.files.length) toast(t("Folders cannot be attached."), { remedy: t("Attach the files in them.") });
    if (files.length) add(files);
    document.getElementById("snug-input").focus({ preventScroll: true });
  }
  function onPaste(event) {
    const field = event.target.closest?.("input, textarea, [contenteditable]"), ours = field?.id === "snug-input";
    if (!onChat() || field && !ours || field?.readOnly) return;
    const files = [...event.clipboardData.files], text = event.clipboardData.getData("text/plain");
    if (files.length && !text) {
      event.preventDefault();
      add(files);
    } else if (ours && text.length > LONG_PASTE) {
      event.preventDefault();
      const names = new Set(items().map((item) => item.name));
      let name = `${t("Pasted text")}.txt`;
      for (let number = 2; names.has(name); number += 1) name = `${t("Pasted text")} ${number}.txt`;
      const [item] = add([new File([text], name, { type: "text/plain" })]);
      if (item && text.length <= 200000) toast(t("The long text was attached as a file."), { seconds: 8, action: { label: t("Put it into the message"), run: () => { remove(item); snug.setDraft(field.value + text); } } });
    }
  }

  /* Chips */

  function draw() {
    if (!strip) return;
    const focused = strip.contains(document.activeElement) ? document.activeElement.closest("[data-file]")?.dataset.file : null;
    strip.hidden = !items().length;
    strip.replaceChildren(...items().map((item) => chip(item, true)));
    if (focused) (strip.querySelector(`[data-file="${CSS.escape(focused)}"] .file-open`) ?? document.getElementById("snug-input")).focus({ preventScroll: true });
  }

  function chip(item, removable) {
    const { file, problem, told } = item, cut = [file?.cut, told?.cut].filter(Boolean).join(" ");
    const line = problem ?? (file ? facts(file, told) : item.share < 1 ? t("Sending {percent} %", { percent: Math.round(100 * item.share) }) : t("Reading …"));
    return el(`div.file-chip${problem ? ".bad" : file ? "" : ".busy-file"}`, { role: "listitem", "data-file": item.local ?? file.id },
      el("button.file-open", { disabled: !file, onclick: () => look(file), title: isPicture(file) ? t("Show it large") : file ? t("What the model reads") : item.name, "aria-label": [item.name, line, cut].filter(Boolean).join(", ") },
        isPicture(file) && !problem ? el("img.file-thumb", { src: address(file), alt: "", loading: "lazy" }) : icon(problem ? "alert" : "file"),
        el("span.file-words", {}, el("strong", {}, item.name), el("span.file-line", {}, line), cut ? el("span.file-cut", {}, cut) : null)),
      removable ? iconButton("close", t("Remove {name}", { name: item.name }), () => { remove(item); document.getElementById("snug-input").focus({ preventScroll: true }); }, ".file-remove") : null,
      file || problem ? null : el("span.file-bar", {}, el("i", { style: `width:${100 * item.share}%` })));
  }

  function facts(file, told) {
    const counted = told ? tn("{count} token", "{count} tokens", told.tokens) : tn("{count} character", "{count} characters", file.characters);
    const amount = isPicture(file) && !told?.tokens ? "" : counted;
    return [isPicture(file) ? `${file.width} × ${file.height}` : file.about, size(file.size_bytes), amount].filter(Boolean).join(" · ");
  }

  function size(bytes) { return bytes < 1024 ? `${number(bytes)} B` : bytes < 1048576 ? `${number(Math.round(bytes / 1024))} KB` : `${number(bytes / 1048576, { minimumFractionDigits: 1, maximumFractionDigits: 1 })} MB`; }

  /* Pictures: small in the composer, larger with their message, as large as the window on a click. */
  const isPicture = (file) => file?.kind === "picture" && file.width > 0;
  const address = (file) => `/attachments/${encodeURIComponent(file.id)}/picture`;

  function shown(file) {
    const share = Math.min(1, 340 / file.width, 280 / file.height);
    return el("div.shown-picture", { role: "listitem", "data-file": file.id, style: `width:${Math.max(48, Math.round(share * file.width))}px` },
      el("button", { onclick: () => look(file), title: t("Show it large"), "aria-label": t("Picture {name}, show it large", { name: file.name }) },
        el("img", { src: address(file), alt: t("Attached picture: {name}", { name: file.name }), width: file.width, height: file.height, loading: "lazy" })));
  }

  function enlarge(file) {
    const dialog = el("dialog.picture-dialog", { "aria-label": file.name },
      el("img", { src: address(file), alt: t("Attached picture: {name}", { name: file.name }) }),
      el("div.picture-foot", {}, el("span", {}, `${file.name} · ${file.cut || `${file.width} × ${file.height}`}`), iconButton("close", t("Close"), () => dialog.close())));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  /* What was read of a file, in full. */
  async function look(file) {
    if (isPicture(file)) return enlarge(file);
    const answer = await call(server, "file_text", { id: file.id });
    if (answer.problem) return;
    const dialog = el("dialog.dialog.wide.file-dialog", { "aria-label": file.name },
      el("h2", {}, file.name), el("p", {}, [facts(file, null), file.cut].filter(Boolean).join(" · ")),
      el("pre.exact-text", { tabIndex: 0, "aria-label": t("The text of the file") }, answer.text),
      el("div.dialog-buttons", {}, el("button.primary-button", { onclick: () => dialog.close() }, t("Close"))));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
})();
