"""What the services and the clients share about the wire: one converter for each shared noun, and the error table."""
