"""The embedding service: image encoders, and every embedding they ever made.

It needs the registry for encoders (and keeps serving the last ones it got when the registry is away) and a folder or
bucket for what it keeps. An image is embedded once: the key is made of the image's, the encoder's and the
preprocessing's digests and looked up before anything is decoded. It refuses images beyond its limits before decoding
them, encoders whose files do not have the digests of their manifest, and work it cannot end before its deadline.
"""
