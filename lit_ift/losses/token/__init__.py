"""Token losses by family: functions that `lit_ift.losses.token_registry` lists by name."""
