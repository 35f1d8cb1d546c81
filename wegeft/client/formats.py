"""Derived formats, over HTTP: the part of the client that lists, attaches, fetches and forgets them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from wegeft.client.blobs import upload
from wegeft.client.downloads import fetch_folder
from wegeft.client.transport import Call, Transport, json_body
from wegeft.client.trust import TrustStore, check_format
from wegeft.contracts.adapter import AdapterRef, FileEntry
from wegeft.contracts.conversion import ConversionAnswer, ConversionRequest
from wegeft.contracts.errors import NotFound, UnexpectedAnswer
from wegeft.contracts.formats import (
    FORMAT_FILES,
    AttachedFormat,
    DerivedFormat,
    FormatAttachment,
    FormatList,
    FormatMeasurement,
    StoredDtype,
)

_JSON = {"Content-Type": "application/json"}


class FormatCalls:
    """What :class:`wegeft.client.Client` can ask about derived formats."""

    _transport: Transport
    _trust: TrustStore

    def formats(self, ref: str) -> FormatList:
        """Return in which forms a version can be had, and how those are made that are not there."""
        return self._transport.ask(Call(method="GET", path=_path(ref)), FormatList)

    def attach_format(
        self, ref: str, folder: Path, shelf: tuple[DerivedFormat, StoredDtype], measured: FormatMeasurement
    ) -> AttachedFormat:
        """Send the files of a derived format and attach them to a version, in the place of one of the same type.

        ``measured`` says what was measured of the folder's files, and with which base model. Raises :class:`InvalidInput` with everything
        that the hub's gate refuses, and :class:`QuotaExceeded`.
        """
        entries = []
        for name in sorted(FORMAT_FILES[shelf[0]]):
            blob = upload(self._transport, "/blobs", folder / name)
            entries.append(FileEntry(path=name, digest=blob.digest, size=blob.size))
        body = json_body(FormatAttachment(files=tuple(entries), **measured.model_dump()))
        return self._transport.ask(Call(method="PUT", path=_path(ref, *shelf), headers=_JSON, content=body), AttachedFormat)

    def convert(self, ref: str, wanted: ConversionRequest) -> ConversionAnswer:
        """Have a worker make derived formats of a version; return those that are attached already, and the job that makes the others.

        Harmless to repeat: equal requests get one job as long as it may succeed. Raises :class:`InvalidRequest` with every format that
        the version can never have, and :class:`PolicyRefused`.
        """
        parsed = AdapterRef.parse(ref)
        path = f"/adapters/{parsed.adapter}/versions/{parsed.selector}/conversions"
        return self._transport.ask(Call(method="POST", path=path, headers=_JSON, content=json_body(wanted)), ConversionAnswer)

    def detach_format(self, ref: str, shelf: tuple[DerivedFormat, StoredDtype]) -> None:
        """Forget a derived format of a version; raise :class:`NotFound` where there is none."""
        self._transport.tell(Call(method="DELETE", path=_path(ref, *shelf)))

    def download_format(self, ref: str, format_: DerivedFormat, folder: Path, dtype: StoredDtype | None = None) -> AttachedFormat:
        """Write a derived format that is attached to a version into a new folder, every byte verified; return what it is.

        ``dtype``: how its numbers shall be stored; None takes the most exact that there is. Its signature, which is checked as a
        version's is, is written beside the files. Raises :class:`NotFound`, which says how to make one, :class:`SignatureInvalid`,
        :class:`UntrustedKey`, and :class:`InvalidSetting` where there is something already.
        """
        listed = self.formats(ref)
        [view] = [view for view in listed.formats if view.format == format_]
        found = [one for one in view.attached if dtype in (None, one.dtype)]
        if not found:
            raise NotFound(f"no {format_}{f' of {dtype}' if dtype else ''} is attached to this version", path=ref, hint=view.how)
        chosen = min(found, key=lambda one: one.largest_error)
        if {entry.path for entry in chosen.files} != FORMAT_FILES[format_]:
            raise UnexpectedAnswer("the server lists other files than the format has", path=ref, value=format_)
        check_format(self._transport, self._trust, listed.ref, chosen)
        fetch_folder(self._transport, f"{_path(listed.ref, format_, chosen.dtype)}/files", chosen.files, folder, chosen.signature)
        return chosen


def _path(ref: str, *parts: str) -> str:
    parsed = AdapterRef.parse(ref)
    return "/".join([f"/adapters/{parsed.adapter}/versions/{parsed.selector}/formats", *(quote(part) for part in parts)])
