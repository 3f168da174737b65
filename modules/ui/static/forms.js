/* The Model tab: what Gradio's own controls do not do by themselves. */
"use strict";
(() => {
  const HOLD_MS = 3000, SETTLE_MS = 50, LATER_MS = [SETTLE_MS, 250, 1000], MOVED = 0.005;  // of a device

  /* What is kept of the chosen model: how it was loaded last, the preset it was used with. */
  snug.mountMemory = (element, trigger) => element.addEventListener("click", (event) => {
    const preset = event.target.closest("[data-preset]");
    if (preset) { snug.setParams(JSON.parse(preset.dataset.preset)); snug.toast(snug.t("Preset {name} counts from your next message on.", { name: preset.dataset.name }), { seconds: 3 }); }
    if (event.target.closest("[data-forget]")) trigger("forget", {});
  });

  /* Gradio gives each radio button a name of its own, so that the browser knows of no group to walk through. */
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches?.('.sheet fieldset input[type="radio"]')) return;
    const all = [...event.target.closest("fieldset").querySelectorAll('input[type="radio"]')];
    const next = all.at((all.indexOf(event.target) + step) % all.length);
    event.preventDefault();
    next.focus();
    next.click();
  });

  /* The card of the loaded model is drawn by the server; only a load's progress moves here. */
  snug.mountModelCard = (element, trigger, watch) => {
    snug.keepFolds(element, watch);
    let touched = false;  // until then the options are those of the loaded model
    for (const kind of ["input", "click"]) {
      document.addEventListener(kind, (event) => { touched ||= Boolean(event.target.closest?.(".options .option, #snug-models [data-model], #snug-context, [data-take]")); }, true);
    }
    let drawnFor = [];
    const refresh = () => turns.look((turn) => { drawnFor = shares(); trigger("refresh", { mirror: !touched, turn }); });
    snug.refreshModelTab = refresh;
    /* The picture rests on what is free: it is drawn anew as its tab opens, and where a device's memory has moved. */
    snug.memoryMoved = () => {
      if (snug.currentTab() !== "Model" || snug.model().status === "loading") return;
      const now = shares();
      if (now.length !== drawnFor.length || now.some((share, at) => Math.abs(share - drawnFor[at]) > MOVED)) refresh();
    };
    /* Formulas are shown at once; what a dry run then counts takes their place. */
    let askedAt = null;
    snug.followDryRuns = ({ answered, busy }) => {
      const plan = document.getElementById("snug-plan"), drawn = plan?.querySelector("[data-answered]")?.dataset.answered;
      plan?.classList.toggle("counting", busy);
      if (drawn === undefined || Number(drawn) === answered || askedAt === answered) return;
      if (snug.currentTab() !== "Model" || snug.model().status === "loading") return;
      askedAt = answered;
      refresh();
    };
    document.getElementById("snug-tabs").addEventListener("click", (event) => {
      if (snug.tabAt(event.target) === "Model") refresh();
    });
    refresh();
  };

  /* A look at the tab is slow, a choice of a model or an option quick. A look that was asked for before the choice tells of
     what was there before: where it comes after all, it is asked for again. None is asked for while a model is chosen. */
  const turns = { count: 0, picked: 0, edited: 0, picking: false, waiting: null };
  turns.look = (send) => {
    if (turns.picking) turns.waiting = send; else send(turns.count += 1);
  };
  turns.begin = () => { turns.picking = true; turns.picked = turns.count += 1; };
  turns.end = () => {
    const send = turns.waiting;
    Object.assign(turns, { picking: false, waiting: null });
    if (send) turns.look(send);
  };
  snug.modelTabSeen = ({ turn = Infinity, mirrored = false }) => {
    if (mirrored) setAgainSoon();
    if (turn > Math.max(turns.picked, turns.edited)) return;
    if (mirrored && turn < turns.picked) turns.pickAgain();
    setTimeout(snug.refreshModelTab, SETTLE_MS);  // Gradio asks for nothing anew whose answer it is still reading
  };

  /* What is set after a model was chosen outlives the options that the choice brings, however late they come. */
  const edits = new Map();
  for (const kind of ["input", "change"]) {
    document.addEventListener(kind, (event) => {
      const option = event.target.closest?.(".options .option"), input = event.target;
      if (!option) return;
      turns.edited = turns.count += 1;
      if (!input.matches("input:not([role]), textarea")) return;
      edits.set(option, { input, value: input.matches("[type=checkbox], [type=radio]") ? input.checked : input.value });
    }, true);
  }
  for (const kind of ["input", "click"]) {
    document.addEventListener(kind, (event) => { if (event.target.closest?.("#snug-context, .param-problem, [data-take], [data-forget]")) edits.clear(); }, true);
  }
  function setAgainSoon() {
    for (const late of LATER_MS) setTimeout(setAgain, late);  // a busy browser sets controls later
  }
  function setAgain() {
    for (const { input, value } of [...edits.values()]) {
      if (!input.isConnected) continue;
      if (typeof value === "boolean") { if (input.checked !== value) input.click(); continue; }
      if (input.value === value) continue;
      input.value = value;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
  function shares() { return snug.machine().flatMap((device) => [device.snug_share, device.others_share]); }
  snug.drawLoading = (model) => {
    document.querySelectorAll("[data-load-bar]").forEach((bar) => { bar.style.width = `${model.fraction * 100}%`; });
    document.querySelectorAll("[data-load-stage]").forEach((node) => { node.textContent = model.stage; });
  };

  /* The choice is shown at once; Load waits until the server knows of it too. */
  snug.mountModelList = (element, trigger, watch) => {
    snug.keepFolds(element, watch);
    const pressed = () => element.querySelector("[aria-pressed=true]")?.dataset.model ?? "";
    let chosen = pressed(), clicked = "", unanswered = false, timer = 0;
    const hold = (held) => {
      document.getElementById("snug-load").disabled = held;
      clearTimeout(timer);
      if (held) timer = setTimeout(hold, HOLD_MS, false);
      if (held) turns.begin(); else if (turns.picking) turns.end();
    };
    const mark = () => element.querySelectorAll("[data-model]").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.model === chosen)));
    const pick = (name, anew) => {
      chosen = clicked = name;
      unanswered = true;
      mark();
      hold(true);
      trigger("pick", { name, anew });
    };
    turns.pickAgain = () => pick(clicked, true);
    watch("value", () => {
      const answers = unanswered && pressed() === clicked;
      if (answers) { unanswered = false; setAgainSoon(); setTimeout(hold, SETTLE_MS, false); }
      if (!turns.picking) chosen = pressed();
      mark();
    });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-model]");
      if (!button || button.disabled || button.dataset.model === chosen) return;
      edits.clear();
      pick(button.dataset.model, false);
    });
  };
})();
