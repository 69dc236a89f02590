"""Operating points: found, judged, run through a power flow, and proved to have an exact solution beside them."""
