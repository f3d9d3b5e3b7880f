"""TLS for the listener: certificate and key from files, read anew when they change; the handshake, with a limit."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from stat import S_IROTH

import trio

from covey.errors import CallError
from covey.http.wire import BROKEN, TlsWire

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
"""How often the files are looked at; `certbot` and its like replace them every few weeks."""
HANDSHAKE_SECONDS_MAX = 10.0
PROTOCOLS = ("h2", "http/1.1")
"""What ALPN offers (RFC 7301), the one we like best first."""
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only, as HTTP/2 wants it (RFC 9113, 9.2.2)."""
_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """What connections are encrypted with. Each new one takes `context` as it is then.

    Raises:
        CallError: `invalid`, with what is wrong with the files, and what to do.
    """

    def __init__(self, certificate_file: str, key_file: str) -> None:
        self._files = (Path(certificate_file).expanduser(), Path(key_file).expanduser())
        self._loaded = _stamp(self._files)
        self.context = load(*self._files)

    async def watch(self) -> None:
        """Look at the files from time to time, for ever; a pair that cannot be used is logged, the old one stays."""
        while True:
            await trio.sleep(CHECK_SECONDS)
            await self.check()

    async def check(self) -> None:
        """Look now."""
        stamp = await trio.to_thread.run_sync(_stamp, self._files)
        if stamp == self._loaded:
            return
        self._loaded = stamp  # said once, not at every look
        try:
            self.context = await trio.to_thread.run_sync(load, *self._files)
        except CallError as error:
            log.error("The certificate has changed, and the old one stays in use: %s", error.message)  # noqa: TRY400
        else:
            log.info("The certificate has changed; new connections use the new one.")


def load(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """Read a pair of PEM files. Raises `CallError`: `invalid`."""
    _warn_of_readers(key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(PROTOCOLS)
    try:
        context.load_cert_chain(certificate_file, key_file, password=_no_password(key_file))
    except ssl.SSLError as error:
        raise CallError("invalid", _what_is_wrong(error, certificate_file, key_file)) from error
    except OSError as error:
        missing = next((file for file in (certificate_file, key_file) if _is_missing(file)), key_file)
        raise CallError("invalid", f"Cannot read {missing} ([http] tls_…_file): {error.strerror or error}.") from error
    return context


def _is_missing(file: Path) -> bool:
    try:
        return not file.exists()
    except OSError:
        return True  # it is in a folder that we may not look into, as those of certbot are


def _no_password(key_file: Path) -> Callable[[], str]:
    # Without it, OpenSSL asks on the terminal, and the node waits.
    def refuse() -> str:
        raise CallError(
            "invalid",
            f"The key in {key_file} is encrypted. Decrypt it (openssl pkey -in … -out …), and let nobody else read it.",
        )

    return refuse


def _what_is_wrong(error: ssl.SSLError, certificate_file: Path, key_file: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"The key in {key_file} does not belong to the certificate in {certificate_file}."
    return (
        f"{certificate_file} and {key_file} are not a certificate and its key in PEM"
        f" ({(error.reason or str(error)).replace('_', ' ').lower()})."
    )


def _warn_of_readers(key_file: Path) -> None:
    try:
        mode = key_file.stat().st_mode
    except OSError:
        return  # said when it is read
    if mode & S_IROTH:
        log.warning("Everybody on this machine can read %s; take that away with chmod o-r.", key_file)


def _stamp(files: tuple[Path, ...]) -> _Stamp:
    found: list[tuple[int, int, int]] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append((0, 0, 0))  # being replaced, or gone: reading it says why
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


class Handshake:
    """A connection that has not said yet who it is. It counts as idle: a new one may take its place."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        self._scope = trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_SECONDS_MAX)

    async def run(self) -> TlsWire | None:
        """Shake hands; `None` where the client does not, in time, and the connection is closed then."""
        try:
            with self._scope:
                await self._tls.do_handshake()
                return TlsWire(self._stream, self._tls, self._tls.selected_alpn_protocol() or "http/1.1")
        except BROKEN as error:
            # Scanners and plain HTTP come every few seconds to a public port: no more than this.
            log.debug("A handshake failed: %s", error.__cause__ or error)
        except BaseException:
            self._stream.socket.close()
            raise
        self._stream.socket.close()
        return None

    def close_if_idle(self) -> None:
        """Give up."""
        self._scope.cancel()

    def expire(self) -> None:
        """Give up."""
        self._scope.cancel()

    def cut(self) -> None:
        """Give up."""
        self._scope.cancel()
