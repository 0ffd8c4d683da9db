"""How chains run: in groups, in legs between which their state is plain data, here or elsewhere."""
