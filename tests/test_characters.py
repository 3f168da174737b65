"""Characters: files of text-generation-webui and cards open unchanged; hostile ones end in a named error."""

from __future__ import annotations

import base64
import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from modules.characters import card
from modules.characters.character import Character, Lorebook, Persona, checked
from modules.characters.folder import Folder
from modules.characters.library import Characters, Library, free_id
from modules.characters.lorebook import Lore, matching
from modules.characters.pictures import KEPT_SIDE, MAX_PICTURE_BYTES, kept_picture
from modules.characters.placeholders import fill
from modules.characters.yaml_form import MAX_YAML_BYTES
from modules.errors import BadCharacter, BadName, NotFound, SnugError
from modules.units import MiB
from tests.little_memory import memory_within
from tests.small_files import endless_jpeg

ROOT = Path(__file__).parent.parent
TGW = """name: Chiharu Yamada
greeting: |-
  *Chiharu strides into the room with a smile.*

  Hey, {{user}}! I'm here.
context: |-
  Chiharu Yamada's Persona: Chiharu Yamada is a young, computer engineer-nerd.

  {{user}}: So how did you get into computer engineering?
  {{char}}: I've always loved tinkering.
"""
PYGMALION = {
    "char_name": "Ada", "char_persona": "A countess who counts.", "char_greeting": "Good day.",
    "world_scenario": "London, 1843.", "example_dialogue": "<START>\nYou: Hi\nAda: Good day.",
}  # fmt: skip
V1 = {
    "name": "Bo", "description": "A bear.", "personality": "slow", "scenario": "woods", "first_mes": "Mrr.",
    "mes_example": "<START>\n{{user}}: Hi\n{{char}}: Mrr.",
}  # fmt: skip
ENTRY = {
    "keys": ["honey", "hive"], "content": "The hive is by the old oak.", "extensions": {"depth": 4}, "enabled": True,
    "insertion_order": 10, "id": 7, "comment": "hive",
}  # fmt: skip
DATA = V1 | {
    "creator_notes": "Be kind.", "system_prompt": "{{original}} Play {{char}}.", "post_history_instructions": "Growl.",
    "alternate_greetings": ["Mrr?", "Rrr."], "tags": ["bear"], "creator": "me", "character_version": "2",
    "extensions": {"depth_prompt": {"depth": 4, "prompt": "x"}},
    "character_book": {"name": "woods", "scan_depth": 2, "token_budget": 100, "extensions": {}, "entries": [ENTRY]},
}  # fmt: skip
V2 = {"spec": "chara_card_v2", "spec_version": "2.0", "data": DATA}
V3 = {"spec": "chara_card_v3", "spec_version": "3.0", "data": DATA | {"nickname": "B", "group_only_greetings": []}}


@pytest.fixture
def characters(tmp_path: Path) -> Characters:
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "Guide.yaml").write_text("name: Guide\ngreeting: Hello.\ncontext: A guide.\n")
    return Characters(tmp_path / "shipped", tmp_path / "own" / "characters")


def picture(size: tuple[int, int] = (40, 60), kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, "#336655").save(sink, kind, **options)
    return sink.getvalue()


def png_card(**texts: object) -> bytes:
    info = PngInfo()
    for name, value in texts.items():
        text = value if isinstance(value, str) else base64.b64encode(json.dumps(value).encode()).decode()
        info.add_text(name, text)
    return picture(pnginfo=info)


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_file_of_text_generation_webui_opens_unchanged(characters: Characters, tmp_path: Path) -> None:
    own = tmp_path / "own" / "characters"
    own.mkdir(parents=True)
    (own / "Chiharu.yaml").write_text(TGW, encoding="utf-8")
    (own / "Chiharu.jpg").write_bytes(picture(kind="JPEG"))
    character = characters.get("Chiharu")
    assert character.name == "Chiharu Yamada"
    assert character.first_mes.endswith("Hey, {{user}}! I'm here.")
    assert "tinkering" in character.description
    assert characters.picture("Chiharu") is not None
    exported = characters.export("Chiharu", "yaml").data.decode()
    assert "greeting: |-" in exported and "context: |-" in exported
    assert (own / "Chiharu.yaml").read_text(encoding="utf-8") == TGW


