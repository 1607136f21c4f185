"""Tools other people run over our files: a table of what is still right afterwards."""
