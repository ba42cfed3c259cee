"""Slack's incoming webhook: post one message, say what became of it, and never let the address out."""

import ipaddress
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import Any, Final, Literal
from urllib.error import URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import (
    HTTPErrorProcessor,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
    getproxies,
    proxy_bypass,
)

from pydantic import SecretStr
from slack_sdk.webhook import WebhookClient, WebhookResponse

from metering.errors import BadInput

#: The only host that messages are sent to, over https.
HOST: Final = "hooks.slack.com"
#: Bytes of an answer that are looked at; Slack's are a word or two.
ANSWER_BYTES_MAX: Final = 1024
#: Slack's own error words (`no_service`, `invalid_payload`). Any other answer is not repeated anywhere.
_WORD: Final = re.compile(r"[a-z]+(_[a-z]+)*")
_WORD_CHARACTERS_MAX: Final = 40
#: A shorter word is no part of a secret, even if the address happens to hold it (`ok` is in `hooks`).
_ECHO_CHARACTERS_MIN: Final = 6

Outcome = Literal["delivered", "retry", "given_up"]
_NAME: Final = "METERING_SLACK_WEBHOOK_URL"
_REMEDY: Final = f"give the address that Slack shows for the incoming webhook, https://{HOST}/services/..."


@dataclass(frozen=True)
class Post:
    """A message as Slack takes it: `text` for notifications, `blocks` (Block Kit) for the channel."""

    text: str
    blocks: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What became of a post. `status` is None when no answer came; `detail` never holds the address."""

    outcome: Outcome
    status: int | None
    detail: str
    retry_after_seconds: int | None = None


class _AsAnswered(HTTPErrorProcessor):
    """Hands every answer back as it came: nothing is raised for a status, and no redirect is followed."""

    def http_response(self, request: Request, response: HTTPResponse) -> HTTPResponse:
        return response

    https_response = http_response


class _Webhook(WebhookClient):
    """slack_sdk's client over an opener of our own, without its retries, and without a voice in any log."""

    def __init__(self, url: str, timeout_seconds: float, opener: OpenerDirector) -> None:
        silent = logging.Logger("slack_sdk, silent: its messages quote the address", logging.CRITICAL + 1)
        silent.addHandler(logging.NullHandler())
        super().__init__(url, logger=silent, retry_handlers=[])
        self._opener = opener
        self._timeout_seconds = timeout_seconds

    def _perform_http_request_internal(self, url: str, req: Request) -> WebhookResponse:
        with self._opener.open(req, timeout=self._timeout_seconds) as answer:
            # One read: a server that drips its answer cannot hold the worker for longer than one timeout.
            body = answer.read1(ANSWER_BYTES_MAX).decode("utf-8", errors="replace")
            headers: HTTPMessage = answer.headers
            return WebhookResponse(
                url=url, status_code=answer.status, body=body, headers=dict(headers.items())
            )


def check_webhook(webhook: SecretStr) -> SplitResult:
    """Return the parts of the address, or raise BadInput that says what is wrong without showing it.

    Taken are https with the host hooks.slack.com and no other port, and http with a loopback host (the
    sandbox's receiver). Everything else could carry figures to a place of somebody else's choosing.
    """
    url = webhook.get_secret_value()
    # urlsplit drops tabs and line ends silently, and others read a backslash as a slash.
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise BadInput(f"{_NAME} holds a character that no address has; {_REMEDY}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BadInput(f"{_NAME} is not an address; {_REMEDY}") from None
    if parts.username is not None or parts.password is not None:
        raise BadInput(f"{_NAME} names a user before the host; {_REMEDY}")
    if parts.fragment:
        raise BadInput(f"{_NAME} has a '#' part; {_REMEDY}")
    if parts.scheme == "https" and host == HOST and port in (None, 443):
        return parts
    if parts.scheme == "http" and _is_loopback(host):
        return parts
    if parts.scheme == "https":
        raise BadInput(f"{_NAME} is of another host than {HOST}; {_REMEDY}")
    raise BadInput(f"{_NAME} is not https (http is for loopback hosts only); {_REMEDY}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _opener(parts: SplitResult) -> OpenerDirector:
    """Through the proxy of the environment to Slack, straight to a loopback host; redirects not followed."""
    proxies = {}
    if parts.scheme == "https" and not proxy_bypass(HOST):
        proxies = {scheme: proxy for scheme, proxy in getproxies().items() if scheme == "https"}
    return build_opener(
        ProxyHandler(proxies), HTTPSHandler(context=ssl.create_default_context()), _AsAnswered()
    )


def post(webhook: SecretStr, message: Post, timeout_seconds: float) -> Answer:
    """Post `message` once and say what became of it. Raises BadInput for an address that is not allowed.

    Delivered: 2xx. Retry: no answer, 429, 5xx; a lost answer is a retry too, so Slack may show a message
    twice. Given up: 3xx (nothing is followed) and every other 4xx: the same bytes would be refused again.
    """
    client = _Webhook(webhook.get_secret_value(), timeout_seconds, _opener(check_webhook(webhook)))
    try:
        answer = client.send_dict(
            {
                "text": message.text,
                "blocks": list(message.blocks),
                "unfurl_links": False,
                "unfurl_media": False,
            }
        )
    except (OSError, HTTPException) as error:
        return Answer("retry", None, _no_answer(error, timeout_seconds))
    return _judge(answer, webhook)


def _no_answer(error: OSError | HTTPException, timeout_seconds: float) -> str:
    """Why no answer came, by kind alone: the texts of these errors may quote the address."""
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer within {timeout_seconds:g} s"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "the certificate of the host could not be verified"
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused"
    if isinstance(reason, ConnectionError):
        return "the connection broke off before an answer came"
    return f"no answer ({type(reason).__name__})"


def _judge(answer: WebhookResponse, webhook: SecretStr) -> Answer:
    status, said = answer.status_code, _said(answer.body or "", webhook)
    if 200 <= status < 300:
        return Answer("delivered", status, said)
    if status == 429 or status >= 500:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        after = str(headers.get("retry-after", "")).strip()
        return Answer("retry", status, said, int(after) if re.fullmatch(r"[0-9]{1,9}", after) else None)
    if 300 <= status < 400:
        return Answer("given_up", status, "answered with a redirect, which is not followed")
    return Answer("given_up", status, said)


def _said(body: str, webhook: SecretStr) -> str:
    """Slack's word for it, when it is one. A body may echo the request, its address included."""
    word = body.strip()
    echo = len(word) >= _ECHO_CHARACTERS_MIN and word in webhook.get_secret_value()
    if len(word) <= _WORD_CHARACTERS_MAX and _WORD.fullmatch(word) and not echo:
        return word
    return f"an answer of {len(body)} characters" if body else "an empty answer"
