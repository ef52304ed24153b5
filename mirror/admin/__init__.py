"""The admin address: API, readiness, webhooks."""
