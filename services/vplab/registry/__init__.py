"""The model registry: artifacts, immutable versions, aliases that move, and the content-addressed blobs beneath.

Needs a database (SQLite by default, PostgreSQL for several replicas) and a place for blobs (a folder by default, or an
S3 bucket). Refuses a version whose blobs are not stored and verified, and never changes what was published.
"""
