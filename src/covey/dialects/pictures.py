"""Pictures as clients send them: base64, or a `data:` URL (RFC 2397); ours are the bytes of a file. Pure.

Nothing is ever fetched for a client: that would let anybody make the service call whom it can reach and they cannot.
"""

import base64
import binascii
import re

from covey.contracts.inference import IMAGES_MAX, Image
from covey.errors import CallError

IMAGE_BYTES_MAX = 20_000_000
"""Of one picture, decoded. What a gateway takes for a whole request is a setting, and less by default."""
KINDS = "PNG, JPEG, WebP or GIF"

_DATA_URL = re.compile(r"data:[A-Za-z0-9.+/-]{0,100}(?:;[A-Za-z0-9.+=-]{0,100})*;base64,", re.IGNORECASE)
_HEAD_CHARS_MAX = 400
_SIGNATURE_BYTES = 12


def picture_of_url(url: str, param: str, *, at: int = 0) -> Image:
    """The picture in a `data:` URL. `param`: the field, for errors; `at`: see `Image`.

    Raises:
        CallError: `unsupported`: a URL that would have to be fetched; `invalid`: not a picture.
    """
    if not url[:5].lower() == "data:":
        raise CallError(
            "unsupported",
            f"{param}: this service fetches nothing from elsewhere. Send the picture itself, as a URL that begins with "
            "data:image/png;base64, (or jpeg, webp, gif).",
            param=param,
        )
    head = _DATA_URL.match(url, 0, _HEAD_CHARS_MAX)
    if head is None:
        raise CallError("invalid", f"{param} must begin with data:image/png;base64, (or jpeg, webp, gif).", param=param)
    return picture_of_base64(url[head.end() :], param, at=at)


def picture_of_base64(text: str, param: str, *, at: int = 0) -> Image:
    """The picture in base64 text; what kind it is, its first bytes say, not the client.

    Raises:
        CallError: `invalid`: not base64, or not a picture of a kind that models know; `too_large`.
    """
    if len(text) > IMAGE_BYTES_MAX * 4 // 3 + 4:
        raise CallError("too_large", f"{param}: a picture may have up to {IMAGE_BYTES_MAX} bytes.", param=param)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CallError("invalid", f"{param} is not base64 that can be read.", param=param) from error
    media_type = media_type_of(data[:_SIGNATURE_BYTES])
    if media_type is None:
        raise CallError("invalid", f"{param} is not a picture that models can see: send {KINDS}.", param=param)
    return Image(media_type, data, at)


def media_type_of(start: bytes) -> str | None:
    """What kind of picture a file is, by its first twelve bytes; `None`: none of those that models see."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return None


def check_picture_count(count: int, param: str) -> None:
    """See that a request does not show too many, over all its messages.

    Raises:
        CallError: `invalid`.
    """
    if count > IMAGES_MAX:
        raise CallError("invalid", f"{param}: a request may show up to {IMAGES_MAX} pictures.", param=param)