def test_the_older_json_form_and_version_1_open_too() -> None:
    ada = card.from_json(as_bytes(PYGMALION), "ada.json")
    assert (ada.name, ada.description, ada.first_mes, ada.scenario) == (
        "Ada", "A countess who counts.", "Good day.", "London, 1843.",
    )  # fmt: skip
    assert card.from_json(as_bytes(V1), "bo.json").personality == "slow"


@pytest.mark.parametrize("spec", [V2, V3], ids=["v2", "v3"])
def test_a_card_survives_export_and_import_whole(spec: dict[str, Any]) -> None:
    character = card.from_json(as_bytes(spec), "bo.json")
    assert character.greetings == ("Mrr.", "Mrr?", "Rrr.")
    for back in (
        card.from_json(card.to_json(character).encode(), "again.json"),
        card.from_png(card.to_png(character, picture()), "again.png"),
    ):
        assert back.model_dump(exclude={"group_only_greetings"}) == (
            character.model_dump(exclude={"group_only_greetings"})
            | {"character_book": back.model_dump()["character_book"]}
        )
        assert back.character_book is not None
        assert back.character_book.entries[0].model_dump()["extensions"] == {"depth": 4}


def test_a_png_card_is_read_from_either_chunk_and_the_newer_wins() -> None:
    assert card.from_png(png_card(chara=V2), "a.png").name == "Bo"
    newer = V3 | {"data": V3["data"] | {"name": "Bo III"}}  # type: ignore[operator]
    assert card.from_png(png_card(chara=V2, ccv3=newer), "a.png").name == "Bo III"


def test_an_exported_png_opens_as_v2_and_as_v3() -> None:
    image = Image.open(io.BytesIO(card.to_png(checked(Character, DATA, "x"), None)))
    image.load()
    texts = image.text  # type: ignore[attr-defined]
    assert json.loads(base64.b64decode(texts["chara"]))["spec"] == "chara_card_v2"
    assert json.loads(base64.b64decode(texts["ccv3"]))["spec"] == "chara_card_v3"


def test_nulls_and_single_texts_are_what_cards_in_the_wild_hold() -> None:
    values = {
        "data": {"name": "X", "alternate_greetings": None, "tags": "one", "character_book": None, "creator": None}
    }
    character = card.from_json(as_bytes(values), "x.json")
    assert character.tags == ("one",)
    assert character.greetings == ()


def bomb() -> bytes:
    """A PNG whose compressed text grows to 200 MiB."""
    packed = zlib.compress(b"A" * (200 * MiB))
    plain = picture()
    body = b"chara\x00\x00" + packed
    chunk = len(body).to_bytes(4, "big") + b"zTXt" + body + zlib.crc32(b"zTXt" + body).to_bytes(4, "big")
    return plain[:33] + chunk + plain[33:]


def huge_header() -> bytes:
    plain = bytearray(picture())
    plain[16:24] = (50_000).to_bytes(4, "big") * 2
    plain[29:33] = zlib.crc32(bytes(plain[12:29])).to_bytes(4, "big")
    return bytes(plain)


def lying_chunk() -> bytes:
    plain = picture()
    return plain[:33] + (1_000_000_000).to_bytes(4, "big") + b"tEXtchara\x00" + plain[33:]


HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "alias bomb": ("a.yaml", b"a: &a [1]\nb: *a\nname: x\n", "line 2"),
    "tags": ("a.yaml", b"name: !!python/object/apply:os.system ['true']\n", "line 1"),
    "deep yaml": ("a.yaml", b"name: " + b"[" * 50_000, "nested too deeply"),
    "a key twice": ("a.yaml", b"name: a\nname: b\n", "twice"),
    "huge yaml": ("a.yaml", b"name: " + b"x" * MAX_YAML_BYTES, "larger"),
    "binary": ("a.yaml", b"name: \xff\xfe\x00", "cannot be read"),
    "a list": ("a.yaml", b"- a\n- b\n", "name: value"),
    "no name": ("a.yaml", b"greeting: hi\ncontext: x\n", "no name"),
    "deep json": ("a.json", b'{"name": ' + b"[" * 200_000, "nested too deeply"),
    "huge json": ("a.json", b'{"name": "' + b"x" * card.MAX_JSON_BYTES + b'"}', "more than"),
    "many values": ("a.json", b'{"name": "x", "a": [' + b"0," * card.MOST_VALUES + b"0]}", "more than 500,000 values"),
    "NaN": ("a.json", b'{"name": "x", "character_book": {"scan_depth": NaN}}', "NaN"),
    "a list as json": ("a.json", b'{"data": [], "name": ["x"]}', "name is"),
    "wrong types": ("a.json", as_bytes({"data": {"name": "x", "first_mes": {"a": 1}}}), "first_mes"),
    "a lorebook of numbers": ("a.json", as_bytes({"data": {"name": "x", "character_book": 7}}), "character_book"),
    "wrong entry": ("a.json", as_bytes({"data": {"name": "x", "character_book": {"entries": [{"keys": 1}]}}}), "keys"),
    "another kind": ("a.json", as_bytes({"spec": "lorebook_v3", "data": {"name": "x"}}), "lorebook_v3"),
    "a plain picture": ("a.png", picture(), "without a character"),
    "a text bomb": ("a.png", bomb(), "no picture"),
    "a giant": ("a.png", huge_header(), "pixels"),
    "a chunk that lies": ("a.png", lying_chunk(), "no picture"),
    "cut off": ("a.png", png_card(chara=V2)[:60], "no picture"),
    "not base64": ("a.png", png_card(chara="%%%"), "damaged"),
    "svg as png": ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>", "name: value"),
    "a jpeg": ("a.png", picture(kind="JPEG"), "PNG"),
    "too large a file": ("a.png", card.PNG_SIGNATURE + b"\0" * MAX_PICTURE_BYTES, "larger"),
}  # fmt: skip


