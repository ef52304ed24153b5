"""Listening: accepting connections within bounds."""
