"""What the page asks about attached files once they are on the server; they get there by api/attachments.py."""

from __future__ import annotations

from pydantic import Field

from modules.attachments.extracted import MAX_FILES
from modules.services import Services
from modules.ui.views import Json, file_view, printable
from modules.ui.widgets import Body, Pick


class Files(Body):
    """Files that a draft names."""

    ids: list[str] = Field(max_length=MAX_FILES)


class FileDoors:
    """Every answer is JSON for static/attachments.js."""

    def __init__(self, services: Services) -> None:
        self.attached = services.store.attached

    def waiting(self, owner: str, body: Files) -> Json:
        """Those of a draft's files that can still be sent."""
        return {"files": [file_view(file) for file in self.attached.waiting(owner, body.ids)]}

    def text(self, owner: str, body: Pick) -> Json:
        """A file's text, as a model gets it."""
        file, text = self.attached.text(owner, body.id)
        return file_view(file) | {"text": printable(text)}

    def discard(self, owner: str, body: Pick) -> Json:
        """Forget a file that was never sent."""
        self.attached.discard(owner, body.id)
        return {"done": True}
