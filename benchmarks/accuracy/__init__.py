"""How much is learnt: runs that differ in one thing, judged by the same evaluation."""
