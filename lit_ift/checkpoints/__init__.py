"""Checkpoints: written whole or not at all, found again, and what else a resumed run goes on with."""
