"""Between messages and plain values: the one place where arrays, images, masks and names meet their wire form.

Every ``*_from_proto`` takes what an untrusted peer may have sent: it returns a checked value or raises ``InvalidInput``
naming the field, and nothing else. Every ``*_to_proto`` takes our own values.
"""
