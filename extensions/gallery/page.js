snug.eachEmptyChat(({ node, ready }) => {
  node.querySelector(".faces")?.remove();
  const people = ready ? snug.characters().slice(0, 12) : [];
  if (!people.length) return;
  node.append(snug.el("div.faces", { role: "group", "aria-label": snug.t("Characters") }, ...people.map((person) =>
    snug.el("button.face", { title: person.about ?? "", onclick: () => snug.talkTo(person.id) }, snug.avatar(person), snug.el("span", {}, person.name)))));
});
