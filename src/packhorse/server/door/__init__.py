"""Who may come in: tokens, sessions, Host and Origin, and what becomes of wrong tokens."""
