"""A client for servers that speak OpenAI's chat protocol."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from wr1_jax.errors import UserError

_SECONDS = 120.0  # until an answer counts as lost
_ATTEMPTS = 4  # requests for one answer, if the server is busy or the connection breaks
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)


class ChatEndpoint:
  """One model behind `POST {url}/chat/completions`. Any thread may ask."""

  def __init__(self, url: str, model: str, key: str = "", *, pause: float = 1.0):
    """Checks the address; connects to nothing.

    Args:
      url: with the version, such as "http://localhost:8000/v1".
      key: sent as bearer token unless empty.
      pause: seconds before a request is sent again; doubles each time.

    Raises:
      UserError: `url` is no http(s) address.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise UserError(f"--url={url} is no address; it should look like http://localhost:8000/v1.")
    self._url = url.rstrip("/") + "/chat/completions"
    self.model = model
    self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    self._pause = pause

  def ask(self, instruction: str, text: str) -> str:
    """The model's answer to `text`, stripped; empty if it gave none.

    Raises:
      UserError: the endpoint cannot be reached, refuses the request, stays busy, or answers something else than a chat.
    """
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
    body = json.dumps({"model": self.model, "messages": messages}).encode()  # no settings: servers differ in them
    answer = self._post(body)
    try:
      content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
      raise UserError(f"{self._url} does not answer like a chat endpoint, but with: {_start(answer)}") from None
    return content.strip() if isinstance(content, str) else ""

  def _post(self, body: bytes) -> bytes:
    for attempt in range(_ATTEMPTS):
      if attempt:
        time.sleep(self._pause * 2 ** (attempt - 1))
      request = urllib.request.Request(self._url, body, self._headers)
      try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
          return response.read()
      except urllib.error.HTTPError as error:
        problem = self._refusal(error)
        if error.code not in _BUSY:
          break
      except (OSError, http.client.HTTPException, ValueError) as error:
        reason: Any = getattr(error, "reason", None) or error
        problem = f"{self._url} cannot be reached: {reason}. Is the server running, and --url its address?"
        if isinstance(reason, ConnectionRefusedError):  # nobody listens there; waiting does not help
          break
    raise UserError(problem)

  def _refusal(self, error: urllib.error.HTTPError) -> str:
    try:
      said = _start(error.read())
    except (OSError, http.client.HTTPException):
      said = "nothing"
    if error.code in (401, 403):
      return f"{self._url} wants a valid key ({error.code}): set the variable that --api-key-env names. It said: {said}"
    if error.code in _BUSY:
      return f"{self._url} answered {error.code} to {_ATTEMPTS} requests; try again later. It said: {said}"
    return f"{self._url} refused the request ({error.code}); are --url and --model={self.model} right? It said: {said}"


def _start(answer: bytes) -> str:
  return " ".join(answer[:300].decode("utf-8", "replace").split()) or "nothing"
