"""Learned proxies of optimal power flow: what they predict, and what holds in the power flow after their set points."""
