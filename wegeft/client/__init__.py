"""The Python SDK, and the only outgoing HTTP to our own services: :class:`Client` for people, :class:`AttemptClient` for workers.

Every error is a :class:`wegeft.contracts.errors.WegeftError`; what may pass by itself is tried again, for a bounded time.
"""

from wegeft.client.attempt import AttemptClient
from wegeft.client.service import Client
from wegeft.client.trust import TrustStore

__all__ = ["AttemptClient", "Client", "TrustStore"]
