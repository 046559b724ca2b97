"""What is handed in, checked before anything is changed: models, example inputs, data, names; and how messages speak of it."""
