/* The live strip in the header: a small bar for RAM and for each GPU; its numbers open below it. */
"use strict";
(() => {
  const { el, t } = snug;
  let strip = null, sheet = null, devices = [];

  snug.buildStrip = () => {
    strip = el("button.strip", { id: "snug-strip", hidden: true, "aria-haspopup": "dialog", "aria-expanded": "false", onclick: () => { if (sheet) close(); else open(); } });
    document.addEventListener("click", (event) => { if (sheet && !event.target.closest("#snug-strip, .strip-sheet")) close(); });
    return strip;
  };

  snug.machine = () => devices;

  /* Bars are changed in place so that they glide. */
  snug.drawStrip = (seen) => {
    if (!strip || !seen?.length) return;
    const same = devices.length === seen.length;
    devices = seen;
    strip.hidden = false;
    if (!same) strip.replaceChildren(...seen.map((device) => el("span.meter", {}, el("span.meter-name", {}, device.title), " ", bar(), el("span.meter-text", {}))));
    strip.classList.toggle("many", seen.length > 3);
    strip.setAttribute("aria-label", seen.map((device) => t("{device} {used} / {total} used, {snug} by Snug", { device: device.title, used: device.used, total: device.total, snug: device.snug })).join("; "));
    [...strip.children].forEach((meter, number) => {
      paint(meter, seen[number]);
      meter.querySelector(".meter-text").textContent = `${seen[number].used} / ${seen[number].total}`;
    });
    if (sheet) fill();
  };

  function bar() { return el("span.meter-bar", { "aria-hidden": "true" }, el("i.meter-snug"), el("i.meter-others")); }
  function paint(node, device) {
    node.querySelector(".meter-snug").style.width = `${100 * device.snug_share}%`;
    node.querySelector(".meter-others").style.width = `${100 * device.others_share}%`;
  }

  function fill() {
    sheet.replaceChildren(...devices.map((device) => {
      const row = el("div.strip-device", {},
        el("strong", {}, device.title), el("span.strip-name", {}, device.name), bar(),
        el("dl", {},
          el("dt", {}, el("i.meter-snug"), "Snug"), el("dd", {}, device.snug),
          el("dt", {}, el("i.meter-others"), t("Other programs")), el("dd", {}, device.others),
          el("dt", {}, el("i.meter-free"), t("Free")), el("dd", {}, t("{part} of {whole}", { part: device.free, whole: device.total }))));
      paint(row, device);
      return row;
    }));
  }

  function open() {
    sheet = el("div.strip-sheet", { role: "dialog", "aria-label": t("Memory of this machine") });
    fill();
    strip.after(sheet);
    strip.setAttribute("aria-expanded", "true");
  }
  function close() {
    const was = Boolean(sheet);
    sheet?.remove();
    sheet = null;
    strip?.setAttribute("aria-expanded", "false");
    return was;
  }
  snug.closeStrip = close;
})();
