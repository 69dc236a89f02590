"""Readers of networks and properties: everything is lowered to the core operators here, once."""
