"""What the gateway costs: a bare ASGI reply on the same server beside it, and a load from another process."""
