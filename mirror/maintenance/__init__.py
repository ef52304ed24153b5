"""What happens to the store beside pulls."""
