"""Fetching files that requests name by URI, without letting a request choose where the server connects to."""

from pruning_server.adapters.uris.fetcher import UriFetcher
from pruning_server.adapters.uris.policy import UriPolicy

__all__ = ["UriFetcher", "UriPolicy"]
