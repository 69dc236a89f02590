"""torch modules: tracing, lowering rules, and torch as the runtime."""
