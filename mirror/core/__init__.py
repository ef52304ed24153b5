"""Pure rules of the mirror: values, grammars, decisions. No event loop, no network, no files, no clock."""
