"""Ways of finetuning. A method attaches to a model and says which parameters train; the training loop knows no more."""
