"""What a store's failure means for the user, in one line without addresses: those of the library hold secrets."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

_STATUS = re.compile(r"status(?: code)?: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_TIMEOUT = re.compile(r"kind: Timeout|operation timed out|TimedOut")
_DNS = re.compile(r"dns error|failed to lookup address")
_CONNECT = re.compile(r"kind: Connect\b|tcp connect error|Connection refused|ConnectionRefused")
_CUT = re.compile(
    r"kind: (?:Request|Interrupted|Decode|Unknown|Body)\b|IncompleteMessage|IncompleteBody|end of file before message"
    r"|connection (?:reset|closed)|request or response body error|error decoding response body|ConnectionReset"
)
_TLS = re.compile(r"invalid peer certificate|certificate verify failed|InvalidCertificate|UnknownIssuer")
_STALE = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_WRONG = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure"}
_METADATA = "169.254.169.254"  # the service that tells a cloud machine its role: asked when nothing else is found
_BUSY = {408, 425, 429, 500, 502, 503, 504, 509}


class RemoteError(OSError):
    """A remote store cannot do what it was asked for; ``strerror`` says why, for people, and holds no secret."""


@dataclass(frozen=True)
class Trouble:
    """A failed request.

    reason: for people; a phrase.
    errno: as the operating system would call it.
    transient: another try may succeed.
    unreachable: the host has not even answered.
    """

    reason: str
    errno: int = errno.EIO
    transient: bool = False
    unreachable: bool = False

    def error(self, tries: int = 1) -> RemoteError | FileNotFoundError:
        """As an exception, after so many tries."""
        if self.errno == errno.ENOENT:
            return FileNotFoundError(errno.ENOENT, self.reason)
        return RemoteError(self.errno, self.reason + (f" ({tries} tries)" if tries > 1 else ""))


def diagnose(error: BaseException, *, bucket: str, host: str, anonymous: bool, advice: str, seconds: float) -> Trouble:
    """What an exception of obstore means.

    Args:
        error: the exception.
        bucket: of the request; empty for a web server.
        host: that was asked, without user and password.
        anonymous: no credentials were found.
        advice: where credentials are looked for.
        seconds: after which a request is given up.
    """
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    named = _CODE.search(text)
    code = named[1] if named else ""
    kind = type(error).__name__
    told = f"{status} {code}".strip()
    if _METADATA in text:
        return Trouble(f"no credentials were found ({advice})", errno.EACCES, transient=status in _BUSY)
    if code == "NoSuchBucket":
        return Trouble(f"there is no bucket {bucket!r} at {host}")
    if isinstance(error, FileNotFoundError) or status == 404:
        return Trouble("it does not exist", errno.ENOENT)
    if status in (301, 307) or code in (
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        "IllegalLocationConstraint",
    ):
        return Trouble(f"bucket {bucket!r} is in another region ({told}): set AWS_REGION to it")
    if "redirect without LOCATION" in text:
        return Trouble(f"bucket {bucket!r} is in another region: set AWS_REGION to it")
    if code in _STALE:
        return Trouble(f"the credentials have expired ({told}): get new ones", errno.EACCES)
    if code in _WRONG:
        return Trouble(f"the credentials are not accepted ({told}): check them", errno.EACCES)
    if code == "RequestTimeTooSkewed":
        return Trouble(f"this machine's clock is wrong ({told}): set it", errno.EACCES)
    if status in (401, 403) or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        if anonymous:
            return Trouble(f"access is denied ({told or 403}), no credentials were found ({advice})", errno.EACCES)
        return Trouble(f"access is denied ({told or 403}): the credentials have no right to it", errno.EACCES)
    if status == 416:
        return Trouble("it ends before what was asked for", errno.ENODATA)
    if kind == "NotSupportedError":
        return Trouble(f"{host} does not support this (a read of a part, or a conditional write)", errno.ENOTSUP)
    if status in _BUSY or code in ("SlowDown", "RequestTimeout", "InternalError"):
        return Trouble(f"{host} is overloaded or failing ({told})", transient=True)
    if _TLS.search(text):
        return Trouble(f"{host} has no valid certificate")
    if _DNS.search(text):
        return Trouble(f"{host} cannot be reached: the name is unknown", errno.EHOSTUNREACH, True, True)
    if _CONNECT.search(text) and not status:
        return Trouble(f"{host} cannot be reached: no connection", errno.EHOSTUNREACH, True, True)
    if _TIMEOUT.search(text):
        return Trouble(f"{host} did not answer within {seconds:g} s", errno.ETIMEDOUT, True)
    if status:
        return Trouble(f"{host} refused the request ({told})")
    if _CUT.search(text):
        return Trouble(f"the connection to {host} broke", errno.ECONNRESET, True)
    if kind == "InvalidPathError":
        return Trouble("this is no valid address", errno.EINVAL)
    return Trouble(f"{host} cannot be used ({kind})")
