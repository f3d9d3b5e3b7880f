"""Which certificates back ends and downloads trust."""

import ssl

import certifi


def trusted_certificates() -> ssl.SSLContext:
    """The system's (and `SSL_CERT_FILE`'s, as in a company with an authority of its own) and certifi's. Takes 20 ms."""
    trusted = ssl.create_default_context()
    trusted.load_verify_locations(certifi.where())
    return trusted
