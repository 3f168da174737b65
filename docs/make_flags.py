"""Writes docs/flags.md from modules/settings.py: `python -m docs.make_flags`. A test keeps the file true."""

from __future__ import annotations

from pathlib import Path

from modules.settings import GROUP_TITLES, Settings, choices_of, flag_name, flag_of, takes_several
from modules.settings_reading import ENV_PREFIX

_INTRO = """# Flags

Made by `python -m docs.make_flags` from modules/settings.py; do not edit.

Every setting can be given on the command line, as an environment variable, or in `settings.yaml` in the user data
folder (any other file: `--settings FILE`). The command line wins over the environment, the environment over the file.

```yaml
# user_data/settings.yaml
load_in_4bit: true
gpu_memory: [10, 8722MiB]
listen_port: 8000
```
"""


def render() -> str:
    """The whole page as Markdown."""
    parts = [_INTRO]
    for group, title in GROUP_TITLES.items():
        rows = [_row(name) for name in Settings.model_fields if flag_of(name).group == group]
        head = "| flag | environment, settings.yaml | default | what it does |\n| --- | --- | --- | --- |"
        parts.append("\n".join([f"## {title}\n", head, *rows, ""]))
    return "\n".join(parts)


def _row(name: str) -> str:
    field, flag = Settings.model_fields[name], flag_of(name)
    value = "\\|".join(choices_of(field)) or flag.metavar
    several = " …" if takes_several(field) else ""
    shown = f"`{flag_name(name)}`" + (f" {value}{several}" if value else "")
    default = "" if field.default in (None, False, ()) else f"`{field.default}`"
    return f"| {shown} | `{ENV_PREFIX}{name.upper()}`, `{name}` | {default} | {field.description} |"


if __name__ == "__main__":
    Path(__file__).with_name("flags.md").write_text(render(), encoding="utf-8")
