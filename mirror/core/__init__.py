"""Pure rules: values, grammars, decisions. No event loop, no network, no files, no clock."""
