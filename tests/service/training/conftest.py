from fakes.registry_fixtures import postgres_server

__all__ = ["postgres_server"]
