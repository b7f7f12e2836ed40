"""Names the format of a file that tlray cannot decode, by its first bytes, and says what to do with it."""

from __future__ import annotations

import re

from PIL import Image

from tlray.images import filetypes

_HEIC = "install tlray[heic] on every machine of the job, or convert it to JPEG"
_CONVERT = "convert it to JPEG or PNG"
_EXPORT = "export it as JPEG or TIFF"
_UNPACK = "take the images out of it, and give their folder"
_AGAIN = "download it again"
_REMOVE = "put the image in its place, or remove it"
_RAW = "a camera's RAW photograph"
_RAW_FILE = rb"II\*\0.{4}CR|II\x1a\0|.{4}ftypcrx |FUJIFILM|II(RO|RS|U\0)|MMOR|FOVb|\0MRM"
_FORMATS = (
    ("an HEIC photograph", rb".{4}ftyp(he[iv][cxms]|mif[12]|msf1)", _HEIC),
    (_RAW, _RAW_FILE, _EXPORT),
    ("a Photoshop document", rb"8BP[SB]", _EXPORT),
    ("a GIMP document", rb"gimp xcf", _EXPORT),
    ("a PDF document", rb"%PDF-", _EXPORT),
    ("an EPS or PostScript document", rb"%!PS|\xc5\xd0\xd3\xc6", _EXPORT),
    ("an HTML page, as a failed download leaves it",
     rb"(?i)(<!--.*?-->\s*)?<(!doctype html|(html|head|body|title|script|h1|center)\b)", _AGAIN),
    ("an SVG drawing", rb"<svg\b|<[?!].*?<svg\b", _EXPORT),
    ("an XML document, as a failed download leaves it", rb"<\?xml|<Error>", _AGAIN),
    ("a JSON document, as a failed download leaves it", rb"\{\s*[\"}]|\[\s*[{\[\"\]]", _AGAIN),
    ("a Git LFS pointer", rb"version https://git-lfs", "run 'git lfs pull' where the images come from"),
    ("a git-annex pointer", rb"[./]*(git)?/annex/objects/", "run 'git annex get' where the images come from"),
    ("a JPEG XL image", rb"\xff\n|\0\0\0\x0cJXL ", _CONVERT),
    ("a JPEG 2000 image", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _CONVERT),
    ("a JPEG XR image", rb"II\xbc", _CONVERT),
    ("a DICOM image", rb".{128}DICM", _CONVERT),
    ("a FITS image", rb"SIMPLE  =", _CONVERT),
    ("a NIfTI image", rb".{344}n[i+]1\0", _CONVERT),
    ("an OpenEXR image", rb"v/1\x01", _CONVERT),
    ("a Radiance HDR image", rb"#\?R", _CONVERT),
    ("a Targa image", rb".*TRUEVISION-XFILE\.\0\Z", _CONVERT),
    ("a DDS or KTX texture", rb"DDS |\xabKTX ", _CONVERT),
    ("a QOI, FLIF or BPG image", rb"qoif|FLIF|BPG\xfb", _CONVERT),
    ("a Windows icon or cursor", rb"\0\0[\x01\x02]\0.\0", _CONVERT),
    ("a PCX or SGI image", rb"\n[\0\x02-\x05]\x01[\x01-\x08]|\x01\xda[\0\x01][\x01\x02]", _CONVERT),
    ("a PFM or PAM image", rb"P[Ff7]\s", _CONVERT),
    ("a NumPy, HDF5 or MATLAB file", rb"\x93NUMPY|\x89HDF\r\n|MATLAB 5", _CONVERT),
    ("an image as Base64 text", rb"data:image/|/9j/[\w+/]{8}|iVBORw0KGgo|R0lGOD|UklGR", "decode its Base64"),
    ("a video", rb".{4}(ftyp|moov|mdat|wide|free)|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\x01[\xba\xb3]", _UNPACK),
    ("a zip file", rb"PK(\x03\x04|\x05\x06)", _UNPACK),
    ("a gzip file", rb"\x1f\x8b", _UNPACK),
    ("a compressed file", rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!\x1a", _UNPACK),
    ("a tar or Parquet file", rb".{257}ustar|PAR1", _UNPACK),
    ("a Windows shortcut", rb"L\0\0\0\x01\x14\x02\0|\[InternetShortcut\]", _REMOVE),
    ("a Mac's alias, resource fork or property list", rb"book\0{4}mark|\0\x05\x16[\0\x07]|bplist0", _REMOVE),
    ("an Office document or thumbnail cache", rb"\xd0\xcf\x11\xe0", _REMOVE),
    ("a program", rb"MZ|\x7fELF|#!", _REMOVE),
    ("a file of zero bytes, as an interrupted copy leaves it", rb"\0{16,}\Z", "copy it again"),
    ("a text", rb"[\t\r\n -~]{2}[\t\r\n -~\x80-\xff]{2,}\Z", _REMOVE),
)  # fmt: skip
"""Names of formats, each with the pattern of its first bytes and a remedy; the first that fits counts."""
_SAMPLE = 4096


def describe(data: bytes) -> str | None:
    """The name of the format that these bytes of a file have, and a remedy; None if tlray has no name."""
    # The mark of a Targa file stands at its end.
    sample = data[:_SAMPLE] + data[_SAMPLE:][-26:]
    text = sample.lstrip(b"\xef\xbb\xbf\t\r\n ")
    for name, pattern, remedy in _FORMATS:
        if any(re.match(pattern, start, re.DOTALL) for start in (sample, text)):
            return None if remedy is _HEIC and filetypes.reads_heic() else f"{name}: {remedy}"
    return None


def describe_preview(image: Image.Image, data: bytes) -> str | None:
    """What `describe` says of a TIFF whose first image is only the preview of a camera's photograph."""
    tags = getattr(image, "tag_v2", {})
    kind = tags.get(254)  # NewSubfileType; its lowest bit marks an image of reduced size.
    reduced = isinstance(kind, int) and bool(kind & 1)
    if image.format == "TIFF" and (reduced or data[8:10] == b"CR" or 50706 in tags):  # DNGVersion.
        return f"{_RAW}, or a TIFF that begins with a preview: {_EXPORT}"
    return None
