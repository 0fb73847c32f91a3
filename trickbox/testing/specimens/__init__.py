"""The model classes of the zoo, by hand and small, spelled in the ways in which people spell them.

plain.py           chains of layers without joins
residual.py        convolutional nets whose blocks add their input
concatenating.py   convolutional nets that join by concatenation
attention.py       attention, torch's own and by hand, and mixers
language.py        language models and a text encoder
other.py           recurrent and text models, shared layers, several inputs, outputs or branches
"""
