"""What schemathesis sends as the body of a type that it does not know; loaded by it (SCHEMATHESIS_HOOKS)."""

import schemathesis
from hypothesis import strategies

schemathesis.openapi.media_type("application/x-tar", strategies.binary(max_size=2048))
