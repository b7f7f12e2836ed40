"""Names the format of a file that tlray cannot decode, by its first bytes, and says what to do with it."""

from __future__ import annotations

import re

from PIL import Image

from tlray.images import filetypes

_RAW, _EXPORT, _HEIC = "a camera's RAW photograph", "export it as JPEG or TIFF", "an HEIC photograph"
_FORMATS = {
    "install tlray[heic] on every machine of the job, or convert it to JPEG": {
        _HEIC: rb".{4}ftyp(he[iv][cxms]|mif[12]|msf1)",
    },
    "download it again; a failed download leaves such a file": {
        "an HTML page": rb"(?i)(<!--.*?-->\s*)?<(!doctype html|(html|head|body|title|script|h1|center)\b)",
        "an XML document": rb"<\?xml(?!.*<svg\b)|<Error>", "a JSON document": rb"\{\s*[\"}]|\[\s*[{\[\"\]]",
    },
    _EXPORT: {
        _RAW: rb"II\*\0.{4}CR|II\x1a\0|.{4}ftypcrx |FUJIFILM|II(RO|RS|U\0)|MMOR|FOVb|\0MRM",
        "a Photoshop document": rb"8BP[SB]", "a GIMP document": rb"gimp xcf", "a PDF document": rb"%PDF-",
        "an SVG drawing": rb"<svg\b|<[?!].*?<svg\b", "a PostScript document": rb"%!PS|\xc5\xd0\xd3\xc6",
    },
    "convert it to JPEG or PNG": {
        "a JPEG XL image": rb"\xff\n|\0\0\0\x0cJXL ", "a JPEG 2000 image": rb"\0{3}\x0cjP  |\xffO\xffQ",
        "a JPEG XR image": rb"II\xbc", "a DICOM image": rb".{128}DICM", "a FITS image": rb"SIMPLE  =",
        "a NIfTI image": rb".{344}n[i+]1\0", "an OpenEXR image": rb"v/1\x01", "a QOI image": rb"qoif",
        "a Targa image": rb".*TRUEVISION-XFILE\.\0\Z", "a texture": rb"DDS |\xabKTX",
        "a Windows icon": rb"\0\0[\x01\x02]\0.\0",
        "a NumPy, HDF5 or MATLAB file": rb"\x93NUMPY|\x89HDF\r\n|MATLAB 5",
        "an image as Base64 text": rb"data:image/|/9j/[\w+/]{8}|iVBORw0KGgo|R0lGOD|UklGR",
    },
    "take the images out of it, and give their folder": {
        "a video": rb".{4}(ftyp|moov|mdat|wide|free)|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\x01[\xba\xb3]",
        "a zip file": rb"PK(\x03\x04|\x05\x06)", "a gzip file": rb"\x1f\x8b",
        "an archive": rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!\x1a|.{257}ustar|PAR1",
    },
    "run 'git lfs pull' where the images come from": {"a Git LFS pointer": rb"version https://git-lfs"},
    "run 'git annex get' where the images come from": {"a git-annex pointer": rb"[./]*(git)?/annex/objects/"},
    "copy it again; an interrupted copy leaves such a file": {"a file of zero bytes": rb"\0{16,}\Z"},
    "put the image in its place, or remove it": {
        "a Windows shortcut": rb"L\0\0\0\x01\x14\x02\0|\[InternetShortcut\]",
        "a Mac's alias or fork": rb"book\0{4}mark|\0\x05\x16[\0\x07]",
        "a text": rb"[\t\r\n -~]{2}[\t\r\n -~\x80-\xff]{2,}\Z",
    },
}  # fmt: skip
"""For each remedy, names of formats and the patterns of their first bytes; the first that fits counts."""
_SAMPLE = 4096


def describe(data: bytes) -> str | None:
    """The name of the format that these bytes of a file have, and a remedy; None if tlray has no name."""
    # The mark of a Targa file stands at its end.
    sample = data[:_SAMPLE] + data[_SAMPLE:][-26:]
    starts = (sample, sample.lstrip(b"\xef\xbb\xbf\t\r\n "))
    for remedy, formats in _FORMATS.items():
        for name, pattern in formats.items():
            if any(re.match(pattern, start, re.DOTALL) for start in starts):
                return None if name is _HEIC and filetypes.reads_heic() else f"{name}: {remedy}"
    return None


def describe_preview(image: Image.Image, data: bytes) -> str | None:
    """What `describe` says of a TIFF whose first image is only the preview of a camera's photograph."""
    tags = getattr(image, "tag_v2", {})
    reduced = tags.get(254) in (1, 3)  # NewSubfileType
    if image.format == "TIFF" and (reduced or data[8:10] == b"CR" or 50706 in tags):  # DNGVersion
        return f"{_RAW}, or a TIFF that begins with a preview: {_EXPORT}"
    return None
