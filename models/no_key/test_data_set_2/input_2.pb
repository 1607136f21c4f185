	B
query_maskJ