"""Pictures and templates that are made with the tiny world, for the pack and for the registry."""
