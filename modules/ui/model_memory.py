"""The line on the Model tab that tells how the chosen model was loaded last, and what can be done with that."""

from __future__ import annotations

import html
import json

from modules.chat.presets import Presets
from modules.errors import SnugError
from modules.models.remembered import Remembered, as_flags
from modules.ui.labels import label_of
from modules.ui.words import t, told


def memory_html(known: Remembered, presets: Presets) -> str:
    """What is kept of a model; "" where nothing is. `presets` are those of who looks: nobody's values are others'."""
    note = f'<p class="memory-note" role="alert">{html.escape(told(known.note))}</p>' if known.note else ""
    if known.options is None:
        return note
    flags = as_flags(known.options).items()
    kept = ", ".join(t(label_of(field)) + ("" if value is True else f" {value}") for field, value in flags)
    return (
        f'{note}<div class="memory"><p><strong>{t("As you loaded it last.")}</strong> '
        f"{html.escape(kept or t('Snug chose.'))}</p>"
        f'<div>{_preset_button(known.preset, presets)}<button type="button" class="text-button" data-forget>'
        f"{t('Forget')}</button></div></div>"
    )


def _preset_button(preset: str, presets: Presets) -> str:
    """Takes the preset that the model was last used with; nothing where that is not there any more."""
    try:
        params = presets.get(preset).model_dump(mode="json", exclude_defaults=True) if preset else None
    except SnugError:
        params = None
    if params is None:
        return ""
    return (
        f'<button type="button" class="text-button" data-preset="{html.escape(json.dumps(params))}" '
        f'data-name="{html.escape(preset)}">{html.escape(t("Use preset {name}", name=preset))}</button>'
    )
