"""Channels and radio impairments: composable, seeded, calibrated."""
