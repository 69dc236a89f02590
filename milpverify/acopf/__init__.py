"""AC optimal power flow: questions about a power network, answered with proofs."""
