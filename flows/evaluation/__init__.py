"""`rhumb evaluate`: the papers' tables and figures, measured again, with every rival in the same harness."""
