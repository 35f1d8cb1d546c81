"""Pages for people: rendered here, from what the HTTP API answers to the token that the visitor signed in with.

A page knows no database and no store. It asks the API of the application that it is part of, in process, with the visitor's token, so
that whoever may not do a thing over the API may not do it here. Other rooms add pages of their own to the same frame.
"""

from hub.web.calls import Calls
from hub.web.frame import Frame, Visit
from hub.web.signing_in import make_router as make_signing_in_router

__all__ = ["Calls", "Frame", "Visit", "make_signing_in_router"]
