"""The REST API, one for page, command and devices: a view parses, makes one call, and renders."""

from holdfast_server.api.blueprint import blueprint
from holdfast_server.api.reads import Reads

__all__ = ["Reads", "blueprint"]
