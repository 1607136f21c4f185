"""How the score matrix is walked: one module for each value of `schedule=`."""
