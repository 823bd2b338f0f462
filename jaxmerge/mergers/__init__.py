"""Rules, spaces, mergers and calibrations: a method a file, maths only."""
