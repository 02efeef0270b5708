# SPDX-License-Identifier: Apache-2.0
"""API keys: ``client.tokens``, and the same as functions on the default client."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from ._core import accounts
from ._default import get_default_client
from .records import Token

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Token", "TokensAPI", "create", "list", "revoke"]


class TokensAPI:
    """API keys of the user."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> List[Token]:
        """All tokens, without the keys themselves."""
        return self._client._run(accounts.tokens())

    def create(self, name: str, expires_in_days: Optional[int] = None) -> Token:
        """A new token. Its ``token`` is the key, which the server tells only once."""
        return self._client._run(accounts.create_token(name, expires_in_days))

    def revoke(self, prefix: str) -> None:
        """Ends the token with this prefix."""
        self._client._run(accounts.revoke_token(prefix))


def list() -> List[Token]:
    """`TokensAPI.list` of the default client."""
    return get_default_client().tokens.list()


def create(name: str, expires_in_days: Optional[int] = None) -> Token:
    """`TokensAPI.create` of the default client."""
    return get_default_client().tokens.create(name, expires_in_days)


def revoke(prefix: str) -> None:
    """`TokensAPI.revoke` of the default client."""
    get_default_client().tokens.revoke(prefix)
