"""The auth role: people, their sessions and API keys. `credentials` judges them; `role` says what serves what."""
