"""Models held against their test vectors, in one runtime or many."""
