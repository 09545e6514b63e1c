"""Pages to look at: what a run did, and what a model says of each token of some rows."""
