"""Run records, their store, and the tables made of them."""
