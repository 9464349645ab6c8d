"""What a suite asks of a model: head, collation, loss and prediction."""
