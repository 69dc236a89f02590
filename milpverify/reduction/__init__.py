"""What a problem's rows say before its network is looked at: contradictions, inputs that equations fix, narrower boxes."""
