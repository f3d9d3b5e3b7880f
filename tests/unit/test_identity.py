"""The node's key: the file, the peer id, signatures, and that it never shows."""

import base64
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.store.identity import (
    KEY_FILE,
    Identity,
    digest,
    open_identity,
    peer_id_of,
    public_key_of,
    verify,
    write_identity,
)
from covey.store.kv import StoreError


def test_the_peer_id_is_the_one_libp2p_derives() -> None:
    """In a process of its own: importing libp2p takes long, and warns."""
    seeds = [bytes([n]) * 32 for n in range(5)]
    code = (
        "import sys\n"
        "from libp2p.crypto.ed25519 import create_new_key_pair\n"
        "from libp2p.peer.id import ID\n"
        "for seed in sys.argv[1:]:\n"
        "    print(ID.from_pubkey(create_new_key_pair(bytes.fromhex(seed)).public_key))\n"
    )
    arguments = [sys.executable, "-W", "ignore", "-c", code, *(seed.hex() for seed in seeds)]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert told == [Identity(seed).peer_id for seed in seeds]


@given(st.binary(min_size=32, max_size=32))
def test_peer_ids_hold_the_public_key(public_key: bytes) -> None:
    peer_id = peer_id_of(public_key)
    assert peer_id.startswith("12D3KooW")
    assert public_key_of(peer_id) == public_key


@settings(max_examples=300)
@given(st.text(max_size=60) | st.from_regex(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}", fullmatch=True))
def test_whatever_is_no_peer_id_is_refused(text: str) -> None:
    try:
        public_key = public_key_of(text)
    except ValueError:
        assert not verify(text, "entry/1", b"", bytes(64))  # type: ignore[arg-type]
    else:
        assert peer_id_of(public_key) == text


def test_signatures_are_bound_to_peer_domain_and_bytes() -> None:
    alice, bob = Identity.generate(), Identity.generate()
    signature = alice.sign("entry/1", b"hello")
    assert verify(alice.peer_id, "entry/1", b"hello", signature)
    assert not verify(bob.peer_id, "entry/1", b"hello", signature)
    assert not verify(alice.peer_id, "entry/2", b"hello", signature)
    assert not verify(alice.peer_id, "entry/1", b"hello!", signature)
    assert not verify(alice.peer_id, "entry/1", b"hello", signature[:-1])
    assert not verify(alice.peer_id, "a\0b", b"hello", signature)
    with pytest.raises(ValueError, match="NUL"):
        alice.sign("a\0b", b"hello")
    assert digest("a", b"x") != digest("b", b"x")


def test_a_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = open_identity(tmp_path / "data")
    file = tmp_path / "data" / KEY_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0
    assert open_identity(tmp_path / "data").peer_id == first.peer_id
    assert [path.name for path in file.parent.iterdir()] == [KEY_FILE]
    with pytest.raises(FileExistsError):
        write_identity(tmp_path / "data", Identity.generate())
    assert open_identity(tmp_path / "data").peer_id == first.peer_id
    assert [path.name for path in file.parent.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    open_identity(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(StoreError, match=r"chmod 600 .*identity\.key"):
        open_identity(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"covey-ed25519-1 AAAA\n",
        b"covey-ed25519-1 !\n",
        b"covey-ed25519-2 AAAA",
        b"\xff",
    ],
)
def test_a_malformed_key_is_refused_in_one_line_without_its_content(tmp_path: Path, content: bytes) -> None:
    open_identity(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(StoreError, match="is not a node's key") as refusal:
        open_identity(tmp_path)
    assert "\n" not in refusal.value.message
    assert "AAAA" not in refusal.value.message


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="make the folder writable"):
        open_identity(tmp_path / "file" / "data")


def test_the_key_never_shows(caplog: pytest.LogCaptureFixture) -> None:
    alice = Identity.generate()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("covey").error("%s %r %s", alice, alice, vars(alice))
    for shown in (repr(alice), str(alice), caplog.text):
        assert alice.peer_id in shown
        assert alice.seed().hex() not in shown
        assert repr(alice.seed()) not in shown
        assert base64.b64encode(alice.seed()).decode() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(alice)
