"""The admin address: API, health, metrics, webhooks."""
