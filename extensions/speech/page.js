const { el, icon, remember, toast, t } = snug, voice = window.speechSynthesis;
const LOUD = "M5 10v4h3l4 4V6L8 10zM15.5 9a4 4 0 0 1 0 6M18 6.5a8 8 0 0 1 0 11", PART = 180;
let reading = null;
const choice = (name, usual) => remember.get(`speech.${name}`, usual);

function words(node) {
  const copy = node.querySelector(".body").cloneNode(true);
  copy.querySelectorAll(".code, math, .math").forEach((part) => part.replaceWith(" "));
  return copy.textContent.replace(/\s+/g, " ").trim();
}
/* Browsers fall silent in the midst of long texts: sentence by sentence they do not. */
function parts(text) {
  return (text.match(/[^.!?。！？]+[.!?。！？]*\s*/g) ?? []).flatMap((one) => one.length <= PART ? [one] : one.match(new RegExp(`.{1,${PART}}(\\s|$)|.{1,${PART}}`, "g")));
}
function stop() {
  voice.cancel();
  reading?.node.classList.remove("speaking-now");
  reading?.button.setAttribute("aria-pressed", "false");
  reading = null;
}
function read(node, button) {
  const again = reading?.node === node;
  stop();
  if (again) return;
  const all = parts(words(node));
  if (!all.length) return;
  const mine = reading = { node, button };
  node.classList.add("speaking-now");
  button.setAttribute("aria-pressed", "true");
  all.forEach((text, at) => {
    const one = new SpeechSynthesisUtterance(text);
    one.voice = voice.getVoices().find((known) => known.voiceURI === choice("voice", "")) ?? null;
    one.rate = choice("rate", 1);
    if (at === all.length - 1) one.onend = () => { if (reading === mine) stop(); };
    one.onerror = (event) => {
      if (reading !== mine) return;
      stop();
      if (!["canceled", "interrupted"].includes(event.error)) toast(t("The browser could not read this aloud."), { remedy: t("It may have no voice installed."), kind: "bad" });
    };
    voice.speak(one);
  });
}
function buttonFor(node) {
  const button = snug.iconButton("chat", t("Read aloud"), () => read(node, button), ".speak");
  button.querySelector("path").setAttribute("d", LOUD);
  button.setAttribute("aria-pressed", "false");
  return button;
}
if (!voice) throw new Error(t("This browser cannot speak."));
snug.eachMessage(({ node, role }) => {
  const actions = node.querySelector(".actions");
  if (role === "assistant" && actions && !actions.querySelector(".speak")) actions.prepend(buttonFor(node));
});
document.addEventListener("snug:reply", ({ detail }) => {
  const button = choice("auto", false) && detail.node.querySelector(".speak");
  if (button) read(detail.node, button);
});
window.addEventListener("pagehide", stop);
window.snugSpeech = {
  settings(place) {
    const draw = () => {
      const voices = voice.getVoices(), auto = el("input", { type: "checkbox", checked: choice("auto", false), onchange: () => remember.set("speech.auto", auto.checked) });
      const pick = el("select", { "aria-label": t("Voice"), onchange: () => remember.set("speech.voice", pick.value) },
        el("option", { value: "" }, t("The browser's choice")), ...voices.map((one) => el("option", { value: one.voiceURI, selected: one.voiceURI === choice("voice", "") }, `${one.name} (${one.lang})`)));
      const rate = el("input", { type: "range", min: "0.5", max: "2", step: "0.1", value: String(choice("rate", 1)), "aria-label": t("Speed"), onchange: () => remember.set("speech.rate", Number(rate.value)) });
      place.replaceChildren(el("label", {}, t("Voice"), pick), el("label", {}, t("Speed"), rate), el("label", {}, auto, t("Read new replies aloud")));
    };
    draw();
    voice.addEventListener?.("voiceschanged", draw);
  },
};
