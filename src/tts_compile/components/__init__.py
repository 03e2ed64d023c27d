"""Components of a model, one room each, and the parts that they share."""
