"""Whether a dispatch holds for all loads of a box: an enclosure of all power flows, attacks, branch and bound, outages."""
