"""Policies: when to draft another token, and when to let which level verify. They import no model and no engine."""