def test_a_picture_that_would_be_drawn_for_an_hour_is_refused() -> None:
    with pytest.raises(BadCharacter, match="drawn over"):
        kept_picture(endless_jpeg(100_000), "The picture")


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_ends_in_a_named_error_and_leaves_nothing(case: str, characters: Characters) -> None:
    name, data, hint = HOSTILE[case]
    with memory_within(100 * MiB), pytest.raises(BadCharacter) as raised:
        characters.import_file(data, name)
    assert hint in str(raised.value)
    assert raised.value.remedy
    assert [listed.found.id for listed in characters.list()] == ["Guide"]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..", ".", "", "  ", "a/b", "C:\\x", "con", "x\0y", "~root", "…", "🙂", "x" * 190, "-rf"],
)
def test_a_name_in_a_card_never_leads_anywhere(name: str, characters: Characters, tmp_path: Path) -> None:
    if not name:
        with pytest.raises(BadCharacter, match="no name"):
            characters.import_file(as_bytes({"name": name, "description": "x"}), "a.json")
        return
    ident = characters.import_file(as_bytes({"name": name, "description": "x"}), f"{name}.json")
    assert characters.get(ident).name == name
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "shipped"]
    assert [path.parent for path in files] == [tmp_path / "own" / "characters"]


@pytest.mark.parametrize("ident", ["../x", "..", "", "a/b", ".deleted", "x\0", "con"])
def test_an_id_from_the_page_never_leads_anywhere(ident: str, characters: Characters) -> None:
    for act in (characters.get, characters.picture, characters.delete, characters.restore):
        with pytest.raises(BadName):
            act(ident)
    with pytest.raises(BadName):
        characters.save(ident, characters.get("Guide"), None)


@given(st.text(max_size=300))
def test_every_name_gives_a_file_name(name: str) -> None:
    assert free_id(name, []) != free_id(name, [free_id(name, []).upper()])


