"""The page: what the REST API says, drawn. It decides nothing, stores nothing and has no other source."""

from holdfast_server.web.pages import Reads, blueprint

__all__ = ["Reads", "blueprint"]
