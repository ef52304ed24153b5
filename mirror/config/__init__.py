"""The configuration: the model of mirror.yaml, the types of its values, and where it is read from."""