def test_pictures_are_drawn_anew_without_what_they_brought(characters: Characters, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("chara", base64.b64encode(as_bytes(V2)).decode())
    info.add_text("canary", "secret place")
    uploaded = picture((2000, 3000), pnginfo=info) + b"PK\x03\x04<html><script>canary()</script>"
    ident = characters.import_file(uploaded, "bo.png")
    kept = (tmp_path / "own" / "characters" / f"{ident}.png").read_bytes()
    shown = characters.picture(ident)
    assert shown is not None
    for data in (kept, shown):
        assert b"canary" not in data and b"secret" not in data
    assert max(Image.open(io.BytesIO(kept)).size) == KEPT_SIDE
    assert Image.open(io.BytesIO(shown)).format == "WEBP"


def test_a_link_out_of_the_folder_is_not_followed(characters: Characters, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("name: Secret\n")
    (tmp_path / "own" / "characters").mkdir(parents=True)
    (tmp_path / "own" / "characters" / "Link.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(BadName):
        characters.get("Link")
    problem = {listed.found.id: listed.found.problem for listed in characters.list()}
    assert isinstance(problem["Link"], SnugError)


def test_a_broken_file_is_listed_with_what_is_wrong(characters: Characters, tmp_path: Path) -> None:
    (tmp_path / "shipped" / "Broken.yaml").write_text("name: [\n")
    found = {listed.found.id: listed.found for listed in characters.list()}
    assert found["Broken"].value is None
    assert "line" in str(found["Broken"].problem)
    assert found["Guide"].value is not None


def test_a_changed_file_is_read_again(characters: Characters, tmp_path: Path) -> None:
    assert characters.get("Guide").first_mes == "Hello."
    (tmp_path / "shipped" / "Guide.yaml").write_text("name: Guide\ngreeting: Good evening.\n")
    assert characters.get("Guide").first_mes == "Good evening."


def test_a_deletion_can_be_undone_and_a_shipped_one_stays(characters: Characters) -> None:
    ident = characters.import_file(png_card(chara=V2), "bo.png")
    characters.delete(ident)
    with pytest.raises(NotFound):
        characters.get(ident)
    characters.restore(ident)
    assert characters.get(ident).name == "Bo"
    assert characters.picture(ident) is not None
    with pytest.raises(BadCharacter, match="comes with Snug"):
        characters.delete("Guide")


def test_an_edited_shipped_character_is_the_users_own_until_it_is_deleted(characters: Characters) -> None:
    characters.save("Guide", characters.get("Guide").model_copy(update={"first_mes": "Mine."}), None)
    assert [(listed.found.id, listed.own) for listed in characters.list()] == [("Guide", True)]
    assert characters.get("Guide").first_mes == "Mine."
    characters.delete("Guide")
    assert characters.get("Guide").first_mes == "Hello."


def test_a_character_with_a_lorebook_is_kept_whole(characters: Characters) -> None:
    character = checked(Character, DATA, "x")
    ident = characters.add(character, None)
    assert characters.get(ident).character_book == character.character_book
    plain = character.model_copy(update={"character_book": None})
    characters.save(ident, plain, None)
    assert characters.get(ident).character_book is None


def test_personas_are_kept_with_their_pictures(tmp_path: Path) -> None:
    personas = Library.of(tmp_path, tmp_path).personas
    ident = personas.add(Persona(name="Kim", description="A sailor."), picture(kind="JPEG"))
    assert personas.get(ident).description == "A sailor."
    assert personas.picture(ident) is not None
    personas.delete(ident)
    assert personas.list() == []
    personas.restore(ident)
    assert [found.id for found in personas.list()] == ["Kim"]


def test_personas_of_one_name_that_come_at_once_are_all_kept(tmp_path: Path) -> None:
    personas = Library.of(tmp_path, tmp_path).personas
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: personas.add(Persona(name="Kim", description=str(number)), None), range(8)))
    assert len(set(made)) == 8
    assert {personas.get(ident).description for ident in made} == {str(number) for number in range(8)}


def test_a_thousand_characters_are_listed_at_once(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"c{number}.yaml").write_text(f"name: C{number}\ngreeting: Hi\n")
    characters = Characters(tmp_path, tmp_path / "none")
    characters.list()
    calls = 0
    real = Path.iterdir

    def counted(self: Path) -> Any:
        nonlocal calls
        calls += 1
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "iterdir", counted)
        assert len(characters.list()) == 1000
    assert calls <= 4


def test_placeholders_are_replaced_once_and_nothing_is_evaluated() -> None:
    text = "{{char}} {{ User }} <BOT> <user> {{original}} {{7*7}} {% x %} ${y}"
    assert fill(text, char="{{user}}", user="<BOT>", original="o") == (
        "{{user}} <BOT> {{user}} <BOT> o {{7*7}} {% x %} ${y}"
    )


def lore(*entries: dict[str, Any], says: list[str], default_budget: int = 1000, **book: Any) -> Lore:
    character = checked(Character, {"name": "x", "character_book": {"entries": list(entries), **book}}, "x")
    assert character.character_book is not None
    return matching(character.character_book, says, len, default_budget)


def test_lore_enters_when_it_is_spoken_of() -> None:
    entries = (
        {"keys": ["Dragon"], "content": "D", "insertion_order": 2},
        {"keys": ["elf"], "content": "E", "insertion_order": 1},
        {"keys": ["king"], "secondary_keys": ["crown"], "selective": True, "content": "K"},
        {"keys": [], "constant": True, "content": "C", "insertion_order": 3, "position": "before_char"},
        {"keys": ["dragon"], "content": "off", "enabled": False},
        {"keys": ["ELF"], "content": "case", "case_sensitive": True},
        {"keys": ["(a+)+$"], "use_regex": True, "content": "regex"},
    )
    assert lore(*entries, says=["an elf, a dragon, a king (a+)+$"]) == Lore(("C",), ("E", "D"))
    assert lore(*entries, says=["the king's crown"]) == Lore(("C",), ("K",))


