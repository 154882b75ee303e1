"""One command a subject, each against a peer in the same run where there is one; results of full runs in ``results/``."""
