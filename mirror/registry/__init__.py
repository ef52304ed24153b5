"""The registry address: routing and responses of the OCI distribution API."""
