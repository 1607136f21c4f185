	B
value_maskJ