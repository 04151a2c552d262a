"""/v1: what clients made for OpenAI's HTTP interface ask of a causal model, so that they work here unchanged."""
