"""Rules on what the loads and saves of a traced run did."""