def test_lore_looks_back_as_far_as_the_book_says_and_keeps_to_its_budget() -> None:
    entry = {"keys": ["oak"], "content": "x" * 60}
    assert lore(entry, says=["oak", "b", "c"], scan_depth=2) == Lore()
    assert lore(entry, says=["oak", "b", "c"], scan_depth=3) == Lore((), ("x" * 60,))
    second = {"keys": ["oak"], "content": "y" * 60, "priority": 5}
    assert lore(entry, second, says=["oak"], token_budget=100) == Lore((), ("y" * 60,))
    assert lore(entry, says=["oak"], default_budget=10) == Lore()


def test_lore_calls_for_other_lore_only_where_the_book_wants_it() -> None:
    entries = ({"keys": ["oak"], "content": "The hive"}, {"keys": ["hive"], "content": "Honey"})
    assert lore(*entries, says=["oak"]) == Lore((), ("The hive",))
    assert lore(*entries, says=["oak"], recursive_scanning=True) == Lore((), ("The hive", "Honey"))


def test_decorators_of_version_3_are_not_told_to_the_model() -> None:
    assert lore({"keys": ["a"], "content": "@@depth 4\n@@role user\nFact."}, says=["a"]) == Lore((), ("Fact.",))
    assert lore({"keys": ["zzz"], "content": "@@activate\nFact."}, says=["a"]) == Lore((), ("Fact.",))


def test_regular_expressions_are_named_as_unused() -> None:
    entries = [{"keys": ["a.*"], "use_regex": True}, {"keys": ["b"], "use_regex": True}, {"keys": ["/b/i", "c"]}]
    character = checked(Character, {"name": "x", "character_book": {"entries": entries}}, "x")
    assert character.unused[0].startswith("1 of 3 lorebook entries")


def test_what_would_take_a_minute_to_write_as_yaml_is_kept_as_json(characters: Characters, tmp_path: Path) -> None:
    values: list[dict[str, int]] = [{}] * 25_000
    ident = characters.import_file(as_bytes({"name": "x", "extensions": {"a": values}}), "a.json")
    with pytest.raises(BadCharacter, match="too large for a YAML file"):
        characters.export(ident, "yaml")
    assert (characters.get(ident).model_extra or {})["extensions"] == {"a": values}
    assert characters.export(ident, "json").name == "x.json"


def test_texts_that_stay_in_memory_are_bounded(tmp_path: Path) -> None:
    folder = Folder(tmp_path, lambda data, *_: data, cards=False, most_bytes=1000)
    folder.write("a", ".yaml", "a" * 600, picture())
    for name, size in (("b", 401), ("a", 1001)):
        with pytest.raises(BadCharacter, match="more than 1000 B of text"):
            folder.write(name, ".yaml", "b" * size, None)
    folder.write("a", ".yaml", "a" * 1000, None)
    folder.delete("a")
    folder.write("b", ".yaml", "b", None)
    with pytest.raises(BadCharacter, match="Delete some first"):
        folder.restore("a")
    folder.delete("b")
    folder.restore("a")


def test_what_was_read_of_a_file_goes_with_it(characters: Characters) -> None:
    for _ in range(3):
        ident = characters.import_file(json.dumps({"data": DATA}).encode(), "bo.json")
        assert characters.get(ident).name == "Bo"
        characters.delete(ident)
    assert characters.list() is not None
    assert not characters._own._known


def test_a_file_that_yaml_stumbles_over_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()
    found = Characters(tmp_path / "shipped", tmp_path / "own")
    (tmp_path / "shipped" / "bad.yaml").write_text("? [a]\n: b\n")
    (tmp_path / "shipped" / "good.yaml").write_text("name: Ann\n")
    assert [(one.found.id, one.found.problem is None) for one in found.list()] == [("bad", False), ("good", True)]


def test_a_card_of_half_a_million_wrong_entries_is_one_fault() -> None:
    with pytest.raises(ValidationError) as refused:
        Lorebook.model_validate({"entries": [1] * 9000})
    assert refused.value.error_count() == 1
