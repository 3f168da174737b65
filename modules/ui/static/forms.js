/* The Model and Parameters tabs: what Gradio's own controls do not do by themselves. */
"use strict";
(() => {
  const { remember } = snug;
  const HOLD_MS = 3000;
  let params = remember.get("params", {});
  snug.params = () => params;

  /* The parameters in force come from the Parameters tab; the browser remembers them. */
  snug.mountParams = (element, props, trigger, watch) => {
    const mark = () => document.querySelectorAll(".param").forEach((node) =>
      node.classList.toggle("changed", node.id.replace("param-", "") in params));
    watch("value", () => {
      params = props.value ?? {};
      remember.set("params", Object.keys(params).length ? params : null);
      mark();
    });
    if (Object.keys(params).length) trigger("restore", params);
  };

  /* The card of the loaded model is drawn by the server; only a load's progress moves here. */
  snug.mountModelCard = (element, trigger) => {
    snug.refreshModelTab = () => trigger("refresh", {});
    trigger("refresh", {});
  };
  snug.drawLoading = (model) => {
    document.querySelectorAll("[data-load-bar]").forEach((bar) => { bar.style.width = `${model.fraction * 100}%`; });
    document.querySelectorAll("[data-load-stage]").forEach((node) => { node.textContent = model.stage; });
  };

  /* The choice is shown at once; Load waits until the server knows of it too. */
  snug.mountModelList = (element, trigger, watch) => {
    let chosen = element.querySelector("[aria-pressed=true]")?.dataset.model ?? "";
    const hold = (held) => { document.getElementById("snug-load").disabled = held; };
    const mark = () => element.querySelectorAll("[data-model]").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.model === chosen)));
    watch("value", () => { mark(); hold(false); });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-model]");
      if (!button || button.disabled || button.dataset.model === chosen) return;
      chosen = button.dataset.model;
      mark();
      hold(true);
      setTimeout(() => hold(false), HOLD_MS);
      trigger("pick", { name: chosen });
    });
  };
})();
